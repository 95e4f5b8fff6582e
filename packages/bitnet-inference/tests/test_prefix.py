"""Prefixes are found by what they hold, shared only by those who may, and dropped the longest unused first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import reference
from bitnet_core.decoder import generate
from bitnet_core.memory import Pressure
from bitnet_core.model import Adapter, Array, Step
from bitnet_core.testing import random_model, some_tokens, tiny_spec
from bitnet_inference.engine import Engine
from bitnet_inference.prefix import Prefixes, Scope
from bitnet_inference.request import Request
from bitnet_inference.settings import Sampling

SPEC = tiny_spec(hidden_size=64, ffn_size=64, head_size=16, context=256)
MODEL = random_model(SPEC)
MINE = Scope(b"", None)


class Held:
    """A cache that only counts."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.closed = False

    def close(self) -> None:
        self.closed = True


def keep(prefixes: Prefixes, tokens: np.ndarray, scope: Scope = MINE) -> Held:
    cache: Any = Held(len(tokens))
    prefixes.keep(scope, tokens, cache)
    return cache


def test_the_longest_common_beginning_is_found() -> None:
    prefixes = Prefixes()
    text = some_tokens(SPEC, 100)
    other = text.copy()
    other[50:] += 1
    first, second = keep(prefixes, text[:80]), keep(prefixes, other[:90])
    assert prefixes.find(MINE, text).ready == 80
    found = prefixes.find(MINE, other)
    assert found.entry is not None
    assert (found.ready, found.entry.cache) == (90, second)
    assert prefixes.find(MINE, text[:60]).ready == 60
    assert prefixes.find(MINE, np.concatenate([text[:53], other[:20]])).ready == 53
    assert prefixes.find(MINE, text[1:]).entry is None
    assert not first.closed


def test_nobody_else_s_prefix_is_found() -> None:
    prefixes, text = Prefixes(), some_tokens(SPEC, 100)
    adapter = Adapter("low", {})
    for scope in (MINE, Scope(b"other", None), Scope(b"", adapter)):
        assert prefixes.find(scope, text).entry is None
        keep(prefixes, text, scope)
        assert prefixes.find(scope, text).ready == 100
    assert prefixes.find(Scope(b"", Adapter("low", {})), text).entry is None
    prefixes.forget(adapter)
    assert len(prefixes) == 2


def test_keys_that_fall_together_find_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_inference.prefix._keys", lambda _, tokens: list(range(len(tokens) // 16)))
    prefixes, text, other = Prefixes(), some_tokens(SPEC, 64), some_tokens(SPEC, 64, seed=9)
    keep(prefixes, text)
    keep(prefixes, other, Scope(b"other", None))
    assert prefixes.find(MINE, other).entry is None
    assert prefixes.find(MINE, text).ready == 64


def test_a_text_takes_the_place_of_its_own_beginning() -> None:
    prefixes, text = Prefixes(), some_tokens(SPEC, 100)
    short, long, again = keep(prefixes, text[:40]), keep(prefixes, text[:90]), keep(prefixes, text[:60])
    assert (short.closed, long.closed, again.closed) == (True, False, True)
    assert len(prefixes) == 1
    assert keep(prefixes, text[:10]).closed  # too short to be worth a fork


def test_the_least_recently_used_goes_first() -> None:
    prefixes = Prefixes()
    texts = [some_tokens(SPEC, 40, seed=seed) for seed in range(3)]
    caches = [keep(prefixes, text) for text in texts]
    prefixes.find(MINE, texts[0])
    prefixes.evict()
    assert [cache.closed for cache in caches] == [False, True, False]
    prefixes.clear()
    assert all(cache.closed for cache in caches)
    assert not prefixes.evict()
    assert not prefixes._blocks
    assert not prefixes._ends


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 70), st.integers(0, 70), st.booleans()), max_size=20))
@settings(deadline=None, max_examples=60, database=None)
def test_what_is_found_is_always_a_beginning(operations: list[tuple[int, int, int, bool]]) -> None:
    prefixes, roots = Prefixes(), [some_tokens(SPEC, 80, seed=seed) for seed in range(2)]
    for root, cut, turn, drop in operations:
        text = np.concatenate([roots[root % 2][:cut], roots[1 - root % 2][:turn]])
        found = prefixes.find(MINE, text)
        if found.entry is not None:
            assert np.array_equal(found.entry.tokens[: found.ready], text[: found.ready])
            assert not found.entry.cache.closed  # type: ignore[attr-defined]
        if drop:
            prefixes.evict()
        else:
            keep(prefixes, text)
            if len(text) >= 16:
                assert prefixes.find(MINE, text).ready == len(text)


class Counting:
    """A runner that counts the tokens it is given."""

    def __init__(self) -> None:
        self._runner = reference.load(MODEL)
        self.tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, steps: list[Step]) -> list[Array | None]:
        self.tokens += sum(len(step.tokens) for step in steps)
        return self._runner.forward(steps)


def opened(runner: Any, **options: Any) -> Engine:
    return Engine(runner, pressure=lambda: Pressure(100, 0, 100, 0, "none"), **options)


def ask(prompt: np.ndarray, count: int = 3, **options: Any) -> Request:
    return Request(prompt=prompt, sampling=Sampling(temperature=0.0, max_tokens=count), drafts="off", **options)


def test_a_system_prompt_is_computed_once_for_fifty_who_come_together() -> None:
    system = some_tokens(SPEC, 160)
    prompts = [np.concatenate([system, some_tokens(SPEC, 8, seed=seed)]) for seed in range(50)]
    runner = Counting()
    expected = [tuple(generate(reference.load(MODEL), prompt, count=3)) for prompt in prompts[:5]]
    with opened(runner, max_sequences=50, step_tokens=64) as engine:
        tickets = [engine.submit(ask(prompt)) for prompt in prompts]
        results = [ticket.result(60) for ticket in tickets]
    assert [result.outputs[0].tokens for result in results[:5]] == expected
    # Each has its own eight, and two tokens that it said; a fork begins at a token, not at a page.
    assert runner.tokens == 160 + 50 * (8 + 2)
    assert sorted(result.usage.cached_tokens for result in results)[:2] == [0, 160]


def test_the_next_turn_of_a_chat_computes_only_what_is_new() -> None:
    runner = Counting()
    with opened(runner) as engine:
        text = some_tokens(SPEC, 50)
        for _ in range(3):
            result = engine.submit(ask(text, 10)).result(60)
            text = np.concatenate([text, result.outputs[0].tokens, some_tokens(SPEC, 5)]).astype(np.int32)
        assert result.usage.cached_tokens == 50 + 2 * 15 - 5 - 1
    assert runner.tokens == 50 + 9 + 2 * (1 + 5 + 9)


@pytest.mark.parametrize("sharing", [True, False])
def test_sharing_changes_no_token(sharing: bool) -> None:
    root = some_tokens(SPEC, 90)
    prompts = [np.concatenate([root[:cut], some_tokens(SPEC, 4, seed=cut)]) for cut in (16, 31, 33, 64, 89)]
    expected = [tuple(generate(reference.load(MODEL), prompt, count=6)) for prompt in prompts]
    with opened(Counting(), prefix_cache=sharing, max_sequences=2) as engine:
        for _ in range(2):
            tickets = [engine.submit(ask(prompt, 6)) for prompt in prompts]
            assert [ticket.result(60).outputs[0].tokens for ticket in tickets] == expected


def test_tenants_do_not_see_each_other_s_prefixes() -> None:
    text = some_tokens(SPEC, 90)
    with opened(Counting()) as engine:
        cached = [
            engine.submit(ask(text, tenant=tenant)).result(60).usage.cached_tokens for tenant in (b"a", b"b", b"a")
        ]
    assert cached == [0, 0, 89]


def test_who_waits_for_a_prefix_goes_on_when_its_maker_is_cancelled() -> None:
    text = some_tokens(SPEC, 120)
    with opened(Counting(), step_tokens=8) as engine:
        maker = engine.submit(ask(text))
        waiter = engine.submit(ask(np.concatenate([text, text[:4]])))
        maker.cancel()
        expected = tuple(generate(reference.load(MODEL), np.concatenate([text, text[:4]]), count=3))
        assert waiter.result(60).outputs[0].tokens == expected
