"""tokenizer.json, as the tokenizers library writes it: read without trust, and written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import FormatError, UnsupportedError, printable
from ..formats.strictjson import read_json
from . import FILE_LIMIT, SPACE, Added, JsonStep, Vocabulary, check_count, pipelines

_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def read(path: Path) -> Vocabulary:
    """The vocabulary in a tokenizer.json."""
    file = os.fspath(path)
    whole = _object(read_json(path, limit=FILE_LIMIT), "file", file)
    model = _object(whole.get("model"), "model", file)
    if model.get("type", "BPE") != "BPE":
        raise UnsupportedError(f"{printable(file)}: only BPE tokenizers are read, got {printable(model.get('type'))!r}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise FormatError(file, f"model.{name}", "null", f"{model[name]!r}")
    added = read_added(whole.get("added_tokens", []), file)
    tokens = list_tokens(model.get("vocab"), {id_: text for id_, (text, _) in added.items()}, file)
    normalizer = pipelines.check_normalizer(whole.get("normalizer"), file)
    pre_tokenizer = pipelines.check_pre_tokenizer(whole.get("pre_tokenizer"), file)
    ids = {token: id_ for id_, token in enumerate(tokens)}
    prefix, suffix = _surroundings(whole.get("post_processor"), ids, file)
    byte_level = any(
        step.get("type") == "ByteLevel"
        for step in (*pipelines.flatten(pre_tokenizer), whole.get("decoder") or {})
        if isinstance(step, dict)
    )
    unk = model.get("unk_token")
    if unk is not None and (not isinstance(unk, str) or unk not in ids):
        raise FormatError(file, "model.unk_token", "a token of the vocabulary", f"{unk!r}")
    spaces = pipelines.spaces_of(normalizer, pre_tokenizer)
    if any(not flags.special for _, flags in added.values()):
        spaces = None  # then the steps say how the text between such tokens is treated
    return Vocabulary(
        file=file,
        tokens=tokens,
        merges=list_merges(model.get("merges"), file),
        alphabet="bytes" if byte_level else "pieces",
        added={id_: flags for id_, (_, flags) in added.items()},
        normalizer=None if spaces else normalizer,
        pre_tokenizer=None if spaces else pre_tokenizer,
        spaces=spaces,
        ignore_merges=_flag(model, "ignore_merges", file),
        byte_fallback=_flag(model, "byte_fallback", file),
        fuse_unk=_flag(model, "fuse_unk", file),
        unk=None if unk is None else ids[unk],
        prefix=prefix,
        suffix=suffix,
    )


def list_tokens(vocab: Any, added: Mapping[int, str], file: str) -> list[str]:
    """The tokens by id, of a vocabulary by text and of tokens that are added to it; ids leave no gap."""
    vocab = _object(vocab, "vocab", file)
    extra = {id_: text for id_, text in added.items() if vocab.get(text) != id_}
    count = len(vocab) + len(extra)
    check_count(count, file)
    tokens: list[str | None] = [None] * count
    for text, id_ in (*vocab.items(), *((text, id_) for id_, text in extra.items())):
        if type(id_) is not int or not 0 <= id_ < count:
            raise FormatError(file, f"token {text!r}", f"an id of 0..{count - 1}, without a gap", id_)
        if tokens[id_] is not None:
            raise FormatError(file, f"token {text!r}", "an id of its own", f"{id_}, which is {tokens[id_]!r}")
        tokens[id_] = text
    return [token for token in tokens if token is not None]


def list_merges(merges: Any, file: str) -> list[tuple[str, str]]:
    """The merges: pairs, or the two tokens with a space between."""
    if not isinstance(merges, list):
        raise FormatError(file, "merges", "a list", type(merges).__name__)
    pairs = []
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or type(pair[0]) is not str or type(pair[1]) is not str:
            raise FormatError(file, f"merges[{rank}]", "two tokens", f"{merge!r}")
        pairs.append((pair[0], pair[1]))
    return pairs


def read_added(entries: Any, file: str) -> dict[int, tuple[str, Added]]:
    """Added tokens by id: their text, and how they are looked for."""
    if not isinstance(entries, list):
        raise FormatError(file, "added_tokens", "a list", type(entries).__name__)
    found: dict[int, tuple[str, Added]] = {}
    texts: set[str] = set()
    for index, one in enumerate(entries):
        where = f"added_tokens[{index}]"
        entry = _object(one, where, file)
        text, id_ = entry.get("content"), entry.get("id")
        if not isinstance(text, str) or not text or text in texts:
            raise FormatError(file, f"{where}.content", "a text of its own", f"{text!r}")
        if type(id_) is not int or id_ < 0 or id_ in found:
            raise FormatError(file, f"{where}.id", "an id of its own", f"{id_!r}")
        texts.add(text)
        found[id_] = (text, Added(**{name: _flag(entry, name, file) for name in _FLAGS}))
    return found


def _surroundings(processor: Any, ids: Mapping[str, int], file: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a post-processor puts in front of a single text, and behind it."""
    around: tuple[list[int], list[int]] = ([], [])
    if processor is None:
        return (), ()
    for step in _processors(_object(processor, "post_processor", file), file):
        if step.get("type") == "ByteLevel":
            continue
        if step.get("type") != "TemplateProcessing" or not isinstance(step.get("single"), list):
            raise FormatError(file, "post_processor", "ByteLevel or TemplateProcessing", f"{step.get('type')!r}")
        side = 0
        for item in step["single"]:
            entry = _object(item, "post_processor.single", file)
            if "Sequence" in entry:
                side = 1
                continue
            text = _object(entry.get("SpecialToken"), "post_processor.single", file).get("id")
            if not isinstance(text, str) or text not in ids:
                raise FormatError(file, "post_processor.single", "a token of the vocabulary", f"{text!r}")
            around[side].append(ids[text])
    return tuple(around[0]), tuple(around[1])


def _processors(processor: Mapping[str, Any], file: str) -> list[Mapping[str, Any]]:
    if processor.get("type") != "Sequence":
        return [processor]
    steps = processor.get("processors")
    if not isinstance(steps, list):
        raise FormatError(file, "post_processor.processors", "a list", type(steps).__name__)
    return [_object(step, "post_processor", file) for step in steps]


def _object(value: Any, field: str, file: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(file, field, "an object", type(value).__name__)
    return value


def _flag(entry: Mapping[str, Any], name: str, file: str) -> bool:
    value = entry.get(name, False)
    if not isinstance(value, bool):
        raise FormatError(file, name, "true or false", f"{value!r}")
    return value


def write(vocabulary: Vocabulary) -> dict[str, Any]:
    """The same tokenizer as the object that a tokenizer.json holds."""
    tokens, added = vocabulary.tokens, vocabulary.added
    normalizer = pipelines.steps_of(vocabulary.spaces) if vocabulary.spaces else vocabulary.normalizer
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, "content": tokens[id_]} | {name: getattr(added[id_], name) for name in _FLAGS}
            for id_ in sorted(added)
        ],
        "normalizer": normalizer,
        "pre_tokenizer": vocabulary.pre_tokenizer,
        "post_processor": _post_processor(vocabulary),
        "decoder": _decoder(vocabulary, pipelines.adds_space(normalizer, vocabulary.pre_tokenizer)),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if vocabulary.unk is None else tokens[vocabulary.unk],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": vocabulary.fuse_unk,
            "byte_fallback": vocabulary.byte_fallback,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": {token: id_ for id_, token in enumerate(tokens)},
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }


def _post_processor(vocabulary: Vocabulary) -> JsonStep | None:
    tokens = vocabulary.tokens
    around = (*vocabulary.prefix, *vocabulary.suffix)
    if not around:
        return None

    def template(*texts: str) -> list[JsonStep]:
        return [
            *_special(tokens[id_] for id_ in vocabulary.prefix),
            *({"Sequence": {"id": text, "type_id": 0}} for text in texts),
            *_special(tokens[id_] for id_ in vocabulary.suffix),
        ]

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": {
            tokens[id_]: {"id": tokens[id_], "ids": [id_], "tokens": [tokens[id_]]} for id_ in sorted(set(around))
        },
    }


def _special(tokens: Iterable[str]) -> Sequence[JsonStep]:
    return [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]


def _decoder(vocabulary: Vocabulary, strips: bool) -> JsonStep:
    if vocabulary.alphabet == "bytes":
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    steps: list[JsonStep] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strips:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
