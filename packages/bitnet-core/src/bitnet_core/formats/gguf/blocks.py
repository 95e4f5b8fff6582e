"""ggml's types of quantized blocks, as float32. Nothing is encoded here: they only come as embeddings and heads.

Each function takes (blocks, bytes of a block) and gives (blocks, elements of a block). d is a float16 scale,
m a float16 minimum; q are the integers between them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _half(data: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, as (blocks, 1)."""
    return data[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """The low halves of all bytes, then the high ones."""
    return np.concatenate([data & 15, data >> 4], axis=1)


def _bits(data: Bytes) -> Bytes:
    """Each bit of four bytes as one byte, the lowest first."""
    return np.unpackbits(data, axis=1, bitorder="little")


def _crumbs(data: Bytes) -> Bytes:
    """Two bits at a time: of each run of 32 bytes the lowest of all, then the next, as (blocks, runs, 4, 32)."""
    runs = data.reshape(len(data), -1, 1, 32)
    return np.asarray((runs >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & np.uint8(3))


def q8_0(data: Bytes) -> Floats:
    """d, 32 signed bytes."""
    return _half(data, 0) * data[:, 2:].copy().view(np.int8)


def q4_0(data: Bytes) -> Floats:
    """d, 32 halves of bytes; 8 is zero."""
    return _half(data, 0) * (_nibbles(data[:, 2:]).view(np.int8) - np.int8(8))


def q4_1(data: Bytes) -> Floats:
    """d, m, 32 halves of bytes."""
    return _half(data, 0) * _nibbles(data[:, 4:]) + _half(data, 2)


def q5_0(data: Bytes) -> Floats:
    """d, 32 fifth bits, 32 halves of bytes; 16 is zero."""
    q = _nibbles(data[:, 6:]) | _bits(data[:, 2:6]) << 4
    return _half(data, 0) * (q.view(np.int8) - np.int8(16))


def q5_1(data: Bytes) -> Floats:
    """d, m, 32 fifth bits, 32 halves of bytes."""
    q = _nibbles(data[:, 8:]) | _bits(data[:, 4:8]) << 4
    return _half(data, 0) * q + _half(data, 2)


def q2_k(data: Bytes) -> Floats:
    """16 bytes of a scale and a minimum each, 64 of crumbs, d, m; 16 elements share a scale."""
    scale = _half(data, 80) * (data[:, :16] & 15)
    least = _half(data, 82) * (data[:, :16] >> 4)
    q = _crumbs(data[:, 16:80]).reshape(-1, 16, 16)
    return np.asarray(scale[:, :, None] * q - least[:, :, None], np.float32).reshape(-1, 256)


def q3_k(data: Bytes) -> Floats:
    """32 bytes of third bits, 64 of crumbs, 12 of 16 scales in six bits, d; a third bit of 0 takes 4 away."""
    low = _nibbles(data[:, 96:104])
    high = (data[:, None, 104:108] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scale = (low | high.reshape(-1, 16) << 4).view(np.int8) - np.int8(32)
    third = (data[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    q = _crumbs(data[:, 32:96]).reshape(-1, 8, 32) | third << 2
    values = (q.view(np.int8) - np.int8(4)).reshape(-1, 16, 16)
    return np.asarray((_half(data, 108) * scale)[:, :, None] * values, np.float32).reshape(-1, 256)


def _six_bits(data: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima from twelve bytes."""
    first, second, third = data[:, :4], data[:, 4:8], data[:, 8:]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    least = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scale, least


def _scaled(data: Bytes, q: Bytes) -> Floats:
    """Eight runs of 32 elements that share a scale and a minimum: d, m and twelve bytes begin the block."""
    scale, least = _six_bits(data[:, 4:16])
    low = _half(data, 2) * least
    return np.asarray((_half(data, 0) * scale)[:, :, None] * q - low[:, :, None], np.float32).reshape(-1, 256)


def _runs_of_nibbles(data: Bytes) -> Bytes:
    """Of each 32 bytes the low halves, then the high ones, as (blocks, 8, 32)."""
    runs = data.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 8, 32)


def q4_k(data: Bytes) -> Floats:
    """d, m, 12 bytes of scales and minima, 128 of halves."""
    return _scaled(data, _runs_of_nibbles(data[:, 16:]))


def q5_k(data: Bytes) -> Floats:
    """d, m, 12 bytes of scales and minima, 32 of fifth bits, 128 of halves."""
    fifth = (data[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return _scaled(data, _runs_of_nibbles(data[:, 48:]) | fifth << np.uint8(4))


def q6_k(data: Bytes) -> Floats:
    """128 bytes of lower four bits, 64 of upper two, 16 signed scales, d; 32 is zero."""
    runs = data[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([runs & 15, runs >> 4], axis=2).reshape(-1, 2, 4, 32)
    q = (low | _crumbs(data[:, 128:192]) << 4).view(np.int8) - np.int8(32)
    scale = _half(data, 208) * data[:, 192:208].copy().view(np.int8)
    return np.asarray(scale[:, :, None] * q.reshape(-1, 16, 16), np.float32).reshape(-1, 256)
