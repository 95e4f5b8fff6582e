"""How text is normalized and split into words before it is merged: what is known, and by which names.

A pattern runs on a backtracking engine, where one that nobody has looked at can take exponential time. So only
patterns that stand in this file, letter by letter, are run; each is linear in the text. Steps of other kinds have no
patterns, and are let through by their type and the values of their fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from ..errors import FormatError, UnsupportedError, printable
from . import SPACE, JsonStep, Spaces

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SIGNS = r"[\p{P}\$\+<=>\^~\|]+"
_SIGNS_AND_TICK = r"[\p{P}\$\+<=>\^~\|`]+"
_OUTER_SPACES = r"\A +| +\z"
_INNER_SPACES = r" {2,}"
_DIGIT_RUNS = (r"[0-9][0-9][0-9]", r"[0-9]", r"\p{N}{1,3}", r"\p{N}+", r"\p{N}", r"\d")
_PATTERNS = frozenset((_GPT2, _LLAMA3, _QWEN2, _SIGNS, _SIGNS_AND_TICK, _OUTER_SPACES, _INNER_SPACES, *_DIGIT_RUNS))
_TEXT_LIMIT = 16  # characters that a step may look for or put in; a longer one could make any text huge
_STEPS_LIMIT = 64
_GROWTH_LIMIT = 16  # times that all steps together may make a text longer


def _sequence(*steps: JsonStep) -> JsonStep:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(pattern: str) -> JsonStep:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool) -> JsonStep:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _splits(*patterns: str) -> JsonStep:
    return _sequence(*map(_split, patterns), _byte_level(use_regex=False))


_NFC: JsonStep = {"type": "NFC"}
_WORDS = _byte_level(use_regex=True)

# What tokenizer.ggml.pre names: normalizer and pre-tokenizer as the makers of the models wrote them.
NAMED: Mapping[str, tuple[JsonStep | None, JsonStep]] = MappingProxyType(
    {
        "llama-bpe": (None, _splits(_LLAMA3)),
        "gpt-2": (None, _WORDS),
        "qwen2": (_NFC, _splits(_QWEN2)),
        "olmo": (_NFC, _WORDS),
        "smollm": (None, _sequence({"type": "Digits", "individual_digits": True}, _WORDS)),
        "falcon": (None, _splits(_SIGNS_AND_TICK, _GPT2, r"[0-9][0-9][0-9]")),
        "falcon_e": (None, _splits(_SIGNS_AND_TICK, _GPT2, r"[0-9]")),
        "default": (None, _splits(_SIGNS, _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    }
)
_ALIASES = MappingProxyType(
    {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "gpt2": "gpt-2", "mpt": "gpt-2"}
)


def by_name(name: str, file: str) -> tuple[str, JsonStep | None, JsonStep]:
    """The canonical name, the normalizer and the pre-tokenizer that a GGUF file asks for."""
    canonical = _ALIASES.get(name, name)
    if canonical not in NAMED:
        known = ", ".join(sorted({*NAMED, *_ALIASES}))
        raise UnsupportedError(f"{printable(file)}: no pre-tokenizer {printable(name)!r}; there are {known}")
    return canonical, *NAMED[canonical]


def name_of(normalizer: JsonStep | None, pre_tokenizer: JsonStep | None) -> str | None:
    """The name that GGUF files have for these steps."""
    for name, steps in NAMED.items():
        if (normalizer, pre_tokenizer) == steps:
            return name
    return None


def spaces_of(normalizer: JsonStep | None, pre_tokenizer: JsonStep | None) -> Spaces | None:
    """The same rule as SentencePiece states it, where these steps are one."""
    # Gemma splits at spaces when none is left.
    if pre_tokenizer is not None and pre_tokenizer.get("pattern") != {"String": " "}:
        return None
    for spaces in (Spaces(prefix, collapse) for prefix in (True, False) for collapse in (False, True)):
        if normalizer in (steps_of(spaces), {"type": "Sequence", "normalizers": [steps_of(spaces)]}):
            return spaces
    return None


def steps_of(spaces: Spaces) -> JsonStep:
    """SentencePiece's rule for spaces as a normalizer."""
    steps: list[JsonStep] = []
    if spaces.collapse:
        steps.append({"type": "Replace", "pattern": {"Regex": _OUTER_SPACES}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": _INNER_SPACES}, "content": " "})
    if spaces.prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps}


def check_normalizer(step: Any, file: str) -> JsonStep | None:
    """The normalizer of a tokenizer.json, if it is one that is known."""
    return _bounded(_check(step, "normalizer", "normalizers", _NORMALIZERS, file), "normalizer", file)


def check_pre_tokenizer(step: Any, file: str) -> JsonStep | None:
    """The pre-tokenizer of a tokenizer.json, if it is one that is known."""
    return _bounded(_check(step, "pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS, file), "pre_tokenizer", file)


def flatten(step: JsonStep | None) -> list[JsonStep]:
    """The steps of a sequence, or the one that it is."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    inner = step.get("normalizers") or step.get("pretokenizers") or step.get("processors") or []
    return [each for one in inner for each in flatten(one)]


def adds_space(normalizer: JsonStep | None, pre_tokenizer: JsonStep | None) -> bool:
    """Whether a space is put in front of the text, which decoding takes away."""
    prepends = any(step.get("prepend") == SPACE for step in flatten(normalizer))
    return prepends or any(
        step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"
        for step in flatten(pre_tokenizer)
    )


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _TEXT_LIMIT


def _is_pattern(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    return value.get("Regex") in _PATTERNS or (_is_text(value.get("String")) and value["String"] != "")


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in names


_BEHAVIORS = _one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_Fields = Mapping[str, Callable[[Any], bool]]

# Each kind of step that may run, and what its fields may hold; a field that is missing has its default.
_NORMALIZERS: Mapping[str, _Fields] = MappingProxyType(
    {
        "NFC": {},
        "NFD": {},
        "NFKC": {},
        "NFKD": {},
        "Strip": {"strip_left": _is_flag, "strip_right": _is_flag},
        "Prepend": {"prepend": _is_text},
        "Replace": {"pattern": _is_pattern, "content": _is_text},
    }
)
_PRE_TOKENIZERS: Mapping[str, _Fields] = MappingProxyType(
    {
        "ByteLevel": {"add_prefix_space": _is_flag, "trim_offsets": _is_flag, "use_regex": _is_flag},
        "Split": {"pattern": _is_pattern, "behavior": _BEHAVIORS, "invert": _is_flag},
        "Digits": {"individual_digits": _is_flag},
        "Punctuation": {"behavior": _BEHAVIORS},
        "Metaspace": {
            "replacement": lambda value: value == SPACE,
            "prepend_scheme": _one_of("always", "first", "never"),
            "add_prefix_space": _is_flag,
            "split": _is_flag,
        },
    }
)


def _bounded(step: JsonStep | None, field: str, file: str) -> JsonStep | None:
    """The step, unless it is one of so many that each text would become huge."""
    steps = flatten(step)
    if len(steps) > _STEPS_LIMIT:
        raise FormatError(file, field, f"at most {_STEPS_LIMIT} steps", len(steps))
    growth = math.prod(map(_growth, steps))
    if growth > _GROWTH_LIMIT:
        expected = f"steps that make no text more than {_GROWTH_LIMIT} times as long"
        raise FormatError(file, field, expected, f"{growth:g} times")
    return step


def _growth(step: JsonStep) -> float:
    if step["type"] == "ByteLevel":
        return 2.0  # a byte that is no ASCII becomes a character of two
    if step["type"] != "Replace":
        return 1.0
    return max(1.0, len(step.get("content", "")) / len(step["pattern"].get("String", " ")))


def _check(step: Any, field: str, inner: str, kinds: Mapping[str, _Fields], file: str) -> JsonStep | None:
    if step is None:
        return None
    if not isinstance(step, dict):
        raise FormatError(file, field, "an object or null", type(step).__name__)
    if step.get("type") == "Sequence":
        if not isinstance(step.get(inner), list):
            raise FormatError(file, f"{field}.{inner}", "a list", type(step.get(inner)).__name__)
        for index, one in enumerate(step[inner]):
            if _check(one, f"{field}[{index}]", inner, kinds, file) is None:
                raise FormatError(file, f"{field}[{index}]", "an object", "null")
        return step
    fields = kinds.get(step["type"]) if isinstance(step.get("type"), str) else None
    if fields is None:
        raise FormatError(file, f"{field}.type", f"Sequence or one of {', '.join(kinds)}", f"{step.get('type')!r}")
    for name, value in step.items():
        if name != "type" and (name not in fields or not fields[name](value)):
            expected = "a known pattern" if name == "pattern" else f"a known field of {step['type']} and its value"
            raise FormatError(file, f"{field}.{name}", expected, f"{value!r}")
    return step
