"""The header of a GGUF file: every count and length is proven against the file before it is used.

    magic "GGUF" | u32 version | u64 tensors | u64 values
    a value:  string key | u32 type | what the type says       string: u64 length | UTF-8
    a tensor: string name | u32 axes | u64 for each, the fastest first | u32 type | u64 offset
    padding to the alignment; then the tensors' bytes, each padded to it

The header is copied out of the file, so that nothing done to the file later can hurt who reads a value.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ...errors import FormatError, printable
from ..ranges import RangeFile
from .strings import Strings, find_strings

_COUNT_LIMIT = 65_536  # of values and of tensors; the largest ternary models have a few hundred
_STRING_LIMIT = 16 << 20
_TEMPLATE_LIMIT = 1 << 20
_ARRAY_LIMIT = 64 << 20  # elements
_SMALLEST_VALUE = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8
_STEP = 1 << 20  # bytes read ahead of what is needed

BOOL, STRING, ARRAY = 7, 8, 9
# What a number is, by the type's id, as both struct and NumPy spell it.
NUMBERS: Mapping[int, str] = MappingProxyType(
    {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 10: "<Q", 11: "<q", 12: "<d"}
)
_UINT32 = 4

# What other files begin with, and what to say of them.
_OTHER_MAGIC = (
    (b"<!DO", "this is a web page; the download failed"),
    (b"<htm", "this is a web page; the download failed"),
    (b"<HTM", "this is a web page; the download failed"),
    (b"vers", "this is a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"PK\x03\x04", "this is a zip archive; unpack it first"),
    (b"\x1f\x8b", "this is a gzip file; unpack it first"),
    (b"FUGG", "the bytes are in the wrong order"),
    (b"lmgg", "this is a GGML file from before GGUF; convert the model anew"),
    (b"tjgg", "this is a GGML file from before GGUF; convert the model anew"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor as the header has it."""

    name: str
    shape: tuple[int, ...]  # the slowest axis first, as NumPy has it
    kind: int  # an id of ggml's, or of a fork's
    offset: int  # from the start of the data
    at: int  # where this entry begins in the file


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data."""

    version: int
    metadata: Mapping[str, object]
    entries: tuple[Entry, ...]
    alignment: int
    end: int  # of the entries; the data begins at the next multiple of the alignment

    @property
    def data_start(self) -> int:
        """Where offset 0 is."""
        return padded(self.end, self.alignment)


@dataclass(frozen=True, slots=True)
class _Span:
    """An array whose place is known, while the header is still growing."""

    kind: int
    start: int
    count: int
    starts: np.ndarray | None  # of strings

    def bind(self, header: bytes, file: str, field: str) -> object:
        if self.starts is not None:
            return Strings(header, self.starts, file, field)
        if self.kind != BOOL:
            return np.frombuffer(header, NUMBERS[self.kind], self.count, self.start)
        values = np.frombuffer(header, np.uint8, self.count, self.start)
        if self.count and values.max() > 1:
            bad = int(np.argmax(values > 1))
            raise FormatError(file, f"{field}[{bad}]", "a byte of 0 or 1", int(values[bad]), offset=self.start + bad)
        return values.view(np.bool_)


class _Cursor:
    """Walks over a file from its start; nothing is taken that the file does not have."""

    def __init__(self, file: RangeFile) -> None:
        self.file = file
        self.path = file.path
        self.position = 0
        self.buffer = bytearray()

    @property
    def left(self) -> int:
        return self.file.size - self.position

    def load(self, end: int) -> None:
        """Have the buffer reach to `end`, which the file has."""
        while len(self.buffer) < end:
            start = len(self.buffer)
            stop = min(max(end, start + _STEP), self.file.size)
            self.buffer += self.file.read(start, stop, "header").data

    def take(self, count: int, field: str) -> int:
        """Where the next `count` bytes begin."""
        start = self.position
        if count > self.left:
            raise FormatError(self.path, field, f"{count} bytes", f"{self.left} to the end of the file", offset=start)
        self.load(start + count)
        self.position = start + count
        return start

    def number(self, layout: str, field: str) -> int:
        """One number; `layout` is a format of the struct module."""
        start = self.take(struct.calcsize(layout), field)
        value: int = struct.unpack_from(layout, self.buffer, start)[0]
        return value

    def text(self, field: str, lowest: int, highest: int) -> bytes:
        """A string of a length between the two, as its bytes."""
        at = self.position
        length = self.number("<Q", f"{field} length")
        if not lowest <= length <= highest:
            raise FormatError(self.path, f"{field} length", f"{lowest}..{highest}", length, offset=at)
        start = self.take(length, field)
        return bytes(self.buffer[start : start + length])


def padded(position: int, alignment: int) -> int:
    """The first multiple of `alignment` that is not before `position`."""
    return -(-position // alignment) * alignment


def read_header(file: RangeFile) -> Header:
    """The header of an opened file."""
    if file.size < 24:
        raise FormatError(file.path, "header", "at least 24 bytes", file.size)
    cursor = _Cursor(file)
    version = _read_version(cursor)
    tensors = _read_count(cursor, "tensor count", _SMALLEST_TENSOR)
    values = _read_count(cursor, "value count", _SMALLEST_VALUE)
    found, kinds = _read_values(cursor, values)
    alignment = _alignment(file.path, found, kinds)
    entries = _read_entries(cursor, tensors, alignment)
    header = bytes(memoryview(cursor.buffer)[: cursor.position])
    metadata = {
        key: value.bind(header, file.path, f"kv {key!r}") if isinstance(value, _Span) else value
        for key, value in found.items()
    }
    return Header(version, MappingProxyType(metadata), entries, alignment, cursor.position)


def _read_version(cursor: _Cursor) -> int:
    start = cursor.take(4, "magic")
    magic = bytes(cursor.buffer[start : start + 4])
    if magic != b"GGUF":
        hint = next((hint for other, hint in _OTHER_MAGIC if magic.startswith(other)), None)
        if hint is None and bytes(cursor.buffer[8:9]) == b"{":
            hint = "this is a safetensors file; open the folder that it is in"
        shown = magic.decode("ascii", "backslashreplace")
        raise FormatError(cursor.path, "magic", '"GGUF"', f'"{shown}"', offset=0, hint=hint)
    version = cursor.number("<I", "version")
    if version in (2 << 24, 3 << 24):
        hint = "the file looks big-endian, which is not supported; convert the model anew"
        raise FormatError(cursor.path, "version", "2 or 3", f"{version:#010x}", offset=4, hint=hint)
    if version not in (2, 3):
        hint = "convert the model anew" if version < 2 else None
        raise FormatError(cursor.path, "version", "2 or 3", version, offset=4, hint=hint)
    return version


def _read_count(cursor: _Cursor, field: str, smallest: int) -> int:
    at = cursor.position
    count = cursor.number("<Q", field)
    highest = min(_COUNT_LIMIT, cursor.left // smallest)
    if count > highest:
        raise FormatError(cursor.path, field, f"0..{highest} in a file of {cursor.file.size} bytes", count, offset=at)
    return count


def _read_values(cursor: _Cursor, count: int) -> tuple[dict[str, object], dict[str, int]]:
    """Every key with its value, and with its type."""
    found: dict[str, object] = {}
    kinds: dict[str, int] = {}
    for index in range(count):
        at = cursor.position
        key = _read_key(cursor, f"kv[{index}].key")
        if key in kinds:
            first = list(kinds).index(key)
            got = f"duplicate key '{printable(key)}' (entries {first} and {index})"
            raise FormatError(cursor.path, "kv", "every key once", got, offset=at)
        kinds[key] = kind = cursor.number("<I", f"kv {key!r} type")
        found[key] = _read_value(cursor, kind, key)
    return found, kinds


def _read_key(cursor: _Cursor, field: str) -> str:
    at = cursor.position
    key = cursor.text(field, 1, 65_535)
    if bad := re.search(rb"[^ -~]", key):
        expected = "printable ASCII"
        raise FormatError(cursor.path, field, expected, key[max(bad.start() - 20, 0) :][:60], offset=at + 8)
    return key.decode("ascii")


def _read_value(cursor: _Cursor, kind: int, key: str) -> object:
    field = f"kv {key!r}"
    if kind == STRING:
        limit = _TEMPLATE_LIMIT if key.startswith("tokenizer.chat_template") else _STRING_LIMIT
        at = cursor.position + 8
        return _decoded(cursor.text(field, 0, limit), cursor.path, field, at)
    if kind == ARRAY:
        return _read_array(cursor, field)
    if kind == BOOL:
        start = cursor.take(1, field)
        if cursor.buffer[start] > 1:
            raise FormatError(cursor.path, field, "a byte of 0 or 1", cursor.buffer[start], offset=start)
        return cursor.buffer[start] == 1
    if kind not in NUMBERS:
        raise FormatError(cursor.path, f"{field} type", "0..12", kind, offset=cursor.position - 4)
    return cursor.number(NUMBERS[kind], field)


def _decoded(data: bytes, file: str, field: str, at: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        got = f"byte {data[error.start]:#04x}"
        raise FormatError(file, field, "UTF-8", got, offset=at + error.start) from error


def _read_array(cursor: _Cursor, field: str) -> _Span:
    at = cursor.position
    kind = cursor.number("<I", f"{field} element type")
    count = cursor.number("<Q", f"{field} count")
    if kind == ARRAY:
        got = "an array of arrays; nested arrays are not supported"
        raise FormatError(cursor.path, f"{field} element type", "a number, a bool or a string", got, offset=at)
    if kind not in (*NUMBERS, BOOL, STRING):
        raise FormatError(cursor.path, f"{field} element type", "0..12", kind, offset=at)
    size = {BOOL: 1, STRING: 8}.get(kind) or np.dtype(NUMBERS[kind]).itemsize
    highest = min(_ARRAY_LIMIT, cursor.left // size)
    if count > highest:
        raise FormatError(cursor.path, f"{field} count", f"0..{highest} elements", count, offset=at + 4)
    start = cursor.position
    if kind != STRING:
        cursor.take(count * size, field)
        return _Span(kind, start, count, None)
    starts = np.empty(count, np.int64)
    done = 0
    while done < count:
        cursor.load(min(cursor.position + _STEP, cursor.file.size))
        ends = find_strings(cursor.buffer, cursor.position, starts[done:], min(_STRING_LIMIT, cursor.file.size))
        done += ends.found
        cursor.position = ends.position
        if not ends.found:  # the next string is longer than what is loaded, or than it may be
            starts[done] = cursor.position
            cursor.text(f"{field}[{done}]", 0, _STRING_LIMIT)
            done += 1
    return _Span(kind, start, count, starts)


def _alignment(file: str, values: Mapping[str, object], kinds: Mapping[str, int]) -> int:
    key = "general.alignment"
    if key not in values:
        return 32
    value, kind = values[key], kinds[key]
    if kind == _UINT32 and isinstance(value, int) and 8 <= value <= 4096 and value & (value - 1) == 0:
        return value
    got = value if kind == _UINT32 else f"a value of type {kind}"
    raise FormatError(file, f"kv {key!r}", "a power of two in 8..4096 (uint32)", got)


def _read_entries(cursor: _Cursor, count: int, alignment: int) -> tuple[Entry, ...]:
    entries: dict[str, Entry] = {}
    for index in range(count):
        entry = _read_entry(cursor, f"tensor[{index}]")
        if entry.name in entries:
            first = list(entries).index(entry.name)
            got = f"duplicate '{printable(entry.name)}' (entries {first} and {index})"
            raise FormatError(cursor.path, "tensors", "every name once", got, offset=entry.at)
        if entry.offset % alignment:
            expected = f"a multiple of {alignment}"
            raise FormatError(cursor.path, f"tensor {entry.name!r} offset", expected, entry.offset, offset=entry.at)
        entries[entry.name] = entry
    return tuple(entries.values())


def _read_entry(cursor: _Cursor, field: str) -> Entry:
    at = cursor.position
    name = _decoded(cursor.text(f"{field} name", 1, 64), cursor.path, f"{field} name", at + 8)
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", name) or ".." in re.split(r"[/\\]", name):
        raise FormatError(cursor.path, f"{field} name", "no control characters and no path", name, offset=at + 8)
    field = f"tensor {name!r}"
    axes = cursor.number("<I", f"{field} n_dims")
    if not 1 <= axes <= 4:
        raise FormatError(cursor.path, f"{field} n_dims", "1..4", axes, offset=cursor.position - 4)
    shape = []
    for axis in range(axes):
        length = cursor.number("<Q", f"{field} dimension {axis}")
        if not 1 <= length < 1 << 63:
            raise FormatError(
                cursor.path, f"{field} dimension {axis}", f"1..{(1 << 63) - 1}", length, offset=cursor.position - 8
            )
        shape.append(length)
    kind = cursor.number("<I", f"{field} type")
    offset = cursor.number("<Q", f"{field} offset")
    return Entry(name, tuple(reversed(shape)), kind, offset, at)
