"""The arithmetic of BitNet b1.58, in float32 as its models were trained: the truth every kernel is held to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

EPS = np.float32(1e-5)  # the floor of both means: a matrix or a token of zeros has a scale, too


def absmean(weights: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.int8], np.float32]:
    """Master weights as codes and the one scale that multiplies them: round(w / mean|w|), half to even."""
    values = weights.astype(np.float32)
    # float64 only inside the sum: frameworks sum float32 in orders of their own, an ulp apart.
    scale = np.maximum(np.float32(np.mean(np.abs(values), dtype=np.float64)), EPS)
    codes = np.clip(np.rint(values * (np.float32(1) / scale)), -1, 1)
    return codes.astype(np.int8), scale


def absmax(activations: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Each row as int8 and the scale that was multiplied with, 127 / max|x|: divide by it to come back."""
    largest = np.maximum(np.abs(activations).max(axis=-1, keepdims=True), EPS)
    scale = np.float32(127) / largest
    return np.clip(np.rint(activations * scale), -128, 127).astype(np.int8), scale


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Each row over its root mean square, times a weight a column."""
    mean = np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True)
    normed: Array = x * (1.0 / np.sqrt(mean + eps)).astype(np.float32)
    return normed * weight


def relu2(x: Array) -> Array:
    """What is above zero, squared."""
    return np.square(np.maximum(x, 0))


def silu(x: Array) -> Array:
    """x times its logistic."""
    y: Array = (x / (1.0 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    return y


def gelu(x: Array) -> Array:
    """The Gaussian error unit in its tanh form."""
    wide = x.astype(np.float64)
    inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    y: Array = (0.5 * wide * (1.0 + np.tanh(inner))).astype(np.float32)
    return y


ACTIVATIONS = {"relu2": relu2, "silu": silu, "gelu": gelu}


def rotate(
    x: Array, positions: npt.NDArray[np.integer], frequencies: npt.NDArray[np.floating], magnitude: float = 1.0
) -> Array:
    """Heads (tokens, heads, size) turned by position: element j with element j + len(frequencies)."""
    angles = positions[:, None, None].astype(np.float64) * frequencies
    cos = (np.cos(angles) * magnitude).astype(np.float32)
    sin = (np.sin(angles) * magnitude).astype(np.float32)
    pairs = len(frequencies)
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
