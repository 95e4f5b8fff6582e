"""Pages have owners, are reused, and go back to their pool."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bitnet_core.errors import OutOfMemory
from bitnet_core.memory import PAGE, Pool
from bitnet_core.pages import Pages


def test_pages_come_from_slabs_in_order() -> None:
    pages = Pages(Pool(), (2, 8), np.float32, pages_per_slab=3)
    assert [pages.take() for _ in range(4)] == [0, 1, 2, 3]
    assert (pages.used, pages.free) == (4, 2)
    slabs = pages.slabs
    assert [slab.shape for slab in slabs if slab is not None] == [(3, 2, 8), (3, 2, 8)]
    pages.array(3)[...] = 5
    assert slabs[1] is not None
    assert (slabs[1][0] == 5).all()
    assert not slabs[1][1:].any()


def test_the_page_freed_last_is_taken_first() -> None:
    pages = Pages(Pool(), (8,), np.int8, pages_per_slab=8)
    taken = [pages.take() for _ in range(5)]
    pages.drop(taken[1])
    pages.drop(taken[3])
    assert [pages.take(), pages.take(), pages.take()] == [3, 1, 5]


def test_a_page_is_free_when_its_last_owner_drops_it() -> None:
    pages = Pages(Pool(), (8,), np.int8)
    page = pages.take()
    assert pages.share(page) == page
    assert pages.refs(page) == 2
    pages.drop(page)
    assert (pages.refs(page), pages.used) == (1, 1)
    pages.drop(page)
    assert (pages.refs(page), pages.used) == (0, 0)


@pytest.mark.parametrize("verb", ["drop", "share", "array", "copy"])
@pytest.mark.parametrize("page", [0, 1, -1, 64, 1 << 40])
def test_a_page_without_an_owner_is_refused(verb: str, page: int) -> None:
    pages = Pages(Pool(), (8,), np.int8)
    pages.drop(pages.take())
    with pytest.raises(ValueError, match=f"page {page} has no owner: it was dropped already, or never taken"):
        getattr(pages, verb)(page)
    assert (pages.used, pages.free) == (0, 64)


def test_a_copy_has_the_contents_and_one_owner() -> None:
    pages = Pages(Pool(), (4,), np.float32)
    page = pages.take()
    pages.array(page)[...] = [1, 2, 3, 4]
    pages.share(page)
    fresh = pages.copy(page)
    pages.array(page)[0] = 9
    assert pages.array(fresh).tolist() == [1, 2, 3, 4]
    assert (pages.refs(page), pages.refs(fresh)) == (2, 1)


def test_trim_gives_back_the_slabs_that_nobody_uses() -> None:
    pool = Pool()
    pages = Pages(pool, (PAGE,), np.uint8, pages_per_slab=2)
    taken = [pages.take() for _ in range(6)]
    for page in taken[2:5]:
        pages.drop(page)
    assert pages.trim() == 1
    assert [slab is None for slab in pages.slabs] == [False, True, False]
    assert pool.stats().in_use == 4 * PAGE
    assert (pages.used, pages.free) == (3, 1)
    assert [pages.take() for _ in range(4)] == [4, 2, 3, 6]  # the free one, the slab that was given back, a new one


def test_a_full_pool_refuses_a_slab_and_changes_nothing() -> None:
    pages = Pages(Pool(4 * PAGE), (PAGE,), np.uint8, pages_per_slab=4)
    taken = [pages.take() for _ in range(4)]
    with pytest.raises(OutOfMemory):
        pages.take()
    with pytest.raises(OutOfMemory):
        pages.copy(taken[0])
    assert (pages.used, pages.free, len(pages.slabs)) == (4, 0, 1)
    pages.drop(taken[2])
    assert pages.take() == 2


def test_slabs_may_come_from_a_reservation() -> None:
    pool = Pool(8 * PAGE)
    room = pool.reserve(6 * PAGE)
    pages = Pages(room, (PAGE,), np.uint8, pages_per_slab=2)
    with pool.take(2 * PAGE, np.uint8):
        for _ in range(6):
            pages.take()
        assert room.left == 0
        with pytest.raises(OutOfMemory):
            pages.take()


def test_closing_returns_everything_once() -> None:
    pool = Pool()
    pages = Pages(pool, (PAGE,), np.uint8, pages_per_slab=2)
    page = pages.take()
    pages.close()
    pages.close()
    assert pool.stats().mapped == 0
    assert (pages.used, pages.free, pages.refs(page)) == (0, 0, 0)


def test_a_slab_without_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one page, got 0"):
        Pages(Pool(), (8,), np.int8, pages_per_slab=0)


class PagesMachine(RuleBasedStateMachine):
    """Any order of takes, shares, drops, copies and trims, against a dictionary of owners and contents."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(12 * PAGE)
        self.pages = Pages(self.pool, (PAGE // 8,), np.int64, pages_per_slab=3)
        self.owners: dict[int, int] = {}
        self.contents: dict[int, int] = {}
        self.stamp = 0

    def _pick(self, which: int) -> int | None:
        return sorted(self.owners)[which % len(self.owners)] if self.owners else None

    @rule()
    def take(self) -> None:
        try:
            page = self.pages.take()
        except OutOfMemory:
            assert len(self.owners) == 12
            return
        assert page not in self.owners
        self.stamp += 1
        self.pages.array(page).fill(self.stamp)
        self.owners[page], self.contents[page] = 1, self.stamp

    @rule(which=st.integers(0, 20))
    def share(self, which: int) -> None:
        if (page := self._pick(which)) is not None:
            self.pages.share(page)
            self.owners[page] += 1

    @rule(which=st.integers(0, 20))
    def copy(self, which: int) -> None:
        if (page := self._pick(which)) is not None and len(self.owners) < 12:
            fresh = self.pages.copy(page)
            assert fresh not in self.owners
            self.owners[fresh], self.contents[fresh] = 1, self.contents[page]

    @rule(which=st.integers(0, 20))
    def drop(self, which: int) -> None:
        if (page := self._pick(which)) is not None:
            self.pages.drop(page)
            self.owners[page] -= 1
            if not self.owners[page]:
                del self.owners[page]

    @rule()
    def trim(self) -> None:
        self.pages.trim()
        assert self.pages.free < 3 * len({page // 3 for page in self.owners}) or not self.owners

    @invariant()
    def pages_are_as_the_dictionary_has_them(self) -> None:
        assert self.pages.used == len(self.owners)
        assert all(self.pages.refs(page) == count for page, count in self.owners.items())
        assert all((self.pages.array(page) == self.contents[page]).all() for page in self.owners)
        held = sum(slab is not None for slab in self.pages.slabs)
        assert self.pages.used + self.pages.free == 3 * held
        assert self.pool.stats().in_use == 3 * held * PAGE


TestPagesMachine = PagesMachine.TestCase
TestPagesMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def restless() -> Iterator[None]:
    """Change threads all the time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def _churn(pages: Pages, seed: int, failures: list[str]) -> None:
    choice = random.Random(seed)
    mine: list[int] = []
    for _ in range(1500):
        action = choice.random()
        if action < 0.2:
            pages.trim()
        elif action < 0.5 or not mine:
            try:
                page = pages.take()
            except OutOfMemory:
                continue
            pages.array(page).fill(seed)
            mine.append(page)
        elif action < 0.6:
            mine.append(pages.share(choice.choice(mine)))
        else:
            page = mine.pop(choice.randrange(len(mine)))
            if (pages.array(page) != seed).any():
                failures.append(f"page {page} was overwritten")
            pages.drop(page)
    for page in mine:
        pages.drop(page)


def test_threads_keep_the_count(restless: None) -> None:
    pool = Pool(40 * PAGE)
    pages = Pages(pool, (PAGE,), np.uint8, pages_per_slab=4)
    failures: list[str] = []
    threads = [threading.Thread(target=_churn, args=(pages, seed, failures)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert failures == []
    assert pages.used == 0
    pages.trim()
    assert (pages.free, pool.stats().mapped) == (0, 0)
