"""The ternary matrix: codes in {-1, 0, 1}, a scale that multiplies, and a name for the order of the bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import layouts
from .errors import FormatError, UnsupportedError

Array = npt.NDArray[np.float32]
_NEAR = 1 << 18  # bytes looked at while they and what is made of them stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class TernaryTensor:
    """w[i, j] = scale * code[i, j] with code in {-1, 0, 1}; the scale always multiplies.

    `scale` has two axes that broadcast over the matrix: one row of scales or one a row, and one column of
    them or one a block of columns. (1, 1) is the scale of BitNet: one for the whole tensor.
    """

    data: npt.NDArray[np.uint8]  # arranged as `layout` says; of any strides
    scale: Array
    shape: tuple[int, int]  # (out_features, in_features)
    layout: str  # a name in layouts.LAYOUTS

    def __post_init__(self) -> None:
        rows, cols = self.shape
        data_shape = layouts.get(self.layout).data_shape(self.shape)
        if self.data.dtype != np.uint8 or self.data.shape != data_shape:
            raise ValueError(
                f"a {rows} x {cols} matrix in {self.layout} takes uint8 data of shape {data_shape}, "
                f"got {self.data.dtype} of shape {self.data.shape}"
            )
        scale = self.scale
        fits = scale.ndim == 2 and scale.shape[0] in (1, rows) and scale.shape[1] >= 1 and cols % scale.shape[1] == 0
        if scale.dtype != np.float32 or not fits:
            raise ValueError(
                f"the scale of a {rows} x {cols} matrix is float32 of shape (1 or {rows}, a divisor of {cols}), "
                f"got {scale.dtype} of shape {scale.shape}"
            )

    @classmethod
    def from_codes(
        cls, codes: npt.NDArray[np.integer], scale: npt.ArrayLike = 1.0, layout: str = "hf_rows"
    ) -> TernaryTensor:
        """Pack a matrix of -1, 0 and 1; `scale` is one number, one a row, or (rows or 1, blocks of columns)."""
        if codes.ndim != 2 or codes.size == 0 or codes.min() < -1 or codes.max() > 1:
            raise ValueError(f"codes are a matrix of -1, 0 and 1, got shape {codes.shape}")
        scales = np.asarray(scale, np.float32)
        if scales.ndim < 2:
            scales = scales.reshape(-1, 1)
        digits = (codes + 1).astype(np.uint8)
        data = layouts.get(layout).pack(digits)
        return cls(data, scales, (codes.shape[0], codes.shape[1]), layout)

    @classmethod
    def detect(cls, dense: npt.NDArray[np.floating], layout: str = "hf_rows") -> TernaryTensor | None:
        """The same matrix as codes and scales if it is ternary already, to the last bit; None if it is not."""
        if dense.ndim != 2 or dense.size == 0:
            return None
        # A few rows tell most matrices that are not; then the whole of it has to agree.
        if _scales_of_blocks(np.abs(dense[:8].astype(np.float32))) is None:
            return None
        values = dense.astype(np.float32)
        scales = _scales_of_blocks(np.abs(values))
        if scales is None:
            return None
        return cls.from_codes(np.sign(values).astype(np.int8), scales, layout).simplified()

    @property
    def block(self) -> int:
        """Columns that share a scale."""
        return self.shape[1] // int(self.scale.shape[1])

    def codes(self) -> npt.NDArray[np.int8]:
        """int8 of `shape`: the truth that every layout is compared by."""
        digits = layouts.get(self.layout).unpack(self.data, self.shape)
        if digits.max() > 2:
            self.check_codes(self.layout, "")
        return digits.view(np.int8) - np.int8(1)

    def counts(self) -> tuple[int, int, int]:
        """How many codes are -1, 0 and 1."""
        codes = self.codes()
        low, high = int((codes == -1).sum()), int((codes == 1).sum())
        return low, codes.size - low - high, high

    def first_bad_code(self) -> int | None:
        """The index, in row-major order, of the first code that is none of -1, 0 and 1."""
        if self.layout == "tq1_0":
            return None  # a digit of base 3 is always one of three
        data: npt.NDArray[np.unsignedinteger] = self.data
        if self.data.flags.c_contiguous and self.data.nbytes % 8 == 0:
            data = self.data.reshape(-1).view(np.uint64)  # processors shift words faster than bytes
        low = data.dtype.type(0x5555_5555_5555_5555 & np.iinfo(data.dtype).max)
        step = max(_NEAR // (data.nbytes // len(data)), 1)
        room = np.empty((step, *data.shape[1:]), data.dtype)
        for start in range(0, len(data), step):
            part = data[start : start + step]
            bad = room[: len(part)]
            np.bitwise_and(np.right_shift(part, 1, out=bad), part, out=bad)
            if np.bitwise_and(bad, low, out=bad).max():
                break
        else:
            return None
        wrong = layouts.get(self.layout).unpack(self.data, self.shape) > 2
        return int(np.argmax(wrong)) if wrong.any() else None  # bits that only fill a byte up may be any

    def check_codes(self, file: str, field: str) -> None:
        """Raise FormatError, which names this field of a file, where bits are no code."""
        if (bad := self.first_bad_code()) is None:
            return
        row, column = divmod(bad, self.shape[1])
        where = f"{field} code at row {row}, column {column}".lstrip()
        hint = "the bytes are damaged, or in another layout"
        raise FormatError(file, where, "bits of -1, 0 or 1", "bits 11", hint=hint)

    def dense(self) -> Array:
        """float32 of `shape`: scale times code."""
        rows, cols = self.shape
        blocks = self.codes().astype(np.float32).reshape(rows, -1, self.block)
        return (blocks * self.scale[:, :, None]).reshape(rows, cols)

    def repack(self, layout: str) -> TernaryTensor:
        """The same codes and scales in another byte order."""
        if layout == self.layout:
            return self
        digits = (self.codes() + np.int8(1)).view(np.uint8)
        return TernaryTensor(layouts.get(layout).pack(digits), self.scale, self.shape, layout)

    def simplified(self) -> TernaryTensor:
        """The same values with the fewest scales: blocks or rows that share one are merged.

        A block of zeros agrees with any scale: block formats write 0 for it.
        """
        scale = self.scale
        if scale.size == 1:
            return self
        used = self.codes().reshape(self.shape[0], -1, self.block).any(axis=2)
        scale = np.where(used, scale, np.float32(0))
        for axis in (1, 0):
            merged = scale.max(axis=axis, keepdims=True)
            if scale.min() >= 0 and ((scale == merged) | (scale == 0)).all():
                scale = merged
        return TernaryTensor(self.data, np.ascontiguousarray(scale), self.shape, self.layout)

    def scaled_by(self, block: int) -> Array:
        """The scales spread to one a row and block of `block` columns, as block formats store them."""
        rows, cols = self.shape
        if cols % block or self.block % block:
            raise UnsupportedError(
                f"one scale for {self.block} of {cols} columns cannot be written as one for each {block}"
            )
        spread = np.repeat(self.scale, self.block // block, axis=1)
        return np.ascontiguousarray(np.broadcast_to(spread, (rows, cols // block)))

    def digest(self) -> str:
        """SHA-256 over shape and codes alone: it survives every repacking, and any rounding of the scales."""
        rows, cols = self.shape
        state = hashlib.sha256(f"trits {rows} {cols}\n".encode())
        state.update(self.codes().tobytes())
        return state.hexdigest()


def _scales_of_blocks(magnitudes: Array) -> Array | None:
    """The magnitudes of the largest blocks of columns that have one each, as (rows, blocks)."""
    rows, cols = magnitudes.shape
    # Whole rows; parts of them, as weights split over devices have; then the usual sizes of blocks.
    sizes = {cols // parts for parts in (1, 2, 3, 4, 6, 8) if cols % parts == 0}
    sizes |= {size for size in (256, 128, 64, 32) if cols % size == 0}
    for size in sorted(sizes, reverse=True):
        blocks = magnitudes.reshape(rows, -1, size)
        largest: Array = blocks.max(axis=2)
        same = (blocks == largest[:, :, None]) | (blocks == 0)
        if same.all() and np.isfinite(largest).all():
            return largest
    return None
