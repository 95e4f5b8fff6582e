"""Ternary weights that make up for their own errors: on the inputs of real text, and with a low-rank adapter.

The error that counts is that of what comes out: for inputs with second moments H it is the trace of D H D^T, where
D is the difference of the two matrices. Columns are rounded one after another, and those that are still to come
take over what each rounding did, as far as their inputs go along with its own (GPTQ's walk over a Cholesky factor).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnet_core import TernaryTensor, arithmetic, linalg

from .ternarization import Floats, Method, Ternarized, check_matrix, measured, ternarize

Wide = npt.NDArray[np.float64]
_EXACT_RANK = 512  # up to here all singular values are found, beyond it the largest by random projections


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """What is to be added to a ternary matrix: b @ a, in the shapes of LoRA."""

    a: npt.NDArray[np.float32]  # (rank, in_features), PEFT's lora_A
    b: npt.NDArray[np.float32]  # (out_features, rank), PEFT's lora_B; their scaling is 1

    def dense(self) -> npt.NDArray[np.float32]:
        """The matrix that it adds."""
        return self.b @ self.a


def output_error(weights: Floats, other: Floats, second: Wide) -> float:
    """The squared error of the outputs over their power; 0 where nothing comes out of either."""
    wide = weights.astype(np.float64)
    error, power = _quadratic(wide - other, second), _quadratic(wide, second)
    return error / power if power else float(error > 0)


def compensate(
    weights: Floats,
    second: Wide,
    method: Method | None = None,
    *,
    damp: float = 0.01,
    passes: int = 4,
    block: int = 128,
    layout: str = "hf_rows",
) -> Ternarized:
    """A ternary matrix whose outputs are near those of the dense one, on inputs with these second moments.

    Columns go by falling power of their inputs, `block` of them between two products with the rest. After each pass
    the scales are fitted anew to the codes and the walk begins again; the best of all passes is kept, and of what
    plain rounding gives, so that it is never worse than that.
    """
    method = method or Method("optimal", "row")
    check_matrix(weights)
    _check_moments(second, weights.shape[1])
    wide = weights.astype(np.float64)
    order = np.argsort(-np.diagonal(second), kind="stable")
    factor = linalg.inverse_factor(np.ascontiguousarray(second[np.ix_(order, order)]), damp=damp)
    best = ternarize(weights, method, layout=layout).tensor
    least = _quadratic(wide - best.dense(), second)
    importance = np.diagonal(second) if method.rule == "optimal" else None
    scale = ternarize(weights, method, importance=importance, layout=layout).tensor.scale.astype(np.float64)
    for _ in range(passes):
        spread = np.repeat(scale, weights.shape[1] // scale.shape[1], axis=1)
        codes = np.empty(weights.shape, np.int8)
        codes[:, order] = _walk(wide[:, order], np.broadcast_to(spread, wide.shape)[:, order], factor, block)
        scale = _refitted(wide, codes, scale, second)
        found = TernaryTensor.from_codes(codes, scale, layout)
        error = _quadratic(wide - found.dense(), second)
        if error >= least:
            break
        best, least = found, error
    return measured(weights, best)


def adapter(
    weights: Floats, tensor: TernaryTensor, rank: int, *, second: Wide | None = None, damp: float = 0.01, seed: int = 0
) -> Adapter:
    """The adapter of that rank that takes the most of a ternary matrix's error away.

    With the second moments of the inputs it is the error of the outputs, without them that of the weights.
    """
    check_matrix(weights)
    residual = weights.astype(np.float64) - tensor.dense()
    if second is None:
        left, right = _halves(residual, rank, seed)
        return Adapter(right.astype(np.float32), left.astype(np.float32))
    _check_moments(second, weights.shape[1])
    # With H = L L^T the error of the outputs is the plain one of residual @ L; then L is taken out again.
    cholesky = linalg.cholesky(second, damp=damp)
    left, right = _halves(residual @ cholesky.lower, rank, seed)
    a = cholesky.solve(cholesky.lower @ right.T).T  # L^-T = H^-1 L
    return Adapter(a.astype(np.float32), left.astype(np.float32))


def _walk(wide: Wide, scale: Wide, factor: Floats, block: int) -> npt.NDArray[np.int8]:
    """Codes of the columns in their order; row i of the factor says how those after i make up for an error in i."""
    left = wide.copy()
    codes = np.empty(wide.shape, np.int8)
    cols = wide.shape[1]
    for start in range(0, cols, block):
        stop = min(start + block, cols)
        errors = np.empty((len(wide), stop - start))
        for col in range(start, stop):
            value, unit = left[:, col], scale[:, col]
            codes[:, col] = np.sign(value) * (np.abs(value) > unit / 2)
            errors[:, col - start] = (value - unit * codes[:, col]) / factor[col, col]
            left[:, col + 1 : stop] -= np.outer(errors[:, col - start], factor[col, col + 1 : stop])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes


def _refitted(wide: Wide, codes: npt.NDArray[np.int8], scale: Wide, second: Wide) -> Wide:
    """The scales of least error for these codes: those of a row's blocks together, since they share its error."""
    rows, blocks = len(codes), scale.shape[1]
    power = np.empty((rows, blocks, blocks))
    across = np.empty((rows, blocks))
    size = codes.shape[1] // blocks
    for block in range(blocks):
        columns = slice(block * size, (block + 1) * size)
        turned = codes[:, columns] @ second[columns]
        across[:, block] = (turned * wide).sum(axis=1)
        power[:, block] = (turned * codes).reshape(rows, blocks, size).sum(axis=2)
    if len(scale) == 1:
        across, power = across.sum(axis=0, keepdims=True), power.sum(axis=0, keepdims=True)
    diagonal = np.diagonal(power, axis1=1, axis2=2)
    # Codes of zeros alone, or inputs that are never there, leave a scale open: it stays.
    loose = np.where(diagonal > 0, 1e-9 * diagonal, 1.0)
    power[:, np.arange(blocks), np.arange(blocks)] += loose
    fitted = np.linalg.solve(power, (across + loose * scale)[:, :, None])[:, :, 0]
    return np.where(fitted > 0, fitted, np.maximum(scale, arithmetic.EPS))


def _halves(matrix: Wide, rank: int, seed: int) -> tuple[Wide, Wide]:
    """The best product of that rank, each factor with the root of the singular values."""
    if min(matrix.shape) <= _EXACT_RANK:
        u, s, vt = linalg.svd(matrix, rank)
    else:
        u, s, vt = linalg.randomized_svd(matrix, rank, passes=3, seed=seed)
    root = np.sqrt(s).astype(np.float64)
    return u * root, root[:, None] * vt


def _quadratic(difference: Wide, second: Wide) -> float:
    """trace(D H D^T)."""
    return float(((difference @ second) * difference).sum())


def _check_moments(second: Wide, cols: int) -> None:
    if second.shape != (cols, cols) or second.dtype != np.float64:
        raise ValueError(f"second moments are float64 of shape {(cols, cols)}, got {second.dtype} of {second.shape}")
    if not np.diagonal(second).any():
        raise ValueError("second moments are not all zero; calibrate on text that reaches this matrix")
