"""GGUF files as models: every architecture there and back, and what its values and tensors say."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from bitnet_core import reference, rope
from bitnet_core.errors import FormatError, UnsupportedError
from bitnet_core.formats import gguf
from bitnet_core.formats.gguf import names
from bitnet_core.formats.gguf.model import half_split_rows, neighbour_rows
from bitnet_core.model import Model, ModelSpec, Rope, Weight, runs_of
from bitnet_core.tensor import TernaryTensor
from bitnet_core.testing import CASES, Case, random_model, run, some_tokens, tiny_spec

SAVED = [case for case in CASES if case.name != "gemma3"]
LLAMA = tiny_spec(family="llama", activation="silu", sub_norms="none", tied=False)
GEMMA3 = tiny_spec(
    family="gemma3",
    layers=7,
    activation="gelu",
    sub_norms="projection",
    qk_norm=True,
    post_norms=True,
    windows=(8, 8, 8, 8, 8, 0, 8),
    rope=Rope(theta=1e6, size=32),
    local_rope=Rope(theta=1e4, size=32),
    embedding_scale=128**0.5,
    pooling="last",
)


def values_of(path: Path) -> dict[str, Any]:
    """A file's values, in types that write the same again."""
    with gguf.File(path) as file:
        return {key: np.float32(value) if isinstance(value, float) else value for key, value in file.metadata.items()}


def rewritten(
    path: Path, values: Mapping[str, object] | None = None, tensors: Mapping[str, npt.NDArray[Any] | None] | None = None
) -> Path:
    """The file with some values and tensors changed; `...` and None take them away."""
    new_values = {key: value for key, value in {**values_of(path), **(values or {})}.items() if value is not ...}
    with gguf.File(path) as file:
        blobs = {name: kept(file, name) for name in file.tensors}
    for name, array in (tensors or {}).items():
        blobs.pop(name, None)
        if array is not None:
            blobs[name] = gguf.blob(name, array)
    gguf.write(path, new_values, list(blobs.values()))
    return path


def kept(file: gguf.File, name: str) -> gguf.Blob:
    raw = file.raw(name).copy()
    return gguf.Blob(name, file.tensors[name].shape, file.tensors[name].kind, lambda: raw)


def assert_same(mine: Weight, its: Weight) -> None:
    if isinstance(mine, TernaryTensor):
        assert isinstance(its, TernaryTensor)
        assert its.digest() == mine.digest()
        np.testing.assert_array_equal(its.dense(), mine.dense())
    else:
        np.testing.assert_array_equal(np.asarray(its), mine)


# --- there and back


@pytest.mark.parametrize("layout", ["i2_s_128", "tq1_0", "tq2_0", "q2_0_64", "q2_0_128"])
@pytest.mark.parametrize("case", SAVED, ids=lambda case: case.name)
def test_a_saved_model_is_the_same_model(tmp_path: Path, case: Case, layout: str) -> None:
    model = case.model()
    gguf.save(model, tmp_path / "m.gguf", layout=layout, embedding="as stored", fallback="f16")
    loaded = gguf.load(tmp_path / "m.gguf", strict=True)
    if "stretched" not in case.name and case.name != "minicpm":  # their divisors come back rounded to float32
        assert loaded.spec == model.spec
    assert set(loaded.weights) == set(model.weights)
    for name in model.weights:
        assert_same(model.weights[name], loaded.weights[name])


@pytest.mark.parametrize("name", ["bitnet", "llama-stretched", "qwen2-biases", "minicpm", "qwen3-projection-norms"])
def test_a_saved_model_says_the_same(tmp_path: Path, name: str) -> None:
    model = next(case for case in CASES if case.name == name).model()
    gguf.save(model, tmp_path / "m.gguf", embedding="as stored", fallback="f16")
    tokens = some_tokens(model.spec, 12)
    loaded = gguf.load(tmp_path / "m.gguf")
    np.testing.assert_allclose(run(reference.load(loaded), tokens), run(reference.load(model), tokens), atol=1e-4)


def test_gemma3_has_windows_and_two_rotations(tmp_path: Path) -> None:
    model = random_model(GEMMA3)
    gguf.save(model, tmp_path / "m.gguf", embedding="as stored")
    assert gguf.load(tmp_path / "m.gguf").spec == GEMMA3
    for values, windows in (
        ({"gemma3.attention.sliding_window_pattern": ...}, GEMMA3.windows),
        ({"gemma3.attention.sliding_window_pattern": 2}, (8, 0, 8, 0, 8, 0, 8)),
        ({"gemma3.attention.sliding_window_pattern": np.array([True] * 2 + [False] * 5)}, (8, 8, 0, 0, 0, 0, 0)),
        ({"gemma3.attention.sliding_window": 0}, ()),
    ):
        assert gguf.load(rewritten(tmp_path / "m.gguf", values)).spec.windows == windows


def test_windows_without_a_period_are_written_layer_by_layer(tmp_path: Path) -> None:
    spec = replace(GEMMA3, windows=(8, 0, 0, 8, 8, 8, 8))
    gguf.save(random_model(spec), tmp_path / "m.gguf")
    assert gguf.load(tmp_path / "m.gguf").spec == spec


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K"])
def test_an_embedding_of_blocks_is_placed_without_being_whole_beside_its_place(tmp_path: Path, kind: str) -> None:
    spec = tiny_spec(vocab_size=80_000, hidden_size=256, head_size=64)
    gguf.save(random_model(spec), tmp_path / "m.gguf")
    size = gguf.KINDS[kind].size
    raw = np.random.default_rng(2).integers(0, 128, (80_000 * 256 // gguf.KINDS[kind].block, size), np.uint8)
    raw[:, 1::2] &= 7  # small exponents wherever the scales stand
    with gguf.File(tmp_path / "m.gguf") as file:
        blobs = [kept(file, name) for name in file.tensors if name != "token_embd.weight"]
    blobs.append(gguf.Blob("token_embd.weight", (80_000, 256), gguf.KINDS[kind], lambda: raw.reshape(-1)))
    gguf.write(tmp_path / "m.gguf", values_of(tmp_path / "m.gguf"), blobs)
    model = gguf.load(tmp_path / "m.gguf")
    tracemalloc.start()
    runner = reference.load(model)  # its pool's memory is not Python's, and not counted
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = model.weights["embedding"]
    assert peak < 0.5 * whole.nbytes
    np.testing.assert_array_equal(np.concatenate(list(runs_of(model.weights, "embedding"))), whole)
    tokens = some_tokens(spec, 5)
    plain = Model(model.spec, dict(model.weights))
    np.testing.assert_array_equal(run(runner, tokens), run(reference.load(plain), tokens))


def test_mistral_is_llama_to_gguf_which_knows_none_of_its_windows(tmp_path: Path) -> None:
    model = random_model(replace(LLAMA, family="mistral"))
    gguf.save(model, tmp_path / "m.gguf")
    again = gguf.load(tmp_path / "m.gguf")
    assert again.spec == LLAMA
    tokens = some_tokens(LLAMA, 9)
    np.testing.assert_array_equal(run(reference.load(again), tokens), run(reference.load(model), tokens))
    with pytest.raises(UnsupportedError, match=r"architecture llama cannot say windows = \(8, 8\)"):
        gguf.save(random_model(replace(model.spec, windows=(8, 8))), tmp_path / "w.gguf")


def test_a_model_outlives_the_call_that_loaded_it(tmp_path: Path) -> None:
    gguf.save(random_model(LLAMA), tmp_path / "m.gguf")
    weights = gguf.load(tmp_path / "m.gguf").weights
    (tmp_path / "m.gguf").unlink()
    assert_same(random_model(LLAMA).weights["layers.1.ffn.down"], weights["layers.1.ffn.down"])


def test_a_file_cut_short_under_a_loaded_model_is_refused_by_name(tmp_path: Path) -> None:
    gguf.save(random_model(LLAMA), tmp_path / "m.gguf")
    weights = gguf.load(tmp_path / "m.gguf").weights
    os.truncate(tmp_path / "m.gguf", 5000)
    with pytest.raises(FormatError, match=r"m\.gguf: tensor 'blk\.1\.ffn_down\.weight': expected the file of"):
        weights["layers.1.ffn.down"]


# --- the golden file


def test_the_golden_file_holds_the_golden_weights(golden: Path, tmp_path: Path) -> None:
    arrays = np.load(golden / "tiny_bitnet.npz")
    arrays["gguf_file"].tofile(tmp_path / "tiny.gguf")
    model = gguf.load(tmp_path / "tiny.gguf", strict=True)
    assert model.spec == tiny_spec(context=64)
    hf = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
    hf |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    for name, shape in model.spec.shapes().items():
        if names.projection_of(name) is None:
            continue
        _, layer, _, projection = name.split(".")
        stem = f"packed/model.layers.{layer}.{hf[projection]}.weight"
        scale = np.float32(arrays[f"{stem}_scale"]).reshape(1, 1)
        weight = model.weights[name]
        assert isinstance(weight, TernaryTensor)
        packed = TernaryTensor(arrays[stem], scale, (shape[0], shape[1]), "hf_rows")
        assert weight.digest() == packed.digest(), name
        np.testing.assert_allclose(weight.scale, scale, rtol=0.005)  # the folder's is rounded to bfloat16


def test_the_golden_file_gives_the_golden_logits(golden: Path, tmp_path: Path) -> None:
    arrays = np.load(golden / "tiny_bitnet.npz")
    arrays["gguf_file"].tofile(tmp_path / "tiny.gguf")
    tokens = arrays["input_ids"].reshape(-1).astype(np.int32)
    got = run(reference.load(gguf.load(tmp_path / "tiny.gguf")), tokens)
    np.testing.assert_allclose(got, arrays["logits_transformers_online"].reshape(got.shape), atol=1e-4)


def test_rows_are_put_in_order_as_the_golden_vectors_say(golden: Path) -> None:
    vectors = json.loads((golden / "rope.json").read_text())
    order, heads = vectors["llama_gguf_row_perm"], vectors["n_head"]
    np.testing.assert_array_equal(neighbour_rows(len(order), heads), order)
    np.testing.assert_array_equal(
        neighbour_rows(len(order), heads)[half_split_rows(len(order), heads)], range(len(order))
    )


def test_a_real_file_of_floats_loads(data: Path) -> None:
    model = gguf.load(data / "models/stories260K/stories260K.gguf")
    assert (model.spec.family, model.spec.layers, model.spec.inputs) == ("llama", 5, "float")
    assert model.spec.rope == Rope(theta=10000.0, size=8)
    assert isinstance(model.weights["layers.0.attn.q"], np.ndarray)
    assert model.tokenizer is not None


# --- what values say


@pytest.mark.parametrize(
    ("architecture", "values", "activation"),
    [
        ("bitnet", {}, "silu"),
        ("bitnet", {"bitnet.hidden_activation": "relu2"}, "relu2"),
        ("bitnet", {"bitnet.hidden_activation": "swiglu"}, "silu"),
        ("bitnet-25", {}, "relu2"),
        ("bitnet-b1.58", {}, "relu2"),
    ],
)
def test_the_architecture_says_the_activation(
    tmp_path: Path, architecture: str, values: dict[str, object], activation: str
) -> None:
    gguf.save(random_model(tiny_spec()), tmp_path / "m.gguf")
    renamed = {
        key.replace("bitnet-b1.58.", f"{architecture}."): value for key, value in values_of(tmp_path / "m.gguf").items()
    }
    gone = dict.fromkeys(values_of(tmp_path / "m.gguf"), ...)
    path = rewritten(tmp_path / "m.gguf", {**gone, **renamed, "general.architecture": architecture, **values})
    spec = gguf.load(path).spec
    assert (spec.family, spec.activation, spec.sub_norms) == ("bitnet", activation, "block")


@pytest.mark.parametrize(
    ("spec", "layout", "inputs"),
    [
        (tiny_spec(), "q2_0_64", "int8"),
        (tiny_spec(), "i2_s_128", "int8"),
        (LLAMA, "i2_s_128", "int8"),
        (replace(LLAMA, hidden_size=256, heads=8), "tq2_0", "int8"),
        (LLAMA, "q2_0_128", "float"),
        (replace(LLAMA, family="minicpm", logit_scale=0.5), "i2_s_128", "int8"),
        (replace(LLAMA, family="minicpm", logit_scale=0.5), "q2_0_64", "float"),
    ],
)
def test_types_say_what_projections_multiply(
    tmp_path: Path, spec: ModelSpec, layout: str, inputs: Literal["int8", "float"]
) -> None:
    gguf.save(random_model(spec), tmp_path / "m.gguf", layout=layout)
    other: Literal["int8", "float"] = "float" if inputs == "int8" else "int8"
    path = rewritten(tmp_path / "m.gguf", {"bitnet_core.inputs": ...})
    assert gguf.load(path).spec.inputs == inputs
    assert gguf.load(path, inputs=other).spec.inputs == other
    assert gguf.load(rewritten(path, {"bitnet_core.inputs": other})).spec.inputs == other
    with pytest.raises(FormatError, match=r"kv 'bitnet_core\.inputs': expected int8 or float, got int4"):
        gguf.load(rewritten(path, {"bitnet_core.inputs": "int4"}))


def test_scales_for_each_block_say_that_activations_are_not_quantized(tmp_path: Path) -> None:
    spec = replace(LLAMA, hidden_size=512, heads=16)
    gguf.save(random_model(spec, block=256), tmp_path / "m.gguf", layout="tq2_0")
    assert gguf.load(rewritten(tmp_path / "m.gguf", {"bitnet_core.inputs": ...})).spec.inputs == "float"


def test_a_scale_beside_a_matrix_multiplies_it(tmp_path: Path) -> None:
    model = random_model(tiny_spec())
    gguf.save(model, tmp_path / "m.gguf")
    factors: dict[str, npt.NDArray[Any] | None] = {
        "blk.0.attn_q.scale": np.array([2.0], np.float32),
        "blk.1.ffn_down.scale": np.array([0.25], np.float32),
    }
    loaded = gguf.load(rewritten(tmp_path / "m.gguf", tensors=factors))
    for name, factor in (("layers.0.attn.q", 2.0), ("layers.1.ffn.down", 0.25), ("layers.1.attn.q", 1.0)):
        mine, its = model.weights[name], loaded.weights[name]
        assert isinstance(mine, TernaryTensor)
        assert isinstance(its, TernaryTensor)
        np.testing.assert_array_equal(its.scale, mine.scale * np.float32(factor))
        assert its.digest() == mine.digest()
    noise = np.random.default_rng(0).random((128, 128), np.float32)
    loaded = gguf.load(rewritten(tmp_path / "m.gguf", tensors={"blk.0.attn_q.weight": noise}))
    assert_same(noise * 2, loaded.weights["layers.0.attn.q"])
    rewritten(tmp_path / "m.gguf", tensors={"blk.0.attn_q.scale": np.array([1, 2], np.float32)})
    with pytest.raises(FormatError, match=r"m\.gguf: tensor 'blk\.0\.attn_q\.scale': expected one finite number"):
        gguf.load(tmp_path / "m.gguf").weights["layers.0.attn.q"]


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_a_ternary_matrix_stored_as_floats_is_found(tmp_path: Path, kind: str) -> None:
    model = random_model(LLAMA)
    gguf.save(model, tmp_path / "m.gguf")
    weight = model.weights["layers.0.attn.v"]
    assert isinstance(weight, TernaryTensor)
    dense = weight.dense().astype(gguf.KINDS[kind].dtype)
    loaded = gguf.load(rewritten(tmp_path / "m.gguf", tensors={"blk.0.attn_v.weight": dense}))
    assert_same(weight, loaded.weights["layers.0.attn.v"])


def test_a_bias_of_q_and_k_is_put_in_order_with_its_rows(tmp_path: Path) -> None:
    spec = replace(LLAMA, biases=("attn.q", "attn.k", "attn.v", "attn.o"))
    model = random_model(spec)
    gguf.save(model, tmp_path / "m.gguf", embedding="as stored")
    with gguf.File(tmp_path / "m.gguf") as file:
        stored, mine = file.tensor("blk.0.attn_q.bias"), model.weights["layers.0.attn.q.bias"]
        assert isinstance(stored, np.ndarray)
        assert isinstance(mine, np.ndarray)
        assert not np.array_equal(stored, mine)
        assert_same(model.weights["layers.0.attn.v.bias"], file.tensor("blk.0.attn_v.bias"))
    loaded = gguf.load(tmp_path / "m.gguf")
    assert loaded.spec == spec
    for name in ("layers.0.attn.q.bias", "layers.1.attn.k.bias"):
        assert_same(model.weights[name], loaded.weights[name])


def test_rows_in_groups_across_their_borders_are_put_in_order_too(tmp_path: Path) -> None:
    spec = replace(LLAMA, hidden_size=96, heads=4, kv_heads=2, head_size=24, rope=Rope(theta=1e4, size=24), ffn_size=64)
    model = random_model(spec)
    gguf.save(model, tmp_path / "m.gguf", layout="i2_s_128")
    loaded = gguf.load(tmp_path / "m.gguf")
    for name in model.weights:
        if isinstance(model.weights[name], TernaryTensor):
            assert_same(model.weights[name], loaded.weights[name])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, Rope(theta=5e5, size=32)),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, Rope(theta=5e5, size=32)),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, rope.linear(5e5, 32, 4.0)),
        ({"rope.scale_linear": 2.0}, rope.linear(5e5, 32, 2.0)),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.yarn_beta_fast": 16.0,
            },
            rope.yarn(5e5, 32, 4.0, 32, fast=16.0),
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.5},
            replace(rope.yarn(5e5, 32, 2.0, 128), magnitude=rope.yarn(5e5, 32, 2.0, 128).magnitude * 1.5),
        ),
    ],
)
def test_values_say_how_positions_are_stretched(tmp_path: Path, values: dict[str, object], expected: Rope) -> None:
    gguf.save(random_model(LLAMA), tmp_path / "m.gguf")
    path = rewritten(tmp_path / "m.gguf", {f"llama.{key}": value for key, value in values.items()})
    assert gguf.load(path).spec.rope == expected


@pytest.mark.parametrize("original", [64, 128])
def test_longrope_takes_the_divisors_of_the_stated_context(tmp_path: Path, original: int) -> None:
    spec = replace(LLAMA, family="minicpm", embedding_scale=12.0, residual_scale=0.25, logit_scale=0.5, context=128)
    gguf.save(random_model(spec), tmp_path / "m.gguf")
    long, short = (np.arange(16, dtype=np.float32) + start for start in (1, 100))
    values = {"minicpm.rope.scaling.type": "longrope", "minicpm.rope.scaling.original_context_length": original}
    tensors = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    loaded = gguf.load(rewritten(tmp_path / "m.gguf", values, tensors)).spec
    assert loaded.rope == rope.longrope(5e5, 32, (long if original == 64 else short).tolist(), original, 128)
    assert loaded == replace(spec, rope=loaded.rope)


def test_values_of_older_minicpm_files_are_those_of_the_first_model(tmp_path: Path) -> None:
    spec = replace(LLAMA, family="minicpm", embedding_scale=1.0, residual_scale=1.0, logit_scale=0.5)
    gguf.save(random_model(spec), tmp_path / "m.gguf")
    gone = {f"minicpm.{name}_scale": ... for name in ("embedding", "residual", "logit")}
    loaded = gguf.load(rewritten(tmp_path / "m.gguf", gone)).spec
    assert loaded.embedding_scale == 12
    assert loaded.residual_scale == pytest.approx(1.4 / 2**0.5)
    assert loaded.logit_scale == 256 / 128


def test_advice_for_sampling_comes_along(tmp_path: Path) -> None:
    model = replace(random_model(LLAMA), sampling={"temperature": 0.6, "top_p": 0.9, "top_k": 40})
    gguf.save(model, tmp_path / "m.gguf")
    assert gguf.load(tmp_path / "m.gguf").sampling == model.sampling
    with pytest.raises(FormatError, match=r"kv 'general\.sampling\.temp': expected a number of 0\.\.100, got -1"):
        gguf.load(rewritten(tmp_path / "m.gguf", {"general.sampling.temp": np.float32(-1)}))


@pytest.mark.parametrize(
    "value", [{"llama.expert_count": 8}, {"llama.attention.causal": False}, {"llama.rope.scaling.yarn_ext_factor": 2.0}]
)
def test_a_value_that_would_change_every_number_is_not_passed_over(tmp_path: Path, value: dict[str, object]) -> None:
    gguf.save(random_model(LLAMA), tmp_path / "m.gguf")
    with pytest.raises(UnsupportedError, match="is not supported; no ternary model is known to use it"):
        gguf.load(rewritten(tmp_path / "m.gguf", value))


def test_a_count_for_each_layer_is_read_if_all_are_equal(tmp_path: Path) -> None:
    gguf.save(random_model(LLAMA), tmp_path / "m.gguf")
    equal, different = np.array([256, 256], np.int32), np.array([256, 128], np.int32)
    assert gguf.load(rewritten(tmp_path / "m.gguf", {"llama.feed_forward_length": equal})).spec == LLAMA
    with pytest.raises(UnsupportedError, match=r"llama\.feed_forward_length: layers of different sizes"):
        gguf.load(rewritten(tmp_path / "m.gguf", {"llama.feed_forward_length": different}))


def test_norms_in_front_of_projections_are_an_embedding_model_s(tmp_path: Path) -> None:
    spec = next(case.spec for case in CASES if case.name == "qwen3-projection-norms")
    gguf.save(random_model(spec), tmp_path / "m.gguf")
    assert gguf.load(rewritten(tmp_path / "m.gguf", {"qwen3.pooling_type": ...})).spec.pooling == "last"
    assert gguf.load(rewritten(tmp_path / "m.gguf", {"qwen3.pooling_type": 0})).spec.pooling == "none"
    with pytest.raises(UnsupportedError, match=r"qwen3\.pooling_type: 1 is not supported; 0 and 3 are"):
        gguf.load(rewritten(tmp_path / "m.gguf", {"qwen3.pooling_type": 1}))


# --- verify


def test_verify_says_what_is_in_every_tensor(tmp_path: Path) -> None:
    model = random_model(tiny_spec())
    gguf.save(model, tmp_path / "m.gguf", embedding="as stored")
    found = {finding.tensor: finding for finding in gguf.verify(tmp_path / "m.gguf")}
    assert len(found) == len(model.weights)
    assert all(finding.problem is None for finding in found.values())
    weight = model.weights["layers.0.ffn.up"]
    assert isinstance(weight, TernaryTensor)
    codes = weight.codes()
    finding = found["blk.0.ffn_up.weight"]
    assert finding.digest == weight.digest()
    assert finding.trits == tuple(int((codes == code).sum()) for code in (-1, 0, 1))
    assert found["token_embd.weight"].digest is None


def test_verify_finds_damage_and_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    gguf.save(random_model(tiny_spec()), path, embedding="f32")
    with gguf.File(path) as file:
        places = dict(file.tensors)
    data = bytearray(path.read_bytes())
    data[places["blk.0.attn_q.weight"].start + 70] = 0xFF  # codes of block 2, byte 6: 3 in all four
    end = places["blk.1.attn_output.weight"]
    data[end.start + end.nbytes - 32 : end.start + end.nbytes - 28] = bytes(4)  # its scale
    embedding = places["token_embd.weight"].start
    block = places["blk.1.ffn_up.weight"]
    data[block.start + block.nbytes - 32 : block.start + block.nbytes - 28] = np.array([np.nan], np.float32).tobytes()
    data[embedding + 4 * 1000 : embedding + 4 * 1002] = np.array([np.nan, -np.inf], np.float32).tobytes()
    path.write_bytes(data)
    found = {finding.tensor: finding for finding in gguf.verify(path) if finding.problem}
    damaged = {"blk.0.attn_q.weight", "blk.1.attn_output.weight", "blk.1.ffn_up.weight", "token_embd.weight"}
    assert set(found) == damaged
    assert found["blk.1.ffn_up.weight"].problem == "1 of 1 scales are not finite"
    bad = found["blk.0.attn_q.weight"]
    assert (bad.first_bad, bad.digest) == (2 * 128 + 6, None)
    assert bad.problem == "the code at row 2, column 6 is none of -1, 0 and 1"
    assert found["blk.1.attn_output.weight"].problem == "the scale is 0.0"
    assert (found["token_embd.weight"].nan, found["token_embd.weight"].inf) == (1, 1)
    assert found["token_embd.weight"].first_bad == 1000
    with pytest.raises(FormatError, match=r"m\.gguf: tensor 'blk\.0\.attn_q\.weight' code at row 2, column 6"):
        gguf.load(path).weights["layers.0.attn.q"]
    with pytest.raises(FormatError, match=r"m\.gguf: tensor 'blk\.1\.attn_output\.weight' scale: expected finite"):
        gguf.load(path).weights["layers.1.attn.o"]


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "I8_S", "BF16"])
def test_verify_counts_what_is_not_finite_in_any_type(tmp_path: Path, kind: str) -> None:
    chosen = gguf.KINDS[kind]
    shape = (4, 256)
    raw = np.zeros(chosen.nbytes(shape) or 0, np.uint8)
    raw[-2:] = (0, 0x7E)  # a NaN as float16 at the end of a Q6_K block, a large number as bfloat16
    raw[-32:-28] = np.array([np.inf], "<f4").view(np.uint8)
    gguf.write(tmp_path / "m.gguf", {}, [gguf.Blob("t", shape, chosen, lambda: raw)])
    (finding,) = gguf.verify(tmp_path / "m.gguf")
    values = {"Q8_0": (0, 0), "Q6_K": (256, 0), "I8_S": (0, 1), "BF16": (0, 1)}
    assert (finding.nan, finding.inf) == values[kind]
