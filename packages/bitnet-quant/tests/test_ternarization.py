"""Floats as ternary: every rule against its definition, and the extremes."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import TernaryTensor, UnsupportedError, arithmetic
from bitnet_quant.ternarization import Fidelity, Method, best_scales, fidelity, ternarize

GOLDEN = Path(__file__).parents[2] / "bitnet-core" / "tests" / "golden" / "quant_math.json"
EVERY = [
    Method(rule, scales, 4 if scales == "block" else 0)  # type: ignore[arg-type]
    for rule, scales in itertools.product(("absmean", "threshold", "optimal"), ("tensor", "row", "block"))
]


def gaussian(rows: int = 24, cols: int = 64, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def test_the_golden_vectors_of_absmean_come_out_code_for_code() -> None:
    for case in json.loads(GOLDEN.read_text())["weight_cases"]:
        weights = np.array(case["w"], np.float32)
        found = ternarize(weights).tensor
        np.testing.assert_array_equal(found.codes(), case["ternary"], case["name"])
        np.testing.assert_allclose(found.scale, case["absmean"], rtol=1e-6)


def test_absmean_of_rows_and_blocks_is_that_of_each_on_its_own() -> None:
    weights = gaussian()
    rows = ternarize(weights, Method("absmean", "row")).tensor
    blocks = ternarize(weights, Method("absmean", "block", 16)).tensor
    for row in range(len(weights)):
        codes, scale = arithmetic.absmean(weights[row : row + 1])
        np.testing.assert_array_equal(rows.codes()[row : row + 1], codes)
        assert rows.scale[row, 0] == scale
        for block in range(4):
            codes, scale = arithmetic.absmean(weights[row : row + 1, 16 * block : 16 * block + 16])
            np.testing.assert_array_equal(blocks.codes()[row, 16 * block : 16 * block + 16], codes[0])
            assert blocks.scale[row, block] == scale


def test_the_threshold_rule_keeps_what_is_above_seven_tenths_of_the_mean() -> None:
    weights = np.array([[1.0, -0.5, 0.75, 0.25, 0.0, -3.0, 0.625, 0.0]], np.float32)
    found = ternarize(weights, Method("threshold", "row")).tensor  # the mean is 0.766, the limit 0.536
    np.testing.assert_array_equal(found.codes(), [[1, 0, 1, 0, 0, -1, 1, 0]])
    assert found.scale[0, 0] == (1.0 + 0.75 + 3.0 + 0.625) / 4


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_no_codes_and_scale_at_all_have_a_smaller_error_than_the_optimal_ones(seed: int) -> None:
    random = np.random.default_rng(seed)
    row = random.standard_normal(6).astype(np.float32)
    importance = random.uniform(0, 2, 6)
    found = ternarize(row[None], Method("optimal", "row"), importance=importance).tensor.dense()[0]
    best = float((importance * (row - found) ** 2).sum())
    for codes in itertools.product((-1, 0, 1), repeat=6):
        mass = float((importance * np.square(codes)).sum())
        scale = float((importance * row * codes).sum()) / mass if mass else 0.0
        assert best <= float((importance * (row - scale * np.array(codes)) ** 2).sum()) + 1e-6


@pytest.mark.parametrize("scales", ["tensor", "row"])
def test_the_optimal_rule_is_never_behind_the_others(scales: str) -> None:
    weights = gaussian(seed=5) * np.linspace(0.1, 3, 24, dtype=np.float32)[:, None]
    errors = {
        rule: ternarize(weights, Method(rule, scales)).fidelity.mse  # type: ignore[arg-type]
        for rule in ("absmean", "threshold", "optimal")
    }
    assert errors["optimal"] < min(errors["absmean"], errors["threshold"])


def test_finer_scales_have_smaller_errors() -> None:
    weights = gaussian(seed=6) * np.linspace(0.1, 3, 24, dtype=np.float32)[:, None]
    methods = (Method("optimal"), Method("optimal", "row"), Method("optimal", "block", 16))
    errors = [ternarize(weights, method).fidelity.mse for method in methods]
    assert errors[0] > errors[1] > errors[2] > 0


def test_the_error_of_a_gaussian_is_what_theory_says() -> None:
    # The best ternary scale of a Gaussian is 1.224 deviations, and the error 0.1902 of its power.
    found = ternarize(gaussian(500, 2000), Method("optimal"))
    assert found.fidelity.mse == pytest.approx(0.1902, abs=2e-3)
    assert float(found.tensor.scale[0, 0]) == pytest.approx(1.224, abs=0.01)
    assert found.zeros == pytest.approx(0.459, abs=0.01)


@pytest.mark.parametrize("method", [Method("exact"), Method("optimal", "row"), Method("threshold", "row")])
def test_what_is_ternary_already_comes_back_to_the_bit(method: Method) -> None:
    codes = np.random.default_rng(1).integers(-1, 2, (40, 128)).astype(np.int8)
    scales = np.random.default_rng(2).uniform(0.01, 3, (40, 1)).astype(np.float32)
    weights = TernaryTensor.from_codes(codes, scales).dense()
    found = ternarize(weights, method)
    np.testing.assert_array_equal(found.tensor.dense(), weights)
    assert found.fidelity == Fidelity(0.0, math.inf, 1.0, 0.0)


def test_the_exact_rule_refuses_what_is_not_ternary() -> None:
    with pytest.raises(UnsupportedError, match="24 x 64 matrix is not ternary"):
        ternarize(gaussian(), Method("exact"))


@pytest.mark.parametrize("method", EVERY)
def test_extremes_have_a_defined_result(method: Method) -> None:
    zeros = np.zeros((3, 8), np.float32)
    assert not ternarize(zeros, method).tensor.codes().any()
    assert (ternarize(zeros, method).tensor.scale == arithmetic.EPS).all()
    constant = np.full((3, 8), -2.5, np.float32)
    np.testing.assert_array_equal(ternarize(constant, method).tensor.dense(), constant)
    one_row_of_zeros = gaussian(4, 8)
    one_row_of_zeros[2] = 0
    assert not ternarize(one_row_of_zeros, method).tensor.dense()[2].any()
    single = np.array([[3.0], [-1.0], [0.0]], np.float32)
    if method.scales != "block":
        assert ternarize(single, method).tensor.shape == (3, 1)


@pytest.mark.parametrize("method", EVERY)
def test_half_precision_is_ternarized_as_its_float32_values(method: Method) -> None:
    for kind in (np.float16, ml_dtypes.bfloat16):
        narrow = gaussian().astype(kind)
        found, expected = ternarize(narrow, method).tensor, ternarize(narrow.astype(np.float32), method).tensor
        assert found.digest() == expected.digest()
        np.testing.assert_array_equal(found.scale, expected.scale)


def test_a_long_matrix_is_worked_through_in_parts_with_the_same_result() -> None:
    weights = gaussian(5000, 1024)  # more than the part of it that is widened at a time
    whole, last = ternarize(weights, Method("optimal", "row")), ternarize(weights[-7:], Method("optimal", "row"))
    np.testing.assert_array_equal(whole.tensor.codes()[-7:], last.tensor.codes())
    np.testing.assert_array_equal(whole.tensor.scale[-7:], last.tensor.scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_with_their_place(bad: float) -> None:
    weights = gaussian()
    weights[3, 5] = bad
    with pytest.raises(ValueError, match="at row 3, column 5"):
        ternarize(weights)


@pytest.mark.parametrize("bad", [np.zeros(4, np.float32), np.zeros((0, 4), np.float32), np.zeros((2, 2), np.int8)])
def test_what_is_no_matrix_of_floats_is_refused(bad: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="a matrix of floats"):
        ternarize(bad)  # type: ignore[arg-type]


def test_methods_and_importance_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="one of absmean"):
        Method("median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="block of columns"):
        Method("absmean", "block")
    with pytest.raises(UnsupportedError, match="do not divide the 64 columns"):
        ternarize(gaussian(), Method("absmean", "block", 48))
    with pytest.raises(ValueError, match="64 finite numbers"):
        ternarize(gaussian(), Method("optimal"), importance=np.ones(63))
    with pytest.raises(ValueError, match="weighs the errors"):
        ternarize(gaussian(), importance=np.ones(64))


def test_fidelity_is_that_of_its_definition() -> None:
    found = fidelity(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]]))
    assert found.mse == 1
    assert found.sqnr == pytest.approx(10 * math.log10(25 / 2))
    assert found.cosine == pytest.approx(24 / 25)
    assert found.angle == pytest.approx(math.degrees(math.acos(24 / 25)))
    assert fidelity(np.zeros((1, 2)), np.ones((1, 2))).sqnr == -math.inf
    with pytest.raises(ValueError, match="one shape"):
        fidelity(np.zeros((1, 2)), np.zeros((2, 1)))


def test_the_best_scale_of_weighted_numbers_ignores_what_weighs_nothing() -> None:
    scales = best_scales(np.array([[1.0, 100.0, 1.0]]), np.array([[1.0, 0.0, 1.0]]))
    np.testing.assert_allclose(scales, [1.0])
