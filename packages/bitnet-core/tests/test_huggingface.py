"""Hugging Face folders: every published form, each family, and transformers itself as the reference."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bitnet_core import reference
from bitnet_core.arithmetic import absmean
from bitnet_core.errors import BitNetError, FormatError, UnsupportedError
from bitnet_core.formats import huggingface
from bitnet_core.formats.huggingface.config import parse_config, spec_from_config
from bitnet_core.formats.strictjson import read_json
from bitnet_core.model import Model, Rope, Step
from bitnet_core.tensor import TernaryTensor
from bitnet_core.testing import CASES, SHAPES, Case, random_model, run, some_tokens, tiny_spec

BFLOAT16 = ml_dtypes.bfloat16
PUBLISHABLE = [case for case in CASES if case.name not in ("bitnet-odd", "llama-row-scales")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tiny BitNet, packed as the 2B-4T is."""
    huggingface.save(random_model(tiny_spec()), tmp_path)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, change: Any) -> None:
    """Rewrite model.safetensors with `change` applied to its dict of arrays."""
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in change(load_file(path)).items()}, path)


def write_floats(folder: Path, model: Model, kind: Any, change: Any = None) -> None:
    """The folder with all projections as floats of one type; `change` may replace each dense matrix."""
    huggingface.save(model, folder)
    arrays = load_file(folder / "model.safetensors")
    dense = {}
    for name, array in arrays.items():
        if name.endswith("weight_scale"):
            continue
        if array.dtype == np.uint8:
            rows = array.shape[0] * 4
            codes = TernaryTensor(array, np.ones((1, 1), np.float32), (rows, array.shape[1]), "hf_rows").codes()
            array = codes * arrays[f"{name}_scale"].astype(np.float32)  # noqa: PLW2901
        is_projection = name.endswith("_proj.weight")
        dense[name] = (change(array) if change and is_projection else array).astype(kind)
    save_file(dense, folder / "model.safetensors")


def logits(model: Model, tokens: np.ndarray) -> np.ndarray:
    return run(reference.load(model), tokens)


class TestForms:
    """One model in every form that its family is published in gives one set of logits."""

    def test_a_packed_folder_whose_scale_multiplies(self, folder: Path) -> None:
        tokens = some_tokens(tiny_spec(), 20)
        loaded = huggingface.load(folder)
        assert loaded.spec == tiny_spec()
        np.testing.assert_array_equal(logits(loaded, tokens), logits(random_model(tiny_spec()), tokens))

    @pytest.mark.parametrize("linear_class", ["bitlinear", None])
    def test_a_packed_folder_whose_scale_divides(self, folder: Path, linear_class: str | None) -> None:
        def invert(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: 1 / array if name.endswith("_scale") else array for name, array in arrays.items()}

        expected = huggingface.load(folder)
        edit_tensors(folder, invert)
        edit_config(folder, quantization_config={"quant_method": "bitnet", "linear_class": linear_class})
        loaded = huggingface.load(folder)
        for name in tiny_spec().projections():
            was, now = expected.weights[f"layers.1.{name}"], loaded.weights[f"layers.1.{name}"]
            np.testing.assert_allclose(now.scale, was.scale, rtol=2e-7)
            assert now.digest() == was.digest()

    @pytest.mark.parametrize("kind", [np.float32, np.float16, BFLOAT16])
    def test_masters_are_ternarized_by_their_mean_magnitude(self, tmp_path: Path, kind: Any) -> None:
        noise = np.random.default_rng(5)
        masters: list[np.ndarray] = []

        def blur(dense: np.ndarray) -> np.ndarray:
            masters.append((dense + noise.normal(0, 0.02, dense.shape)).astype(kind))
            return masters[-1]

        write_floats(tmp_path, random_model(tiny_spec()), kind, blur)
        edit_config(
            tmp_path,
            quantization_config={
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": "online",
            },
        )
        loaded = huggingface.load(tmp_path)
        assert loaded.spec == tiny_spec()
        name = next(iter(load_file(tmp_path / "model.safetensors")))
        assert name
        found = {loaded.weights[f"layers.{i}.{part}"].digest() for i in range(2) for part in tiny_spec().projections()}
        expected = {TernaryTensor.from_codes(*absmean(master)).digest() for master in masters}
        assert found == expected

    def test_masters_that_happen_to_be_ternary_are_still_rounded(self, tmp_path: Path) -> None:
        masters: list[np.ndarray] = []
        write_floats(tmp_path, random_model(tiny_spec()), np.float32, lambda dense: masters.append(dense) or dense)
        online = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
        edit_config(tmp_path, quantization_config=online)
        loaded = huggingface.load(tmp_path)
        scales = {float(loaded.weights[f"layers.0.{name}"].scale[0, 0]) for name in tiny_spec().projections()}
        assert scales <= {float(absmean(master)[1]) for master in masters}

    def test_masters_without_a_word_on_quantization_are_known_by_their_family(self, tmp_path: Path) -> None:
        spec = tiny_spec(activation="silu", kv_heads=4)
        write_floats(tmp_path, random_model(spec), np.float32, lambda dense: dense + 0.001)

        def old_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            renamed = {
                name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm"): array
                for name, array in arrays.items()
            }
            inverse = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(16, np.float32) for i in range(2)}
            return renamed | inverse

        edit_tensors(tmp_path, old_names)
        # As the first models were published: of a type that is not theirs, with a class of their own.
        first = {"model_type": "llama", "architectures": ["BitnetForCausalLM"], "input_bits": 8, "weight_bits": 1}
        edit_config(tmp_path, quantization_config=..., **first)
        loaded = huggingface.load(tmp_path)
        assert loaded.spec == spec
        assert isinstance(loaded.weights["layers.0.attn.q"], TernaryTensor)

    @pytest.mark.parametrize("kind", [np.float32, np.float16, BFLOAT16])
    def test_ternary_floats_keep_codes_and_scales_and_are_not_ternarized_again(self, tmp_path: Path, kind: Any) -> None:
        spec = tiny_spec(family="llama", activation="silu", sub_norms="none", tied=False, inputs="float")
        model = random_model(spec)
        write_floats(tmp_path, model, kind)
        edit_config(tmp_path, quantization_config=...)
        loaded = huggingface.load(tmp_path)
        assert loaded.spec == replace(spec, sub_norm_eps=spec.norm_eps)
        for name in spec.projections():
            was, now = model.weights[f"layers.0.{name}"], loaded.weights[f"layers.0.{name}"]
            assert now.digest() == was.digest()
            np.testing.assert_array_equal(now.scale, was.scale.astype(kind).astype(np.float32))

    def test_ternary_floats_of_a_bitnet_multiply_int8(self, tmp_path: Path) -> None:
        write_floats(tmp_path, random_model(tiny_spec()), np.float32)
        assert huggingface.load(tmp_path).spec.inputs == "int8"
        edit_config(tmp_path, quantization_config=...)
        assert huggingface.load(tmp_path).spec.inputs == "int8"
        assert huggingface.load(tmp_path, inputs="float").spec.inputs == "float"

    @pytest.mark.parametrize("block", [64, 128])
    def test_ternary_floats_with_a_scale_a_block(self, tmp_path: Path, block: int) -> None:
        spec = tiny_spec(
            family="qwen3",
            activation="silu",
            sub_norms="none",
            qk_norm=True,
            inputs="float",
            tied=False,
            hidden_size=256,
        )
        model = random_model(spec, block=block, ternary_embedding=True)
        huggingface.save(model, tmp_path)
        loaded = huggingface.load(tmp_path)
        assert loaded.spec == spec
        for name in ("layers.0.ffn.down", "embedding", "head"):
            weight = loaded.weights[name]
            assert isinstance(weight, TernaryTensor)
            assert weight.block == block
            assert weight.digest() == model.weights[name].digest()
        tokens = some_tokens(spec, 12)
        np.testing.assert_array_equal(logits(loaded, tokens), logits(model, tokens))

    def test_masters_with_a_norm_in_front_of_every_projection(self, tmp_path: Path) -> None:
        (case,) = [case for case in CASES if case.name == "gemma3"]
        write_floats(tmp_path, case.model(), BFLOAT16, lambda dense: dense * 1.5 + 0.001)

        def as_published(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            # An embedding model's files: no "model." in front, and the norms are called `norm`.
            return {name.removeprefix("model.").replace("rms_norm", "norm"): array for name, array in arrays.items()}

        edit_tensors(tmp_path, as_published)
        edit_config(tmp_path, quantization_config=..., architectures=["Gemma3TextModel"], rms_norm_eps=1e-6)
        spec = huggingface.load(tmp_path).spec
        assert (spec.sub_norms, spec.sub_norm_eps, spec.pooling, spec.inputs) == ("projection", 1e-6, "last", "int8")
        assert spec.tied
        assert spec.windows == (8, 8, 8, 0)
        weights = huggingface.load(tmp_path).weights
        # Gemma's own norms are stored less one; those in front of projections are not.
        raw = load_file(tmp_path / "model.safetensors")
        np.testing.assert_array_equal(
            weights["layers.0.attn.norm"], raw["layers.0.input_layernorm.weight"].astype(np.float32) + 1
        )
        np.testing.assert_array_equal(
            weights["layers.0.attn.q.norm"], raw["layers.0.self_attn.q_proj.norm.weight"].astype(np.float32)
        )

    def test_floats_of_a_model_that_is_not_ternary_stay_floats(self, tmp_path: Path) -> None:
        spec = tiny_spec(family="llama", activation="silu", sub_norms="none", inputs="float", tied=False)
        noise = np.random.default_rng(1)
        write_floats(tmp_path, random_model(spec), np.float16, lambda dense: noise.normal(size=dense.shape))
        edit_config(tmp_path, quantization_config=...)
        assert huggingface.load(tmp_path).weights["layers.0.attn.q"].dtype == np.float16
        ternarized = huggingface.load(tmp_path, masters=True)
        assert isinstance(ternarized.weights["layers.0.attn.q"], TernaryTensor)
        assert ternarized.spec.inputs == "int8"

    def test_modules_that_the_config_leaves_alone_stay_floats(self, tmp_path: Path) -> None:
        write_floats(tmp_path, random_model(tiny_spec()), np.float32, lambda dense: dense + 0.001)
        recipe = {"quant_method": "bitnet", "modules_to_not_convert": ["model.layers.1.mlp", "lm_head"]}
        edit_config(tmp_path, quantization_config=recipe)
        weights = huggingface.load(tmp_path).weights
        assert isinstance(weights["layers.0.ffn.up"], TernaryTensor)
        assert isinstance(weights["layers.1.attn.q"], TernaryTensor)
        assert isinstance(weights["layers.1.ffn.up"], np.ndarray)


class TestShards:
    @pytest.fixture
    def sharded(self, folder: Path) -> Path:
        arrays = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(arrays)
        parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
        for file, inside in parts.items():
            save_file({name: arrays[name] for name in inside}, folder / file)
        index = {
            "metadata": {"total_size": sum(array.nbytes for array in arrays.values())},
            "weight_map": {name: file for file, inside in parts.items() for name in inside},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    def edit_index(self, folder: Path, change: Any) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change(index)
        path.write_text(json.dumps(index))

    def test_shards_give_the_model_of_one_file(self, sharded: Path) -> None:
        tokens = some_tokens(tiny_spec(), 10)
        loaded = huggingface.load(sharded)
        np.testing.assert_array_equal(logits(loaded, tokens), logits(random_model(tiny_spec()), tokens))

    def test_a_missing_shard_is_named(self, sharded: Path) -> None:
        (sharded / "b.safetensors").unlink()
        with pytest.raises(FormatError, match=r"shard b.safetensors: expected a file in this folder, got none"):
            huggingface.load(sharded)

    @pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "x\\a.safetensors", "a.bin", ""])
    def test_a_shard_outside_the_folder_is_refused(self, sharded: Path, name: str) -> None:
        self.edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": name}))
        with pytest.raises(FormatError, match="weight_map: expected names of safetensors files in this folder"):
            huggingface.load(sharded)

    def test_a_tensor_in_two_shards_is_refused(self, sharded: Path) -> None:
        extra = load_file(sharded / "a.safetensors")
        extra["model.norm.weight"] = np.ones(128, np.float32)
        save_file(extra, sharded / "a.safetensors")
        with pytest.raises(FormatError, match=r"tensor 'model.norm.weight': expected to be listed in a.safetensors"):
            huggingface.load(sharded)

    def test_a_tensor_that_its_shard_lacks_is_named(self, sharded: Path) -> None:
        self.edit_index(sharded, lambda index: index["weight_map"].update({"model.other.weight": "a.safetensors"}))
        with pytest.raises(FormatError, match=r"'model.other.weight': expected to be in a.safetensors, got none"):
            huggingface.load(sharded)

    def test_a_wrong_total_is_refused(self, sharded: Path) -> None:
        self.edit_index(sharded, lambda index: index["metadata"].update(total_size=7))
        with pytest.raises(FormatError, match=r"metadata.total_size: expected \d+, as the shards hold, got 7"):
            huggingface.load(sharded)

    @pytest.mark.parametrize("value", [None, [], {}, {"a": 1}])
    def test_an_index_without_a_map_is_refused(self, sharded: Path, value: Any) -> None:
        self.edit_index(sharded, lambda index: index.update(weight_map=value))
        with pytest.raises(FormatError, match="weight_map: expected an object of file names"):
            huggingface.load(sharded)


class TestTensorsThatDoNotFit:
    def test_missing_tensors_are_counted_and_the_first_three_named(self, folder: Path) -> None:
        edit_tensors(folder, lambda arrays: {name: a for name, a in arrays.items() if "layers.1" not in name})
        with pytest.raises(FormatError, match=r"got 11 missing: layers.1.attn.k, layers.1.attn.norm, layers.1.attn.o"):
            huggingface.load(folder)

    def test_tensors_of_no_family_are_refused(self, folder: Path) -> None:
        edit_tensors(folder, lambda arrays: arrays | {"model.layers.0.mamba.weight": np.ones(3, np.float32)})
        with pytest.raises(FormatError, match=r"got 1 others: 'model.layers.0.mamba.weight'"):
            huggingface.load(folder)

    def test_tensors_beyond_the_config_are_refused(self, folder: Path) -> None:
        edit_config(folder, num_hidden_layers=1)
        with pytest.raises(FormatError, match="got 11 too many for this config"):
            huggingface.load(folder)

    @pytest.mark.parametrize(
        ("name", "array", "words"),
        [
            ("model.norm.weight", np.ones(64, np.float32), r"expected shape \[128\], got \[64\]"),
            ("model.norm.weight", np.ones(128, np.int32), "expected F64, F32, F16 or BF16, got int32"),
            ("model.embed_tokens.weight", np.ones((95, 128), np.float32), r"expected shape \[96, 128\]"),
            ("model.layers.0.mlp.up_proj.weight", np.zeros((63, 128), np.uint8), r"expected shape \[64, 128\]"),
            ("model.layers.0.mlp.up_proj.weight_scale", np.ones(3, np.float32), "expected one scale, or 256"),
        ],
    )
    def test_wrong_shapes_and_types_are_refused(self, folder: Path, name: str, array: np.ndarray, words: str) -> None:
        edit_tensors(folder, lambda arrays: arrays | {name: array})
        with pytest.raises(FormatError, match=words) as caught:
            huggingface.load(folder)
        assert name in caught.value.field

    def test_packed_weights_without_a_scale_are_refused(self, folder: Path) -> None:
        name = "model.layers.0.mlp.up_proj.weight_scale"
        edit_tensors(folder, lambda arrays: {key: array for key, array in arrays.items() if key != name})
        with pytest.raises(FormatError, match="expected a weight_scale beside packed weights, got none"):
            huggingface.load(folder)

    def test_a_norm_of_bytes_is_refused(self, folder: Path) -> None:
        edit_tensors(folder, lambda arrays: arrays | {"model.norm.weight": np.ones(128, np.uint8)})
        with pytest.raises(FormatError, match=r"'model\.norm\.weight': expected F64, F32, F16 or BF16, got uint8"):
            huggingface.load(folder)

    def test_wide_floats_become_those_that_are_multiplied(self, folder: Path) -> None:
        def widen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            wide = ("model.norm.weight", "model.embed_tokens.weight")
            return arrays | {name: arrays[name].astype(np.float64) for name in wide}

        tokens = some_tokens(tiny_spec(), 9)
        expected = logits(huggingface.load(folder), tokens)
        edit_tensors(folder, widen)
        np.testing.assert_array_equal(logits(huggingface.load(folder), tokens), expected)

    def test_bits_that_are_no_code_are_named_when_they_are_read(self, folder: Path) -> None:
        def damage(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            name = "model.layers.1.self_attn.q_proj.weight"
            packed = arrays[name].copy()
            packed[3, 5] |= 0b1100
            return arrays | {name: packed}

        edit_tensors(folder, damage)
        model = huggingface.load(folder)
        with pytest.raises(FormatError, match=r"layers\.1\.self_attn\.q_proj\.weight' code at row 35, column 5: "):
            model.weights["layers.1.attn.q"]

    def test_a_scale_whose_inverse_is_no_number_is_refused_when_it_is_read(self, folder: Path) -> None:
        name = "model.layers.1.self_attn.q_proj.weight_scale"
        edit_tensors(folder, lambda arrays: arrays | {name: np.array([1e-40], np.float32)})
        edit_config(folder, quantization_config={"quant_method": "bitnet"})
        model = huggingface.load(folder)
        with pytest.raises(FormatError, match=rf"{name}'?: expected scales with a finite inverse, got "):
            model.weights["layers.1.attn.q"]

    @pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
    def test_a_scale_that_is_no_number_above_zero_is_refused_when_it_is_read(self, folder: Path, value: float) -> None:
        name = "model.layers.1.self_attn.q_proj.weight_scale"
        edit_tensors(folder, lambda arrays: arrays | {name: np.array([value], np.float32)})
        model = huggingface.load(folder)
        with pytest.raises(FormatError, match=rf"{name}'?: expected finite scales above zero"):
            model.weights["layers.1.attn.q"]

    def test_advice_for_sampling_is_read(self, folder: Path) -> None:
        advice = {"temperature": 0.6, "top_k": 40.0, "top_p": None, "repetition_penalty": 1, "num_beams": 4}
        (folder / "generation_config.json").write_text(json.dumps(advice))
        assert huggingface.load(folder).sampling == {"temperature": 0.6, "top_k": 40, "repetition_penalty": 1}

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("temperature", 1e28, "a number of 0..100, got 1e+28"),
            ("temperature", True, "a number of 0..100, got True"),
            ("top_k", 1.5, "a whole number of 0..1048576, got 1.5"),
            ("top_k", 10**30, "a whole number of 0..1048576, got 1000000000000000000000000000000"),
            ("top_p", "0.9", "a number of 0..1, got 0.9"),
            ("repetition_penalty", 0, "a number of 0.01..100, got 0"),
        ],
    )
    def test_advice_that_no_sampler_takes_is_refused_with_its_file(
        self, folder: Path, name: str, value: object, expected: str
    ) -> None:
        (folder / "generation_config.json").write_text(json.dumps({name: value}))
        with pytest.raises(FormatError) as caught:
            huggingface.load(folder)
        assert str(caught.value).endswith(f"generation_config.json: {name}: expected {expected}")

    def test_a_folder_of_pickles_is_refused_without_opening_them(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        with pytest.raises(UnsupportedError, match=r"pytorch_model.bin: pickle-based formats can run code"):
            huggingface.load(folder)

    def test_a_folder_without_weights_is_refused(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(FormatError, match=r"weights: expected model.safetensors, got none"):
            huggingface.load(folder)

    def test_a_file_cut_short_after_it_was_opened_is_refused_and_ends_nothing(self, folder: Path) -> None:
        model = huggingface.load(folder)
        os.truncate(folder / "model.safetensors", 4096)
        with pytest.raises(FormatError, match="got one changed to 4096 bytes"):
            model.weights["layers.0.attn.q"]


class TestSaving:
    @pytest.mark.parametrize("case", PUBLISHABLE, ids=[case.name for case in PUBLISHABLE])
    def test_what_is_saved_loads_as_it_was(self, case: Case, tmp_path: Path) -> None:
        model = case.model()
        huggingface.save(model, tmp_path)
        loaded = huggingface.load(tmp_path)
        assert loaded.spec == case.spec
        assert loaded.weights.keys() == model.weights.keys()
        tokens = some_tokens(case.spec, 12)
        np.testing.assert_allclose(logits(loaded, tokens), logits(model, tokens), rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("name", ["bitnet-odd", "llama-row-scales"])
    def test_what_a_packed_folder_cannot_hold_is_refused_and_nothing_is_left(self, name: str, tmp_path: Path) -> None:
        (case,) = [case for case in CASES if case.name == name]
        with pytest.raises(UnsupportedError, match="a GGUF file holds it"):
            huggingface.save(case.model(), tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_model_may_be_saved_over_the_files_it_is_read_from(self, folder: Path) -> None:
        model = huggingface.load(folder)
        before = (folder / "model.safetensors").read_bytes()
        huggingface.save(model, folder)
        assert (folder / "model.safetensors").read_bytes() == before
        assert model.weights["layers.0.attn.q"].digest() == huggingface.load(folder).weights["layers.0.attn.q"].digest()

    @pytest.mark.parametrize(("floats", "kind"), [("bfloat16", BFLOAT16), ("float16", np.float16)])
    def test_floats_may_be_narrowed(self, tmp_path: Path, floats: Any, kind: Any) -> None:
        huggingface.save(random_model(tiny_spec()), tmp_path, floats=floats)
        assert huggingface.load(tmp_path).weights["embedding"].dtype == kind


def assert_parity(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal but for float32's rounding, which may move an activation that stands at a tie by one of 255 steps."""
    assert np.abs(ours[0] - theirs[0]).max() < 1e-4
    assert np.abs(ours - theirs).max() < 2e-2 * np.ptp(theirs)


class TestTransformers:
    """Live parity: what we save, transformers loads, and gives the same logits."""

    @pytest.fixture(autouse=True)
    def transformers(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
        pytest.importorskip("torch", reason="transformers runs on torch")
        return pytest.importorskip("transformers", reason="transformers is the reference")

    def theirs(self, folder: Path, tokens: np.ndarray) -> np.ndarray:
        import torch
        import transformers

        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            return model(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()

    @pytest.mark.parametrize("case", [c for c in PUBLISHABLE if c.spec.family != "minicpm"], ids=lambda case: case.name)
    def test_logits_equal_those_of_transformers(self, case: Case, tmp_path: Path) -> None:
        huggingface.save(case.model(), tmp_path)
        tokens = some_tokens(case.spec, 24)
        assert_parity(logits(huggingface.load(tmp_path), tokens), self.theirs(tmp_path, tokens))

    @pytest.mark.parametrize(
        "name", ["bitnet", "llama", "llama-wide-heads", "llama-stretched", "qwen2-biases", "qwen3-blocks", "gemma3"]
    )
    def test_without_int8_nothing_stands_at_a_tie_and_all_logits_agree(self, name: str, tmp_path: Path) -> None:
        (case,) = [case for case in CASES if case.name == name]
        plain = "block" if name == "bitnet" else "none"  # transformers quantizes behind norms of its own
        spec = replace(case.spec, inputs="float", sub_norms=plain, pooling="none")
        model = random_model(spec, **case.options)
        huggingface.save(model, tmp_path)
        tokens = some_tokens(spec, 40)  # further than gemma3's window of eight
        theirs = self.theirs(tmp_path, tokens)
        np.testing.assert_allclose(logits(model, tokens), theirs, atol=1e-6 * np.ptp(theirs), rtol=0)

    @pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
    @pytest.mark.parametrize("projection_norms", [False, True])
    def test_both_linear_classes_with_and_without_norms(
        self, tmp_path: Path, linear_class: str, projection_norms: bool
    ) -> None:
        sub_norms = "projection" if projection_norms else "none"
        spec = tiny_spec(family="llama", activation="silu", sub_norms=sub_norms, tied=False, sub_norm_eps=1e-6)
        huggingface.save(random_model(spec), tmp_path)
        if linear_class == "bitlinear":
            config = json.loads((tmp_path / "config.json").read_text())
            edit_config(tmp_path, quantization_config=config["quantization_config"] | {"linear_class": "bitlinear"})
            edit_tensors(
                tmp_path,
                lambda arrays: {name: 1 / a if name.endswith("weight_scale") else a for name, a in arrays.items()},
            )
        tokens = some_tokens(spec, 24)
        assert_parity(logits(huggingface.load(tmp_path), tokens), self.theirs(tmp_path, tokens))

    @pytest.mark.parametrize("family", ["bitnet", "llama", "qwen3", "gemma3"])
    def test_online_masters_equal_those_of_transformers(self, tmp_path: Path, family: str) -> None:
        (case,) = [case for case in CASES if case.name in (family, f"{family}-projection-norms")]
        noise = np.random.default_rng(3)
        write_floats(tmp_path, case.model(), np.float32, lambda dense: dense + noise.normal(0, 0.03, dense.shape))
        config = json.loads((tmp_path / "config.json").read_text())
        edit_config(tmp_path, quantization_config=config["quantization_config"] | {"quantization_mode": "online"})
        tokens = some_tokens(case.spec, 24)
        assert_parity(logits(huggingface.load(tmp_path), tokens), self.theirs(tmp_path, tokens))

    @pytest.mark.parametrize("window", [None, 8, ...])
    def test_mistral_is_llama_and_may_have_a_window(self, tmp_path: Path, window: Any) -> None:
        import torch
        import transformers

        torch.manual_seed(4)
        config = transformers.MistralConfig(
            vocab_size=96,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=128,
            initializer_range=0.3,
            **{} if window is ... else {"sliding_window": window},
        )
        transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
        if window is ...:
            edit_config(tmp_path, sliding_window=...)
        model = huggingface.load(tmp_path)
        assert model.spec.windows == {None: (), 8: (8, 8), ...: (4096, 4096)}[window]
        tokens = some_tokens(model.spec, 40)
        theirs = self.theirs(tmp_path, tokens)
        np.testing.assert_allclose(logits(model, tokens), theirs, atol=1e-5 * np.ptp(theirs), rtol=0)
        huggingface.save(model, tmp_path / "again")
        assert huggingface.load(tmp_path / "again").spec == model.spec
        np.testing.assert_allclose(self.theirs(tmp_path / "again", tokens), theirs, atol=1e-5 * np.ptp(theirs), rtol=0)

    def test_qwen2_turns_layers_with_a_window_as_the_others(self, tmp_path: Path) -> None:
        (case,) = [case for case in CASES if case.name == "qwen2-biases"]
        spec = replace(case.spec, windows=(8, 0), rope=Rope(theta=1e6, size=32), inputs="float")
        model = random_model(spec, **case.options)
        huggingface.save(model, tmp_path)
        assert huggingface.load(tmp_path).spec == spec
        tokens = some_tokens(spec, 40)
        theirs = self.theirs(tmp_path, tokens)
        np.testing.assert_allclose(logits(model, tokens), theirs, atol=1e-6 * np.ptp(theirs), rtol=0)

    def test_long_texts_see_no_further_than_the_window(self, tmp_path: Path) -> None:
        (case,) = [case for case in CASES if case.name == "gemma3"]
        huggingface.save(case.model(), tmp_path)
        tokens = some_tokens(case.spec, 60)
        runner = reference.load(huggingface.load(tmp_path))
        cache = runner.new_cache()
        pieces = [runner.forward([Step(tokens[at : at + 7], cache, "all")])[0] for at in range(0, 60, 7)]
        assert_parity(np.concatenate(pieces), self.theirs(tmp_path, tokens))


def test_minicpm_scales_are_those_that_can_be_multiplied_into_the_weights() -> None:
    (case,) = [case for case in CASES if case.name == "minicpm"]
    spec, model = case.spec, case.model()
    folded = dict(model.weights)
    folded["embedding"] = model.weights["embedding"].astype(np.float32) * np.float32(spec.embedding_scale)
    for name, weight in model.weights.items():
        if name.endswith((".o", ".down")):
            folded[name] = replace(weight, scale=weight.scale * np.float32(spec.residual_scale))
    folded["head"] = model.weights["embedding"].astype(np.float32) * np.float32(spec.logit_scale)
    plain = replace(spec, embedding_scale=1.0, residual_scale=1.0, logit_scale=1.0, tied=False)
    tokens = some_tokens(spec, 16)
    expected = logits(Model(plain, folded), tokens)
    np.testing.assert_allclose(logits(model, tokens), expected, rtol=1e-4, atol=1e-4)


class TestGolden:
    """The two-layer BitNet of the golden vectors, from its packed folder and from its masters."""

    CONFIG = "tiny_bitnet.json"

    @pytest.fixture(params=["packed", "masters"])
    def model(self, request: pytest.FixtureRequest, golden: Path, tmp_path: Path) -> Model:
        config = json.loads((golden / self.CONFIG).read_text())["config"]
        config |= {"model_type": "bitnet", "architectures": ["BitNetForCausalLM"]}
        mode = "offline" if request.param == "packed" else "online"
        recipe = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": recipe}))
        vectors = np.load(golden / "tiny_bitnet.npz")
        arrays = {
            name.removeprefix("master/"): vectors[name].view(BFLOAT16)
            for name in vectors.files
            if name.startswith("master/")
        }
        if request.param == "packed":
            arrays |= {n.removeprefix("packed/"): vectors[n] for n in vectors.files if n.startswith("packed/")}
        save_file(arrays, tmp_path / "model.safetensors")
        return huggingface.load(tmp_path)

    def test_logits_are_within_1e_4_of_transformers(self, model: Model, golden: Path) -> None:
        vectors = np.load(golden / "tiny_bitnet.npz")
        found = logits(model, vectors["input_ids"].astype(np.int32))
        for name in ("online", "offline", "bitlinear"):
            assert np.abs(found - vectors[f"logits_transformers_{name}"]).max() < 1e-4
        assert np.abs(found - vectors["logits_own_float64"]).max() < 1e-4
        expected = json.loads((golden / self.CONFIG).read_text())["argmax_per_position"]
        assert found.argmax(axis=1).tolist() == expected

    def test_logits_are_none_of_the_known_wrong_ones(self, model: Model, golden: Path) -> None:
        vectors = np.load(golden / "tiny_bitnet.npz")
        found = logits(model, vectors["input_ids"].astype(np.int32))[-1]
        wrong = [name for name in vectors.files if name.startswith("wrong/")]
        assert len(wrong) == 8
        assert all(np.abs(found - vectors[name]).max() > 1 for name in wrong)


class TestRealModel:
    """The trained model of the data folder, against transformers' stored logits."""

    def test_the_likeliest_token_is_transformers_at_every_position(self, data: Path) -> None:
        folder = data / "models" / "bitllama2c-1M-hf"
        vectors = np.load(folder / "golden_logits.npz")
        found = logits(huggingface.load(folder), vectors["input_ids"].ravel())
        expected = vectors["logits"]
        np.testing.assert_array_equal(found[: len(expected)].argmax(axis=1), expected.argmax(axis=1))

    def test_perplexity_on_held_out_stories_is_transformers(self, data: Path) -> None:
        model = huggingface.load(data / "models" / "bitllama2c-1M-hf")
        text = (data / "text" / "tinystories_valid_head.txt").read_text(encoding="utf-8")[:60_000]
        tokens = model.tokenizer.encode(text, bos=False)[: 64 * 255].reshape(64, 255)
        runner = reference.load(model)
        losses = []
        for window in tokens:
            inputs = np.concatenate([[model.tokenizer.bos], window]).astype(np.int32)
            found = run(runner, inputs[:-1]).astype(np.float64)
            found -= found.max(axis=1, keepdims=True)
            losses.append(np.log(np.exp(found).sum(axis=1)) - found[np.arange(len(window)), window])
        assert np.concatenate(losses).size == 16_320
        assert np.exp(np.mean(losses)) == pytest.approx(4.8202, abs=0.001)

    def test_every_published_config_loads(self, data: Path) -> None:
        files = [file for file in (data / "configs").glob("*.config.json") if "generation" not in file.name]
        assert len(files) >= 5
        shapes = set()
        for file in files:
            config = parse_config(read_json(file, limit=1 << 22, same_duplicates=True), file)
            spec = spec_from_config(config, file, inputs="int8")
            shapes.add((spec.hidden_size, spec.ffn_size, spec.layers, spec.head_size, spec.rope.theta))
        assert (2560, 6912, 30, 128, 500_000.0) in shapes
        assert (3072, 23040, 40, 256, 1_000_042.0) in shapes

    def test_every_tensor_of_the_published_masters_has_a_name_and_a_shape(self, data: Path) -> None:
        from bitnet_core.formats.huggingface import names

        path = data / "configs" / "bitnet-b1.58-2B-4T-bf16.config.json"
        spec = spec_from_config(parse_config(read_json(path, limit=1 << 22), path), path, inputs="int8")
        in_layer = dict(names.names_in_layer(post_norms=False))
        found = {}
        for line in (data / "configs" / "bitnet-b1.58-2B-4T-bf16.layer_shapes.txt").read_text().splitlines()[1:]:
            name, shape = line.split("torch.Size([")[0].strip(), line.split("torch.Size([")[1].split("])")[0]
            found[names.canonical_name(name, "model.", in_layer)] = tuple(int(size) for size in shape.split(","))
        assert found == spec.shapes()


def test_a_published_model_has_as_many_parameters_as_it_says() -> None:
    counts = [int(np.prod(shape)) for shape in SHAPES["2b4t"].shapes().values()]
    assert sum(counts) == 2_412_820_480


def test_nothing_but_our_errors_escapes_a_folder_of_noise(folder: Path) -> None:
    random = np.random.default_rng(0)
    config = bytearray((folder / "config.json").read_bytes())
    refusals = set()
    for _ in range(300):
        damaged = bytearray(config)
        for place in random.integers(0, len(config), 3):
            damaged[place] = random.integers(0, 256)
        (folder / "config.json").write_bytes(damaged)
        try:
            huggingface.load(folder)
        except BitNetError as error:
            refusals.add(str(error))
    assert len(refusals) > 50
    assert all(len(words) <= 500 and words.isprintable() for words in refusals)
