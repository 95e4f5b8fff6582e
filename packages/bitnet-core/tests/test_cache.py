from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bitnet_core.cache import CachePages, PagedCache
from bitnet_core.errors import OutOfMemory
from bitnet_core.memory import Pool
from bitnet_core.pages import Pages


def make(tokens: int = 4, limit: int | None = None) -> CachePages:
    return CachePages(Pages(Pool(limit, name="test"), (tokens,), np.float32, pages_per_slab=8), tokens)


def append(cache: PagedCache, values: list[int]) -> None:
    """Write values at the next positions, as a backend writes keys."""
    first = cache.length
    cache.extend(len(values))
    size = cache.owner.tokens
    for at, value in enumerate(values, first):
        cache.owner.pages.array(cache.table[at // size])[at % size] = value


def held(cache: PagedCache) -> list[int]:
    size = cache.owner.tokens
    return [int(cache.owner.pages.array(cache.table[at // size])[at % size]) for at in range(cache.length)]


def test_a_fork_shares_pages_until_one_writes() -> None:
    caches = make()
    parent = caches.new()
    append(parent, [1, 2, 3, 4, 5, 6])
    child = parent.fork()
    assert caches.pages.used == 2
    append(child, [70])
    assert caches.pages.used == 3
    append(parent, [80])
    assert caches.pages.used == 3
    assert held(parent) == [1, 2, 3, 4, 5, 6, 80]
    assert held(child) == [1, 2, 3, 4, 5, 6, 70]


def test_a_full_page_is_never_copied() -> None:
    caches = make()
    parent = caches.new()
    append(parent, [1, 2, 3, 4])
    child = parent.fork()
    append(child, [5])
    assert caches.pages.used == 2


def test_out_of_memory_changes_nothing() -> None:
    caches = make(tokens=1024, limit=8 * 4096)
    cache = caches.new()
    append(cache, [1] * 5000)
    before = caches.pages.used
    with pytest.raises(OutOfMemory):
        cache.extend(100_000)
    assert cache.length == 5000
    assert caches.pages.used == before


def test_a_closed_cache_is_empty_and_refuses_everything() -> None:
    caches = make()
    cache = caches.new()
    append(cache, [1, 2, 3])
    cache.close()
    cache.close()
    assert cache.length == 0
    assert caches.pages.used == 0
    for act in (lambda: cache.extend(1), cache.fork, lambda: cache.truncate(0)):
        with pytest.raises(ValueError, match="the cache is closed"):
            act()


def test_lengths_that_are_not_held_are_refused() -> None:
    cache = make().new()
    append(cache, [1, 2, 3])
    for length in (-1, 4):
        with pytest.raises(ValueError, match=f"expected a length from 0 to 3, which the cache holds, got {length}"):
            cache.fork(length)
        with pytest.raises(ValueError, match="expected a length from 0 to 3"):
            cache.truncate(length)


def test_a_cache_that_is_dropped_gives_its_pages_to_the_next_one() -> None:
    caches = make()
    cache = caches.new()
    append(cache, list(range(32)))
    assert caches.pages.used == 8
    del cache
    gc.collect()
    other = caches.new()
    append(other, [1])
    assert caches.pages.used == 1


class ForksAgainstLists(RuleBasedStateMachine):
    """Any sequence of operations leaves each cache with what a plain list would hold, and leaks no page."""

    def __init__(self) -> None:
        super().__init__()
        self.caches = make()
        self.pairs: list[tuple[PagedCache, list[int]]] = []
        self.next = 0

    @rule()
    def new(self) -> None:
        self.pairs.append((self.caches.new(), []))

    @rule(which=st.integers(0, 20), count=st.integers(1, 11))
    def append(self, which: int, count: int) -> None:
        if self.pairs:
            cache, values = self.pairs[which % len(self.pairs)]
            more = list(range(self.next, self.next + count))
            self.next += count
            append(cache, more)
            values += more

    @rule(which=st.integers(0, 20), share=st.floats(0, 1))
    def fork(self, which: int, share: float) -> None:
        if self.pairs:
            cache, values = self.pairs[which % len(self.pairs)]
            length = round(share * len(values))
            self.pairs.append((cache.fork(length), values[:length]))

    @rule(which=st.integers(0, 20), share=st.floats(0, 1))
    def truncate(self, which: int, share: float) -> None:
        if self.pairs:
            cache, values = self.pairs[which % len(self.pairs)]
            del values[round(share * len(values)) :]
            cache.truncate(len(values))

    @rule(which=st.integers(0, 20))
    def close(self, which: int) -> None:
        if self.pairs:
            cache, _ = self.pairs.pop(which % len(self.pairs))
            cache.close()

    @invariant()
    def each_holds_its_list(self) -> None:
        for cache, values in self.pairs:
            assert held(cache) == values
        assert self.caches.pages.used == len({page for cache, _ in self.pairs for page in cache.table})


TestForksAgainstLists = ForksAgainstLists.TestCase
TestForksAgainstLists.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
