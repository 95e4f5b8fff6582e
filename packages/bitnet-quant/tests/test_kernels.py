"""Every kernel of every instruction set against NumPy: integers to the bit, floats to a few units in the last place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("bitnet_quant.cpu._native", reason="built without the compiled part")

from bitnet_core import arithmetic
from bitnet_quant.cpu import _native, isas

from .kernel_order import pack_codes, pack_weights, pad_columns

Guarded = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


def ternary_sums(isa: str, codes: npt.NDArray[np.int8], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int32]:
    """Codes times x through the kernel, group by group."""
    kernels = _native.Kernels(isa)
    padded = pad_columns(x, kernels.columns)
    starts = -padded.astype(np.int32).sum(axis=1, dtype=np.int32)
    found = []
    for group in pack_codes(codes, unit=kernels.columns).reshape(-(-len(codes) // 64), -1):
        out = np.empty((len(x), 64), np.int32)
        for at in range(0, len(x), kernels.few):
            tile = slice(at, at + kernels.few)
            kernels.ternary(group, padded[tile], starts[tile], out[tile])
        found.append(out)
    return np.concatenate(found, axis=1)[:, : len(codes)]


def exact(codes: npt.NDArray[np.int8], x: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    return np.rint(x.astype(np.float64) @ codes.astype(np.float64).T).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(
    isa=st.sampled_from(isas()),
    rows=st.integers(1, 140),
    columns=st.integers(1, 700),
    tokens=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_of_codes_times_bytes_are_exact(isa: str, rows: int, columns: int, tokens: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(-1, 2, (rows, columns), dtype=np.int8)
    x = random.integers(-128, 128, (tokens, columns), dtype=np.int8)
    np.testing.assert_array_equal(ternary_sums(isa, codes, x), exact(codes, x))


@pytest.mark.parametrize("columns", [2560, 5460, 6912, 8640])
@pytest.mark.parametrize("code", [-1, 1])
@pytest.mark.parametrize("digit", [-128, -127, 127])
def test_sums_of_one_sign_do_not_wrap(isa: str, columns: int, code: int, digit: int) -> None:
    codes = np.full((64, columns), code, np.int8)
    for tokens in range(1, _native.Kernels(isa).few + 1):
        x = np.full((tokens, columns), digit, np.int8)
        assert (ternary_sums(isa, codes, x) == code * digit * columns).all()


@pytest.mark.parametrize("columns", [1, 12, 16, 48, 100, 2560])
def test_five_bits_expand_to_two_and_zeros(isa: str, columns: int) -> None:
    kernels = _native.Kernels(isa)
    if kernels.columns == 16:
        with pytest.raises(ValueError, match="two bits already"):
            kernels.expand(np.zeros(256, np.uint8), np.zeros(256, np.uint8))
        return
    codes = np.random.default_rng(columns).integers(-1, 2, (64, columns), dtype=np.int8)
    known = np.pad(codes, ((0, 0), (0, -columns % 12)))
    wide = -(-columns // 16) * 16
    expected = np.pad(known, ((0, 0), (0, max(0, wide - known.shape[1]))), constant_values=-1)[:, :wide]
    out = np.full(wide * 16, 255, np.uint8)
    kernels.expand(pack_codes(codes, unit=12), out)
    np.testing.assert_array_equal(out, pack_codes(expected))


@pytest.mark.parametrize("columns", [16, 48, 2560])
def test_sums_of_int8_weights_are_exact_at_the_ends_of_their_range(isa: str, columns: int) -> None:
    random = np.random.default_rng(columns)
    kernels = _native.Kernels(isa)
    for tokens in range(1, 7):
        for low, high, least, most in ((-127, 128, -128, 128), (127, 128, 127, 128), (-127, -126, -128, -127)):
            weights = random.integers(low, high, (64, columns), dtype=np.int8)
            x = random.integers(least, most, (tokens, columns), dtype=np.int8)
            out = np.empty((tokens, 64), np.int32)
            kernels.bytes(pack_weights(weights), x, -x.astype(np.int32).sum(axis=1, dtype=np.int32), out)
            np.testing.assert_array_equal(out, exact(weights, x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (5, 33), (64, 100), (64, 2560)])
def test_products_of_floats_are_near_and_do_not_depend_on_the_other_tokens(
    isa: str, kind: str, rows: int, columns: int
) -> None:
    random = np.random.default_rng(columns)
    weights = random.standard_normal((rows, columns)).astype(KINDS[kind])
    x = random.standard_normal((6, columns)).astype(np.float32)
    data = weights.view(np.uint8).reshape(rows, -1)
    together = np.empty((6, 64), np.float32)
    _native.Kernels(isa).dense(data, kind, x, together)
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    spread = np.abs(x).astype(np.float64) @ np.abs(weights.astype(np.float64)).T
    assert (np.abs(together[:, :rows] - expected) <= 1e-6 * spread).all()
    for tokens in range(1, 6):
        part = np.empty((tokens, 64), np.float32)
        _native.Kernels(isa).dense(data, kind, np.ascontiguousarray(x[-tokens:]), part)
        np.testing.assert_array_equal(part[:, :rows], together[-tokens:, :rows])


@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize("rank", [1, 2, 5, 16, 33])
def test_products_of_adapters_are_near_and_independent_of_the_batch(isa: str, kind: str, rank: int) -> None:
    random = np.random.default_rng(rank)
    rows = random.standard_normal((rank, 64)).astype(kind)
    weights = random.standard_normal((6, rank)).astype(np.float32)
    kernels, together = _native.Kernels(isa), np.empty((6, 64), np.float32)
    kernels.spread(rows.view(np.uint8), kind, weights, together)
    reach = np.abs(weights).astype(np.float64) @ np.abs(rows).astype(np.float64)
    assert (np.abs(together - weights.astype(np.float64) @ rows.astype(np.float64)) <= 1e-6 * reach).all()
    for tokens in range(1, 6):
        part = np.empty((tokens, 64), np.float32)
        kernels.spread(rows.view(np.uint8), kind, np.ascontiguousarray(weights[-tokens:]), part)
        np.testing.assert_array_equal(part, together[-tokens:])


def awkward_floats(count: int, seed: int) -> npt.NDArray[np.float32]:
    """Numbers of all sizes, halves among them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(count) * 10.0 ** random.integers(-6, 5, count)
    x[random.random(count) < 0.2] = 0.5
    return x.astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 15, 16, 17, 31, 100, 2560])
def test_activations_become_the_same_bytes_as_in_the_reference(isa: str, count: int) -> None:
    kernels = _native.Kernels(isa)
    for seed in range(20):
        x = awkward_floats(count, seed) if seed else np.zeros(count, np.float32)
        expected, scale = arithmetic.absmax(x)
        assert max(kernels.largest(x), 1e-5) == pytest.approx(max(np.abs(x).max(), 1e-5), rel=0)
        digits = np.empty(count, np.int8)
        assert kernels.quantize(x, float(scale[0]), digits) == expected.sum(dtype=np.int64)
        np.testing.assert_array_equal(digits, expected)


@pytest.mark.parametrize("count", [1, 8, 13, 16, 100])
@pytest.mark.parametrize(("planes", "most"), [(2, 32639), (3, 8355711)])
def test_digits_hold_a_float_to_8_bits_each(isa: str, count: int, planes: int, most: int) -> None:
    x = awkward_floats(count, count)
    scale = np.float32(most) / np.abs(x).max()
    digits = np.empty((planes, count), np.int8)
    sums = _native.Kernels(isa).split(x, float(scale), digits)
    np.testing.assert_array_equal(sums, digits.sum(axis=1, dtype=np.int64))
    whole = sum(digits[plane].astype(np.int64) * 256 ** (planes - 1 - plane) for plane in range(planes))
    np.testing.assert_array_equal(whole, np.clip(np.rint(x * scale).astype(np.int64), -most, most))


@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("scales", [1, 64])
def test_sums_become_floats_by_their_scales(isa: str, planes: int, scales: int) -> None:
    random = np.random.default_rng(planes)
    sums = random.integers(-900_000, 900_000, (planes, 64), dtype=np.int32)
    scale = random.uniform(0.01, 1, scales).astype(np.float32)
    wide = sum(sums[plane].astype(np.float64) * 256.0 ** (planes - 1 - plane) for plane in range(planes))
    out = np.ones(64, np.float32)
    _native.Kernels(isa).finish(sums, scale, 12.5, True, out)
    np.testing.assert_allclose(out, 1 + wide * scale / 12.5, rtol=1e-6, atol=1e-3 * (planes > 1))


@pytest.mark.parametrize("count", [1, 7, 16, 33, 2560])
def test_norms_are_the_references(isa: str, count: int) -> None:
    random = np.random.default_rng(count)
    x, weight = random.standard_normal((2, count)).astype(np.float32)
    out = np.empty(count, np.float32)
    _native.Kernels(isa).norm(x, weight, 1e-5, out)
    np.testing.assert_allclose(out, arithmetic.rms_norm(x, weight, 1e-5), rtol=3e-7)


@pytest.mark.parametrize("kind", arithmetic.ACTIVATIONS)
def test_gates_are_the_references(isa: str, kind: str) -> None:
    values = np.concatenate([np.linspace(-100, 100, 4001), [0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38]]).astype(np.float32)
    up = np.full(len(values), 0.5, np.float32)
    gate = values.copy()
    _native.Kernels(isa).activate(kind, gate, up)  # type: ignore[arg-type]
    with np.errstate(over="ignore"):
        expected = arithmetic.ACTIVATIONS[kind](values) * up
    np.testing.assert_allclose(gate, expected, rtol=2e-6, atol=1e-7)


def test_every_half_is_widened_exactly(isa: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for kind in ("float16", "bfloat16"):
        out = np.empty(1 << 16, np.float32)
        _native.Kernels(isa).widen(bits.view(np.uint8), kind, 1.0, out)
        np.testing.assert_array_equal(out, bits.view(KINDS[kind]).astype(np.float32))


def test_floats_are_narrowed_to_the_nearest_half_and_never_to_infinity(isa: str) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    x = np.concatenate([halves, between, np.nextafter(between, 0), -between, [1e-8, 1e-9, -1e-30]]).astype(np.float32)
    out = np.empty(len(x), np.uint16)
    _native.Kernels(isa).narrow(x, out)
    np.testing.assert_array_equal(out, x.astype(np.float16).view(np.uint16))
    edges = np.array([65519, 65520, 1e9, np.inf, -np.inf, np.nan], np.float32)
    out = np.empty(len(edges), np.uint16)
    _native.Kernels(isa).narrow(edges, out)
    np.testing.assert_array_equal(out.view(np.float16), np.array([65504, 65504, 65504, 65504, -65504, np.nan]))


def test_what_is_not_finite_is_the_largest_and_has_digits_all_the_same(isa: str) -> None:
    kernels = _native.Kernels(isa)
    for wrong in (np.nan, -np.nan, np.inf, -np.inf):
        x = np.array([1.0, wrong, -3.0], np.float32)
        assert not np.isfinite(kernels.largest(x))
        digits = np.empty(3, np.int8)
        assert kernels.quantize(x, float("nan"), digits) == -381
        planes = np.empty((3, 3), np.int8)
        kernels.split(x, float("nan"), planes)


@pytest.mark.parametrize("count", [*range(1, 34), 63, 64, 65])
def test_no_kernel_passes_the_end_of_its_arrays(isa: str, guarded: Guarded, count: int) -> None:
    kernels = _native.Kernels(isa)
    x = guarded(np.ones(count, np.float32))
    out = guarded(np.zeros(count, np.float32))
    kernels.norm(x, x, 1e-5, out)
    kernels.activate("silu", out, x)
    kernels.largest(x)
    kernels.quantize(x, 1.0, guarded(np.zeros(count, np.int8)))
    kernels.split(x, 1.0, guarded(np.zeros((3, count), np.int8)))
    kernels.narrow(x, guarded(np.zeros(count, np.uint16)))
    for kind, dtype in KINDS.items():
        stored = guarded(np.ones(count, dtype).view(np.uint8))
        kernels.widen(stored, kind, 1.0, out)
        rows = guarded(np.ones((5, count), dtype).view(np.uint8))
        for tokens in range(1, 7):
            kernels.dense(
                rows, kind, guarded(np.ones((tokens, count), np.float32)), guarded(np.zeros((tokens, 64), np.float32))
            )
    codes = guarded(pack_codes(np.zeros((64, kernels.columns * count), np.int8), unit=kernels.columns))
    if kernels.columns == 12:
        kernels.expand(codes, guarded(np.zeros(-(-12 * count // 16) * 256, np.uint8)))
    for tokens in range(1, kernels.few + 1):
        starts, sums = guarded(np.zeros(tokens, np.int32)), guarded(np.zeros((tokens, 64), np.int32))
        kernels.ternary(codes, guarded(np.zeros((tokens, kernels.columns * count), np.int8)), starts, sums)
    for tokens in range(1, 7):
        starts, sums = guarded(np.zeros(tokens, np.int32)), guarded(np.zeros((tokens, 64), np.int32))
        inputs = guarded(np.zeros((tokens, 16 * count), np.int8))
        kernels.bytes(guarded(np.zeros(1024 * count, np.uint8)), inputs, starts, sums)


def test_wrong_types_and_shapes_are_refused(isa: str) -> None:
    kernels = _native.Kernels(isa)
    x = np.ones(16, np.float32)
    with pytest.raises(TypeError):
        kernels.largest(np.ones(16))  # type: ignore[arg-type]  # float64
    with pytest.raises(TypeError):
        kernels.largest(np.ones(32, np.float32)[::2])
    with pytest.raises(ValueError, match="weight: expected 16 elements, got 15"):
        kernels.norm(x, np.ones(15, np.float32), 1e-5, x)
    with pytest.raises(ValueError, match="1 to 6 tokens"):
        kernels.bytes(
            np.zeros(1024, np.uint8), np.zeros((7, 16), np.int8), np.zeros(7, np.int32), np.zeros((7, 64), np.int32)
        )
