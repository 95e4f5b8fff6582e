"""What a caller may ask of sampling: every refusal names the field, its range and what was given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bitnet_inference.settings import Sampling

NUMBERS = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repetition_penalty": (0.01, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
}
INTEGERS = {
    "top_k": (0, 1 << 20),
    "dry_allowed_length": (1, 1 << 30),
    "min_tokens": (0, 1 << 30),
    "n": (1, 8),
}
OPTIONAL = {
    "penalty_window": (1, 1 << 30),
    "seed": (-(1 << 63), (1 << 64) - 1),
    "max_tokens": (1, 1 << 30),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
}
NO_NUMBERS = ("1", True, False, b"1", [1], {}, object(), 1j)
BEYOND = (float("nan"), float("inf"), -float("inf"), 2**70, -(2**70), 10**400, 10**5000, 1e308, -1e308)


def refused(**fields: Any) -> str:
    with pytest.raises(ValueError, match=": expected ") as caught:
        Sampling(**fields)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_taken_in_their_range_alone(name: str) -> None:
    low, high = NUMBERS[name]
    for value in (low, high, (low + high) / 2, np.float32(high), np.int64(high)):
        kept = getattr(Sampling(**{name: value}), name)
        assert type(kept) is float
        assert kept == value
    for value in (*NO_NUMBERS, *BEYOND, None, np.nextafter(low, -np.inf), np.nextafter(high, np.inf), np.True_):
        assert f"{name}: expected a number of {low}..{high}" in refused(**{name: value})


@pytest.mark.parametrize("name", [*INTEGERS, *OPTIONAL])
def test_whole_numbers_are_taken_in_their_range_alone(name: str) -> None:
    low, high = {**INTEGERS, **OPTIONAL}[name]
    for value in (low, high, np.int64(low)):
        fields = {name: value, "max_tokens": high} if name == "min_tokens" and value else {name: value}
        kept = getattr(Sampling(**fields), name)
        assert type(kept) is int
        assert kept == value
    for value in (*NO_NUMBERS, *BEYOND, 1.5, 1.0, low - 1, high + 1):
        assert f"{name}: expected a whole number of {low}..{high}" in refused(**{name: value})


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_is_optional_may_be_none(name: str) -> None:
    assert getattr(Sampling(**{name: None}), name) is None


@pytest.mark.parametrize("name", INTEGERS)
def test_what_is_not_optional_may_not_be_none(name: str) -> None:
    assert name in refused(**{name: None})


@pytest.mark.parametrize("name", ["include_stop", "ignore_eos"])
def test_switches_are_true_or_false(name: str) -> None:
    for value in (0, 1, "true", None):
        assert f"{name}: expected True or False" in refused(**{name: value})


def test_one_stop_string_is_taken_as_a_list_of_one() -> None:
    assert Sampling(stop="end").stop == ("end",)
    assert Sampling(stop=["a", "b", "a"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_stop_strings_are_few_and_short() -> None:
    assert "at most 16 strings of 1..256 bytes, got a list of 10000" in refused(stop=["x"] * 10_000)
    assert "stop[0]: expected a string of 1..256 bytes" in refused(stop="")
    assert "stop[1]: expected a string of 1..256 bytes, got 1000000 bytes" in refused(stop=["a", "x" * 1_000_000])
    assert "stop[0]: expected a string of 1..256 bytes" in refused(stop="\u00e9" * 129)
    assert "stop[1]: expected a string, got" in refused(stop=["a", 5])
    assert "lone surrogates" in refused(stop="\ud800")
    for value in (5, None, {"a": 1}, {"a"}):
        assert "stop: expected" in refused(stop=value)
    assert len(Sampling(stop=tuple(f"{'x' * 250}{index}" for index in range(16))).stop) == 16


@pytest.mark.parametrize("name", ["stop_tokens", "dry_breakers"])
def test_tokens_are_ids(name: str) -> None:
    assert getattr(Sampling(**{name: [1, np.int32(2), 1]}), name) == {1, 2}
    for value in ([-1], [1.5], ["1"], [True], [1 << 20], "12", 5, b"12"):
        assert name in refused(**{name: value})


def test_stop_tokens_are_few() -> None:
    assert "at most 1024 token ids, got 10000 of them" in refused(stop_tokens=range(10_000))


def test_biases_are_few_numbers_by_token() -> None:
    assert Sampling(logit_bias={np.int32(5): 1}).logit_bias == {5: 1.0}
    assert "at most 1024 entries, got 1000000 of them" in refused(logit_bias=dict.fromkeys(range(1_000_000), 1.0))
    assert "logit_bias[5]: expected a number of -100..100" in refused(logit_bias={5: 1e9})
    assert "logit_bias[5]: expected a number" in refused(logit_bias={5: float("nan")})
    assert "logit_bias: expected a whole number of 0..1048575" in refused(logit_bias={-1: 1.0})
    assert "logit_bias" in refused(logit_bias={"5": 1.0})
    for value in ([(5, 1.0)], None, 5):
        assert "logit_bias: expected numbers by token id" in refused(logit_bias=value)


def test_biases_are_the_callers_no_more() -> None:
    given = {1: 2.0}
    sampling = Sampling(logit_bias=given)
    given[1] = 5.0
    assert sampling.logit_bias == {1: 2.0}


def test_processors_are_functions() -> None:
    def keep(_tokens: list[int], logits: Any) -> Any:
        return logits

    assert Sampling(processors=[keep]).processors == (keep,)  # type: ignore[arg-type]
    assert "processors[1]: expected a function" in refused(processors=[keep, 5])
    assert "at most 16 functions" in refused(processors=[keep] * 17)


def test_fewest_tokens_are_not_more_than_most() -> None:
    assert "min_tokens: expected at most max_tokens, 5" in refused(min_tokens=6, max_tokens=5)
    assert Sampling(min_tokens=5, max_tokens=5).min_tokens == 5


def test_settings_can_be_changed_in_a_copy_that_is_checked() -> None:
    sampling = Sampling(seed=5, stop="x", logit_bias={1: 2.0})
    assert replace(sampling, top_k=3) == Sampling(seed=5, stop="x", logit_bias={1: 2.0}, top_k=3)
    assert hash(sampling) == hash(Sampling(seed=5, stop="x", logit_bias={1: 2.0}))
    with pytest.raises(ValueError, match="top_k"):
        replace(sampling, top_k=-1)


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refused(temperature="9" * 100_000)) < 200
