"""Eight and four bits in blocks of 32, byte for byte as ggml's own package writes them."""

from __future__ import annotations

import gguf as ggml
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import UnsupportedError
from bitnet_quant import blocks

TYPES = {"int8": ggml.GGMLQuantizationType.Q8_0, "int4": ggml.GGMLQuantizationType.Q4_0}


@pytest.mark.parametrize("form", ["int8", "int4"])
@given(seed=st.integers(0, 100_000), scale=st.sampled_from([1e-9, 1e-3, 1.0, 900.0]))
@settings(max_examples=80, deadline=None)
def test_bytes_are_those_of_ggml(form: str, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    weights = (random.standard_normal((6, 96)) * scale).astype(np.float32)
    weights[0, :32] = 0
    weights[1] = np.round(weights[1] / scale * 4) * scale / 4  # ties
    expected = ggml.quants.quantize(weights, TYPES[form])
    np.testing.assert_array_equal(blocks.encode(form, weights), expected.ravel())
    np.testing.assert_array_equal(blocks.rounded(form, weights), ggml.quants.dequantize(expected, TYPES[form]))


@pytest.mark.parametrize("form", ["int8", "int4"])
@given(seed=st.integers(0, 100_000))
@settings(max_examples=50, deadline=None)
def test_what_was_rounded_once_is_stored_without_any_change(form: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = (random.standard_normal((4, 64)) * 10.0 ** random.integers(-9, 3)).astype(np.float32)
    once = blocks.rounded(form, weights)
    np.testing.assert_array_equal(blocks.rounded(form, once), once)


def test_long_matrices_are_worked_through_in_parts() -> None:
    weights = np.random.default_rng(0).standard_normal((1100, 4096)).astype(np.float32)
    whole, last = blocks.encode("int8", weights), blocks.encode("int8", weights[-3:])
    np.testing.assert_array_equal(whole[-len(last) :], last)
    np.testing.assert_array_equal(blocks.rounded("int8", weights)[-3:], blocks.rounded("int8", weights[-3:]))


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_what_blocks_cannot_hold_is_refused(form: str) -> None:
    with pytest.raises(UnsupportedError, match="multiple of 32 columns, got 40"):
        blocks.encode(form, np.ones((2, 40), np.float32))
    with pytest.raises(UnsupportedError, match="float16 scales"):
        blocks.encode(form, np.full((1, 32), 1e9, np.float32))
