"""Weights of eight and four bits, as GGUF's Q8_0 and Q4_0 hold them: blocks of 32 with a float16 scale each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from bitnet_core import UnsupportedError
from bitnet_core.formats import gguf

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]
BLOCK = 32
_CHUNK = 1 << 22  # elements that are encoded at a time
# The type of GGUF that holds each.
KINDS: Mapping[str, str] = MappingProxyType({"int8": "Q8_0", "int4": "Q4_0"})


def encode(form: str, weights: npt.NDArray[np.floating]) -> Bytes:
    """A matrix as the bytes of `form`, "int8" or "int4", as ggml's own quantizers round it."""
    cols = weights.shape[1]
    if cols % BLOCK:
        raise UnsupportedError(f"{form} holds rows of a multiple of {BLOCK} columns, got {cols}")
    flat = weights.reshape(-1, BLOCK)
    size = gguf.KINDS[KINDS[form]].size
    data = np.empty((len(flat), size), np.uint8)
    step = _CHUNK // BLOCK
    for start in range(0, len(flat), step):
        data[start : start + step] = _ENCODERS[form](flat[start : start + step].astype(np.float32))
    return data.reshape(-1)


def rounded(form: str, weights: npt.NDArray[np.floating]) -> Array:
    """The values that a matrix has after it was stored as `form`; storing them again changes nothing."""
    decode = gguf.KINDS[KINDS[form]].decode
    if decode is None:
        raise UnsupportedError(f"{KINDS[form]} cannot be read")
    data = encode(form, weights).reshape(-1, gguf.KINDS[KINDS[form]].size)
    values = np.empty((len(data), BLOCK), np.float32)
    step = _CHUNK // BLOCK
    for start in range(0, len(data), step):
        values[start : start + step] = decode(data[start : start + step])
    return values.reshape(weights.shape)


def _q8_0(blocks: Array) -> Bytes:
    """d, 32 signed bytes: the largest magnitude is 127; halves round away from zero."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = blocks * _inverse(scale)
    whole = np.trunc(steps)
    codes = (whole + np.trunc(2 * (steps - whole))).astype(np.int8)
    return np.concatenate([_halves(scale), codes.view(np.uint8)], axis=1)


def _q4_0(blocks: Array) -> Bytes:
    """d, 32 halves of bytes, first those of the first 16: the largest magnitude is -8, and 8 is zero."""
    places = np.abs(blocks).argmax(axis=1)[:, None]
    scale = np.take_along_axis(blocks, places, axis=1) / np.float32(-8)
    codes = np.trunc(blocks * _inverse(scale) + np.float32(8.5)).astype(np.uint8).clip(0, 15)
    return np.concatenate([_halves(scale), codes[:, :16] | codes[:, 16:] << 4], axis=1)


def _inverse(scale: Array) -> Array:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _halves(scale: Array) -> Bytes:
    with np.errstate(over="ignore"):
        halves = scale.astype("<f2")
    if not np.isfinite(halves).all():
        raise UnsupportedError(f"blocks of 32 have float16 scales, which do not reach {np.abs(scale).max():.3g}")
    return np.ascontiguousarray(halves).view(np.uint8)


_ENCODERS: Mapping[str, Callable[[Array], Bytes]] = MappingProxyType({"int8": _q8_0, "int4": _q4_0})
