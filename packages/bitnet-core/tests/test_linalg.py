"""Factorizations are what their definitions say, and refuse what would mean nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import linalg
from bitnet_core.errors import IllConditioned

pytest.importorskip("scipy", reason='linear algebra needs SciPy: pip install "bitnet-core[linalg]"')

Array = npt.NDArray[Any]
TYPES = pytest.mark.parametrize("kind", [np.float32, np.float64])
SHAPES = pytest.mark.parametrize("shape", [(1, 1), (7, 7), (40, 13), (13, 40)])
SQUARE = [linalg.lu, linalg.cholesky, linalg.inverse_factor, linalg.eigh, linalg.eig, linalg.schur]


def _random(shape: tuple[int, ...], kind: Any = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(kind)


def _definite(size: int, kind: Any = np.float64, *, condition: float = 100.0, seed: int = 0) -> Array:
    """A symmetric matrix with eigenvalues from 1 / condition to 1."""
    vectors = np.linalg.qr(_random((size, size), seed=seed))[0]
    a = (vectors * np.geomspace(1 / condition, 1, size)) @ vectors.T
    return ((a + a.T) / 2).astype(kind)


def _hilbert(size: int) -> Array:
    index = np.arange(size)
    return 1 / (index[:, None] + index + 1.0)


def _close(a: Array, b: Array, *, factor: float = 30.0) -> None:
    """Equal within `factor` roundings for each row, by the size of the whole."""
    eps = np.finfo(b.real.dtype).eps
    assert np.abs(a - b).max() <= factor * eps * max(a.shape) * max(1.0, np.abs(b).max())


def _orthonormal(columns: Array) -> None:
    _close(columns.T @ columns, np.eye(columns.shape[1], dtype=columns.dtype))


@TYPES
@SHAPES
def test_svd_is_its_definition(kind: Any, shape: tuple[int, int]) -> None:
    a = _random(shape, kind)
    u, s, vt = linalg.svd(a)
    assert u.dtype == s.dtype == vt.dtype == kind
    _close((u * s) @ vt, a)
    _orthonormal(u)
    _orthonormal(vt.T)
    assert (np.diff(s) <= 0).all()
    assert (s >= 0).all()


def test_a_truncated_svd_is_the_nearest_of_its_rank() -> None:
    a = _random((30, 20))
    all_of_it = linalg.svd(a)
    u, s, vt = linalg.svd(a, 5)
    assert (u.shape, s.shape, vt.shape) == ((30, 5), (5,), (5, 20))
    # By Eckart and Young the error is the first value left out.
    assert np.linalg.norm(a - (u * s) @ vt, 2) == pytest.approx(all_of_it.s[5])


@TYPES
def test_a_randomized_svd_is_near_the_nearest(kind: Any) -> None:
    left, right = np.linalg.qr(_random((300, 100)))[0], np.linalg.qr(_random((200, 100), seed=1))[0]
    values = 0.8 ** np.arange(100)
    a = ((left * values) @ right.T).astype(kind)
    u, s, vt = linalg.randomized_svd(a, 12)
    assert u.dtype == s.dtype == vt.dtype == kind
    _orthonormal(u)
    _orthonormal(vt.T)
    np.testing.assert_allclose(s, values[:12], rtol=1e-3)
    assert np.linalg.norm(a - (u * s) @ vt, 2) <= 1.05 * values[12]


def test_a_randomized_svd_repeats_itself_by_its_seed() -> None:
    a = _random((60, 50))
    first, again, other = (linalg.randomized_svd(a, 3, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first.u, again.u)
    assert not np.array_equal(first.u, other.u)


def test_a_randomized_svd_of_a_small_matrix_is_the_exact_one() -> None:
    a = _random((12, 9))
    assert np.array_equal(linalg.randomized_svd(a, 4).u, linalg.svd(a, 4).u)


def test_more_passes_come_nearer() -> None:
    a = _random((200, 150))
    best = linalg.svd(a).s[10]
    errors = []
    for passes in (0, 1, 4):
        u, s, vt = linalg.randomized_svd(a, 10, passes=passes)
        errors.append(np.linalg.norm(a - (u * s) @ vt, 2) / best)
    assert errors[0] > errors[1] > errors[2] >= 1


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_a_rank_that_the_matrix_cannot_have_is_refused(rank: int) -> None:
    for factor in (linalg.svd, linalg.randomized_svd):
        with pytest.raises(ValueError, match=f"the rank of a 3 x 5 matrix is 1 to 3, got {rank}"):
            factor(_random((3, 5)), rank)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="not negative, got -1 and 2"):
        linalg.randomized_svd(_random((3, 3)), 1, oversample=-1)
    with pytest.raises(ValueError, match="not negative, got 10 and -1"):
        linalg.randomized_svd(_random((3, 3)), 1, passes=-1)


@TYPES
@SHAPES
def test_qr_is_its_definition(kind: Any, shape: tuple[int, int]) -> None:
    a = _random(shape, kind)
    found = linalg.qr(a)
    assert found.q.dtype == found.r.dtype == kind
    _close(found.q @ found.r, a)
    _orthonormal(found.q)
    assert not np.tril(found.r, -1).any()


def test_qr_solves_least_squares() -> None:
    a, b = _random((30, 6)), _random((30, 2), seed=1)
    found = linalg.qr(a)
    x = found.solve(b)
    np.testing.assert_allclose(a.T @ (a @ x - b), 0, atol=1e-12)  # nothing in reach of a is left
    np.testing.assert_allclose(found.solve(b[:, 0]), x[:, 0])


def test_least_squares_with_dependent_columns_is_refused() -> None:
    a = _random((30, 6))
    a[:, 3] = a[:, 1] + a[:, 2]
    with pytest.raises(IllConditioned, match="drop the columns that others can express"):
        linalg.qr(a).solve(_random((30,)))
    with pytest.raises(IllConditioned, match="condition is inf"):
        linalg.qr(_random((6, 30))).solve(_random((6,)))


@TYPES
def test_cholesky_is_its_definition(kind: Any) -> None:
    a = _definite(25, kind)
    found = linalg.cholesky(a)
    assert found.lower.dtype == kind
    assert not np.triu(found.lower, 1).any()
    _close(found.lower @ found.lower.T, a)


@TYPES
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_solutions_are_as_right_as_the_condition_lets_them(
    kind: Any, condition: float, columns: tuple[int, ...]
) -> None:
    a, x = _definite(20, kind, condition=condition), _random((20, *columns), kind, seed=1)
    b = a @ x
    for found in (linalg.cholesky(a), linalg.lu(a), linalg.qr(a)):
        error = np.linalg.norm(found.solve(b) - x) / np.linalg.norm(x)
        assert error <= 10 * np.finfo(kind).eps * found.condition
        residual = np.linalg.norm(a @ found.solve(b) - b) / np.linalg.norm(x)
        assert residual <= 100 * np.finfo(kind).eps * np.linalg.norm(a, 2)


@TYPES
def test_the_inverse_factor_is_its_definition(kind: Any) -> None:
    a = _definite(25, kind, condition=50)
    u = linalg.inverse_factor(a)
    assert u.dtype == kind
    assert not np.tril(u, -1).any()
    assert (np.diagonal(u) > 0).all()
    _close(u.T @ u @ a, np.eye(25, dtype=kind), factor=100)
    # The factor of the inverse is unique: this is the long way round.
    np.testing.assert_allclose(u, np.linalg.cholesky(np.linalg.inv(a.astype(float))).T, rtol=0, atol=1e-3)


def test_the_inverse_factor_says_how_columns_make_up_for_errors() -> None:
    inputs = _random((200, 6))
    hessian = inputs.T @ inputs
    u = linalg.inverse_factor(hessian)
    # An error of 1 in column 0 is best made up by the others as least squares says.
    best = np.linalg.lstsq(inputs[:, 1:], -inputs[:, 0], rcond=None)[0]
    np.testing.assert_allclose(u[0, 1:] / u[0, 0], best)


def test_damping_adds_to_the_diagonal() -> None:
    a = _definite(8)
    damped = a + 0.1 * np.diagonal(a).mean() * np.eye(8)
    lower = linalg.cholesky(a, damp=0.1).lower
    np.testing.assert_allclose(lower @ lower.T, damped)
    np.testing.assert_allclose(linalg.inverse_factor(a, damp=0.1), linalg.inverse_factor(damped))


def test_damping_makes_a_singular_hessian_solvable() -> None:
    inputs = _random((5, 12), np.float32)
    hessian = inputs.T @ inputs
    for factor in (linalg.cholesky, linalg.inverse_factor):
        with pytest.raises(IllConditioned, match="damp the diagonal"):
            factor(hessian)
    found = linalg.cholesky(hessian, damp=0.01)
    assert 100 < found.condition < 1e4
    with pytest.raises(ValueError, match=r"damp is not negative, got -0.1"):
        linalg.cholesky(hessian, damp=-0.1)


@TYPES
def test_lu_is_its_definition(kind: Any) -> None:
    a = _random((25, 25), kind)
    found = linalg.lu(a)
    assert found.lower.dtype == found.upper.dtype == kind
    _close(found.lower @ found.upper, a[found.order])
    assert (np.diagonal(found.lower) == 1).all()
    assert not np.triu(found.lower, 1).any()
    assert not np.tril(found.upper, -1).any()
    assert np.abs(found.lower).max() <= 1
    assert sorted(found.order) == list(range(25))


@TYPES
def test_eigh_is_its_definition(kind: Any) -> None:
    a = _random((25, 25), kind)
    a = a + a.T
    values, vectors = linalg.eigh(a)
    assert values.dtype == vectors.dtype == kind
    _close(a @ vectors, vectors * values)
    _orthonormal(vectors)
    assert (np.diff(values) >= 0).all()


@TYPES
def test_eig_is_its_definition(kind: Any) -> None:
    a = _random((25, 25), kind)
    found = linalg.eig(a)
    assert found.values.dtype == found.vectors.dtype == np.result_type(kind, np.complex64)
    _close(a @ found.vectors, found.vectors * found.values)
    assert found.condition == pytest.approx(np.linalg.cond(found.vectors, 1), rel=2)


def test_eig_of_a_turn_is_complex() -> None:
    values = linalg.eig(np.array([[0.0, -1.0], [1.0, 0.0]])).values
    np.testing.assert_allclose(sorted(values.imag), [-1, 1])


def test_a_matrix_without_enough_eigenvectors_is_refused() -> None:
    block = np.array([[2.0, 1.0], [0.0, 2.0]])
    with pytest.raises(IllConditioned, match="use schur, which every matrix has"):
        linalg.eig(block)
    t, z = linalg.schur(block)
    np.testing.assert_allclose(z @ t @ z.T, block)


@TYPES
def test_schur_is_its_definition(kind: Any) -> None:
    a = _random((25, 25), kind)
    t, z = linalg.schur(a)
    assert t.dtype == z.dtype == kind
    _close(z @ t @ z.T, a)
    _orthonormal(z)
    assert not np.tril(t, -2).any()
    # Blocks of 2 x 2 never touch.
    below = np.diagonal(t, -1) != 0
    assert not (below[1:] & below[:-1]).any()


@pytest.mark.parametrize("size", [13, 20, 40])
@pytest.mark.parametrize("factor", [linalg.cholesky, linalg.inverse_factor, linalg.lu])
def test_hilbert_matrices_are_refused(factor: Callable[[Array], object], size: int) -> None:
    with pytest.raises(IllConditioned):
        factor(_hilbert(size))


@pytest.mark.parametrize("size", [3, 6, 9])
def test_a_smaller_hilbert_matrix_is_not_and_its_condition_is_known(size: int) -> None:
    true = np.linalg.cond(_hilbert(size), 1)
    assert linalg.cholesky(_hilbert(size)).condition == pytest.approx(true, rel=0.1)
    assert linalg.lu(_hilbert(size)).condition == pytest.approx(true, rel=0.1)
    with pytest.raises(IllConditioned, match=r"the condition is .* above the bound of 100 for float64"):
        linalg.cholesky(_hilbert(size), bound=100)
    with pytest.raises(IllConditioned):
        linalg.lu(_hilbert(size), bound=true / 2)


def test_an_exactly_singular_matrix_is_refused() -> None:
    with pytest.raises(IllConditioned, match="the condition is inf"):
        linalg.lu(np.array([[1.0, 2.0], [2.0, 4.0]]))
    with pytest.raises(IllConditioned, match="the leading 1 x 1 block is not positive definite in float64"):
        linalg.cholesky(np.zeros((3, 3)))
    with pytest.raises(IllConditioned, match="the leading 2 x 2 block"):
        linalg.cholesky(np.diag([1.0, -1.0, 1.0]))


@given(st.integers(1, 24), st.floats(0, 4), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_estimated_conditions_are_near_the_true_ones(size: int, digits: float, seed: int) -> None:
    a = _definite(size, condition=10**digits, seed=seed)
    true = float(np.linalg.cond(a, 1))
    for found in (linalg.cholesky(a), linalg.lu(a)):
        assert true / 10 <= found.condition <= true * 1.01


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=60, deadline=None)
def test_any_matrix_is_its_factors(rows: int, cols: int, seed: int, kind: Any) -> None:
    a = _random((rows, cols), kind, seed)
    u, s, vt = linalg.svd(a)
    _close((u * s) @ vt, a)
    found = linalg.qr(a)
    _close(found.q @ found.r, a)
    gram = a.T @ a
    values, vectors = linalg.eigh(gram)
    _close((vectors * values) @ vectors.T, gram)


def test_arrays_in_either_order_and_views_are_taken() -> None:
    a = _definite(20)
    for view in (np.asfortranarray(a), np.kron(a, np.eye(2))[::2, ::2], a[::-1, ::-1][::-1, ::-1]):
        before = view.copy()
        np.testing.assert_allclose(linalg.cholesky(view).lower, linalg.cholesky(a).lower, atol=1e-14)
        np.testing.assert_allclose(linalg.lu(view).upper, linalg.lu(a).upper, atol=1e-14)
        np.testing.assert_allclose(linalg.svd(view).s, linalg.svd(a).s, atol=1e-14)
        assert np.array_equal(view, before)  # nothing is written to what was given


@pytest.mark.parametrize("factor", [*SQUARE, linalg.svd, linalg.qr])
@pytest.mark.parametrize(
    ("a", "message"),
    [
        (np.eye(3, dtype=np.int64), "a is float32 or float64, got int64; convert it first"),
        (np.eye(3, dtype=np.float16), "a is float32 or float64, got float16; convert it first"),
        (np.eye(3, dtype=np.complex128), "a is float32 or float64, got complex128; convert it first"),
        (np.ones(3), r"matrix that is not empty, got shape \(3,\)"),
        (np.ones((2, 2, 2)), r"matrix that is not empty, got shape \(2, 2, 2\)"),
        (np.ones((0, 0)), r"matrix that is not empty, got shape \(0, 0\)"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), r"a is finite, got nan at \(0, 1\)"),
        (np.array([[1.0, 0.0], [-np.inf, 1.0]]), r"a is finite, got -inf at \(1, 0\)"),
    ],
)
def test_what_is_not_a_matrix_of_numbers_is_refused(factor: Callable[[Array], object], a: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factor(a)


@pytest.mark.parametrize("factor", SQUARE)
def test_a_square_matrix_is_asked_for(factor: Callable[[Array], object]) -> None:
    with pytest.raises(ValueError, match=r"a is a square matrix that is not empty, got shape \(2, 3\)"):
        factor(np.ones((2, 3)))


@pytest.mark.parametrize("factor", [linalg.cholesky, linalg.inverse_factor, linalg.eigh])
def test_a_symmetric_matrix_is_asked_for(factor: Callable[[Array], object]) -> None:
    a = _definite(5)
    a[1, 3] += 0.5
    with pytest.raises(ValueError, match=r"a is symmetric, got -?[\d.]+ at \(1, 3\) and -?[\d.]+ at \(3, 1\)"):
        factor(a)


def test_sums_taken_in_another_order_are_symmetric_enough() -> None:
    inputs = _random((4000, 60), np.float32)
    gram = inputs.T @ inputs
    gram[10, 20] += np.float32(4000 * 60 * np.finfo(np.float32).eps / 8)
    assert linalg.cholesky(gram).condition < 10


@pytest.mark.parametrize("make", [linalg.cholesky, linalg.lu, linalg.qr])
@pytest.mark.parametrize(
    ("b", "message"),
    [
        (np.ones(4), r"b is float64 with 3 rows, got float64 of shape \(4,\)"),
        (np.ones((3, 1, 1)), r"b is float64 with 3 rows, got float64 of shape \(3, 1, 1\)"),
        (np.float64(1), r"b is float64 with 3 rows, got float64 of shape \(\)"),
        (np.ones(3, np.float32), r"b is float64 with 3 rows, got float32 of shape \(3,\)"),
        (np.array([1.0, np.inf, 1.0]), r"b is finite, got inf at \(1,\)"),
        (np.ones((3, 0)), r"b is a matrix that is not empty, got shape \(3, 0\)"),
    ],
)
def test_a_right_hand_side_that_does_not_fit_is_refused(make: Callable[[Array], Any], b: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(_definite(3)).solve(b)


def _quadratic(a: Array, b: Array) -> Callable[[Array], tuple[float, Array]]:
    return lambda x: (float(x @ a @ x / 2 - b @ x), a @ x - b)


def _rosenbrock(x: Array) -> tuple[float, Array]:
    rise = x[1:] - x[:-1] ** 2
    gradient = np.zeros_like(x)
    gradient[:-1] = -400 * x[:-1] * rise - 2 * (1 - x[:-1])
    gradient[1:] += 200 * rise
    return float((100 * rise**2 + (1 - x[:-1]) ** 2).sum()), gradient


def test_descent_finds_the_bottom_of_a_bowl() -> None:
    a, b = _definite(30, condition=100), _random((30,))
    found = linalg.minimize(_quadratic(a, b), np.zeros(30))
    assert found.converged
    assert found.gradient < 1e-4
    np.testing.assert_allclose(found.x, np.linalg.solve(a, b), rtol=1e-3, atol=1e-3)


def test_descent_follows_a_bent_valley() -> None:
    found = linalg.minimize(_rosenbrock, np.full(6, -1.0))
    assert found.converged
    np.testing.assert_allclose(found.x, 1, atol=1e-4)
    assert found.steps > 10


def test_descent_in_float32_calls_in_float32() -> None:
    kinds = set()

    def function(x: Array) -> tuple[float, Array]:
        kinds.add(x.dtype)
        return float(((x - 3) ** 2).sum()), 2 * (x - 3)

    found = linalg.minimize(function, np.zeros(4, np.float32), tolerance=1e-4)
    assert kinds == {np.dtype(np.float32)}
    assert found.x.dtype == np.float32
    assert found.converged
    np.testing.assert_allclose(found.x, 3, atol=1e-3)


def test_scales_are_fitted() -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (8, 50)).astype(np.float64)
    true = np.linspace(0.5, 2, 8)
    weights = codes * true[:, None]

    def loss(scale: Array) -> tuple[float, Array]:
        error = codes * scale[:, None] - weights
        return float((error**2).sum()), 2 * (error * codes).sum(axis=1)

    np.testing.assert_allclose(linalg.minimize(loss, np.ones(8)).x, true, atol=1e-6)


def test_descent_that_runs_out_of_steps_says_so() -> None:
    found = linalg.minimize(_rosenbrock, np.full(6, -1.0), steps=3)
    assert not found.converged
    assert found.steps == 3
    assert found.gradient > 1e-6


@pytest.mark.parametrize("wrong", [-1.0, 0.01])
def test_a_gradient_of_another_function_is_refused(wrong: float) -> None:
    def function(x: Array) -> tuple[float, Array]:
        value, gradient = _rosenbrock(x)
        return value, wrong * gradient

    with pytest.raises(ValueError, match="the gradient does not belong to the function: along it the slope is"):
        linalg.minimize(function, np.full(4, -1.0), steps=5)


@pytest.mark.parametrize(
    ("value", "gradient"), [(np.nan, np.zeros(2)), (1.0, np.array([0.0, np.inf])), (1.0, np.zeros(3))]
)
def test_a_function_that_gives_no_numbers_is_refused(value: float, gradient: Array) -> None:
    with pytest.raises(ValueError, match=r"the function gives a finite number and gradient of shape \(2,\), got "):
        linalg.minimize(lambda _: (value, gradient), np.zeros(2))


@pytest.mark.parametrize("start", [np.zeros((2, 2)), np.zeros(0), np.array([np.nan]), np.zeros(2, int)])
def test_a_start_that_is_no_vector_of_numbers_is_refused(start: Array) -> None:
    with pytest.raises(ValueError, match="start is "):
        linalg.minimize(_rosenbrock, start)


@TYPES
def test_conjugate_gradients_solve_by_products(kind: Any) -> None:
    a, x = _definite(50, kind), _random((50,), kind, seed=1)
    found = linalg.conjugate_gradient(lambda p: a @ p, a @ x, tolerance=1e-5)
    assert found.converged
    assert found.x.dtype == kind
    assert found.residual <= 2e-5
    assert 0 < found.steps <= 60
    np.testing.assert_allclose(found.x, x, atol=5e-3)


def test_a_preconditioner_saves_steps() -> None:
    scales = np.geomspace(1, 1e4, 80)
    a = _definite(80, condition=5) * np.sqrt(scales)[:, None] * np.sqrt(scales)
    b = _random((80,))
    plain = linalg.conjugate_gradient(lambda p: a @ p, b, tolerance=1e-8)
    helped = linalg.conjugate_gradient(lambda p: a @ p, b, tolerance=1e-8, preconditioner=lambda r: r / scales)
    assert plain.converged
    assert helped.converged
    assert helped.steps < plain.steps / 2


def test_conjugate_gradients_that_run_out_of_steps_say_so() -> None:
    a = _definite(50, condition=1e4)
    found = linalg.conjugate_gradient(lambda p: a @ p, _random((50,)), steps=3, tolerance=1e-10)
    assert not found.converged
    assert found.steps == 3
    assert found.residual > 1e-10


def test_nothing_is_solved_by_nothing() -> None:
    found = linalg.conjugate_gradient(lambda p: p, np.zeros(4))
    assert found == (pytest.approx(np.zeros(4)), 0.0, 0, True)


def test_a_matrix_that_is_not_positive_definite_is_refused_on_the_way() -> None:
    diagonal = np.array([3.0, 2.0, -1.0])
    with pytest.raises(IllConditioned, match="not positive definite"):
        linalg.conjugate_gradient(lambda p: diagonal * p, np.ones(3))


@pytest.mark.parametrize("result", [np.ones(2), np.full(3, np.nan)])
def test_products_that_are_no_numbers_are_refused(result: Array) -> None:
    with pytest.raises(ValueError, match=r"matvec gives finite numbers of shape \(3,\)"):
        linalg.conjugate_gradient(lambda _: result, np.ones(3))
    with pytest.raises(ValueError, match=r"preconditioner gives finite numbers of shape \(3,\)"):
        linalg.conjugate_gradient(lambda p: p, np.ones(3), preconditioner=lambda _: result)


@pytest.mark.parametrize("b", [np.ones((3, 1)), np.ones(0), np.array([np.inf]), np.ones(3, int)])
def test_a_right_hand_side_that_is_no_vector_of_numbers_is_refused(b: Array) -> None:
    with pytest.raises(ValueError, match="b is "):
        linalg.conjugate_gradient(lambda p: p, b)


def test_without_scipy_the_remedy_is_told() -> None:
    script = """
import sys
sys.modules["scipy"] = None
import numpy as np
from bitnet_core import linalg
from bitnet_core.errors import UnsupportedError
for call in (lambda: linalg.svd(np.eye(2)), lambda: linalg.minimize(lambda x: (0.0, x), np.ones(2)),
             lambda: linalg.conjugate_gradient(lambda p: p, np.ones(2))):
    try:
        call()
    except UnsupportedError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ['linear algebra needs SciPy: pip install "bitnet-core[linalg]"'] * 3
