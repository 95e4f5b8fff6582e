"""Floats become codes in {-1, 0, 1} and a scale: by a rule of thumb, by the best scale, or because they are already.

A scale serves a whole tensor, a row, or a block of columns of a row. The arithmetic is float32, as the models that
each rule comes from were trained; float64 only inside sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from bitnet_core import TernaryTensor, UnsupportedError, arithmetic

Array = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]
Rule = Literal["absmean", "threshold", "optimal", "exact"]
Extent = Literal["tensor", "row", "block"]
_CHUNK = 1 << 22  # elements that are widened at a time


@dataclass(frozen=True, slots=True)
class Method:
    """How a matrix is ternarized.

    absmean: round(w / mean|w|), BitNet's own rule. threshold: what is above 0.7 mean|w|, with the mean of what
    survives as the scale. optimal: the scale and codes of the least squared error that there is. exact: the matrix
    is ternary already, or is refused.
    """

    rule: Rule = "absmean"
    scales: Extent = "tensor"
    block: int = 0  # columns that share a scale, where scales == "block"

    def __post_init__(self) -> None:
        for value, kinds in ((self.rule, get_args(Rule)), (self.scales, get_args(Extent))):
            if value not in kinds:
                raise ValueError(f"a method is one of {', '.join(kinds)}, got {value!r}")
        if (self.scales == "block") != (self.block > 0):
            raise ValueError(f"a block of columns goes with scales='block' alone, got {self.scales!r} and {self.block}")

    def groups(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape of the scales of a matrix."""
        rows, cols = shape
        if self.scales == "block" and cols % self.block:
            raise UnsupportedError(
                f"blocks of {self.block} do not divide the {cols} columns of a {rows} x {cols} matrix"
            )
        return {"tensor": (1, 1), "row": (rows, 1), "block": (rows, cols // (self.block or cols))}[self.scales]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near an approximation comes to a matrix."""

    mse: float  # mean squared error of a weight
    sqnr: float  # signal over error, in decibels; inf where there is no error
    cosine: float
    angle: float  # between the two as vectors, in degrees


@dataclass(frozen=True, slots=True, eq=False)
class Ternarized:
    """A matrix as ternary, and what that cost."""

    tensor: TernaryTensor
    fidelity: Fidelity
    zeros: float  # the share of codes that are 0


def ternarize(
    weights: Floats, method: Method | None = None, *, importance: Floats | None = None, layout: str = "hf_rows"
) -> Ternarized:
    """A dense matrix as codes and scales; `importance`, one number a column, weighs errors for the rule "optimal".

    The mean square of the inputs that a column is multiplied by is such a number.
    """
    method = method or Method()
    check_matrix(weights)
    if importance is not None and method.rule != "optimal":
        raise ValueError(f"importance weighs the errors of the rule 'optimal', got {method.rule!r}")
    if method.rule == "exact":
        tensor = TernaryTensor.detect(weights, layout)
        if tensor is None:
            raise UnsupportedError(f"the {weights.shape[0]} x {weights.shape[1]} matrix is not ternary already")
    else:
        tensor = TernaryTensor.from_codes(*_codes(weights, method, importance), layout)
    return measured(weights, tensor)


def measured(weights: Floats, tensor: TernaryTensor) -> Ternarized:
    """A ternary matrix with its distance from the dense one that it stands for."""
    return Ternarized(tensor, fidelity(weights, tensor.dense()), 1 - np.count_nonzero(tensor.codes()) / weights.size)


def fidelity(weights: Floats, other: Floats) -> Fidelity:
    """The distance of two matrices of one shape; sums run in float64."""
    if weights.shape != other.shape:
        raise ValueError(f"two matrices of one shape are compared, got {weights.shape} and {other.shape}")
    power = error = across = norm = 0.0
    step = max(1, _CHUNK // max(1, math.prod(weights.shape[1:])))
    for start in range(0, len(weights), step):
        x, y = (part[start : start + step].astype(np.float64) for part in (weights, other))
        power += float((x * x).sum())
        norm += float((y * y).sum())
        across += float((x * y).sum())
        error += float(((x - y) ** 2).sum())
    # No error at all is an angle of zero, which rounding would hide; of two zeros, too.
    cosine = 1.0 if error == 0 else across / math.sqrt(power * norm) if power and norm else 0.0
    cosine = max(-1.0, min(1.0, cosine))
    sqnr = math.inf if error == 0 else 10 * math.log10(power / error) if power else -math.inf
    return Fidelity(error / weights.size, sqnr, cosine, math.degrees(math.acos(cosine)))


def check_matrix(weights: Floats) -> None:
    """Refuse what is no matrix of finite numbers."""
    if weights.ndim != 2 or not weights.size or weights.dtype.kind not in "fV":  # V: bfloat16 is no type of NumPy's own
        raise ValueError(f"expected a matrix of floats, got {weights.dtype} of shape {weights.shape}")
    step = max(1, _CHUNK // weights.shape[1])
    for start in range(0, len(weights), step):
        part = weights[start : start + step].astype(np.float32)
        if not np.isfinite(part).all():
            row, col = (int(place) for place in np.argwhere(~np.isfinite(part))[0])
            raise ValueError(f"expected finite numbers, got {part[row, col]} at row {start + row}, column {col}")


def best_scales(magnitudes: Floats, importance: Floats) -> npt.NDArray[np.float64]:
    """The scale of each group (groups, size) for which the weighted squared error is the least of all.

    With a scale a, the best code of w is 0 up to |w| = a / 2 and its sign beyond: what survives are the largest
    magnitudes. So there are only as many candidates as numbers, and sums from the largest on try them all.
    """
    order = np.argsort(-magnitudes, axis=1, kind="stable")
    weight = np.take_along_axis(np.broadcast_to(importance, magnitudes.shape), order, axis=1).astype(np.float64)
    total = np.cumsum(np.take_along_axis(magnitudes, order, axis=1) * weight, axis=1)
    mass = np.cumsum(weight, axis=1)
    scales = np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)
    chosen = np.argmax(total * scales, axis=1)
    best: npt.NDArray[np.float64] = scales[np.arange(len(scales)), chosen]
    return best


def _codes(weights: Floats, method: Method, importance: Floats | None) -> tuple[npt.NDArray[np.int8], Array]:
    """Codes of the matrix and scales of `method.groups`."""
    shape = (weights.shape[0], weights.shape[1])
    groups = method.groups(shape)
    if method.rule == "absmean" and groups == (1, 1):
        codes, scale = arithmetic.absmean(weights)
        return codes, scale.reshape(1, 1)
    codes = np.empty(shape, np.int8)
    scales = np.empty(groups, np.float32)
    step = len(weights) if groups[0] == 1 else max(1, _CHUNK // shape[1])
    for start in range(0, shape[0], step):
        part = weights[start : start + step].astype(np.float32)
        flat = part.reshape(-1, weights.size // math.prod(groups))
        weighing = _spread(importance, part, flat.shape)
        found, theirs = _RULES[method.rule](flat, weighing)
        codes[start : start + step] = found.reshape(part.shape)
        scales[start : start + step] = theirs.reshape(-1, groups[1])
    return codes, scales


def _spread(importance: Floats | None, part: Array, shape: tuple[int, ...]) -> Floats:
    """The importance of every weight, in groups of `shape`."""
    if importance is None:
        return np.ones((1, 1))
    if importance.shape != part.shape[1:] or not np.isfinite(importance).all() or (importance < 0).any():
        raise ValueError(f"importance is {part.shape[1]} finite numbers, none below 0, got shape {importance.shape}")
    return np.broadcast_to(importance, part.shape).reshape(shape)


def _absmean(groups: Array, _: Floats) -> tuple[npt.NDArray[np.int8], Array]:
    means: Array = np.abs(groups).mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    scales = np.maximum(means, arithmetic.EPS)
    codes = np.clip(np.rint(groups * (np.float32(1) / scales)), -1, 1)
    return codes.astype(np.int8), scales


def _threshold(groups: Array, _: Floats) -> tuple[npt.NDArray[np.int8], Array]:
    magnitudes = np.abs(groups)
    mean: Array = magnitudes.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    kept = magnitudes > np.float32(0.7) * mean
    sums = np.where(kept, magnitudes, 0).sum(axis=1, dtype=np.float64, keepdims=True)
    means: Array = (sums / np.maximum(kept.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    return (np.sign(groups) * kept).astype(np.int8), np.maximum(means, arithmetic.EPS)


def _optimal(groups: Array, importance: Floats) -> tuple[npt.NDArray[np.int8], Array]:
    magnitudes = np.abs(groups)
    scales = best_scales(magnitudes, importance).astype(np.float32)[:, None]
    kept = magnitudes > scales / 2
    # A group of zeros has no scale of its own; every format can say the floor.
    return (np.sign(groups) * kept).astype(np.int8), np.where(scales > 0, scales, arithmetic.EPS)


_RULES = MappingProxyType({"absmean": _absmean, "threshold": _threshold, "optimal": _optimal})
