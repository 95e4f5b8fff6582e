"""Weights from every byte order of files into the order of the kernels, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("bitnet_quant.cpu._native", reason="built without the compiled part")

from bitnet_core.layouts import LAYOUTS
from bitnet_core.tensor import TernaryTensor
from bitnet_quant.cpu import _native

from .kernel_order import pack_codes, pack_weights


def engine(threads: int = 2, isa: str = "scalar") -> _native.Engine:
    """An engine that only packs."""
    shape = _native.Shape(
        hidden=16,
        ffn=16,
        layers=0,
        heads=1,
        kv_heads=1,
        head_size=16,
        gate="silu",
        held="f16",
        norm_eps=1e-5,
        sub_norm_eps=1e-5,
        query_scale=1.0,
        embedding_scale=1.0,
        residual_scale=1.0,
    )
    return _native.Engine(isa, 1, shape, threads)


def unit_of(isa: str) -> int:
    return _native.Kernels(isa).columns


def packed(tensor: TernaryTensor, segments: int = 1, threads: int = 2, isa: str = "scalar") -> npt.NDArray[np.uint8]:
    rows, columns = tensor.shape
    packer = engine(threads, isa)
    out = np.full(packer.ternary_bytes(rows=rows, columns=columns, segments=segments), 255, np.uint8)
    assert packer.pack(tensor.data, tensor.layout, out, rows=rows, columns=columns, segments=segments)
    return out


def random_codes(rows: int, columns: int) -> npt.NDArray[np.int8]:
    return np.random.default_rng(rows * columns).integers(-1, 2, (rows, columns), dtype=np.int8)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (40, 512), (64, 768), (129, 2560)])
def test_every_layout_gives_the_same_order(layout: str, rows: int, columns: int, isa: str) -> None:
    codes = random_codes(rows, columns)
    tensor = TernaryTensor.from_codes(codes, layout=layout)
    np.testing.assert_array_equal(packed(tensor, isa=isa), pack_codes(codes, unit=unit_of(isa)))


@pytest.mark.parametrize(
    ("layout", "rows", "columns"),
    [("hf_rows", 37, 5460), ("hf_rows", 3, 1), ("hf_rows", 66, 8641), ("i2_s_128", 32, 5460), ("i2_s_64", 16, 100)],
)
def test_rows_may_end_anywhere(layout: str, rows: int, columns: int, isa: str) -> None:
    codes = random_codes(rows, columns)
    tensor = TernaryTensor.from_codes(codes, layout=layout)
    np.testing.assert_array_equal(packed(tensor, isa=isa), pack_codes(codes, unit=unit_of(isa)))


@pytest.mark.parametrize(("columns", "segments"), [(256, 2), (300, 3), (270, 9), (24, 8)])
def test_blocks_of_columns_are_padded_each(columns: int, segments: int, isa: str) -> None:
    codes = random_codes(70, columns)
    tensor = TernaryTensor.from_codes(codes)
    np.testing.assert_array_equal(packed(tensor, segments, isa=isa), pack_codes(codes, segments, unit_of(isa)))


def test_the_number_of_threads_changes_nothing() -> None:
    tensor = TernaryTensor.from_codes(random_codes(333, 512), layout="tq2_0")
    for threads in (1, 2, 3, 7):
        np.testing.assert_array_equal(packed(tensor, threads=threads), pack_codes(tensor.codes()))


def test_blocks_may_stand_apart_as_in_files() -> None:
    tensor = TernaryTensor.from_codes(random_codes(8, 512), layout="tq2_0")
    spaced = np.zeros((len(tensor.data), 66), np.uint8)
    spaced[:, :64] = tensor.data
    apart = TernaryTensor(spaced[:, :64], tensor.scale, tensor.shape, "tq2_0")
    np.testing.assert_array_equal(packed(apart), pack_codes(tensor.codes()))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "tq1_0"])
def test_bits_that_are_no_code_are_found_wherever_they_stand(layout: str, isa: str) -> None:
    tensor = TernaryTensor.from_codes(random_codes(8, 256), layout=layout)
    random = np.random.default_rng(0)
    for _ in range(20):
        data = tensor.data.copy()
        row, byte = (int(random.integers(size)) for size in data.shape)
        data[row, byte] |= 3 << 2 * int(random.integers(4))
        packer = engine(1, isa)
        out = np.zeros(packer.ternary_bytes(rows=8, columns=256, segments=1), np.uint8)
        assert not packer.pack(data, layout, out, rows=8, columns=256, segments=1)


def test_rows_of_floats_become_int8_with_a_scale_each() -> None:
    random = np.random.default_rng(3)
    weights = random.standard_normal((70, 40)).astype(np.float16)
    weights[5] = 0
    out, scale = np.zeros(128 * 48, np.uint8), np.zeros(128, np.float32)
    engine().pack_rows(weights.view(np.uint8).reshape(-1), "float16", out, scale, rows=70, columns=40)
    wide = weights.astype(np.float32)
    largest = np.abs(wide).max(axis=1, keepdims=True)
    np.testing.assert_array_equal(scale[:70], largest[:, 0] / np.float32(127))
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = np.where(largest > 0, np.rint(wide * (np.float32(127) / largest)), 0).astype(np.int8)
    np.testing.assert_array_equal(out, pack_weights(digits))


def test_what_does_not_fit_is_refused() -> None:
    tensor = TernaryTensor.from_codes(random_codes(8, 256), layout="tq2_0")
    right = np.zeros(64 * 256 // 4, np.uint8)
    with pytest.raises(ValueError, match="out: expected 4096 elements, got 4095"):
        engine().pack(tensor.data, "tq2_0", right[:-1], rows=8, columns=256, segments=1)
    with pytest.raises(ValueError, match="does not fit"):
        engine().pack(tensor.data, "tq2_0", right, rows=9, columns=256, segments=1)
    floats, out, scale = np.zeros(4 * 3 * 40, np.uint8), np.zeros(64 * 48, np.uint8), np.zeros(64, np.float32)
    with pytest.raises(ValueError, match="rows beyond those of the matrix"):
        engine().pack_rows(floats, "float32", out, scale, first=6, rows=8, columns=40)
    with pytest.raises(ValueError, match="from: expected 320 elements, got 479"):
        engine().pack_rows(floats[1:], "float32", out, scale, rows=8, columns=40)
    with pytest.raises(ValueError, match="no layout 'zip'"):
        engine().pack(tensor.data, "zip", right, rows=8, columns=256, segments=1)
    with pytest.raises(ValueError, match="segments that divide"):
        engine().pack(tensor.data, "tq2_0", right, rows=8, columns=256, segments=3)
