"""Error compensation and adapters on inputs that are correlated, as those of real models are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bitnet_core import TernaryTensor
from bitnet_quant.compensate import Adapter, adapter, compensate, output_error
from bitnet_quant.ternarization import Method, ternarize

ROWS, COLS = 48, 96


def matrix(seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((ROWS, COLS)).astype(np.float32)


def correlated(seed: int = 1, cols: int = COLS) -> npt.NDArray[np.float64]:
    """Second moments of inputs that a few directions explain, some far larger than others."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((8, cols)) * random.uniform(0.2, 3, cols)
    inputs = random.standard_normal((400, 8)) @ mix + 0.3 * random.standard_normal((400, cols))
    return inputs.T @ inputs / len(inputs)


@pytest.mark.parametrize("scales", ["tensor", "row", "block"])
def test_compensated_outputs_are_much_nearer_than_those_of_plain_rounding(scales: str) -> None:
    weights, second = matrix(), correlated()
    block = 32 if scales == "block" else 0
    method = Method("optimal", scales, block)  # type: ignore[arg-type]
    plain = ternarize(weights, Method("absmean", scales, block)).tensor.dense()  # type: ignore[arg-type]
    found = compensate(weights, second, method)
    assert found.tensor.scale.shape == method.groups((ROWS, COLS))
    assert output_error(weights, found.tensor.dense(), second) < 0.3 * output_error(weights, plain, second)


def test_compensation_works_for_every_rule_that_gives_the_first_scales() -> None:
    weights, second = matrix(), correlated()
    for rule in ("absmean", "threshold", "optimal"):
        method = Method(rule, "row")
        plain = output_error(weights, ternarize(weights, method).tensor.dense(), second)
        assert output_error(weights, compensate(weights, second, method).tensor.dense(), second) < 0.5 * plain


def test_inputs_that_have_nothing_to_do_with_each_other_leave_little_to_win_and_nothing_to_lose() -> None:
    weights, second = matrix(), np.eye(COLS)
    plain = output_error(weights, ternarize(weights, Method("optimal", "row")).tensor.dense(), second)
    assert output_error(weights, compensate(weights, second).tensor.dense(), second) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_compensation_is_never_worse_than_plain_rounding(seed: int) -> None:
    weights, second = matrix(seed), correlated(seed, COLS)
    second[np.diag_indices(COLS)] *= 1 + 50 * np.random.default_rng(seed).uniform(size=COLS)
    for passes in (0, 1, 4):
        found = compensate(weights, second, passes=passes).tensor.dense()
        plain = ternarize(weights, Method("optimal", "row")).tensor.dense()
        assert output_error(weights, found, second) <= output_error(weights, plain, second)


def test_what_is_ternary_already_stays_as_it_is() -> None:
    codes = np.random.default_rng(3).integers(-1, 2, (ROWS, COLS)).astype(np.int8)
    weights = TernaryTensor.from_codes(codes, np.linspace(0.5, 2, ROWS, dtype=np.float32)[:, None]).dense()
    found = compensate(weights, correlated())
    np.testing.assert_array_equal(found.tensor.codes(), codes)
    assert found.fidelity.mse == 0


def test_the_result_does_not_depend_on_where_the_walk_is_cut_into_blocks() -> None:
    weights, second = matrix(), correlated()
    expected = compensate(weights, second, block=1000).tensor
    for block in (1, 7, 96):
        assert compensate(weights, second, block=block).tensor.digest() == expected.digest()


def test_columns_whose_inputs_are_always_zero_do_no_harm() -> None:
    weights, second = matrix(), correlated()
    second[5], second[:, 5] = 0, 0
    found = compensate(weights, second)
    assert np.isfinite(found.tensor.scale).all()
    assert output_error(weights, found.tensor.dense(), second) < 0.2


def test_extremes_have_a_defined_result() -> None:
    zeros = np.zeros((4, 8), np.float32)
    assert not compensate(zeros, correlated(cols=8)).tensor.codes().any()
    single = np.array([[2.0], [-3.0]], np.float32)
    np.testing.assert_array_equal(compensate(single, np.ones((1, 1))).tensor.dense(), single)
    constant = np.full((4, 8), 0.25, np.float32)
    np.testing.assert_array_equal(compensate(constant, correlated(cols=8)).tensor.dense(), constant)


def test_moments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="float64 of shape"):
        compensate(matrix(), np.eye(COLS - 1))
    with pytest.raises(ValueError, match="not all zero"):
        compensate(matrix(), np.zeros((COLS, COLS)))
    with pytest.raises(ValueError, match="symmetric"):
        compensate(matrix(), np.triu(np.ones((COLS, COLS))))


def test_an_adapter_has_peft_s_shapes_and_the_least_error_of_its_rank() -> None:
    weights = matrix()
    tensor = ternarize(weights).tensor
    residual = weights - tensor.dense()
    singular = np.linalg.svd(residual.astype(np.float64), compute_uv=False)
    for rank in (1, 8, ROWS):
        found = adapter(weights, tensor, rank)
        assert (found.a.shape, found.b.shape) == ((rank, COLS), (ROWS, rank))
        error = float(np.square(weights - tensor.dense() - found.dense()).sum(dtype=np.float64))
        assert error == pytest.approx(float(np.square(singular[rank:]).sum()), rel=1e-4, abs=1e-6)


def test_an_adapter_that_knows_the_inputs_helps_the_outputs_more() -> None:
    weights, second = matrix(), correlated()
    tensor = ternarize(weights).tensor
    blind, seeing = (
        output_error(weights, tensor.dense() + adapter(weights, tensor, 6, second=moments).dense(), second)
        for moments in (None, second)
    )
    assert output_error(weights, tensor.dense(), second) > blind > 2 * seeing


def test_a_large_residual_is_taken_apart_by_random_projections_the_same_every_time() -> None:
    random = np.random.default_rng(0)
    low = random.standard_normal((600, 4)) @ random.standard_normal((4, 520))
    weights = (low + 0.01 * random.standard_normal((600, 520))).astype(np.float32)
    nothing = TernaryTensor.from_codes(np.zeros(weights.shape, np.int8))
    first, again = (adapter(weights, nothing, 4) for _ in range(2))
    assert isinstance(first, Adapter)
    np.testing.assert_array_equal(first.dense(), again.dense())
    assert np.square(weights - first.dense()).mean() < 1.1e-4


@pytest.mark.parametrize("blocks", [1, 4])
def test_fitted_scales_cannot_be_bettered_for_their_codes(blocks: int) -> None:
    weights, second = matrix(), correlated()
    method = Method("optimal", "block", COLS // blocks) if blocks > 1 else Method("optimal", "row")
    found = compensate(weights, second, method).tensor
    least = output_error(weights, found.dense(), second)
    random = np.random.default_rng(0)
    for size in (1e-2, 1e-3):
        moved = found.scale * (1 + size * random.standard_normal(found.scale.shape)).astype(np.float32)
        other = TernaryTensor(found.data, moved, found.shape, found.layout).dense()
        assert output_error(weights, other, second) > least
