"""The tensor types of GGUF files: bytes to numbers and back, and ids that mean two things."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf as ggml
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import layouts
from bitnet_core.errors import BitNetError, FormatError, UnsupportedError
from bitnet_core.formats import gguf
from bitnet_core.formats.gguf import types
from bitnet_core.formats.gguf.writer import header
from bitnet_core.tensor import TernaryTensor

BLOCKS = [kind for kind in gguf.KINDS.values() if kind.decode]


def from_hex(text: str) -> npt.NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(text), np.uint8)


def ternary(kind: gguf.Kind, raw: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> TernaryTensor:
    found = types.decode(kind, raw, shape, "m.gguf", "tensor 't'")
    assert isinstance(found, TernaryTensor)
    return found


def random_ternary(rows: int, cols: int, scale: Any = 0.5, seed: int = 0) -> TernaryTensor:
    codes = np.random.default_rng(seed).integers(-1, 2, (rows, cols)).astype(np.int8)
    return TernaryTensor.from_codes(codes, scale)


# --- blocks of quantized numbers


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
def test_blocks_mean_what_ggml_says(kind: gguf.Kind) -> None:
    raw = np.random.default_rng(kind.id).integers(0, 256, (400, kind.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = ggml.quants.dequantize(raw, ggml.GGMLQuantizationType(kind.id))
    got = types.decode(kind, raw.reshape(-1), (20, 20 * kind.block), "m.gguf", "t")
    assert isinstance(got, np.ndarray)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)


@pytest.mark.parametrize("kind", [k for k in gguf.KINDS.values() if not k.tail and k.id != 42], ids=lambda k: k.name)
def test_sizes_are_those_of_ggml(kind: gguf.Kind) -> None:
    block, size = ggml.GGML_QUANT_SIZES[ggml.GGMLQuantizationType(kind.id)]
    assert kind.nbytes((3, 2 * block)) == 3 * 2 * size
    assert block == 1 or kind.nbytes((3, block // 2)) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
def test_plain_numbers_come_as_they_are_stored(tmp_path: Path, dtype: Any) -> None:
    values = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    gguf.write(tmp_path / "m.gguf", {}, [gguf.blob("t", values)])
    got = gguf.File(tmp_path / "m.gguf", strict=True).tensor("t")
    assert isinstance(got, np.ndarray)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, values)


# --- ternary types against the golden vectors


def test_i2_s_is_byte_exact_in_both_groups(golden: Path) -> None:
    vectors = json.loads((golden / "i2s.json").read_text())
    sparse = np.zeros((1, 128), np.int8)
    for index, code in vectors["sparse128"]["ternary_nonzero"].items():
        sparse[0, int(index)] = code
    cases = [(vectors["sparse128"], sparse)]
    cases += [(vectors[name], np.atleast_2d(vectors[name]["ternary"])) for name in ("block128", "matrix_4x256")]
    for case, codes in cases:
        tensor = TernaryTensor.from_codes(codes, case["scale"])
        for group in (128, 64):
            kind = types.by_layout(f"i2_s_{group}")
            packed = from_hex(case[f"group{group}_hex"])
            raw = types.encode(kind, tensor)
            np.testing.assert_array_equal(raw[: codes.size // 4], packed[: codes.size // 4])
            assert raw[codes.size // 4 :][:4].view("<f4")[0] == np.float32(case["scale"])
            assert len(raw) == codes.size // 4 + 32
            back = ternary(kind, raw, codes.shape)
            np.testing.assert_array_equal(back.codes(), codes)
            assert back.scale.tolist() == [[np.float32(case["scale"])]]


def test_what_follows_the_scale_of_i2_s_says_nothing() -> None:
    tensor = random_ternary(4, 128, 0.75)
    raw = types.encode(gguf.KINDS["I2_S"], tensor)
    raw[-28:] = 255
    assert ternary(gguf.KINDS["I2_S"], raw, (4, 128)).digest() == tensor.digest()


def test_tq_is_byte_exact(golden: Path) -> None:
    for case in json.loads((golden / "tq.json").read_text())["cases"]:
        codes = np.array(case["ternary"], np.int8).reshape(1, -1)
        scale = np.array(case["fp16_d"], np.float32).reshape(1, -1)
        tensor = TernaryTensor.from_codes(codes, scale)
        for name in ("TQ1_0", "TQ2_0"):
            kind = gguf.KINDS[name]
            raw = types.encode(kind, tensor)
            np.testing.assert_array_equal(raw, from_hex(case[f"{name.lower()}_hex"]), err_msg=case["name"])
            stored = types.stored(kind, raw, codes.shape)
            np.testing.assert_array_equal(stored.codes(), codes)
            np.testing.assert_array_equal(stored.scale, scale)


def test_q2_0_is_byte_exact_in_both_groups(golden: Path) -> None:
    case = json.loads((golden / "tq.json").read_text())["q2_0"]
    codes = np.array(case["ternary"], np.int8).reshape(1, -1)
    for group in (64, 128):
        kind = types.by_layout(f"q2_0_{group}")
        raw = types.encode(kind, TernaryTensor.from_codes(codes, case["d"]))
        packed = from_hex(case[f"g{group}_hex"])
        np.testing.assert_array_equal(raw[: len(packed)], packed)
        np.testing.assert_array_equal(ternary(kind, raw, codes.shape).codes(), codes)


def test_i8_s_is_bytes_times_a_scale(golden: Path) -> None:
    case = json.loads((golden / "i2s.json").read_text())["i8_s"]
    raw = from_hex(case["hex"])
    got = types.decode(gguf.KINDS["I8_S"], raw, (2, 4), "m.gguf", "t")
    assert isinstance(got, np.ndarray)
    expected = np.array(case["q"], np.float32) * raw[8:12].view("<f4")[0]
    np.testing.assert_array_equal(got.reshape(-1), expected)
    np.testing.assert_allclose(got.reshape(-1).astype(np.float32), case["w"], atol=0.005)


def test_tq_bytes_decode_as_ggml_decodes_them() -> None:
    tensor = random_ternary(8, 512, np.linspace(0.5, 2, 8))
    for name, kind in (("TQ1_0", ggml.GGMLQuantizationType.TQ1_0), ("TQ2_0", ggml.GGMLQuantizationType.TQ2_0)):
        raw = types.encode(gguf.KINDS[name], tensor)
        expected = ggml.quants.dequantize(raw.reshape(8, -1), kind)
        np.testing.assert_array_equal(ternary(gguf.KINDS[name], raw, (8, 512)).dense(), expected)


# --- scales


def test_equal_scales_become_one_again() -> None:
    tensor = random_ternary(4, 512, 0.5)
    for name in ("TQ1_0", "TQ2_0", "Q2_0 in blocks of 64"):
        back = ternary(gguf.KINDS[name], types.encode(gguf.KINDS[name], tensor), (4, 512))
        assert back.scale.tolist() == [[0.5]]


def test_a_block_of_zeros_has_no_say_in_that() -> None:
    codes = random_ternary(4, 512).codes().copy()
    codes[1, 256:] = 0
    raw = types.encode(gguf.KINDS["TQ2_0"], TernaryTensor.from_codes(codes, 0.5))
    assert types.stored(gguf.KINDS["TQ2_0"], raw, (4, 512)).scale[1].tolist() == [0.5, 0.0]
    back = ternary(gguf.KINDS["TQ2_0"], raw, (4, 512))
    assert back.scale.tolist() == [[0.5]]
    np.testing.assert_array_equal(back.codes(), codes)


def test_scales_of_blocks_stay_apart() -> None:
    scale = np.array([[0.5, 0.25], [1.0, 2.0]], np.float32)
    tensor = random_ternary(2, 256, scale)
    raw = types.encode(gguf.KINDS["Q2_0 in blocks of 128"], tensor)
    back = ternary(gguf.KINDS["Q2_0 in blocks of 128"], raw, (2, 256))
    np.testing.assert_array_equal(back.scale, scale)
    with pytest.raises(UnsupportedError, match="cannot be written as one for each 256"):
        types.encode(gguf.KINDS["TQ2_0"], tensor)


def test_scales_are_rounded_to_float16_in_tq_and_kept_in_i2_s() -> None:
    scale = np.float32(0.7337)
    tensor = random_ternary(2, 256, scale)
    for name in ("TQ1_0", "TQ2_0"):
        back = ternary(gguf.KINDS[name], types.encode(gguf.KINDS[name], tensor), (2, 256))
        assert back.scale[0, 0] == np.float32(0.73388671875)
    back = ternary(gguf.KINDS["I2_S"], types.encode(gguf.KINDS["I2_S"], tensor), (2, 256))
    assert back.scale[0, 0] == scale


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_a_scale_of_i2_s_without_sense_is_refused(scale: float) -> None:
    raw = types.encode(gguf.KINDS["I2_S"], random_ternary(1, 128))
    raw[32:36] = np.frombuffer(struct.pack("<f", scale), np.uint8)
    with pytest.raises(FormatError, match=r"m\.gguf: tensor 't' scale: expected finite numbers, and above 0.*, got"):
        ternary(gguf.KINDS["I2_S"], raw, (1, 128))


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q2_0 in blocks of 64"])
def test_a_block_scale_that_is_no_number_is_refused(name: str) -> None:
    kind = gguf.KINDS[name]
    raw = types.encode(kind, random_ternary(1, 256))
    raw[kind.scale_at : kind.scale_at + 2] = (0, 0x7E)
    with pytest.raises(FormatError, match="tensor 't' scale: expected finite numbers, got nan"):
        ternary(kind, raw, (1, 256))


def test_a_scale_of_i8_s_that_is_no_number_is_refused() -> None:
    raw = np.zeros(40, np.uint8)
    raw[8:12] = np.frombuffer(struct.pack("<f", np.inf), np.uint8)
    with pytest.raises(FormatError, match="tensor 't' scale: expected a finite number, got inf"):
        types.decode(gguf.KINDS["I8_S"], raw, (8,), "m.gguf", "tensor 't'")


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("I2_S", [0.5, 1.0], "holds one scale, this tensor has 2"),
        ("I2_S", -0.5, "holds a scale above 0"),
        ("TQ2_0", 1e6, "float16 scales, which cannot say"),
        ("TQ2_0", 1e-9, "float16 scales, which cannot say"),
    ],
)
def test_a_scale_that_a_type_cannot_say_is_not_written(name: str, scale: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        types.encode(gguf.KINDS[name], random_ternary(2, 256, scale))


def test_a_matrix_of_zeros_is_written_so_that_it_can_be_read() -> None:
    for name in ("I2_S", "TQ1_0", "TQ2_0", "Q2_0 in blocks of 64"):
        tensor = TernaryTensor.from_codes(np.zeros((2, 256), np.int8), 0.0)
        back = ternary(gguf.KINDS[name], types.encode(gguf.KINDS[name], tensor), (2, 256))
        assert not back.codes().any()


@pytest.mark.parametrize("value", [1e30, -7e4])
def test_a_number_too_large_for_float16_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="F16 cannot hold"):
        types.encode(gguf.KINDS["F16"], np.array([1.0, value], np.float32))


def test_types_that_are_only_read_are_not_written() -> None:
    with pytest.raises(ValueError, match="Q6_K is read and not written; F32, F16, BF16 and the ternary types are"):
        types.encode(gguf.KINDS["Q6_K"], np.zeros((1, 256), np.float32))
    with pytest.raises(TypeError, match="I2_S holds ternary tensors, got float32"):
        types.encode(gguf.KINDS["I2_S"], np.zeros((1, 256), np.float32))


# --- codes


@pytest.mark.parametrize("layout", ["i2_s_128", "i2_s_64", "tq2_0", "q2_0_64", "q2_0_128"])
def test_bits_that_are_no_code_are_found_where_they_are(layout: str) -> None:
    kind = types.by_layout(layout)
    codes = random_ternary(64, 256).codes()
    raw = types.encode(kind, TernaryTensor.from_codes(codes, 1.0))
    clean = types.stored(kind, raw, codes.shape)
    assert clean.first_bad_code() is None
    digits = codes.astype(np.uint8) + 1
    digits[37, 200] = digits[50, 3] = 3
    bad = TernaryTensor(layouts.get(layout).pack(digits), clean.scale, (64, 256), layout)
    assert bad.first_bad_code() == 37 * 256 + 200
    raw = raw.copy()
    types.stored(kind, raw, codes.shape).data[...] = bad.data
    with pytest.raises(
        FormatError, match=r"m\.gguf: tensor 't' code at row 37, column 200: expected bits of -1, 0 or 1"
    ):
        ternary(kind, raw, codes.shape)


def test_codes_are_a_view_of_the_bytes() -> None:
    for name in ("I2_S", "TQ1_0", "TQ2_0", "Q2_0 in blocks of 64", "Q2_0 in blocks of 128"):
        raw = types.encode(gguf.KINDS[name], random_ternary(8, 256))
        assert np.shares_memory(ternary(gguf.KINDS[name], raw, (8, 256)).data, raw)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 3),
    name=st.sampled_from(["I2_S", "TQ1_0", "TQ2_0", "Q2_0 in blocks of 64", "Q2_0 in blocks of 128"]),
    scale=st.floats(2**-14, 60000, width=16),
)
@settings(max_examples=100, deadline=None)
def test_any_ternary_tensor_comes_back(seed: int, rows: int, blocks: int, name: str, scale: float) -> None:
    tensor = random_ternary(rows, 256 * blocks, scale, seed)
    back = ternary(gguf.KINDS[name], types.encode(gguf.KINDS[name], tensor), tensor.shape)
    assert back.digest() == tensor.digest()
    np.testing.assert_array_equal(back.dense(), tensor.dense())


# --- ids that mean two things, and those that mean nothing here


def write_raw(path: Path, tensors: Sequence[tuple[int, tuple[int, ...], int]], extra: int = 0) -> Path:
    """A file of tensors (id, shape, bytes) whose bytes are the codes of zeros and a scale that is never 0."""
    blobs = [
        gguf.Blob(f"t{i}", shape, types.Kind(number, "raw", 1, 0, size), lambda: np.empty(0, np.uint8))
        for i, (number, shape, size) in enumerate(tensors)
    ]
    start, sizes = header({"general.architecture": "bitnet"}, blobs)
    path.write_bytes(start + b"\x55" * (sum(sizes) + extra))
    return path


@pytest.mark.parametrize(
    ("number", "shape", "size", "name"),
    [
        (36, (256, 128), 256 * 128 // 4 + 32, "I2_S"),
        (37, (64, 64), 64 * 64 + 32, "I8_S"),
        (42, (8, 256), 8 * 256 // 64 * 18, "Q2_0 in blocks of 64"),
        (42, (8, 256), 8 * 256 // 128 * 34, "Q2_0 in blocks of 128"),
    ],
)
def test_the_size_decides_what_an_id_means(
    tmp_path: Path, number: int, shape: tuple[int, ...], size: int, name: str
) -> None:
    with gguf.File(write_raw(tmp_path / "m.gguf", [(number, shape, size)]), strict=True) as file:
        assert file.tensors["t0"].kind.name == name


def test_one_tensor_that_decides_decides_for_all(tmp_path: Path) -> None:
    small, large = (42, (1, 128), 34), (42, (8, 256), 8 * 256 // 128 * 34)
    with pytest.raises(FormatError, match="ambiguous, it fits Q2_0 in blocks of 64 and Q2_0 in blocks of 128"):
        gguf.File(write_raw(tmp_path / "a.gguf", [small, small]))
    for tensors in ([small, large], [large, small]):
        with gguf.File(write_raw(tmp_path / "b.gguf", tensors), strict=True) as file:
            assert {tensor.kind.name for tensor in file.tensors.values()} == {"Q2_0 in blocks of 128"}


def test_tensors_that_disagree_on_an_id_are_refused(tmp_path: Path) -> None:
    tensors = [(42, (8, 256), 8 * 256 // 128 * 34), (42, (8, 256), 8 * 256 // 64 * 18), (0, (8,), 32)]
    path = write_raw(tmp_path / "m.gguf", tensors)
    with pytest.raises(
        FormatError, match=r"m\.gguf: tensor 't1' type 42: expected Q2_0 in blocks of 128 \(544 bytes\)"
    ):
        gguf.File(path)


def test_bytes_behind_the_last_tensor_do_not_decide(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.gguf", [(36, (1, 128), 64)], extra=1000)
    with pytest.raises(FormatError, match="ambiguous, it fits I2_S and IQ4_NL_4_4"):
        gguf.File(path)


@pytest.mark.parametrize(
    ("number", "shape", "size", "error", "message"),
    [
        (36, (64, 64), 64 * 64 * 18 // 32, UnsupportedError, "36 is IQ4_NL_4_4 by its size, which ggml gave up"),
        (37, (64, 64), 64 * 64 * 18 // 32, UnsupportedError, "37 is IQ4_NL_4_8 by its size, which ggml gave up"),
        (36, (64, 64), 5000, FormatError, r"expected I2_S \(1056 bytes\) or IQ4_NL_4_4 \(2304 bytes\), got 5024 bytes"),
        (
            36,
            (3, 50),
            70,
            FormatError,
            r"expected I2_S \(a multiple of 128 elements\) or IQ4_NL_4_4 \(a multiple of 32",
        ),
        (42, (64, 96), 70, FormatError, "it may be TL2 of bitnet.cpp"),
        (38, (64, 64), 1056, FormatError, r"38: ambiguous \(TL1 in bitnet.cpp, IQ4_NL_8_8 in ggml\)"),
        (39, (64, 64), 2176, FormatError, r"39: ambiguous \(TL2 in bitnet.cpp, MXFP4 in ggml\)"),
        (16, (1, 256), 66, UnsupportedError, "16 is IQ2_XXS, which is not read; store the tensor as F16"),
        (41, (1, 128), 18, UnsupportedError, "Q1_0"),
        (135, (1, 128), 18, UnsupportedError, "IQ2_BN of ik_llama.cpp, which is not read; convert the model"),
        (142, (1, 128), 18, UnsupportedError, "Hadamard"),
        (9999, (1, 128), 18, FormatError, "tensor 't0' type: expected a type that is known, got 9999"),
        (2**32 - 1, (1, 128), 18, FormatError, "expected a type that is known, got 4294967295"),
    ],
)
def test_an_id_that_is_not_read_says_why(
    tmp_path: Path, number: int, shape: tuple[int, ...], size: int, error: type[BitNetError], message: str
) -> None:
    # A second tensor behind it: the size of the last is not exact.
    path = write_raw(tmp_path / "m.gguf", [(number, shape, size), (0, (8,), 32)])
    with pytest.raises(error, match=message) as caught:
        gguf.File(path)
    assert str(path) in str(caught.value)
    assert "t0" in str(caught.value)


def test_the_group_of_i2_s_is_a_hint(tmp_path: Path) -> None:
    codes = random_ternary(3, 192).codes()  # 576 weights: nine groups of 64
    tensor = TernaryTensor.from_codes(codes, 0.5)
    kind = types.by_layout("i2_s_64")
    gguf.write(tmp_path / "m.gguf", {}, [gguf.Blob("t", (3, 192), kind, lambda: types.encode(kind, tensor))])
    with gguf.File(tmp_path / "m.gguf", strict=True, i2_s_group=64) as file:
        back = file.tensor("t")
        assert isinstance(back, TernaryTensor)
        np.testing.assert_array_equal(back.codes(), codes)
    with pytest.raises(FormatError, match="I2_S"):
        gguf.File(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="groups of 64 and of 128, got 32"):
        gguf.File(tmp_path / "m.gguf", i2_s_group=32)


def test_a_row_that_its_blocks_do_not_fit_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.gguf", [(35, (2, 128), 66)])
    with pytest.raises(
        FormatError, match=r"tensor 't0': expected a multiple of 256 columns, which TQ2_0 holds, got 2 x 128"
    ):
        gguf.File(path)
