"""How a text is continued: what a caller may ask of sampling, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, NamedTuple

from bitnet_core.errors import printable
from bitnet_core.model import Array

Processor = Callable[[list[int], Array], Array]

STOPS_LIMIT = 16
STOP_BYTES_LIMIT = 256
STOP_TOKENS_LIMIT = 1024
BIASES_LIMIT = 1024
PROCESSORS_LIMIT = 16
TOKEN_LIMIT = 1 << 20  # as the tokenizer's: no vocabulary has more
BAN = -100.0  # the bias that forbids a token
# Below this, what a temperature leaves of the second best token is nothing in float32.
_COLDEST = 1e-4


class _Range(NamedTuple):
    low: float
    high: float
    optional: bool = False  # None means something too

    def __str__(self) -> str:
        return f"{self.low:g}..{self.high:g}" if isinstance(self.low, float) else f"{self.low}..{self.high}"


_NUMBERS = {
    "temperature": _Range(0.0, 100.0),
    "top_p": _Range(0.0, 1.0),
    "min_p": _Range(0.0, 1.0),
    "typical_p": _Range(0.0, 1.0),
    "repetition_penalty": _Range(0.01, 100.0),
    "presence_penalty": _Range(-2.0, 2.0),
    "frequency_penalty": _Range(-2.0, 2.0),
    "dry_multiplier": _Range(0.0, 100.0),
    "dry_base": _Range(1.0, 100.0),
}
_INTEGERS = {
    "top_k": _Range(0, TOKEN_LIMIT),
    "penalty_window": _Range(1, 1 << 30, optional=True),
    "dry_allowed_length": _Range(1, 1 << 30),
    "seed": _Range(-(1 << 63), (1 << 64) - 1, optional=True),
    "max_tokens": _Range(1, 1 << 30, optional=True),
    "min_tokens": _Range(0, 1 << 30),
    "logprobs": _Range(0, 20, optional=True),
    "prompt_logprobs": _Range(0, 20, optional=True),
    "n": _Range(1, 8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when to stop; every field is checked, and a refusal names it and its range.

    The order: biases, penalties, DRY, the constraint, processors, temperature, top-k, typical, top-p, min-p. Of
    tokens that are equal at a border, all stay.
    """

    temperature: float = 1.0  # 0: always the best token, the lowest id where several are
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0  # of the best token's probability
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # of tokens in the prompt and in the output; above 1 they come more seldom
    presence_penalty: float = 0.0  # of tokens in the output
    frequency_penalty: float = 0.0  # of tokens in the output, times how often each is there
    penalty_window: int | None = None  # how many of the last tokens the penalties and DRY look at; None: all
    # DRY: a token that would lengthen a repetition of n tokens loses multiplier * base ** (n - allowed_length).
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breakers: frozenset[int] | None = None  # tokens that no repetition runs across; None: of the usual characters
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # -100..100; -100 forbids the token
    seed: int | None = None  # None: one from the system
    max_tokens: int | None = None  # None: to the end of the context
    min_tokens: int = 0  # before these, no token ends the text, and no stop string does
    stop: tuple[str, ...] = ()  # strings that end the text
    stop_tokens: frozenset[int] = frozenset()  # beside those of the model
    include_stop: bool = False  # whether the text has the string that it ended with
    ignore_eos: bool = False  # go on after the model's own last token
    logprobs: int | None = None  # how many tokens' log-probabilities beside the chosen one's; None: none at all
    prompt_logprobs: int | None = None
    n: int = 1  # continuations of one prompt
    processors: tuple[Processor, ...] = ()  # (all tokens so far, logits) -> logits

    def __post_init__(self) -> None:
        for name, numbers in _NUMBERS.items():
            self._set(name, _number(name, getattr(self, name), numbers))
        for name, integers in _INTEGERS.items():
            value = getattr(self, name)
            if value is not None or not integers.optional:
                self._set(name, _integer(name, value, integers))
        for name in ("include_stop", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise _refusal(name, "True or False", getattr(self, name))
        self._set("stop", _strings(self.stop))
        self._set("stop_tokens", _tokens("stop_tokens", self.stop_tokens))
        self._set("logit_bias", _biases(self.logit_bias))
        self._set("processors", _processors(self.processors))
        if self.dry_breakers is not None:
            self._set("dry_breakers", _tokens("dry_breakers", self.dry_breakers, TOKEN_LIMIT))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _refusal("min_tokens", f"at most max_tokens, {self.max_tokens}", self.min_tokens)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether always the best token is chosen."""
        return self.temperature < _COLDEST


def _refusal(name: str, expected: str, value: object, got: str = "") -> ValueError:
    return ValueError(f"{name}: expected {expected}, got {got or _shown(value)}")


def _shown(value: Any) -> str:
    """A value in a few words: of what may be large, what it is."""
    if isinstance(value, list | tuple | dict | set | frozenset):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        return printable(repr(value[:100]))
    return printable(repr(value)) if isinstance(value, int | float | None) else type(value).__name__


def _number(name: str, value: object, allowed: _Range) -> float:
    if not isinstance(value, bool) and isinstance(value, Real):
        try:
            number = float(value)
        except OverflowError:  # whole numbers know no end
            number = math.inf
        if allowed.low <= number <= allowed.high:  # NaN is in no range
            return number
    raise _refusal(name, f"a number of {allowed}", value)


def _integer(name: str, value: object, allowed: _Range) -> int:
    if not isinstance(value, bool) and isinstance(value, Integral) and allowed.low <= int(value) <= allowed.high:
        return int(value)
    raise _refusal(name, f"a whole number of {allowed}{' or None' if allowed.optional else ''}", value)


def _strings(value: object) -> tuple[str, ...]:
    strings = (value,) if isinstance(value, str) else value
    expected = f"at most {STOPS_LIMIT} strings of 1..{STOP_BYTES_LIMIT} bytes"
    if not isinstance(strings, list | tuple) or len(strings) > STOPS_LIMIT:
        raise _refusal("stop", expected, value)
    for index, string in enumerate(strings):
        if not isinstance(string, str):
            raise _refusal(f"stop[{index}]", "a string", string)
        size = len(string.encode("utf-8", "surrogatepass"))
        if not 1 <= size <= STOP_BYTES_LIMIT:
            raise _refusal(f"stop[{index}]", f"a string of 1..{STOP_BYTES_LIMIT} bytes", string, f"{size} bytes")
        if any("\ud800" <= character <= "\udfff" for character in string):
            raise _refusal(f"stop[{index}]", "Unicode text without lone surrogates", string)
    return tuple(dict.fromkeys(strings))


def _tokens(name: str, value: object, limit: int = STOP_TOKENS_LIMIT) -> frozenset[int]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise _refusal(name, "token ids", value)
    tokens = list(value)
    if len(tokens) > limit:
        raise _refusal(name, f"at most {limit} token ids", value, f"{len(tokens)} of them")
    return frozenset(_token(name, token) for token in tokens)


def _token(name: str, value: object) -> int:
    return _integer(name, value, _Range(0, TOKEN_LIMIT - 1))


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise _refusal("logit_bias", "numbers by token id", value)
    if len(value) > BIASES_LIMIT:
        raise _refusal("logit_bias", f"at most {BIASES_LIMIT} entries", value, f"{len(value)} of them")
    allowed = _Range(BAN, -BAN)
    return {
        _token("logit_bias", token): _number(f"logit_bias[{printable(token)}]", bias, allowed)
        for token, bias in value.items()
    }


def _processors(value: object) -> tuple[Processor, ...]:
    if not isinstance(value, list | tuple) or len(value) > PROCESSORS_LIMIT:
        raise _refusal("processors", f"at most {PROCESSORS_LIMIT} functions", value)
    for index, processor in enumerate(value):
        if not callable(processor):
            raise _refusal(f"processors[{index}]", "a function (tokens, logits) -> logits", processor)
    return tuple(value)
