"""Factorizations and solvers of LAPACK through SciPy, refusing what is too ill-conditioned to mean anything.

A condition is LAPACK's estimate in the 1-norm, from the factors. About log10 of it decimal digits are lost, so the
usual bound, 0.1 / eps, leaves one that is right. float32 stays float32, and float64 stays float64.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import IllConditioned, UnsupportedError

Array = npt.NDArray[np.floating]
ComplexArray = npt.NDArray[np.complexfloating]


class Svd(NamedTuple):
    """a = u @ diag(s) @ vt, the singular values descending."""

    u: Array
    s: Array
    vt: Array


class Eigen(NamedTuple):
    """a @ vectors = vectors * values, of a symmetric matrix, the values ascending and the vectors orthonormal."""

    values: Array
    vectors: Array


class ComplexEigen(NamedTuple):
    """a @ vectors = vectors * values, of any square matrix."""

    values: ComplexArray
    vectors: ComplexArray
    condition: float  # of the vectors: how far a change of the matrix may move a value, over its size


class Schur(NamedTuple):
    """a = z @ t @ z.T, z orthogonal, t upper triangular but for 2 x 2 blocks, each a pair of complex eigenvalues."""

    t: Array
    z: Array


class Minimum(NamedTuple):
    """Where a descent ended."""

    x: Array
    value: float
    gradient: float  # its largest element there
    steps: int
    converged: bool


class Solution(NamedTuple):
    """Where an iteration ended."""

    x: Array
    residual: float  # norm of b - a @ x over that of b
    steps: int
    converged: bool


@dataclass(frozen=True, slots=True, eq=False)
class Cholesky:
    """a = lower @ lower.T, of a symmetric positive definite matrix."""

    lower: Array
    condition: float

    def solve(self, b: Array) -> Array:
        """x with a @ x = b, for one column or several."""
        half = _triangular(self.lower, b, lower=True)
        return _triangular(self.lower, half, lower=True, transposed=True)


@dataclass(frozen=True, slots=True, eq=False)
class Lu:
    """a[order] = lower @ upper."""

    lower: Array
    upper: Array
    order: npt.NDArray[np.intp]
    condition: float

    def solve(self, b: Array) -> Array:
        """x with a @ x = b, for one column or several."""
        _match(b, self.lower)
        return _triangular(self.upper, _triangular(self.lower, b[self.order], lower=True), lower=False)


@dataclass(frozen=True, slots=True, eq=False)
class Qr:
    """a = q @ r, with orthonormal columns in q and r upper triangular."""

    q: Array
    r: Array
    condition: float  # of r; inf where it is singular, or has more columns than rows

    def solve(self, b: Array, *, bound: float | None = None) -> Array:
        """x with the least norm of a @ x - b, for one column or several; refused above the bound."""
        _match(b, self.q)
        _judge(self.condition, bound, self.r.dtype, "drop the columns that others can express")
        return _triangular(self.r, self.q.T @ b, lower=False)


def svd(a: Array, rank: int | None = None) -> Svd:
    """The singular values and vectors of a matrix: all, or the `rank` largest."""
    _check(a)
    keep = min(a.shape) if rank is None else _rank(rank, a)
    linalg = _scipy("linalg")
    try:
        u, s, vt = linalg.svd(a, full_matrices=False, check_finite=False)
    except np.linalg.LinAlgError:  # divide and conquer gives up on a few matrices that plain iteration manages
        u, s, vt = linalg.svd(a, full_matrices=False, check_finite=False, lapack_driver="gesvd")
    return Svd(u[:, :keep], s[:keep], vt[:keep])


def randomized_svd(a: Array, rank: int, *, oversample: int = 10, passes: int = 2, seed: int = 0) -> Svd:
    """About the `rank` largest singular values and vectors, by products with thin matrices alone.

    Each pass reads the matrix twice, and takes the error nearer to the smallest that this rank can have.
    """
    _check(a)
    thin = _rank(rank, a) + oversample
    if oversample < 0 or passes < 0:
        raise ValueError(f"oversample and passes are not negative, got {oversample} and {passes}")
    if thin >= min(a.shape):
        return svd(a, rank)
    span = a @ np.random.default_rng(seed).standard_normal((a.shape[1], thin)).astype(a.dtype)
    for _ in range(passes):
        # Orthonormal at every product: otherwise all columns would turn towards the largest vector.
        span = a @ qr(a.T @ qr(span).q).q
    basis = qr(span).q
    u, s, vt = svd(basis.T @ a, rank)
    return Svd(basis @ u, s, vt)


def qr(a: Array) -> Qr:
    """Orthonormal columns, as many as the smaller side, times a triangle."""
    _check(a)
    q, r = _scipy("linalg").qr(a, mode="economic", check_finite=False)
    condition = np.inf if r.shape[0] < r.shape[1] else _inverse(_lapack("trcon", r)(r, norm="1", uplo="U")[0])
    return Qr(q, r, condition)


def cholesky(a: Array, *, damp: float = 0.0, bound: float | None = None) -> Cholesky:
    """The Cholesky factor, with `damp` times the mean of the diagonal added to it."""
    return _cholesky(_symmetric(a, damp), bound)


def inverse_factor(a: Array, *, damp: float = 0.0, bound: float | None = None) -> Array:
    """The upper triangle u with u.T @ u = inverse of a, damped as `cholesky` does: what error compensation walks.

    Row i of it, over its diagonal, says how columns after i make up for an error in column i.
    """
    # Of the matrix turned about, the factor turned back is upper with a = r @ r.T; u is its inverse.
    turned = _cholesky(_symmetric(a, damp)[::-1, ::-1], bound).lower
    upper: Array = _lapack("trtri", a)(turned[::-1, ::-1], lower=0)[0]
    return upper


def lu(a: Array, *, bound: float | None = None) -> Lu:
    """Triangles of a square matrix with its rows reordered."""
    _check(a, shape="square")
    factors, swaps, _ = _lapack("getrf", a)(a)
    norm = np.abs(a).sum(axis=0).max()
    condition = _inverse(_lapack("gecon", a)(factors, norm, norm="1")[0])
    _judge(condition, bound, a.dtype, "use qr or svd, or drop rows that others can express")
    order = np.arange(a.shape[0])
    for row, other in enumerate(swaps):
        order[[row, other]] = order[[other, row]]
    return Lu(np.tril(factors, -1) + np.eye(a.shape[0], dtype=a.dtype), np.triu(factors), order, condition)


def eigh(a: Array) -> Eigen:
    """The eigenvalues and vectors of a symmetric matrix."""
    return Eigen(*_scipy("linalg").eigh(_symmetric(a, 0.0), check_finite=False))


def eig(a: Array, *, bound: float | None = None) -> ComplexEigen:
    """The eigenvalues and vectors of a square matrix; refused where the vectors are not independent."""
    _check(a, shape="square")
    values, vectors = _scipy("linalg").eig(a, check_finite=False)
    kind = np.result_type(a.dtype, np.complex64)
    vectors = vectors.astype(kind)
    factors, _, _ = _lapack("getrf", vectors)(vectors)
    norm = np.abs(vectors).sum(axis=0).max()
    condition = _inverse(_lapack("gecon", vectors)(factors, norm, norm="1")[0])
    _judge(condition, bound, a.dtype, "use schur, which every matrix has")
    return ComplexEigen(values.astype(kind), vectors, condition)


def schur(a: Array) -> Schur:
    """The real Schur form of a square matrix."""
    _check(a, shape="square")
    return Schur(*_scipy("linalg").schur(a, output="real", check_finite=False))


def minimize(
    function: Callable[[Array], tuple[float, Array]], start: Array, *, tolerance: float = 1e-6, steps: int = 200
) -> Minimum:
    """Descend by L-BFGS; `function` gives a value and its gradient.

    It has converged when no element of the gradient is above the tolerance, or when the value changes by rounding
    alone. A gradient that keeps it from converging because it is another function's is a ValueError.
    """
    _check(start, "start", "vector")
    eps = float(np.finfo(start.dtype).eps)

    def call(x: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        value, gradient = function(x.astype(start.dtype))
        if gradient.shape != start.shape or not np.isfinite(value) or not np.isfinite(gradient).all():
            raise ValueError(
                f"the function gives a finite number and gradient of shape {start.shape}, "
                f"got {value} and {'finite' if np.isfinite(gradient).all() else 'nan or inf'} of {gradient.shape}"
            )
        return float(value), gradient.astype(np.float64)

    # Values that differ by rounding alone are the same: the search ends there.
    options = {"gtol": tolerance, "ftol": 10 * eps, "maxiter": steps, "maxfun": 20 * steps}
    found = _scipy("optimize").minimize(call, start.astype(np.float64), jac=True, method="L-BFGS-B", options=options)
    if not found.success:
        _check_gradient(call, found.x, eps)
    largest = float(np.abs(found.jac).max())
    return Minimum(found.x.astype(start.dtype), float(found.fun), largest, int(found.nit), bool(found.success))


def conjugate_gradient(
    matvec: Callable[[Array], Array],
    b: Array,
    *,
    preconditioner: Callable[[Array], Array] | None = None,
    tolerance: float = 1e-6,
    steps: int | None = None,
) -> Solution:
    """Solve a @ x = b by products alone, for a symmetric positive definite a; `preconditioner` is near its inverse.

    `converged` says whether the residual came below the tolerance within `steps`, which are 10 a row if not given.
    """
    _check(b, "b", "vector")

    def product(p: Array) -> Array:
        q = _same(matvec(p), p, "matvec")
        if p.any() and float(p @ q) <= 0:
            raise IllConditioned(f"the matrix is not positive definite: p @ a @ p is {float(p @ q):.3g} for some p")
        return q

    sparse, taken = _scipy("sparse.linalg"), 0

    def count(_: Array) -> None:
        nonlocal taken
        taken += 1

    def inverse(r: Array) -> Array:
        return r if preconditioner is None else _same(preconditioner(r), r, "preconditioner")

    shape = (b.size, b.size)
    a = sparse.LinearOperator(shape, matvec=product, dtype=b.dtype)
    m = sparse.LinearOperator(shape, matvec=inverse, dtype=b.dtype)
    x, _ = sparse.cg(a, b, rtol=tolerance, atol=0.0, maxiter=steps, M=m, callback=count)
    norm = float(np.linalg.norm(b))
    residual = float(np.linalg.norm(b - matvec(x))) / norm if norm else 0.0
    # What the iteration takes for the residual drifts from the true one by rounding; within twice it is the same.
    return Solution(x.astype(b.dtype), residual, taken, residual <= 2 * tolerance)


def _scipy(name: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{name}")
    except ImportError as error:
        raise UnsupportedError('linear algebra needs SciPy: pip install "bitnet-core[linalg]"') from error


def _lapack(name: str, a: npt.NDArray[Any]) -> Any:
    """The routine for the type of `a`."""
    return _scipy("linalg").get_lapack_funcs(name, (a,))


def _check(a: Array, name: str = "a", shape: Literal["vector", "matrix", "square"] = "matrix") -> None:
    if a.dtype not in (np.float32, np.float64):
        raise ValueError(f"{name} is float32 or float64, got {a.dtype}; convert it first")
    if a.ndim != (1 if shape == "vector" else 2) or not a.size or (shape == "square" and a.shape[0] != a.shape[1]):
        noun = "square matrix" if shape == "square" else shape
        raise ValueError(f"{name} is a {noun} that is not empty, got shape {a.shape}")
    if not np.isfinite(a).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(a))[0])
        raise ValueError(f"{name} is finite, got {a[place]} at {place}")


def _symmetric(a: Array, damp: float) -> Array:
    """A matrix that is proven symmetric but for rounding, with its diagonal damped."""
    _check(a, shape="square")
    gaps = np.abs(a - a.T)
    # Sums of products that were taken in another order differ by a few roundings.
    if gaps.max() > max(100, len(a)) * np.finfo(a.dtype).eps * np.abs(a).max():
        row, col = np.unravel_index(int(gaps.argmax()), a.shape)
        raise ValueError(f"a is symmetric, got {a[row, col]} at ({row}, {col}) and {a[col, row]} at ({col}, {row})")
    if not np.isfinite(damp) or damp < 0:
        raise ValueError(f"damp is not negative, got {damp}")
    damped = a.copy()
    damped[np.diag_indices_from(damped)] += a.dtype.type(damp * np.diagonal(a).mean(dtype=np.float64))
    return damped


def _cholesky(a: Array, bound: float | None) -> Cholesky:
    remedy = "damp the diagonal, or drop columns that others can express"
    lower, failed = _lapack("potrf", a)(a, lower=1, clean=1)
    if failed:
        raise IllConditioned(f"the leading {failed} x {failed} block is not positive definite in {a.dtype}; {remedy}")
    condition = _inverse(_lapack("pocon", a)(lower, np.abs(a).sum(axis=0).max(), uplo="L")[0])
    _judge(condition, bound, a.dtype, remedy)
    return Cholesky(lower, condition)


def _triangular(a: Array, b: Array, *, lower: bool, transposed: bool = False) -> Array:
    _match(b, a)
    x: Array = _scipy("linalg").solve_triangular(a, b, lower=lower, trans=int(transposed), check_finite=False)
    return x


def _match(b: Array, a: Array) -> None:
    """A right-hand side: of the type of `a`, with as many rows."""
    if b.dtype != a.dtype or b.ndim not in (1, 2) or b.shape[0] != a.shape[0]:
        raise ValueError(f"b is {a.dtype} with {a.shape[0]} rows, got {b.dtype} of shape {b.shape}")
    _check(b, "b", "vector" if b.ndim == 1 else "matrix")


def _rank(rank: int, a: Array) -> int:
    if not 1 <= rank <= min(a.shape):
        raise ValueError(f"the rank of a {a.shape[0]} x {a.shape[1]} matrix is 1 to {min(a.shape)}, got {rank}")
    return rank


def _inverse(reciprocal: float) -> float:
    return 1 / float(reciprocal) if reciprocal > 0 else float("inf")


def _judge(condition: float, bound: float | None, kind: np.dtype[Any], remedy: str) -> None:
    limit = 0.1 / float(np.finfo(kind).eps) if bound is None else bound
    if not condition <= limit:
        raise IllConditioned(f"the condition is {condition:.3g}, above the bound of {limit:.3g} for {kind}; {remedy}")


def _same(result: Array, given: Array, name: str) -> Array:
    if result.shape != given.shape or not np.isfinite(result).all():
        raise ValueError(f"{name} gives finite numbers of shape {given.shape}, got {result} of shape {result.shape}")
    return result


def _check_gradient(
    call: Callable[[npt.NDArray[np.float64]], tuple[float, npt.NDArray[np.float64]]],
    x: npt.NDArray[np.float64],
    eps: float,
) -> None:
    """Refuse a gradient that does not say how the function changes along it."""
    value, gradient = call(x)
    slope = float(np.linalg.norm(gradient))
    if slope == 0:
        return
    length = float(np.cbrt(eps)) * max(1.0, float(np.linalg.norm(x)))
    way = gradient * (length / slope)
    ahead, behind = call(x + way)[0], call(x - way)[0]
    measured = (ahead - behind) / (2 * length)
    noise = 100 * eps * max(abs(value), abs(ahead), abs(behind)) / length
    if abs(measured - slope) > 0.1 * max(abs(measured), slope) + noise:
        raise ValueError(
            f"the gradient does not belong to the function: along it the slope is {measured:.3g}, not {slope:.3g}"
        )
