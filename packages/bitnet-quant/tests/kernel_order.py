"""The order of the kernels, in NumPy: what the native packing is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pack_codes(codes: npt.NDArray[np.integer], segments: int = 1, unit: int = 16) -> npt.NDArray[np.uint8]:
    """Groups of 64 rows in blocks of `unit` columns: 16 for two bits, 12 for five bits for three digits."""
    rows, columns = codes.shape
    block = columns // segments
    padded = np.ones((-(-rows // 64) * 64, segments, -(-block // unit) * unit), np.uint8)
    padded[:rows, :, :block] = (codes + 1).reshape(rows, segments, block)
    fields = padded.reshape(len(padded) // 64, 64, -1, unit // 4, 4).transpose(
        0, 2, 3, 1, 4
    )  # group, block, field, row
    if unit == 16:
        packed = sum(fields[:, :, field] << np.uint8(2 * field) for field in range(4))
        return np.ascontiguousarray(packed, np.uint8).reshape(-1)
    numbers = sum(fields[:, :, field] * np.uint8(3**field) for field in range(3))
    bits = np.unpackbits(np.ascontiguousarray(numbers, np.uint8).reshape(-1, 1), axis=1, bitorder="little")[:, :5]
    return np.packbits(bits.reshape(-1), bitorder="little")


def pack_weights(weights: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Groups of 64 rows; for every 4 columns, byte 4 * row + j holds column j."""
    rows, columns = weights.shape
    padded = np.zeros((-(-rows // 64) * 64, -(-columns // 16) * 16), np.int8)
    padded[:rows, :columns] = weights
    fours = padded.reshape(len(padded) // 64, 64, -1, 4)
    return np.ascontiguousarray(fours.transpose(0, 2, 1, 3)).reshape(-1).view(np.uint8)


def pad_columns(x: npt.NDArray[np.int8], unit: int) -> npt.NDArray[np.int8]:
    """Zeros up to a multiple of `unit` columns."""
    padded = np.zeros((len(x), -(-x.shape[1] // unit) * unit), np.int8)
    padded[:, : x.shape[1]] = x
    return padded
