"""Writing GGUF files: the same values and tensors always make the same bytes."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...durable import replacing
from . import types
from .blocks import Bytes
from .header import ARRAY, BOOL, NUMBERS, STRING, padded
from .strings import Strings
from .types import Kind

_NAME_LIMIT = 63  # bytes; llama.cpp keeps one more for the end
_IDS = {np.dtype(code): number for number, code in NUMBERS.items()} | {np.dtype(np.bool_): BOOL}
_INTEGERS = ((4, 0, 2**32), (5, -(2**31), 2**31), (10, 0, 2**64), (11, -(2**63), 2**63))


@dataclass(frozen=True, slots=True)
class Blob:
    """A tensor to be written; its bytes are made when it is its turn."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    make: Callable[[], Bytes]


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, object],
    tensors: Sequence[Blob],
    *,
    version: int = 3,
) -> None:
    """Write a file that is whole or not there; an old one that is open or mapped stays as it is.

    A Python int becomes the first of uint32, int32, uint64, int64 that holds it, a float float32; NumPy's own
    numbers and arrays say their types themselves.
    """
    start, sizes = header(metadata, tensors, version=version)
    with replacing(path) as stream:
        stream.write(start)
        for blob, size in zip(tensors, sizes, strict=True):
            data, expected = blob.make(), _size(blob)
            if data.dtype != np.uint8 or data.size != expected:
                raise ValueError(f"tensor {blob.name!r} takes {expected} bytes, got {data.size} of {data.dtype}")
            stream.write(np.ascontiguousarray(data).data)
            stream.write(bytes(size - expected))


def header(metadata: Mapping[str, object], tensors: Sequence[Blob], *, version: int = 3) -> tuple[bytes, list[int]]:
    """All that stands before the data, and the bytes that each tensor takes with its padding."""
    alignment = metadata.get("general.alignment", np.uint32(32))
    if not isinstance(alignment, int | np.uint32) or not 8 <= alignment <= 4096 or alignment & (alignment - 1):
        raise ValueError(f"the alignment is a power of two in 8..4096, got {alignment}")
    sizes = [padded(_size(blob), int(alignment)) for blob in tensors]
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts.append(_string(key))
        parts.extend(_value(key, value))
    offset = 0
    for blob, size in zip(tensors, sizes, strict=True):
        if not 1 <= len(blob.name.encode()) <= _NAME_LIMIT or len(blob.shape) > 4:
            raise ValueError(f"a tensor has a name of up to {_NAME_LIMIT} bytes and up to 4 axes, got {blob.name!r}")
        lengths = tuple(reversed(blob.shape))
        parts += [_string(blob.name), struct.pack(f"<I{len(lengths)}QIQ", len(lengths), *lengths, blob.kind.id, offset)]
        offset += size
    found = b"".join(parts)
    # A file without tensors ends with its values.
    return found + bytes(padded(len(found), int(alignment)) - len(found) if tensors else 0), sizes


def blob(name: str, weight: Any, kind: str | None = None) -> Blob:
    """An array as a tensor to be written, in the type of its own numbers or the one that is called `kind`."""
    chosen = types.KINDS[kind] if kind else types.by_dtype(weight.dtype)
    return Blob(name, tuple(weight.shape), chosen, lambda: types.encode(chosen, weight))


def _size(blob: Blob) -> int:
    size = blob.kind.nbytes(blob.shape) if blob.shape else None
    if size is None:
        raise ValueError(f"tensor {blob.name!r}: {blob.kind.name} cannot hold a tensor of shape {blob.shape}")
    return size


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: object) -> list[bytes]:
    """The type and the bytes of a value."""
    if isinstance(value, str):
        return [struct.pack("<I", STRING), _string(value)]
    if isinstance(value, bool):
        return [struct.pack("<IB", BOOL, value)]
    if isinstance(value, np.generic):
        return [struct.pack("<I", _number_id(key, value.dtype)), value.tobytes()]
    if isinstance(value, int):
        for number, lowest, end in _INTEGERS:
            if lowest <= value < end:
                return [struct.pack("<I", number), struct.pack(NUMBERS[number], value)]
        raise ValueError(f"{key}: {value} does not fit in 64 bits")
    if isinstance(value, float):
        return [struct.pack("<If", 6, value)]
    return [struct.pack("<I", ARRAY), *_array(key, value)]


def _array(key: str, value: object) -> list[bytes]:
    if not isinstance(value, np.ndarray):
        items = value if isinstance(value, Strings) else list(value) if isinstance(value, Sequence) else None
        if items is None:
            raise TypeError(f"{key}: a value is a number, a string, or an array of them, got {type(value).__name__}")
        if all(isinstance(item, str) for item in items):
            return [struct.pack("<IQ", STRING, len(items)), *(_string(str(item)) for item in items)]
        value = np.array(items)
        # Lists of Python's own numbers are written as llama.cpp reads token types and scores.
        value = value.astype({"i": np.int32, "f": np.float32}.get(value.dtype.kind, value.dtype))
    return [struct.pack("<IQ", _number_id(key, value.dtype), value.size), np.ascontiguousarray(value).tobytes()]


def _number_id(key: str, dtype: np.dtype[Any]) -> int:
    if dtype not in _IDS:
        raise TypeError(f"{key}: a value is a number, a string, or an array of them, got {dtype}")
    return _IDS[dtype]
