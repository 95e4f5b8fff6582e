"""The order of the kernels, in NumPy: what the native packing is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pack_codes(codes: npt.NDArray[np.integer], segments: int = 1) -> npt.NDArray[np.uint8]:
    """Groups of 64 rows; for every 16 columns, byte 4 * row + j holds columns 4 * f + j in bits 2 * f."""
    rows, columns = codes.shape
    block = columns // segments
    padded = np.ones((-(-rows // 64) * 64, segments, -(-block // 16) * 16), np.uint8)
    padded[:rows, :, :block] = (codes + 1).reshape(rows, segments, block)
    fields = padded.reshape(len(padded) // 64, 64, -1, 4, 4)  # group, row, block of 16, field, byte
    packed = np.zeros((*fields.shape[:3], 4), np.uint8)
    for field in range(4):
        packed |= fields[..., field, :] << np.uint8(2 * field)
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3)).reshape(-1)


def pack_weights(weights: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Groups of 64 rows; for every 4 columns, byte 4 * row + j holds column j."""
    rows, columns = weights.shape
    padded = np.zeros((-(-rows // 64) * 64, -(-columns // 16) * 16), np.int8)
    padded[:rows, :columns] = weights
    fours = padded.reshape(len(padded) // 64, 64, -1, 4)
    return np.ascontiguousarray(fours.transpose(0, 2, 1, 3)).reshape(-1).view(np.uint8)


def pad_columns(x: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Zeros up to a multiple of 16 columns."""
    padded = np.zeros((len(x), -(-x.shape[1] // 16) * 16), np.int8)
    padded[:, : x.shape[1]] = x
    return padded
