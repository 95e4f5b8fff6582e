"""A model's folder: which tokenizer file it has, and what the configs beside it add."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..durable import replacing
from ..errors import FormatError
from ..formats.strictjson import read_bounded, read_json
from . import FILE_LIMIT, Added, Vocabulary, pipelines, sentencepiece, tiktoken, tokenizerjson

_CONFIG_LIMIT = 16 << 20  # Gemma's tokenizer_config.json, which lists its added tokens, is over 1 MiB
_ROLES = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configs of a folder say about its tokenizer; a key that is absent was not said."""

    file: str = "tokenizer_config.json"
    texts: Mapping[str, str | None] = field(default_factory=dict)  # of bos, eos, unk and pad
    special: frozenset[str] = frozenset()
    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of bos, eos and pad
    added: Mapping[int, tuple[str, Added]] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None


def read_folder(folder: Path) -> Vocabulary | None:
    """The vocabulary of a model's folder, if it has one."""
    for name in ("tokenizer.json", "tokenizer.model", "vocab.json"):
        if (folder / name).is_file() and (name != "vocab.json" or (folder / "merges.txt").is_file()):
            return _read(folder / name, read_settings(folder))
    return None


def read_file(path: Path) -> Vocabulary:
    """The vocabulary in one file: tokenizer.json, a .model of either kind, or vocab.json with merges.txt beside it."""
    return _read(path.with_name("vocab.json") if path.name == "merges.txt" else path, Settings())


def read_settings(folder: Path) -> Settings:
    """What the configs in a folder say, the more specific file first."""
    file = folder / "tokenizer_config.json"
    config = read_config(file)
    texts: dict[str, str | None] = {}
    special: set[str] = set()
    for source in (config, read_config(folder / "special_tokens_map.json")):
        for role in _ROLES:
            if f"{role}_token" in source:
                texts.setdefault(role, token_text(source[f"{role}_token"], f"{role}_token", file))
        more = source.get("additional_special_tokens") or []
        special |= {token_text(one, "additional_special_tokens", file) or "" for one in _list(more, file)}
    special |= {text for text in texts.values() if text is not None}
    ids: dict[str, tuple[int, ...]] = {}
    for name in ("generation_config.json", "config.json"):
        source = read_config(folder / name)
        for role in ("bos", "eos", "pad"):
            found = _ids(source.get(f"{role}_token_id"), folder / name, f"{role}_token_id")
            ids[role] = ids.get(role, ()) + found
    added = _added(config.get("added_tokens_decoder") or {}, file) or _older_added(folder / "added_tokens.json")
    return Settings(os.fspath(file), texts, frozenset(special), ids, added, *_bools(config, file))


def read_config(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file beside a model; empty where there is no such file."""
    if not path.is_file():
        return {}
    config = read_json(path, limit=_CONFIG_LIMIT, same_duplicates=True)
    if not isinstance(config, dict):
        raise FormatError(path, "file", "an object", type(config).__name__)
    return config


def token_text(value: Any, name: str, file: str | os.PathLike[str]) -> str | None:
    """A token as configs write it: its text, or an object with the text as its content."""
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise FormatError(file, name, "a string, an object with content, or null", f"{text!r}")
    return text


def save(vocabulary: Vocabulary, folder: Path) -> None:
    """Write tokenizer.json, and beside it the tokenizer_config.json that names the tokens with a role."""
    tokens = vocabulary.tokens
    ends = sorted(vocabulary.eos)
    roles = {"bos": vocabulary.bos, "eos": ends[0] if ends else None, "unk": vocabulary.unk, "pad": vocabulary.pad}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{role}_token": None if id_ is None else tokens[id_] for role, id_ in roles.items()}
    config |= {"add_bos_token": bool(vocabulary.prefix), "add_eos_token": bool(vocabulary.suffix)}
    for name, value in (("tokenizer.json", tokenizerjson.write(vocabulary)), ("tokenizer_config.json", config)):
        with replacing(folder / name) as stream:
            stream.write(json.dumps(value, ensure_ascii=False, indent=1).encode())


def _read(path: Path, settings: Settings) -> Vocabulary:
    if path.name == "vocab.json":
        return _with_settings(_with_added(_read_pair(path, settings), settings), settings)
    if path.suffix == ".json":
        return _with_settings(tokenizerjson.read(path), settings)
    data, file = read_bounded(path, FILE_LIMIT), os.fspath(path)
    if tiktoken.looks_like(data):
        return _with_settings(tiktoken.parse(data, file), settings)
    if sentencepiece.looks_like(data):
        return _with_settings(_with_added(sentencepiece.parse(data, file), settings), settings)
    raise FormatError(path, "file", "a tiktoken or SentencePiece model", repr(data[:16]))


def _read_pair(path: Path, settings: Settings) -> Vocabulary:
    """GPT-2's vocab.json with the merges.txt beside it."""
    file, merges_file = os.fspath(path), path.with_name("merges.txt")
    try:
        lines = read_bounded(merges_file, FILE_LIMIT).decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(merges_file, "text", "UTF-8", "other bytes", offset=error.start) from error
    if lines[0].startswith("#version"):
        del lines[0]
    merges = [line.removesuffix("\r") for line in lines if line.strip()]
    tokens = tokenizerjson.list_tokens(read_json(path, limit=FILE_LIMIT), {}, file)
    ids = {token: id_ for id_, token in enumerate(tokens)}
    end = ids.get("<|endoftext|>")
    normalizer, pre_tokenizer = pipelines.NAMED["gpt-2"]
    special = {ids[text] for text in settings.special if text in ids} | ({end} if end is not None else set())
    return Vocabulary(
        file=file,
        tokens=tokens,
        merges=tokenizerjson.list_merges(merges, os.fspath(merges_file)),
        alphabet="bytes",
        added=dict.fromkeys(sorted(special), Added(special=True)),
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        bos=end,
        eos=frozenset(() if end is None else (end,)),
    )


def _with_added(vocabulary: Vocabulary, settings: Settings) -> Vocabulary:
    """A vocabulary without added tokens of its own, with those that its folder puts behind it."""
    known = len(vocabulary.tokens)
    behind = {id_: entry for id_, entry in settings.added.items() if id_ >= known}
    for expected, id_ in enumerate(sorted(behind), known):
        if id_ != expected:
            raise FormatError(settings.file, f"added_tokens_decoder.{id_}", f"id {expected}, without a gap", id_)
    tokens = (*vocabulary.tokens, *(behind[id_][0] for id_ in sorted(behind)))
    return replace(
        vocabulary, tokens=tokens, added={**vocabulary.added, **{id_: entry[1] for id_, entry in behind.items()}}
    )


def _with_settings(vocabulary: Vocabulary, settings: Settings) -> Vocabulary:
    """The vocabulary with the roles that the configs give its tokens; what they do not say stays."""
    ids, changes = vocabulary.ids, dict[str, Any]()
    for role in ("bos", "pad"):
        if role in settings.texts:
            text = settings.texts[role]
            changes[role] = None if text is None else _known(ids, text, role, settings)
        elif settings.ids.get(role):
            changes[role] = settings.ids[role][0]
    eos = set(vocabulary.eos) | set(settings.ids.get("eos", ()))
    if settings.texts.get("eos") is not None:
        eos.add(_known(ids, settings.texts["eos"] or "", "eos", settings))
    changes["eos"] = frozenset(eos)
    special = {ids[text] for text in settings.special if text in ids}
    flags = {id_: replace(vocabulary.added.get(id_, Added(special=True)), special=True) for id_ in special}
    changes["added"] = {**vocabulary.added, **flags}
    bos = changes.get("bos", vocabulary.bos)
    if settings.add_bos is not None and bool(vocabulary.prefix) != settings.add_bos and bos is not None:
        changes["prefix"] = (bos,) if settings.add_bos else ()
    if settings.add_eos is not None and bool(vocabulary.suffix) != settings.add_eos and eos:
        text = settings.texts.get("eos")
        changes["suffix"] = ((ids[text],) if text else (min(eos),)) if settings.add_eos else ()
    return replace(vocabulary, **changes)


def _known(ids: Mapping[str, int], text: str, role: str, settings: Settings) -> int:
    if text not in ids:
        raise FormatError(settings.file, f"{role}_token", "a token of the vocabulary", f"{text!r}")
    return ids[text]


def _ids(value: Any, file: Path, name: str) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for one in values:
        if type(one) is not int:
            raise FormatError(file, name, "an id, or a list of them", f"{one!r}")
    return tuple(one for one in values if one >= 0)  # configs write -1 for a token that there is not


def _added(decoder: Any, file: Path) -> dict[int, tuple[str, Added]]:
    """added_tokens_decoder, in which the ids are the keys, as text."""
    if not isinstance(decoder, dict) or not all(isinstance(entry, dict) for entry in decoder.values()):
        raise FormatError(file, "added_tokens_decoder", "an object of objects", type(decoder).__name__)
    for key in decoder:
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise FormatError(file, "added_tokens_decoder", "ids as keys", f"{key!r}")
    return tokenizerjson.read_added([{**entry, "id": int(key)} for key, entry in decoder.items()], os.fspath(file))


def _older_added(file: Path) -> dict[int, tuple[str, Added]]:
    """The file that held ids by text before tokenizer_config.json did."""
    plain = {"special": False, "normalized": True}
    entries = [{**plain, "content": text, "id": id_} for text, id_ in read_config(file).items()]
    return tokenizerjson.read_added(entries, os.fspath(file))


def _list(value: Any, file: Path) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(file, "additional_special_tokens", "a list", type(value).__name__)
    return value


def _bools(config: Mapping[str, Any], file: Path) -> tuple[bool | None, bool | None]:
    found = config.get("add_bos_token"), config.get("add_eos_token")
    for value in found:
        if value is not None and not isinstance(value, bool):
            raise FormatError(file, "add_bos_token and add_eos_token", "true or false", f"{value!r}")
    return found
