from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.errors import FormatError, UnsupportedError
from bitnet_core.layouts import LAYOUTS
from bitnet_core.tensor import TernaryTensor

RANDOM = np.random.default_rng(0)
CODES = RANDOM.integers(-1, 2, (16, 512)).astype(np.int8)


def test_dense_is_scale_times_code() -> None:
    np.testing.assert_array_equal(TernaryTensor.from_codes(CODES, 0.25).dense(), CODES * np.float32(0.25))


def test_a_scale_a_row_multiplies_its_row() -> None:
    scales = RANDOM.random(16).astype(np.float32)
    np.testing.assert_array_equal(TernaryTensor.from_codes(CODES, scales).dense(), CODES * scales[:, None])


def test_a_scale_a_block_multiplies_its_columns() -> None:
    scales = RANDOM.random((16, 4)).astype(np.float32)
    tensor = TernaryTensor.from_codes(CODES, scales)
    assert tensor.block == 128
    np.testing.assert_array_equal(tensor.dense(), CODES * np.repeat(scales, 128, axis=1))


def test_the_digest_is_of_the_codes_and_the_shape_alone() -> None:
    digest = TernaryTensor.from_codes(CODES, 1.0).digest()
    assert TernaryTensor.from_codes(CODES, 0.3, "tq1_0").digest() == digest
    changed = CODES.copy()
    changed[3, 7] = 1 - abs(changed[3, 7])
    assert TernaryTensor.from_codes(changed).digest() != digest
    assert TernaryTensor.from_codes(CODES.reshape(8, 1024)).digest() != digest
    # Written down: it may never change, since files will be compared by it for years.
    known = TernaryTensor.from_codes(np.array([[1, 0, -1, 1]]))
    assert known.digest() == "836ba3be6f0622160dcbd8e6edb4b5bbc5ac30ea3762a487f9fc53db5e389bb6"


def test_codes_are_counted() -> None:
    codes = np.array([[-1, 0, 0, 1], [1, 1, 0, 1]], np.int8)
    assert TernaryTensor.from_codes(codes).counts() == (1, 3, 4)


def test_bits_that_no_code_writes_are_refused_with_their_place() -> None:
    tensor = TernaryTensor.from_codes(CODES, layout="q2_0_64")
    data = tensor.data.copy()
    data[9, 2] |= 0b11 << 4  # group 9 begins in row 1, at column 64
    damaged = TernaryTensor(data, tensor.scale, tensor.shape, tensor.layout)
    with pytest.raises(FormatError, match="code at row 1, column 74: expected bits of -1, 0 or 1, got bits 11"):
        damaged.codes()


def test_data_of_another_shape_than_the_layouts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes uint8 data of shape \(4, 512\), got uint8 of shape \(3, 512\)"):
        TernaryTensor(np.zeros((3, 512), np.uint8), np.ones((1, 1), np.float32), (16, 512), "hf_rows")


@pytest.mark.parametrize("shape", [(2, 1), (16, 3), (16,), (1, 0)])
def test_a_scale_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the scale of a 16 x 512 matrix is float32 of shape"):
        TernaryTensor(np.zeros((4, 512), np.uint8), np.ones(shape, np.float32), (16, 512), "hf_rows")


@pytest.mark.parametrize("codes", [np.array([[2]]), np.array([[-2, 0]]), np.zeros((0, 4), int), np.zeros(4, int)])
def test_only_matrices_of_codes_are_packed(codes: np.ndarray) -> None:
    with pytest.raises(ValueError, match="codes are a matrix of -1, 0 and 1"):
        TernaryTensor.from_codes(codes)


class TestDetection:
    @pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
    def test_codes_times_one_scale_are_found_with_it(self, kind: type) -> None:
        dense = (CODES * np.float16(0.3)).astype(kind)
        found = TernaryTensor.detect(dense)
        assert found is not None
        assert found.scale.shape == (1, 1)
        np.testing.assert_array_equal(found.dense(), dense.astype(np.float32))

    def test_a_scale_a_row_is_found(self) -> None:
        dense = CODES * RANDOM.random((16, 1)).astype(np.float32)
        found = TernaryTensor.detect(dense)
        assert found is not None
        assert found.scale.shape == (16, 1)
        np.testing.assert_array_equal(found.dense(), dense)

    @pytest.mark.parametrize("block", [32, 64, 128, 256])
    def test_a_scale_a_block_is_found(self, block: int) -> None:
        scales = RANDOM.random((16, 512 // block)).astype(np.float32)
        dense = CODES * np.repeat(scales, block, axis=1)
        found = TernaryTensor.detect(dense)
        assert found is not None
        assert found.block == block
        np.testing.assert_array_equal(found.dense(), dense)

    def test_shards_of_columns_that_share_a_scale_over_all_rows_are_found(self) -> None:
        scales = np.array([[0.5, 0.7, 0.9]], np.float32)
        dense = np.concatenate([CODES[:, :200], CODES[:, :200], CODES[:, :200]], axis=1) * np.repeat(
            scales, 200, axis=1
        )
        found = TernaryTensor.detect(dense)
        assert found is not None
        assert found.scale.shape == (1, 3)
        np.testing.assert_array_equal(found.dense(), dense)

    def test_other_floats_are_not_ternary(self) -> None:
        assert TernaryTensor.detect(RANDOM.random((16, 512))) is None
        dense = CODES * np.float32(0.5)
        dense[15, 510:] = 0.5, 0.25  # in the last block of the last row
        assert TernaryTensor.detect(dense) is None

    def test_infinities_and_nans_are_not_ternary(self) -> None:
        for value in (np.inf, np.nan):
            dense = CODES * np.float32(0.5)
            dense[0, 0] = value
            assert TernaryTensor.detect(dense) is None
            assert TernaryTensor.detect(np.full((4, 32), value, np.float32)) is None

    @given(seed=st.integers(0, 2**32), block=st.sampled_from([32, 64, 256, 512]))
    def test_what_is_found_has_the_same_values(self, seed: int, block: int) -> None:
        random = np.random.default_rng(seed)
        dense = random.integers(-1, 2, (4, 512)) * np.repeat(random.random((4, 512 // block)), block, axis=1)
        found = TernaryTensor.detect(dense.astype(np.float32))
        assert found is not None
        np.testing.assert_array_equal(found.dense(), dense.astype(np.float32))


class TestSimplification:
    def test_equal_scales_become_one(self) -> None:
        spread = TernaryTensor.from_codes(CODES, np.full((16, 2), 0.5, np.float32), "tq2_0")
        assert spread.simplified().scale.shape == (1, 1)

    def test_a_block_of_zeros_agrees_with_any_scale(self) -> None:
        codes = CODES.copy()
        codes[3, :256] = 0
        scales = np.full((16, 2), 0.5, np.float32)
        scales[3, 0] = 0  # as block formats write it
        simple = TernaryTensor.from_codes(codes, scales).simplified()
        assert simple.scale.tolist() == [[0.5]]

    def test_scales_that_differ_stay(self) -> None:
        scales = RANDOM.random((16, 2)).astype(np.float32)
        tensor = TernaryTensor.from_codes(CODES, scales)
        np.testing.assert_array_equal(tensor.simplified().scale, scales)
        rows = TernaryTensor.from_codes(CODES, np.repeat(scales[:, :1], 2, axis=1)).simplified()
        np.testing.assert_array_equal(rows.scale, scales[:, :1])

    @given(seed=st.integers(0, 2**32), choices=st.integers(1, 3))
    def test_the_values_stay(self, seed: int, choices: int) -> None:
        random = np.random.default_rng(seed)
        codes = random.integers(-1, 2, (4, 128)) * random.integers(0, 2, (4, 1))
        scales = random.choice(np.array([0.5, 0.25, 0.125], np.float32)[:choices], (4, 4))
        tensor = TernaryTensor.from_codes(codes, scales)
        np.testing.assert_array_equal(tensor.simplified().dense(), tensor.dense())


def test_scales_spread_to_smaller_blocks_and_never_to_larger_ones() -> None:
    tensor = TernaryTensor.from_codes(CODES, RANDOM.random((16, 4)).astype(np.float32))
    np.testing.assert_array_equal(tensor.scaled_by(64), np.repeat(tensor.scale, 2, axis=1))
    assert TernaryTensor.from_codes(CODES, 0.5).scaled_by(256).shape == (16, 2)
    with pytest.raises(
        UnsupportedError, match="one scale for 128 of 512 columns cannot be written as one for each 256"
    ):
        tensor.scaled_by(256)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_repacking_keeps_the_scales(layout: str) -> None:
    tensor = TernaryTensor.from_codes(CODES, RANDOM.random((16, 2)).astype(np.float32))
    np.testing.assert_array_equal(tensor.repack(layout).scale, tensor.scale)
    np.testing.assert_array_equal(tensor.repack(layout).dense(), tensor.dense())
