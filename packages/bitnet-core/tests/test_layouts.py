from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core import layouts
from bitnet_core.errors import UnsupportedError
from bitnet_core.layouts import LAYOUTS
from bitnet_core.tensor import TernaryTensor


def read(golden: Path, name: str) -> dict:
    return json.loads((golden / name).read_text())


def random_codes(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (rows, cols)).astype(np.int8)


@pytest.mark.parametrize("group", [128, 64])
def test_i2_s_is_byte_exact_on_the_golden_matrix(golden: Path, group: int) -> None:
    case = read(golden, "i2s.json")["matrix_4x256"]
    codes = np.array(case["ternary"])
    expected = bytes.fromhex(case[f"group{group}_hex"])[: codes.size // 4]
    assert TernaryTensor.from_codes(codes, layout=f"i2_s_{group}").data.tobytes() == expected
    data = np.frombuffer(expected, np.uint8).reshape(-1, group // 4)
    found = TernaryTensor(data, np.ones((1, 1), np.float32), codes.shape, f"i2_s_{group}")
    np.testing.assert_array_equal(found.codes(), codes)


@pytest.mark.parametrize("name", ["block128", "sparse128"])
@pytest.mark.parametrize("group", [128, 64])
def test_i2_s_is_byte_exact_on_the_golden_blocks(golden: Path, name: str, group: int) -> None:
    case = read(golden, "i2s.json")[name]
    codes = np.zeros((1, 128), np.int8)
    for place, code in enumerate(case.get("ternary", [])):
        codes[0, place] = code
    for place, code in case.get("ternary_nonzero", {}).items():
        codes[0, int(place)] = code
    packed = TernaryTensor.from_codes(codes, layout=f"i2_s_{group}").data
    assert packed.tobytes().hex() == case[f"group{group}_hex"][:64]


def test_hf_rows_is_byte_exact_on_every_golden_case_and_pads_as_its_packer_does(golden: Path) -> None:
    for case in read(golden, "hf_pack.json")["cases"]:
        unpacked = np.array(case["unpacked"])
        codes = np.array(case.get("ternary", unpacked))
        packed = TernaryTensor.from_codes(codes, layout="hf_rows")
        np.testing.assert_array_equal(packed.data, case["packed_uint8"])
        np.testing.assert_array_equal(packed.codes(), codes)
        whole = TernaryTensor(packed.data, packed.scale, unpacked.shape, "hf_rows")
        np.testing.assert_array_equal(whole.codes(), unpacked)


@pytest.mark.parametrize(("layout", "size", "scale_bytes"), [("tq1_0", 54, 2), ("tq2_0", 66, 2)])
def test_tq_codes_are_byte_exact_on_every_golden_case(golden: Path, layout: str, size: int, scale_bytes: int) -> None:
    for case in read(golden, "tq.json")["cases"]:
        codes = np.array(case["ternary"]).reshape(1, -1)
        blocks = np.frombuffer(bytes.fromhex(case[f"{layout}_hex"]), np.uint8).reshape(-1, size)
        packed = TernaryTensor.from_codes(codes, layout=layout)
        np.testing.assert_array_equal(packed.data, blocks[:, : size - scale_bytes])
        # A view with the scales between the codes is what a file gives.
        view = TernaryTensor(blocks[:, : size - scale_bytes], packed.scale, codes.shape, layout)
        np.testing.assert_array_equal(view.codes(), codes)


@pytest.mark.parametrize("group", [64, 128])
def test_q2_0_codes_are_byte_exact_on_the_golden_case(golden: Path, group: int) -> None:
    case = read(golden, "tq.json")["q2_0"]
    codes = np.array(case["ternary"]).reshape(1, -1)
    blocks = np.frombuffer(bytes.fromhex(case[f"g{group}_hex"]), np.uint8).reshape(-1, group // 4 + 2)
    np.testing.assert_array_equal(TernaryTensor.from_codes(codes, layout=f"q2_0_{group}").data, blocks[:, 2:])


@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_any_layout_becomes_any_other_without_loss(source: str, target: str) -> None:
    codes = random_codes(12, 512)
    tensor = TernaryTensor.from_codes(codes, 0.5, source)
    repacked = tensor.repack(target)
    np.testing.assert_array_equal(repacked.codes(), codes)
    assert repacked.layout == target
    assert repacked.digest() == tensor.digest()
    back = repacked.repack(source)
    assert back.data.tobytes() == tensor.data.tobytes()


@given(rows=st.integers(1, 40), blocks=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_random_matrices_survive_every_layout(rows: int, blocks: int, seed: int) -> None:
    codes = random_codes(rows, blocks * 256, seed)
    for layout in LAYOUTS:
        np.testing.assert_array_equal(TernaryTensor.from_codes(codes, layout=layout).codes(), codes)


@given(rows=st.integers(1, 20), cols=st.integers(1, 60), seed=st.integers(0, 2**32))
def test_hf_rows_holds_any_shape(rows: int, cols: int, seed: int) -> None:
    codes = random_codes(rows, cols, seed)
    tensor = TernaryTensor.from_codes(codes)
    np.testing.assert_array_equal(tensor.codes(), codes)
    assert tensor.data.shape == (-(-rows // 4), cols)


@pytest.mark.parametrize("code", [-1, 0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_matrices_of_one_code_survive(layout: str, code: int) -> None:
    codes = np.full((8, 512), code, np.int8)
    np.testing.assert_array_equal(TernaryTensor.from_codes(codes, layout=layout).codes(), codes)


def test_i2_s_groups_may_run_over_the_border_of_a_row() -> None:
    codes = random_codes(32, 5460)  # a published shape: 5460 is no multiple of 128, 32 x 5460 is
    np.testing.assert_array_equal(TernaryTensor.from_codes(codes, layout="i2_s_128").codes(), codes)


@pytest.mark.parametrize(
    ("layout", "shape", "words"),
    [
        ("i2_s_128", (3, 100), "a multiple of 128 weights, a 3 x 100 matrix has 300"),
        ("tq1_0", (4, 5460), "a multiple of 256 columns, a 4 x 5460 matrix has 5460"),
        ("q2_0_64", (4, 100), "a multiple of 64 columns"),
    ],
)
def test_a_matrix_that_does_not_fit_a_layout_is_refused_with_one_that_does(
    layout: str, shape: tuple[int, int], words: str
) -> None:
    with pytest.raises(UnsupportedError, match=words) as caught:
        TernaryTensor.from_codes(random_codes(*shape), layout=layout)
    assert "hf_rows holds any shape" in str(caught.value)


def test_every_byte_of_tq1_0_decodes_to_digits() -> None:
    data = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 52, axis=1)
    assert LAYOUTS["tq1_0"].unpack(data, (256, 256)).max() == 2


def test_an_unknown_layout_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="no layout 'tl1'; there are i2_s_128, i2_s_64, hf_rows"):
        layouts.get("tl1")
