"""Drafts change how soon tokens come, and never which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import reference
from bitnet_core.memory import Pressure
from bitnet_core.model import Array, Step
from bitnet_core.testing import random_model, some_tokens, tiny_spec
from bitnet_inference.engine import Engine
from bitnet_inference.request import Request
from bitnet_inference.sampling import Sampler
from bitnet_inference.settings import Sampling
from bitnet_inference.speculation import Cost, Lookup

SPEC = tiny_spec(hidden_size=32, ffn_size=32, heads=2, kv_heads=1, head_size=16, layers=1, vocab_size=24, context=256)
MODEL = random_model(SPEC)
OTHER = random_model(SPEC, seed=5)


class Counting:
    """A runner that counts its steps and their tokens."""

    def __init__(self, model: Any = MODEL) -> None:
        self._runner = reference.load(model)
        self.steps = self.tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, steps: list[Step]) -> list[Array | None]:
        self.steps += 1
        self.tokens += sum(len(step.tokens) for step in steps)
        return self._runner.forward(steps)


def opened(runner: Any, **options: Any) -> Engine:
    return Engine(runner, pressure=lambda: Pressure(100, 0, 100, 0, "none"), **options)


class Vowels:
    """A constraint: even tokens and odd ones in turn."""

    def __init__(self) -> None:
        self._odd = False

    def mask(self) -> np.ndarray:
        return np.array([0x55555555 << 1 if self._odd else 0x55555555], np.uint32).view(np.int32)

    def accept(self, token: int) -> None:
        assert token % 2 == self._odd
        self._odd = not self._odd

    @property
    def finished(self) -> bool:
        return False


def alone(
    prompt: np.ndarray, sampling: Sampling, constraint: Any = None, eos: frozenset[int] = frozenset()
) -> list[int]:
    """What one sampler says, step by step."""
    runner = reference.load(MODEL)
    cache, tokens, found = runner.new_cache(), prompt, []
    sampler = Sampler(sampling, prompt, SPEC.vocab_size, eos, constraint=constraint)
    while len(found) < (sampling.max_tokens or 0):
        (logits,) = runner.forward([Step(tokens, cache)])
        assert logits is not None
        found.append(sampler.choose(logits).token)
        sampler.accept(found[-1])
        if found[-1] in sampler.stops:
            break
        tokens = np.array(found[-1:], np.int32)
    return found


WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 30.0},
    {"temperature": 15.0, "top_k": 5},
    {"temperature": 15.0, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 5.0, "typical_p": 0.8},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 1.0},
    {"temperature": 5.0, "dry_multiplier": 2.0},
    {"temperature": 0.0, "min_tokens": 20, "stop_tokens": frozenset({3, 5, 7, 11})},
    {"temperature": 10.0, "logit_bias": {4: 10.0, 9: -100.0}},
    {"temperature": 5.0, "logprobs": 3},
]


@pytest.mark.parametrize("draft", [None, MODEL, OTHER], ids=["lookup", "same model", "other model"])
@pytest.mark.parametrize("mode", ["on", "auto"])
def test_tokens_are_the_same_with_drafts_and_without(draft: Any, mode: Any) -> None:
    smaller = None if draft is None else reference.load(draft)
    text = np.tile(some_tokens(SPEC, 9), 4)
    with opened(Counting(), draft=smaller) as engine:
        tickets, expected = [], []
        for seed, way in enumerate(WAYS):
            sampling = Sampling(max_tokens=24, seed=seed, **way)
            prompt = text[: 9 + seed]
            tickets.append(engine.submit(Request(prompt=prompt, sampling=sampling, drafts=mode)))
            expected.append(alone(prompt, sampling))
        assert [list(ticket.result(60).outputs[0].tokens) for ticket in tickets] == expected
        assert engine.stats().drafted > 0
    assert smaller is None or smaller.cache_stats().used == 0


@pytest.mark.parametrize("temperature", [0.0, 20.0])
def test_two_hundred_seeds_draw_the_same_with_drafts(temperature: float) -> None:
    text = np.tile(some_tokens(SPEC, 5), 3)
    with opened(Counting()) as engine:
        for first in range(0, 200, 40):
            samplings = [Sampling(temperature=temperature, seed=first + seed, max_tokens=12) for seed in range(40)]
            plain = [engine.submit(Request(prompt=text, sampling=each, drafts="off")) for each in samplings]
            drafted = [engine.submit(Request(prompt=text, sampling=each, drafts="on")) for each in samplings]
            found = [[ticket.result(60).outputs[0].tokens for ticket in tickets] for tickets in (plain, drafted)]
            assert found[0] == found[1]
        assert engine.stats().accepted > 0


@pytest.mark.parametrize("draft", [None, MODEL])
def test_a_constraint_holds_with_drafts(draft: Any) -> None:
    sampling = Sampling(temperature=10.0, seed=3, max_tokens=40)
    text = np.tile(np.array([2, 3, 4, 7], np.int32), 5)
    smaller = None if draft is None else reference.load(draft)
    with opened(Counting(), draft=smaller) as engine:
        request = Request(prompt=text, sampling=sampling, constraint=Vowels, drafts="on")
        found = engine.submit(request).result(60).outputs[0].tokens
    assert list(found) == alone(text, sampling, Vowels())


def test_a_text_that_ends_within_its_drafts_ends_there() -> None:
    sampling = Sampling(temperature=0.0, max_tokens=100)
    text = some_tokens(SPEC, 20)
    whole = alone(text, sampling)
    with opened(Counting(), draft=reference.load(MODEL)) as engine:
        for last in set(whole):
            request = Request(prompt=text, sampling=sampling, eos=frozenset({last}), drafts="on")
            output = engine.submit(request).result(60).outputs[0]
            assert list(output.tokens) == whole[: whole.index(last) + 1]
            assert output.finish_reason == "stop"


def test_drafts_that_are_right_save_steps() -> None:
    text, sampling = some_tokens(SPEC, 20), Sampling(temperature=10.0, seed=0, max_tokens=90)
    steps = {}
    for mode in ("off", "on"):
        runner = Counting()
        with opened(runner, draft=reference.load(MODEL)) as engine:
            result = engine.submit(Request(prompt=text, sampling=sampling, drafts=mode)).result(60)
            assert list(result.outputs[0].tokens) == alone(text, sampling)
        steps[mode] = runner.steps
    assert steps["off"] == 90
    assert steps["on"] < 60


class Ticking:
    """A clock on which a step takes as long as it has tokens, and a millisecond."""

    def __init__(self, runner: Counting, each: float) -> None:
        self._runner = runner
        self._each = each

    def __call__(self) -> float:
        return self._runner.steps * 1e-3 + self._runner.tokens * self._each


def test_drafts_of_the_same_model_are_all_right() -> None:
    runner, sampling = Counting(), Sampling(temperature=0.0, repetition_penalty=1.0001, max_tokens=90)
    with opened(runner, draft=reference.load(MODEL)) as engine:
        request = Request(prompt=some_tokens(SPEC, 20), sampling=sampling, drafts="on")
        usage = engine.submit(request).result(60).usage
    assert usage.drafted_tokens - usage.accepted_tokens < 10  # those that were looked up
    assert runner.steps < 20


@pytest.mark.parametrize(("each", "most"), [(1.0, 30), (1e-6, 10_000)])
def test_drafts_are_left_off_where_they_do_not_pay(each: float, most: int) -> None:
    runner = Counting()
    sampling = Sampling(temperature=50.0, seed=1, max_tokens=200)
    # Hot enough that what stood there before says little about what comes.
    with opened(runner, clock=Ticking(runner, each)) as engine:
        usage = engine.submit(Request(prompt=some_tokens(SPEC, 40), sampling=sampling)).result(60).usage
    assert 0 < usage.drafted_tokens <= most
    if most > 1000:
        assert usage.drafted_tokens > 40


def test_a_draft_model_that_fails_is_done_without() -> None:
    class Broken(Counting):
        def forward(self, steps: list[Step]) -> list[Array | None]:
            if self.steps > 3:
                raise RuntimeError("broken")
            return super().forward(steps)

    broken, text, sampling = Broken(), some_tokens(SPEC, 20), Sampling(temperature=0.0, max_tokens=60)
    with opened(Counting(), draft=broken) as engine:
        found = engine.submit(Request(prompt=text, sampling=sampling, drafts="on")).result(60)
        assert list(found.outputs[0].tokens) == alone(text, sampling)
    assert broken.cache_stats().used == 0


def test_a_draft_model_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="draft: expected a model of 24 tokens as the other, got 96"):
        Engine(reference.load(MODEL), draft=reference.load(random_model(tiny_spec())))


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
@settings(deadline=None, database=None)
def test_what_is_looked_up_followed_the_same_tokens_before(tokens: list[int], most: int) -> None:
    lookup = Lookup()
    lookup.extend(tokens[:10])
    lookup.extend(tokens[10:])
    found = lookup.propose(most)
    assert len(found) <= most
    places = [at for at in range(3, len(tokens)) if tokens[at - 2 : at] == tokens[-2:]]
    # What goes past the end goes on as a repetition does.
    followed = [(tokens + tokens[at:] * most)[at : at + most] for at in places]
    assert found in followed if places else not found


def test_the_cost_of_a_row_is_learnt() -> None:
    cost = Cost()
    assert cost.share(1) == pytest.approx(0.25)
    for rows in [1, 2, 3, 5, 1, 4] * 20:
        cost.add(rows, 0.010 + 0.002 * rows)
    assert cost.share(1) == pytest.approx(0.002 / 0.012, rel=1e-3)
    assert cost.share(4) == pytest.approx(0.002 / 0.018, rel=1e-3)
    assert cost.share(1, 0.006) == pytest.approx(0.008 / 0.012, rel=1e-3)
