"""The byte orders in which ternary weights are found in files: one table, one row a layout.

A layout says how codes in {-1, 0, 1} become bytes and come back. Scales are not its business: the file formats
take them apart from the codes when they read, and put them where the file wants them when they write. Kernel
layouts are not here: a backend makes its own at load, and never saves it.

A digit below is a code plus one: 0, 1, 2, and 3 where two bits of a file say what no code says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .errors import UnsupportedError

Bytes = npt.NDArray[np.uint8]
_QUARTERS = np.array([0, 2, 4, 6], np.uint8)  # where a byte's four digits stand, low bits first


class Layout(Protocol):
    """How a matrix of digits lies in bytes; `pack` and `unpack` are exact inverses."""

    @property
    def name(self) -> str: ...

    def data_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape of the bytes that hold a matrix of `shape`; refuses one that does not fit."""

    def pack(self, digits: Bytes) -> Bytes:
        """Digits of shape (rows, cols) as bytes of `data_shape`."""

    def unpack(self, data: Bytes, shape: tuple[int, int]) -> Bytes:
        """Bytes of `data_shape`, of any strides, as digits of `shape`."""


@dataclass(frozen=True, slots=True)
class Grouped:
    """A layout of runs of `group` digits, each `group_bytes` long, in row-major order."""

    name: str
    group: int
    group_bytes: int
    over_rows: bool  # groups may run over the border of a row
    to_bytes: Callable[[Bytes], Bytes]  # (groups, group) -> (groups, group_bytes)
    to_digits: Callable[[Bytes], Bytes]  # and back

    def data_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        rows, cols = shape
        count, what = (rows * cols, "weights") if self.over_rows else (cols, "columns")
        if count % self.group:
            raise UnsupportedError(
                f"layout {self.name} holds a multiple of {self.group} {what}, a {rows} x {cols} matrix has "
                f"{count}; hf_rows holds any shape"
            )
        return rows * cols // self.group, self.group_bytes

    def pack(self, digits: Bytes) -> Bytes:
        self.data_shape((digits.shape[0], digits.shape[1]))
        return self.to_bytes(digits.reshape(-1, self.group))

    def unpack(self, data: Bytes, shape: tuple[int, int]) -> Bytes:
        return self.to_digits(data).reshape(shape)


@dataclass(frozen=True, slots=True)
class StackedRows:
    """Four quarters of the rows over each other, the first in the low bits: Hugging Face's packing.

    Byte (p, c) holds column c of rows p, p + P, p + 2P and p + 3P. Rows that are missing stay 00, as its
    packer leaves them; readers cut them off.
    """

    name: str

    def data_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return -(-shape[0] // 4), shape[1]

    def pack(self, digits: Bytes) -> Bytes:
        rows, cols = digits.shape
        quarter = -(-rows // 4)
        whole = np.zeros((4 * quarter, cols), np.uint8)
        whole[:rows] = digits
        return _merge(whole.reshape(4, quarter, cols) << _QUARTERS[:, None, None], axis=0)

    def unpack(self, data: Bytes, shape: tuple[int, int]) -> Bytes:
        quarters = (data[None] >> _QUARTERS[:, None, None]) & np.uint8(3)
        return quarters.reshape(-1, shape[1])[: shape[0]]


def _merge(fields: Bytes, axis: int) -> Bytes:
    return np.asarray(np.bitwise_or.reduce(fields, axis=axis), np.uint8)


def _strided(name: str, group: int, run: int, shifts: Bytes, *, over_rows: bool = False) -> Grouped:
    """Digits `run` apart share a byte; the k-th of them stands at bit `shifts[k]`."""
    shifts = shifts[:, None]

    def to_bytes(digits: Bytes) -> Bytes:
        return _merge(digits.reshape(-1, 4, run) << shifts, axis=1).reshape(len(digits), -1)

    def to_digits(data: Bytes) -> Bytes:
        return ((data.reshape(-1, 1, run) >> shifts) & np.uint8(3)).reshape(len(data), -1)

    return Grouped(name, group, group // 4, over_rows, to_bytes, to_digits)


def _adjacent(name: str, group: int) -> Grouped:
    """Four neighbours share a byte, the first in the low bits."""

    def to_bytes(digits: Bytes) -> Bytes:
        return _merge(digits.reshape(len(digits), -1, 4) << _QUARTERS, axis=2)

    def to_digits(data: Bytes) -> Bytes:
        return ((data[:, :, None] >> _QUARTERS) & np.uint8(3)).reshape(len(data), -1)

    return Grouped(name, group, group // 4, False, to_bytes, to_digits)


# TQ1_0 puts five base-3 digits in a byte, and four in each of the last four bytes. Digit k of byte m of a run
# is element start + m + k * length. Columns: first element, bytes in the run, first byte, digits a byte.
_TQ1_RUNS = ((0, 32, 0, 5), (160, 16, 32, 5), (240, 4, 48, 4))
_PLACES = np.array([81, 27, 9, 3, 1], np.uint32)
_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)


def _tq1_to_bytes(digits: Bytes) -> Bytes:
    data = np.empty((len(digits), 52), np.uint8)
    for start, length, at, count in _TQ1_RUNS:
        part = digits[:, start : start + length * count].reshape(-1, count, length)
        value = (part * _PLACES[:count, None]).sum(axis=1, dtype=np.uint32)
        # A fraction of 243 scaled to 256 and rounded up: then the leading digit is the top of 3 * byte.
        data[:, at : at + length] = (value * 256 + 242) // 243
    return data


def _tq1_to_digits(data: Bytes) -> Bytes:
    digits = np.empty((len(data), 256), np.uint8)
    for start, length, at, count in _TQ1_RUNS:
        shifted = data[:, None, at : at + length] * _POWERS[:count, None]  # wraps, and is meant to
        digits[:, start : start + length * count] = ((shifted.astype(np.uint16) * 3) >> 8).reshape(len(data), -1)
    return digits


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        # bitnet.cpp: blocks of 128 in 32 bytes, the first 32 codes in the top bits.
        "i2_s_128": _strided("i2_s_128", 128, 32, _QUARTERS[::-1], over_rows=True),
        # The same file type as bitnet.cpp's ARM builds write it: blocks of 64 in 16 bytes.
        "i2_s_64": _strided("i2_s_64", 64, 16, _QUARTERS[::-1], over_rows=True),
        "hf_rows": StackedRows("hf_rows"),
        # llama.cpp: blocks of 256 that share a scale, in base 3 or in two bits with the first 32 codes lowest.
        "tq1_0": Grouped("tq1_0", 256, 52, False, _tq1_to_bytes, _tq1_to_digits),
        "tq2_0": _strided("tq2_0", 256, 32, _QUARTERS),
        # llama.cpp and PrismML: one type id, two sizes of block.
        "q2_0_64": _adjacent("q2_0_64", 64),
        "q2_0_128": _adjacent("q2_0_128", 128),
    }
)


def get(name: str) -> Layout:
    """The layout of that name."""
    try:
        return LAYOUTS[name]
    except KeyError:
        raise UnsupportedError(f"no layout {name!r}; there are {', '.join(LAYOUTS)}") from None
