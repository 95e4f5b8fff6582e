"""Texts and conversations from files, one after another, each with where it stands."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import json
import logging
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from bitnet_core import FormatError, UnsupportedError
from bitnet_core.formats.strictjson import parse_json

from .conversations import Message, check_letters, conversation

_log = logging.getLogger(__name__)
_BLOCK = 1 << 20  # bytes read at once
LIMIT = 16 << 20  # bytes of one record: no honest document is longer
_KINDS = (".txt", ".text", ".jsonl", ".ndjson", ".json", ".parquet")
_GAP = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Record:
    """A document to learn from: its text, or the messages of a conversation."""

    where: str  # file:line
    text: str = ""
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()  # that the conversation may call
    continues: bool = False  # the text goes on with the document of the record before


class BadRecords:
    """Records that are left out for what is wrong with them: at most so many, and each with a word."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.count = 0

    def leave_out(self, error: FormatError) -> None:
        """Count one more, or raise what is wrong with it."""
        self.count += 1
        if self.count > self.limit:
            raise error
        _log.warning("left out (%d of at most %d): %s", self.count, self.limit, error)


def find(sources: Sequence[str]) -> list[str]:
    """The files that sources name, with patterns like "stories/*.jsonl" spelled out."""
    found: list[str] = []
    for source in sources:
        matches = sorted(glob.glob(source)) if glob.has_magic(source) else [source]  # noqa: PTH207
        if not matches:
            raise FormatError(source, "file", "at least one that matches", "none")
        found += matches
    for name in found:
        _check(name)
    return found


def digest(files: Iterable[str]) -> str:
    """A hash of all that the files say."""
    total = hashlib.sha256()
    for name in files:
        total.update(f"{name if _is_dataset(name) else Path(name).suffix}\0".encode())
        if _is_dataset(name):
            total.update(_dataset(name)._fingerprint.encode())
        else:
            with Path(name).open("rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def read(
    files: Sequence[str], *, key: str = "text", separator: str = "", chat: bool, bad: BadRecords
) -> Iterator[Record]:
    """Every record of the files: conversations for `chat`, otherwise the texts under `key`."""
    for name in files:
        for where, value in _values(name, separator, bad):
            try:
                if isinstance(value, Record):
                    yield _checked(value) if not chat else _no_text(value)
                else:
                    yield _talk(value, where) if chat else _checked(_document(value, where, key))
            except FormatError as error:
                bad.leave_out(error)


def _check(name: str) -> None:
    if _is_dataset(name):
        return
    path = Path(name)
    if path.is_dir():
        raise FormatError(name, "file", "a file", "a folder", hint=f"name its files, as in {path / '*.jsonl'}")
    if not path.is_file():
        raise FormatError(name, "file", "a regular file", "something else" if path.exists() else "no such file")
    if _kind(name) not in _KINDS:
        raise FormatError(name, "name", f"one that ends in {', '.join(_KINDS)} (or .gz behind it)", path.name)
    if path.stat().st_size == 0:
        raise FormatError(name, "file", "records", "an empty file")


def _kind(name: str) -> str:
    return Path(name.removesuffix(".gz")).suffix.lower()


def _is_dataset(name: str) -> bool:
    return name.startswith("datasets:")


def _values(name: str, separator: str, bad: BadRecords) -> Iterator[tuple[str, Any]]:
    """What stands in a file, with where: mappings, or records of plain text."""
    if _is_dataset(name):
        yield from ((f"{name}:{number}", row) for number, row in enumerate(_dataset(name), 1))
    elif _kind(name) == ".parquet":
        yield from _rows(name)
    elif _kind(name) in {".json", ".jsonl", ".ndjson"}:
        for where, text in _elements(name) if _kind(name) == ".json" else _lines(name, bad):
            try:
                yield where, parse_json(text, where)
            except FormatError as error:
                bad.leave_out(error)
    elif separator:
        for number, piece in _split(name, separator.encode(), bad):
            if piece.strip():
                yield from _text(f"{name}:{number}", piece.strip(), bad)
    else:
        yield from _long_text(name, bad)


def _lines(name: str, bad: BadRecords) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that say something."""
    return ((f"{name}:{number}", line) for number, line in _split(name, b"\n", bad) if line.strip())


def _long_text(name: str, bad: BadRecords) -> Iterator[tuple[str, Record]]:
    """A file that is one document, in pieces of whole lines."""
    lines: list[bytes] = []
    size, first, begun = 0, 1, False
    for number, line in _split(name, b"\n", bad):
        lines.append(line)
        size += len(line) + 1
        if size >= _BLOCK:
            yield from _text(f"{name}:{first}", b"\n".join([*lines, b""]), bad, continues=begun)
            lines, size, first, begun = [], 0, number + 1, True
    if rest := b"\n".join(lines):
        yield from _text(f"{name}:{first}", rest, bad, continues=begun)


def _text(where: str, data: bytes, bad: BadRecords, *, continues: bool = False) -> Iterator[tuple[str, Record]]:
    try:
        yield where, Record(where, data.decode().replace("\r\n", "\n"), continues=continues)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start)
        name, _, number = where.rpartition(":")
        got = f"byte {data[error.start]:#04x}"
        bad.leave_out(FormatError(f"{name}:{int(number) + line}", "text", "UTF-8", got))


def _split(name: str, mark: bytes, bad: BadRecords) -> Iterator[tuple[int, bytes]]:
    """The parts between marks, each with its line; memory is bounded by the longest part that is allowed."""
    held, line, dropping = b"", 1, False
    with _opened(name) as stream:
        while block := stream.read(_BLOCK):
            *parts, held = (held + block).split(mark)
            for part in parts:
                if not dropping:
                    yield line, part
                dropping = False
                line += part.count(b"\n") + mark.count(b"\n")
            if len(held) > LIMIT:
                if not dropping:
                    error = FormatError(f"{name}:{line}", "record", f"at most {LIMIT} bytes", "more")
                    bad.leave_out(error)
                # What may be the beginning of a mark is kept.
                keep = len(held) - len(mark) + 1
                line, held, dropping = line + held.count(b"\n", 0, keep), held[keep:], True
    if not dropping:
        yield line, held


def _elements(name: str) -> Iterator[tuple[str, bytes]]:
    """The values in a JSON file, which is one list of them, or has one behind another."""
    text, line, state = "", 1, "new"  # then in a "list", in a "row", or at the "end"
    for block in _decoded(name):
        text += block
        at = _GAP.match(text).end()  # type: ignore[union-attr]  # nothing matches, too
        while at < len(text):
            where, letter = f"{name}:{line + text.count(chr(10), 0, at)}", text[at]
            if state == "end":
                raise FormatError(where, "JSON", "nothing behind the list", repr(text[at : at + 20]))
            if letter == ("[" if state == "new" else "]" if state == "list" else ""):
                state, end = "list" if state == "new" else "end", at + 1
            else:
                state = "row" if state == "new" else state
                end = _end(text, at, line, name, whole=not block)
                if end < 0:
                    break
                yield where, text[at:end].encode()
            at = _GAP.match(text, end).end()  # type: ignore[union-attr]
        text, line = text[at:], line + text.count("\n", 0, at)
    if state == "list":
        raise FormatError(f"{name}:{line}", "JSON", "']' behind the last record", "the end of the file")


def _end(text: str, at: int, line: int, name: str, *, whole: bool) -> int:
    """Where the value that begins at a place ends; negative if more must be read to know."""
    try:
        return json.JSONDecoder().raw_decode(text, at)[1]
    except RecursionError as error:
        raise FormatError(f"{name}:{line}", "JSON", "a value that is not so deep", "many levels") from error
    except json.JSONDecodeError as error:
        if not whole and len(text) - at <= LIMIT:
            return -1
        near = repr(text[error.pos : error.pos + 20]) if error.pos < len(text) else "the end of the file"
        said = error.msg.removeprefix("Expecting ").partition(" (")[0]
        raise FormatError(f"{name}:{line + error.lineno - 1}", "JSON", said, near) from error


def _decoded(name: str) -> Iterator[str]:
    """The text of a file in blocks, the last of which is empty."""
    letters, line = codecs.getincrementaldecoder("utf-8")(), 1
    with _opened(name) as stream:
        while block := stream.read(_BLOCK):
            try:
                text = letters.decode(block)
            except UnicodeDecodeError as error:
                line += error.object.count(b"\n", 0, error.start)
                got = f"byte {error.object[error.start]:#04x}"
                raise FormatError(f"{name}:{line}", "text", "UTF-8", got) from error
            line += text.count("\n")
            yield text
    yield ""


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO | gzip.GzipFile]:
    """The bytes of a file, unpacked, behind its byte order mark."""
    try:
        with gzip.open(name) if name.endswith(".gz") else Path(name).open("rb") as stream:
            if stream.read(3) != b"\xef\xbb\xbf":
                stream.seek(0)
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FormatError(name, "gzip", "a whole file", error) from error
    except OSError as error:
        raise FormatError(name, "file", "a readable file", error.strerror or error) from error


def _rows(name: str) -> Iterator[tuple[str, Any]]:
    """The rows of a parquet file."""
    parquet = _extra("pyarrow.parquet", "parquet files", "parquet")
    try:
        with parquet.ParquetFile(name) as file:
            number = 0
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}:{number}", row
    except (import_module("pyarrow").ArrowException, OSError) as error:
        raise FormatError(name, "parquet", "a whole file", str(error).splitlines()[0]) from error


def _dataset(name: str) -> Any:
    """A dataset of the hub, or one saved in a folder, that "datasets:NAME:SPLIT" names."""
    datasets = _extra("datasets", "datasets", "datasets")
    where, _, split = name.removeprefix("datasets:").rpartition(":")
    try:
        if Path(where).is_dir():
            found = datasets.load_from_disk(where)
            return found[split] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(where, split=split)
    except (OSError, ValueError, KeyError) as error:
        raise FormatError(name, "dataset", "datasets:NAME:SPLIT that can be had", str(error).splitlines()[0]) from error


def _extra(module: str, what: str, extra: str) -> Any:
    """A library that not everybody has, imported when it is needed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise UnsupportedError(f"{what} need {module}: pip install 'bitnet-training[{extra}]'") from error


def _document(value: Any, where: str, key: str) -> Record:
    record = _object(value, where)
    text = record.get(key)
    if isinstance(text, str):
        return Record(where, text)
    got = type(text).__name__ if key in record else f"keys {', '.join(map(str, record))}"
    hint = "data.field names another key; data.form = chat is for conversations" if key not in record else None
    raise FormatError(where, key, "a text", "null" if got == "NoneType" else got, hint=hint)


def _talk(value: Any, where: str) -> Record:
    messages, tools = conversation(_object(value, where), where)
    return Record(where, messages=messages, tools=tools)


def _checked(record: Record) -> Record:
    """A record that has a text, in letters that there are."""
    if not record.text.strip() and not record.continues:
        raise FormatError(record.where, "text", "at least one letter", "none")
    check_letters(record.text, record.where, "text")
    return record


def _no_text(record: Record) -> Record:
    raise FormatError(record.where, "record", "a conversation (.jsonl, .json or .parquet)", "plain text")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FormatError(where, "record", "an object", type(value).__name__)
    return value
