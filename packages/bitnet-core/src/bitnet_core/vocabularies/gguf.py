"""Tokenizers in GGUF metadata: the keys tokenizer.ggml.*, read and written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FormatError, UnsupportedError, printable
from . import Added, Spaces, Vocabulary, check_count, pipelines, sentencepiece

_KEY = "tokenizer.ggml."
_NO_TOKEN = (1 << 32) - 1  # how converters write an id of -1
_BITNET = frozenset(("bitnet-b1.58", "bitnet-25"))  # their published files name no pre-tokenizer: it is Llama 3's
_NONE = ("none", "no_vocab")  # what llama.cpp calls the tokenizer of a model that has none
_SPECIAL = frozenset((sentencepiece.UNKNOWN, sentencepiece.CONTROL))


def parse(metadata: Mapping[str, Any], file: str | os.PathLike[str]) -> Vocabulary | None:
    """The vocabulary that a GGUF file's metadata holds, if it holds one."""
    name = os.fspath(file)
    model = metadata.get(_KEY + "model")
    if model is None or model in _NONE:
        return None
    if model not in _MODELS:
        known = ", ".join(_MODELS)
        raise UnsupportedError(f"{printable(name)}: no tokenizer model {printable(model)!r}; there are {known}")
    return _MODELS[model](_Keys(metadata, name))


class _Keys:
    """The metadata's values, checked as they are taken."""

    def __init__(self, metadata: Mapping[str, Any], file: str) -> None:
        self.metadata = metadata
        self.file = file
        tokens = self._list("tokens")
        if tokens is None:
            raise FormatError(file, _KEY + "tokens", "an array of strings", "no such key")
        check_count(len(tokens), file)
        self.tokens = self._strings("tokens", tokens)

    def merges(self) -> list[tuple[str, str]]:
        """The merges, each written as two tokens with a space between."""
        merges = self._list("merges")
        if merges is None:
            raise FormatError(self.file, _KEY + "merges", "an array of strings", "no such key")
        pairs = []
        for rank, merge in enumerate(self._strings("merges", merges)):
            # A token may begin with the space, so it is not looked for there.
            at = merge.find(" ", 1)
            if at < 0 or at + 1 == len(merge):
                raise FormatError(self.file, f"{_KEY}merges[{rank}]", "two tokens with a space between", f"{merge!r}")
            pairs.append((merge[:at], merge[at + 1 :]))
        return pairs

    def numbers(self, key: str, kind: str) -> list[Any] | None:
        """An array with one number a token; `kind` is NumPy's letter for integers or floats."""
        values = self._list(key)
        if values is None:
            return None
        array = np.asarray(values)
        kinds = "iu" if kind == "i" else "f"
        if array.ndim != 1 or array.dtype.kind not in kinds:
            expected = "an array of integers" if kind == "i" else "an array of floats"
            raise FormatError(self.file, _KEY + key, expected, f"{array.dtype} of {array.ndim} axes")
        if len(array) != len(self.tokens):
            raise FormatError(self.file, _KEY + key, f"{len(self.tokens)} values, one a token", len(array))
        found: list[Any] = array.tolist()
        return found

    def token(self, key: str) -> int | None:
        """The id under a key."""
        value = self.metadata.get(_KEY + key)
        if value is None or value == _NO_TOKEN:
            return None
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < len(self.tokens):
            raise FormatError(self.file, _KEY + key, f"an id of 0..{len(self.tokens) - 1}", value)
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        """The flag under a key."""
        value = self.metadata.get(_KEY + key, default)
        if not isinstance(value, bool | np.bool_):
            raise FormatError(self.file, _KEY + key, "true or false", f"{value!r}")
        return bool(value)

    def text(self, key: str) -> str | None:
        """The string under a key."""
        value = self.metadata.get(_KEY + key)
        if value is not None and not isinstance(value, str):
            raise FormatError(self.file, _KEY + key, "a string", type(value).__name__)
        return value

    def stops(self) -> frozenset[int]:
        """The ids that end a text or a turn."""
        found = (self.token(key) for key in ("eos_token_id", "eot_token_id", "eom_token_id"))
        return frozenset(token for token in found if token is not None)

    def suffix(self) -> tuple[int, ...]:
        """What is put after a text."""
        eos = self.token("eos_token_id")
        return (eos,) if eos is not None and self.flag("add_eos_token", False) else ()

    def _list(self, key: str) -> Sequence[Any] | None:
        value = self.metadata.get(_KEY + key)
        if value is not None and (isinstance(value, str | bytes) or not hasattr(value, "__len__")):
            raise FormatError(self.file, _KEY + key, "an array", type(value).__name__)
        found: Sequence[Any] | None = value
        return found

    def _strings(self, key: str, values: Sequence[Any]) -> list[str]:
        strings = list(values)
        for index, value in enumerate(strings):
            if type(value) is not str:
                raise FormatError(self.file, f"{_KEY}{key}[{index}]", "a string", type(value).__name__)
        return strings


def _parse_byte_level(keys: _Keys) -> Vocabulary:
    pre = keys.text("pre")
    if pre is None:
        pre = "llama-bpe" if keys.metadata.get("general.architecture") in _BITNET else "default"
    pre, normalizer, pre_tokenizer = pipelines.by_name(pre, keys.file)
    bos, eos = keys.token("bos_token_id"), keys.token("eos_token_id")
    llama = pre == "llama-bpe"
    add_bos = keys.flag("add_bos_token", llama) and bos is not None
    types = keys.numbers("token_type", "i")
    keys.numbers("scores", "f")  # all zero and unused, but not of another length
    special = {bos, eos, keys.token("unknown_token_id")} if types is None else set()
    added = {id_: Added(special=True) for id_ in sorted(id_ for id_ in special if id_ is not None)}
    for id_, kind in enumerate(types or ()):
        if kind in _SPECIAL or kind == sentencepiece.USER_DEFINED:
            added[id_] = Added(special=kind in _SPECIAL)
    return Vocabulary(
        file=keys.file,
        tokens=keys.tokens,
        merges=keys.merges(),
        alphabet="bytes",
        added=added,
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        ignore_merges=llama,
        bos=bos,
        eos=keys.stops(),
        pad=keys.token("padding_token_id"),
        prefix=(bos,) if add_bos and bos is not None else (),
        suffix=keys.suffix(),
    )


def _parse_pieces(keys: _Keys) -> Vocabulary:
    scores, types = keys.numbers("scores", "f"), keys.numbers("token_type", "i")
    if scores is None or types is None:
        missing = "scores" if scores is None else "token_type"
        raise FormatError(keys.file, _KEY + missing, "an array with one number a token", "no such key")
    return sentencepiece.from_pieces(
        keys.file,
        keys.tokens,
        scores,
        types,
        spaces=Spaces(
            prefix=keys.flag("add_space_prefix", True), collapse=keys.flag("remove_extra_whitespaces", False)
        ),
        unk=keys.token("unknown_token_id"),
        bos=keys.token("bos_token_id"),
        stops=keys.stops(),
        pad=keys.token("padding_token_id"),
        add_bos=keys.flag("add_bos_token", True),
        suffix=keys.suffix(),
    )


_MODELS = {"gpt2": _parse_byte_level, "llama": _parse_pieces}


def write(vocabulary: Vocabulary) -> dict[str, object]:
    """The metadata of a tokenizer, for a writer of GGUF files."""
    found: dict[str, object] = {"tokens": list(vocabulary.tokens)}
    types = sentencepiece.types_of(vocabulary)
    if vocabulary.alphabet == "bytes":
        pre = pipelines.name_of(vocabulary.normalizer, vocabulary.pre_tokenizer)
        if pre is None:
            raise UnsupportedError(f"{printable(vocabulary.file)}: GGUF has no name for this tokenizer's pre-tokenizer")
        found |= {"model": "gpt2", "pre": pre, "merges": [f"{left} {right}" for left, right in vocabulary.merges]}
    else:
        spaces = vocabulary.spaces or pipelines.spaces_of(vocabulary.normalizer, vocabulary.pre_tokenizer)
        if spaces is None:
            raise UnsupportedError(f"{printable(vocabulary.file)}: GGUF has no words for this tokenizer's normalizer")
        scores = np.array(sentencepiece.scores_of(vocabulary), np.float32)
        found |= {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": spaces.prefix}
        found["remove_extra_whitespaces"] = spaces.collapse
    found["token_type"] = np.array(types, np.int32)
    named = {"bos": vocabulary.bos, "unknown": vocabulary.unk, "padding": vocabulary.pad}
    found |= {f"{name}_token_id": np.uint32(token) for name, token in named.items() if token is not None}
    found |= _stop_ids(vocabulary)
    found |= {"add_bos_token": bool(vocabulary.prefix), "add_eos_token": bool(vocabulary.suffix)}
    return {_KEY + key: value for key, value in found.items()}


def _stop_ids(vocabulary: Vocabulary) -> dict[str, object]:
    # GGUF names one end of a text, and one of a turn; the reader finds the others by their texts.
    turn = vocabulary.ids.get("<|eot_id|>")
    ends = [*vocabulary.suffix, *sorted(vocabulary.eos - {turn}), *sorted(vocabulary.eos)]
    found: dict[str, object] = {"eos_token_id": np.uint32(ends[0])} if ends else {}
    if turn is not None and turn in vocabulary.eos:
        found["eot_token_id"] = np.uint32(turn)
    return found
