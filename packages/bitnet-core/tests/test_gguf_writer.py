"""Writing GGUF files: whole or not at all, always the same bytes, and read by others."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as ggml
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitnet_core import rope
from bitnet_core.chat import ChatTemplate
from bitnet_core.errors import UnsupportedError
from bitnet_core.formats import gguf
from bitnet_core.formats.gguf import types
from bitnet_core.model import Model
from bitnet_core.tensor import TernaryTensor
from bitnet_core.testing import random_model, tiny_spec

LLAMA = tiny_spec(family="llama", activation="silu", sub_norms="none", tied=False, hidden_size=256, heads=8, kv_heads=2)


class Words:
    """A tokenizer that only knows its own values."""

    def __init__(self, count: int) -> None:
        self.count = count

    def to_gguf(self) -> dict[str, object]:
        words = [f"w{i}" for i in range(self.count)]
        scores = np.zeros(self.count, np.float32)
        kinds = [1] * self.count
        return {"tokenizer.ggml.tokens": words, "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": kinds}


# --- the bytes


def test_the_golden_file_is_written_byte_for_byte(golden: Path, tmp_path: Path) -> None:
    vector = json.loads((golden / "gguf_min.json").read_text())
    expected = bytes.fromhex(vector["hex"])
    codes = np.zeros((1, 128), np.int8)
    for index, value in vector["expect"]["nonzero"].items():
        codes[0, int(index)] = np.sign(value)
    raw = types.encode(gguf.KINDS["I2_S"], TernaryTensor.from_codes(codes, 0.5))
    blob = gguf.Blob("blk.0.attn_q.weight", (1, 128), gguf.KINDS["I2_S"], lambda: raw)
    gguf.write(tmp_path / "min.gguf", {"general.architecture": "bitnet-b1.58"}, [blob])
    assert (tmp_path / "min.gguf").read_bytes() == expected


@pytest.mark.parametrize("layout", ["i2_s_128", "tq1_0", "tq2_0", "q2_0_64"])
def test_the_same_model_makes_the_same_bytes(tmp_path: Path, layout: str) -> None:
    for name in ("a", "b"):
        gguf.save(random_model(LLAMA), tmp_path / f"{name}.gguf", layout=layout, name="tiny")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_saved_file_saved_again_is_the_same_file(tmp_path: Path) -> None:
    gguf.save(random_model(LLAMA), tmp_path / "a.gguf", layout="tq2_0")
    gguf.save(gguf.load(tmp_path / "a.gguf"), tmp_path / "b.gguf", layout="tq2_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("layout", ["tq1_0", "tq2_0"])
def test_ggml_s_own_package_reads_what_is_written(tmp_path: Path, layout: str) -> None:
    model = random_model(LLAMA)
    gguf.save(model, tmp_path / "m.gguf", layout=layout, name="tiny", embedding="f32")
    reader = ggml.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["general.name"].contents() == "tiny"
    assert reader.fields["llama.rope.freq_base"].types == [ggml.GGUFValueType.FLOAT32]
    found = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(found["token_embd.weight"].data, np.asarray(model.weights["embedding"], np.float32))
    down = model.weights["layers.1.ffn.down"]
    assert isinstance(down, TernaryTensor)
    tensor = found["blk.1.ffn_down.weight"]
    assert tensor.tensor_type.name == layout.upper()
    np.testing.assert_array_equal(ggml.quants.dequantize(tensor.data, tensor.tensor_type), down.dense())


def test_vectors_are_float32_and_the_embedding_what_is_asked_for(tmp_path: Path) -> None:
    for embedding, kind in (("f16", "F16"), ("f32", "F32"), ("bf16", "BF16"), ("as stored", "F16")):
        gguf.save(random_model(LLAMA), tmp_path / "m.gguf", embedding=embedding)  # type: ignore[arg-type]
        with gguf.File(tmp_path / "m.gguf") as file:
            assert file.tensors["token_embd.weight"].kind.name == kind
            assert file.tensors["output.weight"].kind.name == kind
            assert file.tensors["blk.0.attn_norm.weight"].kind.name == "F32"
            assert file.tensors["blk.0.attn_q.weight"].kind.name == "I2_S"


def test_the_architecture_is_one_that_says_the_spec(tmp_path: Path) -> None:
    for spec, architecture in (
        (tiny_spec(), "bitnet-b1.58"),
        (tiny_spec(activation="silu"), "bitnet"),
        (LLAMA, "llama"),
        (replace(LLAMA, family="qwen2", biases=("attn.q", "attn.k", "attn.v")), "qwen2"),
        (replace(LLAMA, family="qwen3", qk_norm=True), "qwen3"),
        (replace(LLAMA, family="minicpm", residual_scale=0.5), "minicpm"),
        (replace(LLAMA, rope=rope.linear(1e4, 32, 4.0)), "llama"),
    ):
        gguf.save(random_model(spec), tmp_path / "m.gguf")
        assert gguf.load(tmp_path / "m.gguf").spec == spec
        with gguf.File(tmp_path / "m.gguf") as file:
            assert file.metadata["general.architecture"] == architecture


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({"activation": "relu2"}, "activation = relu2"),
        ({"windows": (8, 0)}, "windows"),
        ({"attention_scale": 0.3}, "scales"),
        ({"qk_norm": True, "rope": rope.yarn(1e4, 32, 4.0, 64)}, "rope"),
    ],
)
def test_a_spec_that_no_architecture_says_is_refused(tmp_path: Path, changes: dict[str, Any], lost: str) -> None:
    with pytest.raises(UnsupportedError, match=f"cannot say .*{lost}"):
        gguf.save(random_model(replace(LLAMA, **changes)), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


# --- the tokenizer's values


def test_the_template_comes_along(tmp_path: Path) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    gguf.save(replace(random_model(LLAMA), template=template), tmp_path / "m.gguf")
    loaded = gguf.load(tmp_path / "m.gguf").template
    assert loaded is not None
    assert loaded.source == template.source


def test_rows_that_the_tokenizer_lacks_become_unused_tokens(tmp_path: Path) -> None:
    model = Model(LLAMA, random_model(LLAMA).weights, Words(90))  # type: ignore[arg-type]
    gguf.save(model, tmp_path / "m.gguf")
    with gguf.File(tmp_path / "m.gguf") as file:
        tokens, kinds = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
        scores = file.metadata["tokenizer.ggml.scores"]
    assert isinstance(tokens, gguf.Strings)
    assert isinstance(kinds, np.ndarray)
    assert isinstance(scores, np.ndarray)
    assert list(tokens[88:92]) == ["w88", "w89", "[PAD90]", "[PAD91]"]
    assert (len(tokens), kinds.dtype, kinds[89:91].tolist()) == (96, np.int32, [1, 5])
    assert (scores.dtype, scores[-1]) == (np.float32, -10000)


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    model = Model(LLAMA, random_model(LLAMA).weights, Words(97))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="the tokenizer has 1 tokens more than the 96 of the embedding"):
        gguf.save(model, tmp_path / "m.gguf")


# --- whole or not at all


@pytest.mark.parametrize(
    ("layout", "model", "message"),
    [
        ("tq2_0", random_model(tiny_spec()), "layers.0.attn.q: TQ2_0 holds a multiple of 256, not 128 columns"),
        ("i2_s_128", random_model(LLAMA, block=128), "layers.0.attn.q: I2_S holds one scale, this tensor has 512"),
        ("tq1_0", random_model(LLAMA, block=64), "layers.0.attn.q: one scale for 64 of 256 columns cannot be written"),
        ("hf_rows", random_model(LLAMA), "layout hf_rows is that of Hugging Face's folders"),
        ("iq9", random_model(LLAMA), "no layout 'iq9'"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, layout: str, model: Model, message: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("what was here")
    with pytest.raises(UnsupportedError, match=message):
        gguf.save(model, path, layout=layout)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["what was here"]


def test_a_tensor_that_does_not_fit_may_be_stored_as_float16(tmp_path: Path) -> None:
    model = random_model(replace(LLAMA, ffn_size=320))
    gguf.save(model, tmp_path / "m.gguf", layout="tq2_0", fallback="f16")
    with gguf.File(tmp_path / "m.gguf") as file:
        kinds = {name.split(".")[2]: tensor.kind.name for name, tensor in file.tensors.items() if "blk" in name}
    assert (kinds["ffn_down"], kinds["ffn_up"], kinds["attn_q"]) == ("F16", "TQ2_0", "TQ2_0")
    mine, its = model.weights["layers.0.ffn.down"], gguf.load(tmp_path / "m.gguf").weights["layers.0.ffn.down"]
    assert isinstance(mine, TernaryTensor)
    assert isinstance(its, TernaryTensor)
    assert its.digest() == mine.digest()


def test_a_number_that_the_embedding_cannot_hold_names_it_and_leaves_nothing(tmp_path: Path) -> None:
    weights = dict(random_model(LLAMA).weights)
    weights["head"] = np.full((96, 256), 1e6, np.float32)
    with pytest.raises(UnsupportedError, match=r"head: F16 cannot hold 1000000\.0; F32 and BF16 can"):
        gguf.save(Model(LLAMA, weights), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


class Unlucky(BaseException):
    """What no handler expects."""


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, at: int) -> None:
    def fail() -> npt.NDArray[np.uint8]:
        raise Unlucky

    path = tmp_path / "m.gguf"
    gguf.write(path, {"k": "old"}, [])
    blobs = [gguf.blob(f"t{i}", np.zeros(8, np.float32)) for i in range(3)]
    blobs[at] = replace(blobs[at], make=fail)
    with pytest.raises(Unlucky):
        gguf.write(path, {"k": "new"}, blobs)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    with gguf.File(path) as file:
        assert file.metadata["k"] == "old"


def test_a_tensor_of_the_wrong_size_is_not_written(tmp_path: Path) -> None:
    blob = replace(gguf.blob("t", np.zeros(8, np.float32)), make=lambda: np.zeros(31, np.uint8))
    with pytest.raises(ValueError, match="tensor 't' takes 32 bytes, got 31 of uint8"):
        gguf.write(tmp_path / "m.gguf", {}, [blob])
    assert list(tmp_path.iterdir()) == []


def test_a_model_can_be_saved_over_the_file_that_it_is_read_from(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    model = random_model(LLAMA)
    gguf.save(model, path, layout="tq1_0")
    opened = gguf.load(path)
    before = opened.weights["layers.0.attn.q"]
    gguf.save(opened, path, layout="i2_s_128")
    gguf.save(gguf.load(path), path, layout="tq2_0")
    for weights in (opened.weights, gguf.load(path, strict=True).weights):
        for name, weight in model.weights.items():
            if isinstance(weight, TernaryTensor):
                found = weights[name]
                assert isinstance(found, TernaryTensor)
                assert found.digest() == weight.digest()
    assert isinstance(before, TernaryTensor)
    assert before.codes().any()


def test_a_file_is_as_readable_as_the_user_wants(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        gguf.write(tmp_path / "m.gguf", {}, [])
    finally:
        os.umask(old)
    assert (tmp_path / "m.gguf").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"k": 2**64}, ValueError, "k: 18446744073709551616 does not fit in 64 bits"),
        ({"k": None}, TypeError, "k: a value is a number, a string, or an array of them, got NoneType"),
        ({"k": np.zeros(2, np.complex64)}, TypeError, "k: .*, got complex64"),
        ({"k": [1, "a"]}, TypeError, "k: a value is a number"),
        ({"general.alignment": 12}, ValueError, r"the alignment is a power of two in 8\.\.4096, got 12"),
    ],
)
def test_a_value_that_files_cannot_hold_is_not_written(
    tmp_path: Path, metadata: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        gguf.write(tmp_path / "m.gguf", metadata, [])
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_llama_cpp_could_not_read_is_not_written(tmp_path: Path) -> None:
    for name, array in (("x" * 64, np.zeros(8)), ("", np.zeros(8)), ("t", np.zeros((1, 1, 1, 1, 1)))):
        with pytest.raises(ValueError, match="a name of up to 63 bytes and up to 4 axes"):
            gguf.write(tmp_path / "m.gguf", {}, [gguf.blob(name, array.astype(np.float32))])
    with pytest.raises(ValueError, match="written as float32, float16 or bfloat16, got int32"):
        gguf.blob("t", np.zeros(8, np.int32))
    with pytest.raises(ValueError, match="Q6_K cannot hold a tensor of shape"):
        gguf.write(tmp_path / "m.gguf", {}, [gguf.Blob("t", (8,), gguf.KINDS["Q6_K"], lambda: np.zeros(0, np.uint8))])


# --- whatever is written is read

KEYS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40).filter(
    lambda key: key not in ("general.alignment",) and not key.startswith("split.")
)
NUMBERS = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64]
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), max_size=80),
    st.sampled_from([*NUMBERS, np.bool_]).flatmap(lambda kind: arrays.arrays(kind, st.integers(0, 9))),
)
TENSORS = st.sampled_from([np.float32, np.float16]).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=1, max_dims=4, max_side=5))
)
NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=63).filter(
    lambda name: ".." not in name
)


@given(
    values=st.dictionaries(KEYS, VALUES, max_size=8),
    tensors=st.dictionaries(NAMES, TENSORS, max_size=6),
    alignment=st.sampled_from([8, 32, 64, 4096]),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, Any],
    tensors: dict[str, npt.NDArray[Any]],
    alignment: int,
) -> None:
    path = tmp_path_factory.mktemp("any") / "m.gguf"
    written = {**values, "general.alignment": np.uint32(alignment)}
    gguf.write(path, written, [gguf.blob(name, array) for name, array in tensors.items()])
    with gguf.File(path, strict=True) as file:
        assert list(file.metadata) == list(written)
        for key, value in values.items():
            np.testing.assert_array_equal(np.asarray(file.metadata[key]), np.asarray(value))
        assert list(file.tensors) == list(tensors)
        for name, array in tensors.items():
            got = file.tensor(name)
            assert isinstance(got, np.ndarray)
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(got, array)
