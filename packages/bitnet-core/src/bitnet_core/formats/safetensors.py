"""safetensors files, read more strictly than the format's own library, and without copying."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ..durable import replacing
from ..errors import FormatError
from .ranges import RangeFile
from .strictjson import parse_json

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_HEADER_LIMIT = 100_000_000  # the format's own
_ENTRY_LIMIT = 65_536
_METADATA_LIMIT = 1 << 20
_RANK_LIMIT = 8
_ELEMENT_LIMIT = 1 << 48
_NAME_LIMIT = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies; proven to be inside the file, and to overlap no other."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


class SafetensorsFile:
    """A safetensors file whose header has been proven; arrays are read when they are asked for."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = RangeFile(path)
        try:
            self.entries, self.metadata = _read_header(self.file)
        except BaseException:
            self.file.close()
            raise

    def array(self, name: str) -> npt.NDArray[Any]:
        """The tensor of that name."""
        entry = self.entries[name]
        data = self.file.read(entry.start, entry.end, f"tensor {name!r}")
        return data.view(entry.dtype).reshape(entry.shape)

    def rows(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        """Some rows of the matrix of that name."""
        entry = self.entries[name]
        size = entry.shape[1] * entry.dtype.itemsize
        data = self.file.read(entry.start + first * size, entry.start + last * size, f"tensor {name!r}")
        return data.view(entry.dtype).reshape(last - first, entry.shape[1])

    def close(self) -> None:
        """Let go of the file; arrays stay valid."""
        self.file.close()


def _read_header(file: RangeFile) -> tuple[dict[str, Entry], dict[str, str]]:
    limit = min(_HEADER_LIMIT, file.size - 8)
    if file.size < 8:
        raise FormatError(file.path, "header length", "8 bytes", f"a file of {file.size}")
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if not 2 <= length <= limit:
        raise FormatError(file.path, "header length", f"2..{limit}", length, offset=0, hint=_other_format(file))
    data = file.read(8, 8 + length, "header").tobytes()
    if data[:1] != b"{":
        raise FormatError(file.path, "header", "to begin with {", repr(data[:8]), offset=8)
    # Each entry has one: refusing by count comes before building a million objects.
    if data.count(b'"data_offsets"') > _ENTRY_LIMIT:
        raise FormatError(file.path, "header", f"at most {_ENTRY_LIMIT} tensors", "more")
    header = parse_json(data.rstrip(b" "), file.path)
    metadata = _metadata(header.pop("__metadata__", {}), file.path)
    entries = {name: _entry(name, value, 8 + length, file) for name, value in header.items()}
    _check_tiling(entries, 8 + length, file)
    return entries, metadata


def _other_format(file: RangeFile) -> str | None:
    start = file.read(0, min(file.size, 16)).tobytes()
    known = {
        b"GGUF": "this is a GGUF file",
        b"PK\x03\x04": "this is a zip archive, perhaps a pickle-based checkpoint: convert it to safetensors",
        b"\x80": "this is a pickle: convert it to safetensors",
        b"version https://": "this is a Git LFS pointer: fetch the file it stands for",
        b"<": "this is a web page",
    }
    return next((hint for magic, hint in known.items() if start.startswith(magic)), None)


def _metadata(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise FormatError(path, "__metadata__", "an object of strings", repr(value))
    if (size := sum(len(key) + len(item) for key, item in value.items())) > _METADATA_LIMIT:
        raise FormatError(path, "__metadata__", f"at most {_METADATA_LIMIT} characters", size)
    return value


def _entry(name: str, value: Any, start: int, file: RangeFile) -> Entry:
    field = f"tensor {name!r}"
    if not 1 <= len(name) <= _NAME_LIMIT or _CONTROL.search(name) or ".." in re.split(r"[/\\]", name):
        raise FormatError(file.path, field, f"a name of 1..{_NAME_LIMIT} plain characters", name)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        got = sorted(value) if isinstance(value, dict) else value
        raise FormatError(file.path, field, "dtype, shape and data_offsets", got)
    dtype = DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    if dtype is None:
        raise FormatError(file.path, f"{field} dtype", f"one of {', '.join(DTYPES)}", value["dtype"])
    shape = value["shape"]
    # NumPy multiplies the counts, passing over zeros, and must not overflow.
    if not _counts(shape) or len(shape) > _RANK_LIMIT or math.prod(n or 1 for n in shape) >= _ELEMENT_LIMIT:
        expected = f"at most {_RANK_LIMIT} counts of fewer than {_ELEMENT_LIMIT} elements"
        raise FormatError(file.path, f"{field} shape", expected, shape)
    offsets = value["data_offsets"]
    room = file.size - start
    if not _counts(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
        raise FormatError(file.path, f"{field} data_offsets", f"two rising offsets up to {room}", offsets)
    needed = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != needed:
        size = offsets[1] - offsets[0]
        raise FormatError(file.path, f"{field} data_offsets", f"{needed} bytes for {value['dtype']} {shape}", size)
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_tiling(entries: Mapping[str, Entry], start: int, file: RangeFile) -> None:
    """Tensors must cover the rest of the file, each byte once: nothing can hide in a hole."""
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            what = "a hole" if entry.start > end else "an overlap"
            raise FormatError(file.path, f"tensor {name!r} data_offsets", f"a start at {end - start}", what)
        end = entry.end
    if end != file.size:
        raise FormatError(file.path, "data", f"{end - start} bytes", f"{file.size - start}", offset=end)


def write(
    path: str | os.PathLike[str],
    arrays: Iterable[tuple[str, npt.NDArray[Any]]],
    *,
    header_room: int,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays one after another as they are made; the file is whole or not there.

    The header stands first and is known last: `header_room` bytes are left for it, and what it does not need
    is filled with the spaces that the format allows.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    length = -(-header_room // 64) * 64
    end = 0
    with replacing(path) as stream:
        stream.seek(8 + length)
        for name, array in arrays:
            data = np.ascontiguousarray(array)
            header[name] = {
                "dtype": _NAMES[data.dtype],
                "shape": list(data.shape),
                "data_offsets": [end, end + data.nbytes],
            }
            stream.write(data.reshape(-1).view(np.uint8).data)
            end += data.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > length:
            raise ValueError(f"{os.fspath(path)}: a header of {len(text)} bytes was left {length}")
        stream.seek(0)
        stream.write(length.to_bytes(8, "little") + text.ljust(length))
