"""The next token: checked against plain definitions in float64, which sort and know no shortcuts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.model import Reach
from bitnet_core.tokenizer import Tokenizer
from bitnet_inference import truncation
from bitnet_inference.penalties import breaker_tokens
from bitnet_inference.sampling import Choice, Sampler, SamplingError, score
from bitnet_inference.settings import Sampling

Logits = npt.NDArray[np.float32]
NONE = np.empty(0, np.int32)
SEEN = 1e-30  # a share that float32 still has
MANY = settings(max_examples=150, deadline=None)


def sampler(
    size: int, *, prompt: Any = (), eos: Any = (), index: int = 0, constraint: Any = None, **fields: Any
) -> Sampler:
    return Sampler(
        Sampling(**{"seed": 7, **fields}),
        np.array(prompt, np.int32),
        size,
        frozenset(eos),
        index=index,
        constraint=constraint,
    )


def random_logits(seed: int, size: int, spread: float = 2.0) -> Logits:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


class Allowed:
    """A constraint that allows the same tokens at every place."""

    def __init__(self, size: int, tokens: Any, *, finished: bool = False) -> None:
        bits = np.zeros(-(-size // 32) * 32, np.uint8)
        bits[list(tokens)] = 1
        self.bits = np.packbits(bits, bitorder="little").view(np.int32)
        self.accepted: list[int] = []
        self.finished = finished

    def mask(self) -> npt.NDArray[np.int32]:
        return self.bits

    def accept(self, token: int) -> None:
        self.accepted.append(token)


# --- the plain definitions


def plain_penalties(
    logits: Logits, sampling: Sampling, prompt: list[int], output: list[int]
) -> npt.NDArray[np.float64]:
    """Everything that comes before the temperature."""
    changed = logits.astype(np.float64)
    for token, bias in sampling.logit_bias.items():
        changed[token] = -np.inf if bias == -100 else changed[token] + bias
    window = sampling.penalty_window or len(prompt) + len(output)
    everything = (prompt + output)[-window:]
    written = output[-window:]
    for token in set(everything):
        rate = sampling.repetition_penalty
        changed[token] = changed[token] / rate if changed[token] > 0 else changed[token] * rate
    for token in set(written):
        changed[token] -= sampling.presence_penalty + sampling.frequency_penalty * written.count(token)
    breakers = sampling.dry_breakers or frozenset()
    costs: dict[int, float] = {}
    for place in range(1, len(everything)):
        length = 0
        while (
            length < place
            and everything[place - 1 - length] == everything[len(everything) - 1 - length]
            and everything[place - 1 - length] not in breakers
        ):
            length += 1
        if length >= sampling.dry_allowed_length and sampling.dry_multiplier:
            cost = sampling.dry_multiplier * sampling.dry_base ** min(64, length - sampling.dry_allowed_length)
            costs[everything[place]] = max(costs.get(everything[place], 0), cost)
    for token, cost in costs.items():
        changed[token] -= min(cost, 1e30)
    return changed


def plain_pool(logits: npt.NDArray[np.float64], sampling: Sampling) -> dict[int, float]:
    """The tokens that are left, with their probabilities."""
    left = {token: math.exp((logit - logits.max()) / sampling.temperature) for token, logit in enumerate(logits)}
    if sampling.top_k:
        border = sorted(left.values(), reverse=True)[: sampling.top_k][-1]
        left = {token: weight for token, weight in left.items() if weight >= border}
    if sampling.typical_p < 1:
        total = sum(left.values())
        entropy = -sum(weight / total * math.log(weight / total) for weight in left.values() if weight)
        distances = {token: abs(-math.log(weight / total) - entropy) for token, weight in left.items() if weight}
        left = fewest(left, distances, sampling.typical_p)
    if sampling.top_p < 1:
        left = fewest(left, {token: -weight for token, weight in left.items()}, sampling.top_p)
    best = max(left.values())
    left = {token: weight for token, weight in left.items() if weight >= sampling.min_p * best}
    total = sum(left.values())
    return {token: weight / total for token, weight in left.items() if weight / total > SEEN}


def fewest(weights: dict[int, float], keys: dict[int, float], share: float) -> dict[int, float]:
    total, had, border = sum(weights.values()), 0.0, -math.inf
    for token in sorted(keys, key=keys.__getitem__):
        border = keys[token]
        had += weights[token]
        if had >= share * total:
            break
    return {token: weights[token] for token in keys if keys[token] <= border}


# --- strategies

sizes = st.integers(1, 400)
truncations = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.1, 0.7, 1.0, 3.0, 100.0]),
        "top_k": st.sampled_from([1, 2, 5, 40, 1000]),
        "top_p": st.sampled_from([0.0, 0.1, 0.55, 0.9, 0.999]),
        "min_p": st.sampled_from([0.001, 0.05, 0.3, 1.0]),
        "typical_p": st.sampled_from([0.0, 0.2, 0.95]),
    },
)
lowering = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([1.05, 1.3, 10.0]),
        "presence_penalty": st.sampled_from([0.2, 2.0]),
        "frequency_penalty": st.sampled_from([0.2, 2.0]),
        "penalty_window": st.sampled_from([1, 3, 10]),
        "dry_multiplier": st.sampled_from([0.8, 5.0]),
        "dry_allowed_length": st.sampled_from([1, 2, 3]),
        "dry_breakers": st.just(frozenset({2})),
        "logit_bias": st.sampled_from([{0: -3.0}, {0: -100.0}, {0: -1.0, 3: -50.0}]),
        "min_tokens": st.sampled_from([1, 4]),
    },
)
raising = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 0.95]),
        "presence_penalty": st.just(-2.0),
        "frequency_penalty": st.just(-0.3),
        "logit_bias": st.sampled_from([{0: 3.0}, {1: 100.0, 0: -5.0}]),
    },
)
few_tokens = st.lists(st.integers(0, 5), max_size=30)


# --- greedy


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=50))
@MANY
def test_greedy_takes_the_best_and_of_equals_the_first(values: list[float]) -> None:
    chosen = sampler(len(values), temperature=0).choose(np.array(values, np.float32))
    assert chosen == Choice(values.index(max(values)))


def test_a_temperature_near_zero_is_greedy() -> None:
    logits = random_logits(0, 1000)
    for temperature in (1e-300, 1e-9):
        assert sampler(1000, temperature=temperature).choose(logits).token == logits.argmax()


def test_logits_are_never_changed() -> None:
    logits = random_logits(1, 500)
    logits.setflags(write=False)
    every = sampler(
        500,
        prompt=[1, 2, 1, 2],
        repetition_penalty=1.3,
        presence_penalty=1,
        dry_multiplier=1,
        logit_bias={3: -1.0},
        top_k=9,
        top_p=0.9,
        typical_p=0.9,
        min_p=0.1,
        logprobs=5,
        processors=(lambda _tokens, given: np.negative(given, out=given),),
    )
    for _ in range(5):
        every.accept(every.choose(logits).token)


# --- draws


@given(st.integers(0, 2**32), sizes, truncations)
@MANY
def test_a_pool_is_what_the_definition_says(seed: int, size: int, fields: dict[str, Any]) -> None:
    logits = random_logits(seed, size)
    sampling = Sampling(**fields)
    pool = truncation.pool(logits, sampling)
    ids = np.arange(size) if pool.ids is None else pool.ids
    got = dict(zip(ids.tolist(), (pool.weights / pool.weights.sum(dtype=np.float64)).tolist(), strict=True))
    got = {token: share for token, share in got.items() if share > SEEN}
    want = plain_pool(logits.astype(np.float64), sampling)
    # At a border, rounding in float32 may move one token over: it must have been there within rounding.
    if got.keys() != want.keys():
        moved = plain_pool_borders(logits, fields)
        assert any(got.keys() == other.keys() for other in moved), (sorted(got), sorted(want))
    else:
        assert all(math.isclose(got[token], want[token], rel_tol=2e-4, abs_tol=1e-30) for token in got)


def plain_pool_borders(logits: Logits, fields: dict[str, Any]) -> list[dict[int, float]]:
    """The pools of settings that differ by what float32 cannot tell."""
    found = []
    for factor in (1 - 1e-5, 1 + 1e-5):
        near = {
            name: value if name in ("top_k", "temperature") else min(1.0, value * factor)
            for name, value in fields.items()
        }
        found.append(plain_pool(logits.astype(np.float64), Sampling(**near)))
        found += [
            plain_pool(logits.astype(np.float64), Sampling(**{**fields, name: near[name]}))
            for name in near.keys() & {"top_p", "min_p", "typical_p"}
        ]
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"typical_p": 0.7},
        {"top_k": 12, "top_p": 0.9, "min_p": 0.02, "temperature": 1.4},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [50, 3000])
def test_draws_are_as_frequent_as_the_definition_says(fields: dict[str, Any], size: int) -> None:
    """Chi-square over 20,000 draws of fixed seeds; expected counts under 20 are one class."""
    logits = random_logits(11, size)
    draws = 20_000
    pool = truncation.pool(logits, Sampling(**fields))
    counts = np.zeros(size)
    for position in range(draws):
        counts[pool.draw(truncation.uniform(5, 0, position))] += 1
    shares = np.zeros(size)
    for token, share in plain_pool(logits.astype(np.float64), Sampling(**fields)).items():
        shares[token] = share
    assert not counts[shares == 0].any()
    common = shares * draws >= 20
    expected = np.append(shares[common], shares[~common].sum()) * draws
    got = np.append(counts[common], counts[~common].sum())
    got, expected = got[expected > 0], expected[expected > 0]
    freedom = max(1, len(got) - 1)
    # Six standard deviations of the chi-square distribution above its mean.
    assert ((got - expected) ** 2 / expected).sum() < freedom + 6 * math.sqrt(2 * freedom)


def test_top_p_is_reached_when_the_sum_is_exactly_as_much() -> None:
    for weights, count in ((np.array([1, 0.5, 0.5]), 1), (np.repeat([1.0, 0.5], [128, 256]), 128)):
        pool = truncation._nucleus(truncation.Pool(None, weights.astype(np.float32)), 0.5)
        assert pool.ids is not None
        assert pool.ids.tolist() == list(range(count))


def test_a_draw_never_takes_what_has_no_weight() -> None:
    for size in (3, 700):
        weights = np.zeros(size, np.float32)
        weights[1] = 1e-30
        pool = truncation.Pool(None, weights)
        for point in (0.0, 0.5, 1 - 2**-53):
            assert pool.draw(point) == 1


def test_uniform_numbers_are_even_and_do_not_depend_on_each_other() -> None:
    rows = np.array([[truncation.uniform(seed, 0, position) for position in range(200)] for seed in range(200)])
    assert (rows >= 0).all()
    assert (rows < 1).all()
    counts = np.bincount((rows * 20).astype(int).ravel(), minlength=20)
    assert ((counts - 2000) ** 2 / 2000).sum() < 19 + 6 * math.sqrt(38)
    spread = 1 / math.sqrt(rows.size)
    for other in (np.roll(rows, 1, axis=0), np.roll(rows, 1, axis=1)):
        assert abs(np.corrcoef(rows.ravel(), other.ravel())[0, 1]) < 6 * spread
    by_index = [truncation.uniform(0, index, 0) for index in range(2000)]
    assert abs(np.mean(by_index) - 0.5) < 6 * math.sqrt(1 / 12 / 2000)


def test_seeds_that_differ_in_their_bits_draw_differently() -> None:
    drawn = {truncation.uniform(seed, 0, 0) for seed in (0, 1, -1, 2**63, -(2**63) + 1, 2**64 - 2, 12345)}
    assert len(drawn) == 7


def test_the_same_seed_gives_the_same_tokens_and_another_does_not() -> None:
    def run(**fields: Any) -> list[int]:
        one = sampler(2000, **fields)
        tokens = []
        for position in range(40):
            tokens.append(one.choose(random_logits(position, 2000)).token)
            one.accept(tokens[-1])
        return tokens

    assert run(seed=3) == run(seed=3)
    assert run(seed=3) != run(seed=4)
    assert run(seed=3) != run(seed=3, index=1)


def test_a_draw_depends_on_its_position_and_not_on_how_often_it_is_asked_for() -> None:
    logits = random_logits(3, 1000)
    one, other = sampler(1000), sampler(1000)
    for _ in range(20):
        for _ in range(3):
            one.choose(random_logits(99, 1000))
        token = one.choose(logits).token
        assert token == other.choose(logits).token
        one.accept(token)
        other.accept(token)


def test_without_a_seed_one_comes_from_the_system_and_can_be_read() -> None:
    one, other = sampler(1000, seed=None), sampler(1000, seed=None)
    assert one.seed != other.seed
    logits = random_logits(5, 1000)
    assert one.choose(logits) == sampler(1000, seed=one.seed).choose(logits)


# --- penalties


@given(st.integers(0, 2**32), lowering | raising, few_tokens, few_tokens)
@MANY
def test_penalties_are_what_the_definition_says(
    seed: int, fields: dict[str, Any], prompt: list[int], output: list[int]
) -> None:
    fields = {name: value for name, value in fields.items() if name != "min_tokens"}
    logits = random_logits(seed, 8)
    one = sampler(8, prompt=prompt, **fields)
    for token in output:
        one.accept(token)
    want = plain_penalties(logits, one.sampling, prompt, output)
    np.testing.assert_allclose(one._changed(logits), want, rtol=2e-5, atol=2e-5)


def test_long_histories_are_counted_right() -> None:
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(0, 300, 500).tolist(), rng.integers(0, 300, 500).tolist()
    fields: dict[str, Any] = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1}
    logits = random_logits(2, 300)
    for window in (None, 100, 700):
        one = sampler(300, prompt=prompt, penalty_window=window, dry_multiplier=1, dry_allowed_length=1, **fields)
        for token in output:
            one.accept(token)
        want = plain_penalties(logits, one.sampling, prompt, output)
        np.testing.assert_allclose(one._changed(logits), want, rtol=1e-5, atol=1e-5)


def test_the_same_history_costs_the_same_whether_it_was_prompt_or_output() -> None:
    history = [1, 2, 3] * 60
    fields: dict[str, Any] = {"dry_multiplier": 0.5, "dry_base": 1.01, "repetition_penalty": 1.1}
    logits = random_logits(4, 5)
    whole, halves = sampler(5, prompt=history, **fields), sampler(5, prompt=history[:50], **fields)
    for token in history[50:]:
        halves.accept(token)
    assert (whole._changed(logits) == halves._changed(logits)).all()


def test_dry_stops_a_loop_that_greedy_falls_into() -> None:
    logits = np.zeros((3, 3), np.float32)
    for last in range(3):
        logits[last, (last + 1) % 3] = 5.0  # always the next one
    loop, free = sampler(3, temperature=0), sampler(3, temperature=0, dry_multiplier=1.0)
    runs = []
    for one in (loop, free):
        tokens = [0]
        for _ in range(20):
            tokens.append(one.choose(logits[tokens[-1]]).token)
            one.accept(tokens[-1])
        runs.append(tokens)
    assert runs[0] == [0, 1, 2] * 7
    assert runs[1][:12] != runs[0][:12]


def test_breakers_are_the_tokens_with_the_usual_characters(data: Any) -> None:
    tokenizer = Tokenizer.from_folder(data / "tokenizers" / "llama3")
    assert tokenizer is not None
    breakers = breaker_tokens(tokenizer)
    for text, is_breaker in (("\n", True), (":", True), (" hello", False), ('"', True), ("a", False)):
        (token,) = tokenizer.encode(text, bos=False)
        assert (int(token) in breakers) == is_breaker
    assert set(tokenizer.special_tokens.values()) <= breakers


def test_a_bias_of_minus_100_forbids_a_token_however_good_it_is() -> None:
    assert sampler(2, temperature=0, logit_bias={0: -100.0}).choose(np.array([1e6, -1e6], np.float32)).token == 1


def test_tokens_that_end_a_text_do_not_come_before_the_fewest() -> None:
    one = sampler(4, eos=[2], stop_tokens=[3], min_tokens=2, temperature=0)
    logits = np.array([0, 1, 9, 8], np.float32)
    assert one.stops == {2, 3}
    tokens = []
    for _ in range(3):
        tokens.append(one.choose(logits).token)
        one.accept(tokens[-1])
    assert tokens == [1, 1, 2]


def test_ignoring_the_end_leaves_the_callers_own_stop_tokens() -> None:
    assert sampler(4, eos=[2], stop_tokens=[3], ignore_eos=True).stops == {3}


# --- reach


def hidden(logits: Logits, reach: Reach) -> Logits:
    """What a backend may give: all beyond reach are -inf, of equals at the border none."""
    kept = logits >= np.sort(logits)[::-1][min(reach.best, len(logits)) - 1]
    if reach.margin:
        kept |= logits.astype(np.float64) >= float(logits.max()) - reach.margin
    return np.where(kept, logits, np.float32(-np.inf))


@given(st.integers(0, 2**32), st.integers(1, 300), truncations, lowering | raising, few_tokens, st.integers(0, 4))
@settings(max_examples=500, deadline=None)
def test_what_is_beyond_reach_changes_no_choice(
    seed: int, size: int, fields: dict[str, Any], penalties: dict[str, Any], output: list[int], ahead: int
) -> None:
    size += 8
    rng = np.random.default_rng(seed)
    fields = {"temperature": [0.0, 1.0][seed % 2], **fields}
    one = sampler(size, prompt=output[:5], eos=[1, 5], **fields, **penalties)
    for token in output[5:]:
        one.accept(token)
    reach = one.reach(ahead)
    for _ in range(ahead + 1):
        # Few different values, so that there are equals; and penalized tokens are often among the best.
        logits = np.round(rng.standard_normal(size) * 2, 1 + seed % 3).astype(np.float32)
        logits[:8] += 3 * (seed % 2)
        shown = logits if reach is None else hidden(logits, reach)
        try:
            token = one.choose(logits).token
        except SamplingError:
            continue
        assert one.choose(shown).token == token
        one.accept(token)


@pytest.mark.parametrize(
    ("fields", "reach"),
    [
        ({"temperature": 0}, Reach(best=1)),
        ({"temperature": 0, "repetition_penalty": 1.1}, Reach(best=4)),
        ({"temperature": 0, "logit_bias": {5: -1.0, 6: -100.0}}, Reach(best=3)),
        ({"temperature": 0, "min_tokens": 1}, Reach(best=2)),
        ({"temperature": 0, "logit_bias": {5: 1.0}}, None),
        ({"temperature": 0, "presence_penalty": -0.1}, None),
        ({"temperature": 0, "logprobs": 0}, None),
        ({"top_k": 40, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9}, Reach(best=40)),
        ({"temperature": 0, "dry_multiplier": 1.0}, Reach(best=1)),
        ({"top_k": 100}, None),
        ({}, None),
        ({"top_p": 0.9}, None),
        ({"min_p": 0.1, "top_p": 0.9}, None),
        ({"min_p": 0.1, "repetition_penalty": 1.1}, None),
        ({"temperature": 0, "processors": (lambda _tokens, logits: logits,)}, None),
    ],
)
def test_reach_is_as_short_as_the_settings_allow(fields: dict[str, Any], reach: Reach | None) -> None:
    assert sampler(100, prompt=[1, 2, 3], eos=[9], **fields).reach() == reach


@pytest.mark.parametrize(
    "fields", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 10.0}], ids=str
)
def test_reach_ahead_sees_what_is_left_when_the_best_were_taken(fields: dict[str, Any]) -> None:
    logits = np.linspace(1.0, 0.9, 50).astype(np.float32)
    one = sampler(50, temperature=0, **fields)
    reach = one.reach(3)
    assert reach is not None
    for want in range(4):
        assert one.choose(hidden(logits, reach)).token == want
        one.accept(want)


def test_reach_ahead_sees_what_is_left_when_passages_grow() -> None:
    one = sampler(9, prompt=[0, 1, 2, 5, 0, 1, 2, 6, 0, 1], temperature=0, dry_multiplier=5.0, dry_allowed_length=3)
    assert one.reach() == Reach(best=1)
    reach = one.reach(1)
    assert reach is not None
    first, second = np.zeros((2, 9), np.float32)
    first[2] = 9
    second[[5, 6, 7]] = 3, 2, 1
    for logits, want in ((first, 2), (second, 7)):
        assert one.choose(hidden(logits, reach)).token == want
        one.accept(want)


def test_reach_of_min_p_is_a_margin_below_the_best() -> None:
    reach = sampler(100, min_p=0.1, temperature=2.0).reach()
    assert reach is not None
    assert reach.best == 1
    assert reach.margin == pytest.approx(2 * math.log(10), abs=2e-3)
    assert reach.margin > 2 * math.log(10)


def test_a_constraint_may_come_to_any_token() -> None:
    assert sampler(9, temperature=0, constraint=Allowed(9, [1])).reach() is None


# --- constraints and processors


@pytest.mark.parametrize("size", [31, 32, 33, 100])
def test_only_what_the_constraint_allows_is_chosen(size: int) -> None:
    constraint = Allowed(size, [3, 17, size - 1])
    one = sampler(size, constraint=constraint, temperature=5.0)
    tokens = []
    for position in range(100):
        tokens.append(one.choose(random_logits(position, size)).token)
        one.accept(tokens[-1])
    assert set(tokens) == {3, 17, size - 1}
    assert constraint.accepted == tokens


def test_tokens_beyond_the_constraints_mask_are_forbidden() -> None:
    logits = np.arange(70, dtype=np.float32)
    assert sampler(70, temperature=0, constraint=Allowed(32, [5, 6])).choose(logits).token == 6


def test_a_constraint_that_is_finished_finishes_the_sequence() -> None:
    assert sampler(9).finished is False
    assert sampler(9, constraint=Allowed(9, [1])).finished is False
    assert sampler(9, constraint=Allowed(9, [1], finished=True)).finished is True


def test_processors_see_all_tokens_and_the_logits_as_they_are_by_then() -> None:
    seen: list[Any] = []

    def first(tokens: list[int], logits: Logits) -> Logits:
        seen.append((tokens, logits.copy()))
        tokens.clear()  # theirs, to do with as they like
        logits += 1
        return logits

    def second(tokens: list[int], logits: Logits) -> Logits:
        seen.append((tokens, logits.copy()))
        return np.where(np.arange(4) == 2, 99.0, logits)

    one = sampler(4, prompt=[1, 2], processors=(first, second), temperature=0, logit_bias={0: -1.0})
    one.accept(3)
    assert one.choose(np.zeros(4, np.float32)).token == 2
    assert seen[1][0] == [1, 2, 3]
    assert seen[0][1].tolist() == [-1, 0, 0, 0]
    assert seen[1][1].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    "result",
    [None, [0.0, 0.0], np.zeros(3, np.float32), np.zeros((1, 2), np.float32), np.zeros(2, np.int64)],
    ids=str,
)
def test_a_processor_that_gives_something_else_is_named(result: Any) -> None:
    def mine(_tokens: list[int], _logits: Logits) -> Any:
        return result

    with pytest.raises(ValueError, match="processors: expected mine to give 2 float32 logits, got"):
        sampler(2, processors=(mine,)).choose(np.zeros(2, np.float32))


# --- log-probabilities


@given(st.integers(0, 2**32), sizes, st.integers(0, 20))
@MANY
def test_log_probabilities_are_of_the_models_own_distribution(seed: int, size: int, top: int) -> None:
    logits = random_logits(seed, size)
    one = sampler(size, logprobs=top, temperature=0.3, top_k=3, logit_bias={0: -100.0} if size > 1 else {})
    choice = one.choose(logits)
    exact = logits.astype(np.float64)
    exact -= exact.max() + math.log(np.exp(exact - exact.max()).sum())
    assert choice.logprob == pytest.approx(exact[choice.token], abs=1e-5)
    best = sorted(range(size), key=lambda token: (-logits[token], token))[:top]
    assert [token for token, _ in choice.top] == best
    assert [value for _, value in choice.top] == pytest.approx(exact[best].tolist(), abs=1e-5)


def test_log_probabilities_of_equals_are_in_the_order_of_their_ids() -> None:
    assert [token for token, _ in score(np.zeros(300, np.float32), 5, 4).top] == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [2, 3000])
def test_a_token_that_cannot_be_is_not_among_the_best(size: int) -> None:
    logits = np.full(size, -np.inf, np.float32)
    logits[0] = 5
    assert score(logits, 1).logprob == -math.inf
    assert score(logits, 0, 20).top == ((0, 0.0),)
    assert truncation.pool(logits, Sampling(top_k=20)).draw(0.999) == 0


# --- what cannot be


@pytest.mark.parametrize("fields", [{"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_one_clear_error(fields: dict[str, Any], bad: float) -> None:
    logits = random_logits(0, 600)
    logits[417] = bad
    with pytest.raises(SamplingError, match=f"the logit of token 417 is {bad}"):
        sampler(600, **fields).choose(logits)


def test_a_processor_that_makes_nan_is_one_clear_error() -> None:
    with pytest.raises(SamplingError, match="the best changed logit is nan"):
        sampler(3, processors=(lambda _tokens, logits: logits * np.float32(np.nan),)).choose(np.ones(3, np.float32))


@pytest.mark.parametrize("temperature", [0, 1])
def test_when_every_token_is_forbidden_the_error_says_by_what(temperature: float) -> None:
    with pytest.raises(SamplingError, match="together forbid every one"):
        sampler(3, temperature=temperature, constraint=Allowed(3, [])).choose(np.zeros(3, np.float32))
    with pytest.raises(SamplingError, match="the best changed logit is -inf"):
        sampler(3, temperature=temperature).choose(np.full(3, -np.inf, np.float32))


@pytest.mark.parametrize("fields", [{"logit_bias": {9: 1.0}}, {"stop_tokens": [9], "min_tokens": 1}], ids=str)
def test_tokens_that_the_model_has_not_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected token ids of 0\.\.8, got 9"):
        sampler(9, **fields)


def test_logits_of_another_shape_are_refused() -> None:
    for shape in ((5,), (1, 9), ()):
        with pytest.raises(ValueError, match="logits: expected 9 of them"):
            sampler(9).choose(np.zeros(shape, np.float32))


@pytest.mark.parametrize("spread", [1e-30, 1e4, 1e30])
def test_logits_of_any_size_are_sampled(spread: float) -> None:
    logits = random_logits(0, 700, spread)
    for fields in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}, {"typical_p": 0.5}, {"temperature": 0.001}):
        token = sampler(700, **fields).choose(logits).token
        assert spread < 1 or logits[token] >= logits.max() * 0.9
