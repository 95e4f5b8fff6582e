"""Adapters in files: PEFT's folders, with PEFT itself as the reference, and llama.cpp's GGUF files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bitnet_core
from bitnet_core import reference
from bitnet_core.errors import FormatError, UnsupportedError
from bitnet_core.formats import gguf, huggingface
from bitnet_core.formats.gguf.model import neighbour_rows
from bitnet_core.model import Adapter, Model, ModelSpec
from bitnet_core.testing import CASES, random_adapter, random_model, run, some_tokens, tiny_spec

SPEC = tiny_spec()
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an adapter of all projections."""
    bitnet_core.save_adapter(random_adapter(SPEC), tmp_path, SPEC)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in change(load_file(path)).items()}, path)


def assert_equal(found: Adapter, expected: Adapter, scale: float = 1.0) -> None:
    assert list(found.weights) == list(expected.weights)
    for name, (down, up) in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name][0], down)
        np.testing.assert_array_equal(found.weights[name][1], up * np.float32(scale))


class TestFolders:
    def test_what_is_saved_is_loaded_bit_for_bit(self, folder: Path) -> None:
        assert_equal(bitnet_core.load_adapter(folder, SPEC), random_adapter(SPEC))

    def test_the_same_adapter_is_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        weights = random_adapter(SPEC).weights
        turned = Adapter("turned", dict(reversed(weights.items())))
        bitnet_core.save_adapter(turned, tmp_path / "again", SPEC)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()

    def test_ranks_and_modules_may_differ(self, tmp_path: Path) -> None:
        some = random_adapter(SPEC, rank=2, projections=("attn.q", "ffn.down")).weights
        more = {f"layers.1.{name}": random_adapter(SPEC, 1, rank=7).weights[f"layers.1.{name}"] for name in ("attn.k",)}
        adapter = Adapter("mixed", {**some, **more})
        bitnet_core.save_adapter(adapter, tmp_path, SPEC)
        found = bitnet_core.load_adapter(tmp_path, SPEC)
        assert found.weights.keys() == adapter.weights.keys()
        for name, pair in adapter.weights.items():
            for got, expected in zip(found.weights[name], pair, strict=True):
                np.testing.assert_array_equal(got, expected)

    def test_it_is_called_as_its_folder_is_or_as_one_says(self, folder: Path) -> None:
        assert bitnet_core.load_adapter(folder, SPEC).name == folder.name
        assert bitnet_core.load_adapter(folder, SPEC, "poet").name == "poet"

    @pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
    def test_halves_are_read(self, folder: Path, kind: Any) -> None:
        edit_tensors(folder, lambda arrays: {name: array.astype(kind) for name, array in arrays.items()})
        found = bitnet_core.load_adapter(folder, SPEC)
        for name, pair in random_adapter(SPEC).weights.items():
            for got, exact in zip(found.weights[name], pair, strict=True):
                np.testing.assert_array_equal(got, exact.astype(kind).astype(np.float32))

    def test_an_adapters_name_in_the_keys_and_other_paths_to_the_layers_are_read(self, folder: Path) -> None:
        def rename(name: str) -> str:
            return name.replace("model.model.layers", "model.language_model.layers").replace(".weight", ".poet.weight")

        edit_tensors(folder, lambda arrays: {rename(name): array for name, array in arrays.items()})
        assert_equal(bitnet_core.load_adapter(folder, SPEC), random_adapter(SPEC))

    def test_alpha_is_over_the_rank_or_its_root(self, folder: Path) -> None:
        edit_config(folder, lora_alpha=10)
        assert_equal(bitnet_core.load_adapter(folder, SPEC), random_adapter(SPEC), 2.0)
        edit_config(folder, use_rslora=True)
        assert_equal(bitnet_core.load_adapter(folder, SPEC), random_adapter(SPEC), 10 / math.sqrt(5))

    @pytest.mark.parametrize(
        ("pattern", "changed"),
        [
            ("down_proj", {"layers.0.ffn.down", "layers.1.ffn.down"}),
            ("model.layers.1.mlp.down_proj", {"layers.1.ffn.down"}),
            (r"^model\.layers\.1\.mlp\.down_proj", {"layers.1.ffn.down"}),
            ("^layers.1.mlp.down_proj", set()),
            ("proj", set()),
        ],
    )
    def test_alpha_of_some_modules(self, folder: Path, pattern: str, changed: set[str]) -> None:
        edit_config(folder, alpha_pattern={pattern: 20})
        found, plain = bitnet_core.load_adapter(folder, SPEC).weights, random_adapter(SPEC).weights
        assert {name for name in plain if not np.array_equal(found[name][1], plain[name][1])} == changed
        for name in changed:
            np.testing.assert_array_equal(found[name][1], plain[name][1] * 4)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"peft_type": "IA3"}, "only LORA is supported, got IA3"),
            ({"use_dora": True}, "use_dora: True is not supported: an adapter changes the seven projections"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save: .* is not supported"),
            ({"bias": "all"}, "bias: all is not supported"),
            ({"lora_bias": True}, "lora_bias"),
            ({"layer_replication": [[0, 2]]}, "layer_replication"),
            ({"trainable_token_indices": [3]}, "trainable_token_indices"),
            ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow: 3 is not supported"),
            ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16 changes the base as well"),
            ({"alpha_pattern": {"(a+)+$": 3}}, r"alpha_pattern: only names of modules are supported, got \(a"),
        ],
    )
    def test_what_is_no_plain_adapter_is_refused_by_name(
        self, folder: Path, changes: dict[str, Any], message: str
    ) -> None:
        edit_config(folder, **changes)
        with pytest.raises(UnsupportedError, match=message):
            bitnet_core.load_adapter(folder, SPEC)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"r": 8}, "r of model.layers.0.* expected 5, got 8"),
            ({"r": 0}, "r: expected an integer from 1 to"),
            ({"r": True}, "r: expected an integer"),
            ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern: expected an integer"),
            ({"rank_pattern": [3]}, "rank_pattern: expected an object"),
            ({"lora_alpha": "16"}, "lora_alpha: expected a number"),
            ({"lora_alpha": 10**400}, "lora_alpha: expected a number"),
            ({"lora_alpha": 1e30, "alpha_pattern": {"q_proj": 1e30}, "use_rslora": 3}, "use_rslora: expected true"),
        ],
    )
    def test_values_that_mean_nothing_are_refused(self, folder: Path, changes: dict[str, Any], message: str) -> None:
        edit_config(folder, **changes)
        with pytest.raises(FormatError, match=message):
            bitnet_core.load_adapter(folder, SPEC)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda key, a: (key.replace("q_proj", "lm_head"), a), UnsupportedError, "lm_head.*seven projections"),
            (lambda key, a: (key.replace("layers.1", "layers.2"), a), UnsupportedError, "layers.2.*2 layers"),
            (lambda key, a: (key.replace(".lora_A.", ".lora_magnitude_vector."), a), UnsupportedError, "only lora_A"),
            (lambda key, a: (key.replace("layers.1", "vision.layers.1"), a), FormatError, "under one path"),
            (lambda key, a: (key.replace("1.mlp.up_proj.lora_A.", "1.mlp.up_proj.lora_A.b."), a), FormatError, "one"),
            (lambda key, a: (key, a[:, :-1] if "k_proj.lora_A" in key else a), FormatError, r"expected shape \[5, 128"),
            (lambda key, a: (key, a[:, :4] if "k_proj.lora_B" in key else a), FormatError, r"expected shape \[64, 5"),
            (lambda key, a: (key, a[None]), FormatError, "expected a matrix of F32, F16 or BF16"),
            (lambda key, a: (key, a.astype(np.float64)), FormatError, "expected a matrix of F32, F16 or BF16"),
            (lambda key, a: (key, a * np.float32(np.inf)), FormatError, "expected finite numbers"),
            (lambda key, a: (key, a * np.float32(3e38) * 100), FormatError, "expected finite numbers"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
    @pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
    def test_weights_that_do_not_fit_are_refused(
        self, folder: Path, change: Any, error: type[Exception], message: str
    ) -> None:
        edit_tensors(folder, lambda arrays: dict(change(name, array) for name, array in arrays.items()))
        with pytest.raises(error, match=message):
            bitnet_core.load_adapter(folder, SPEC)

    def test_products_beyond_float32_are_refused(self, folder: Path) -> None:
        edit_tensors(folder, lambda arrays: {name: array * np.float32(1e20) for name, array in arrays.items()})
        edit_config(folder, lora_alpha=1e25)
        with pytest.raises(FormatError, match="lora_alpha: expected products within float32"):
            bitnet_core.load_adapter(folder, SPEC)

    def test_half_a_pair_is_refused(self, folder: Path) -> None:
        edit_tensors(
            folder,
            lambda arrays: {name: a for name, a in arrays.items() if not name.endswith("1.mlp.up_proj.lora_B.weight")},
        )
        with pytest.raises(FormatError, match=r"layers\.1\.mlp\.up_proj.*expected lora_A and lora_B, got no lora_B"):
            bitnet_core.load_adapter(folder, SPEC)

    def test_what_is_not_there_is_said(self, folder: Path) -> None:
        weights = folder / "adapter_model.safetensors"
        with pytest.raises(FormatError, match="safetensors alone; name its folder"):
            bitnet_core.load_adapter(weights, SPEC)
        edit_tensors(folder, lambda _: {})
        with pytest.raises(FormatError, match="expected lora_A and lora_B of projections, got none"):
            bitnet_core.load_adapter(folder, SPEC)
        weights.unlink()
        (folder / "adapter_model.bin").write_bytes(b"\x80")
        with pytest.raises(UnsupportedError, match="pickle-based formats can run code"):
            bitnet_core.load_adapter(folder, SPEC)
        (folder / "adapter_config.json").write_text("[]")
        with pytest.raises(FormatError, match="expected an object, got list"):
            bitnet_core.load_adapter(folder, SPEC)
        with pytest.raises(FormatError, match="no such file"):
            bitnet_core.load_adapter(folder / "nowhere", SPEC)

    def test_norms_inside_projections_cannot_be_said(self, folder: Path) -> None:
        spec = tiny_spec(sub_norms="projection")
        with pytest.raises(UnsupportedError, match="a norm inside every projection"):
            bitnet_core.load_adapter(folder, spec)
        with pytest.raises(UnsupportedError, match="a norm inside every projection"):
            bitnet_core.save_adapter(random_adapter(spec), folder, spec)

    def test_only_projections_are_saved(self, tmp_path: Path) -> None:
        wrong = Adapter("wrong", {"layers.7.attn.q": random_adapter(SPEC).weights["layers.0.attn.q"]})
        for adapter in (wrong, Adapter("empty", {})):
            with pytest.raises(ValueError, match="expected projections of the model alone"):
                bitnet_core.save_adapter(adapter, tmp_path, SPEC)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers
class TestPeft:
    """Live parity: what PEFT saves, we load, and the other way round."""

    @pytest.fixture(autouse=True)
    def peft(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("torch", reason="PEFT runs on torch")
        return pytest.importorskip("peft", reason="PEFT is the reference")

    def model(self, name: str, folder: Path) -> tuple[Model, Any]:
        """A model whose activations stay floats, so that nothing stands at a tie: ours, and transformers'."""
        import torch
        import transformers

        (case,) = [case for case in CASES if case.name == name]
        plain = "block" if name == "bitnet" else "none"
        model = random_model(replace(case.spec, inputs="float", sub_norms=plain, pooling="none"), **case.options)
        huggingface.save(model, folder)
        return model, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def theirs(self, model: Any, tokens: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            return model(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()

    @pytest.mark.parametrize("name", ["bitnet", "llama", "qwen2-biases", "gemma3"])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"use_rslora": True, "rank_pattern": {"q_proj": 3, "model.layers.1.mlp.up_proj": 9}},
            {"alpha_pattern": {"^model.layers.0.self_attn.v_proj": 2, "down_proj": 32}, "layers_to_transform": [0]},
        ],
    )
    def test_logits_equal_those_of_peft(self, name: str, options: dict[str, Any], tmp_path: Path, peft: Any) -> None:
        import torch

        model, base = self.model(name, tmp_path / "base")
        torch.manual_seed(3)
        config = peft.LoraConfig(r=6, lora_alpha=12, target_modules=PROJECTIONS, init_lora_weights=False, **options)
        wrapped = peft.get_peft_model(base, config)
        wrapped.save_pretrained(tmp_path / "adapter")
        adapter = bitnet_core.load_adapter(tmp_path / "adapter", model.spec)
        tokens = some_tokens(model.spec, 40)
        theirs = self.theirs(wrapped.eval(), tokens)
        ours = run(reference.load(model), tokens, adapter)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.ptp(theirs), rtol=0)
        assert np.abs(ours - run(reference.load(model), tokens)).max() > 1e-3 * np.ptp(theirs)

    def test_an_adapter_multiplies_what_is_not_yet_quantized(self, tmp_path: Path, peft: Any) -> None:
        import torch
        import transformers

        model = random_model(replace(SPEC, layers=1))
        huggingface.save(model, tmp_path / "base")
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        adapter = random_adapter(model.spec, 3)
        bitnet_core.save_adapter(adapter, tmp_path / "adapter", model.spec)
        wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
        tokens = some_tokens(model.spec, 40)
        theirs = self.theirs(wrapped.eval(), tokens)
        ours = run(reference.load(model), tokens, adapter)
        # A product with the digits instead would be a thousand times further away.
        assert np.median(np.abs(ours - theirs)) < 1e-6 * np.ptp(theirs)
        assert np.abs(ours - theirs).max() < 2e-2 * np.ptp(theirs)

    def test_what_we_save_gives_the_same_logits_in_peft(self, tmp_path: Path, peft: Any) -> None:
        model, base = self.model("bitnet", tmp_path / "base")
        first = random_adapter(model.spec, 1).weights
        other = random_adapter(model.spec, 2, rank=9, projections=("attn.q",)).weights
        adapter = Adapter("ours", {**first, "layers.1.attn.q": other["layers.1.attn.q"]})
        bitnet_core.save_adapter(adapter, tmp_path / "adapter", model.spec)
        wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
        tokens = some_tokens(model.spec, 40)
        theirs = self.theirs(wrapped.eval(), tokens)
        ours = run(reference.load(model), tokens, adapter)
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.ptp(theirs), rtol=0)


class TestGguf:
    """Files as llama.cpp's converter writes them: (rank, in) and (out, rank), with Llama's rows of q and k permuted."""

    def write(self, path: Path, adapter: Adapter, spec: ModelSpec, **changes: Any) -> None:
        metadata = {
            "general.architecture": spec.family,
            "general.type": "adapter",
            "adapter.type": "lora",
            "adapter.lora.alpha": np.float32(10),
        }
        blobs = []
        for name, (down, up) in adapter.weights.items():
            stored = gguf.names.file_name(name)
            heads = {"attn.q": spec.heads, "attn.k": spec.kv_heads}.get(name.split(".", 2)[2], 0)
            if heads and spec.family == "llama":
                up = up[neighbour_rows(len(up), heads)]  # noqa: PLW2901
            blobs += [gguf.blob(f"{stored}.lora_a", down), gguf.blob(f"{stored}.lora_b", np.ascontiguousarray(up))]
        gguf.write(path, {key: value for key, value in (metadata | changes).items() if value is not None}, blobs)

    @pytest.mark.parametrize("name", ["bitnet", "llama"])
    def test_both_matrices_are_read_and_scaled(self, name: str, tmp_path: Path) -> None:
        (case,) = [case for case in CASES if case.name == name]
        adapter = random_adapter(case.spec)
        self.write(tmp_path / "poet.gguf", adapter, case.spec)
        found = bitnet_core.load_adapter(tmp_path / "poet.gguf", case.spec)
        assert found.name == "poet"
        assert_equal(found, adapter, 2.0)

    def test_no_alpha_leaves_the_product_as_it_is(self, tmp_path: Path) -> None:
        adapter = random_adapter(SPEC, projections=("attn.v",))
        self.write(tmp_path / "a.gguf", adapter, SPEC, **{"adapter.lora.alpha": np.float32(0)})
        assert_equal(bitnet_core.load_adapter(tmp_path / "a.gguf", SPEC), adapter)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"general.type": "model"}, "general.type.*expected adapter, got model"),
            ({"adapter.type": None}, "adapter.type.*expected lora, got none"),
            ({"adapter.lora.alpha": "2"}, "alpha.*expected a number, got 2"),
            ({"adapter.lora.alpha": None}, "alpha.*expected a number, got none"),
            ({"adapter.lora.alpha": np.float32(np.inf)}, "alpha.*expected a number, got inf"),
            ({"general.architecture": "llama"}, "general.architecture.*expected bitnet, got llama"),
        ],
    )
    def test_what_a_file_says_is_checked(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        self.write(tmp_path / "a.gguf", random_adapter(SPEC), SPEC, **changes)
        with pytest.raises(FormatError, match=message):
            bitnet_core.load_adapter(tmp_path / "a.gguf", SPEC)

    def test_tensors_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.gguf"
        down, up = random_adapter(SPEC).weights["layers.0.attn.q"]
        metadata = {"general.architecture": "bitnet", "general.type": "adapter", "adapter.type": "lora"}
        metadata |= {"adapter.lora.alpha": np.float32(1)}
        a, b = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
        for blobs, error, message in (
            ([(a, down)], FormatError, "lora_b' beside its partner"),
            ([(a, down), (b, up[:-1])], FormatError, r"lora_b' shape.*expected \[128, 5\]"),
            ([(a, down * np.nan), (b, up)], FormatError, "finite numbers"),
            ([(a, down), (b, up), ("output.weight.lora_a", down)], UnsupportedError, "output.weight.lora_a"),
            ([("blk.2.attn_q.weight.lora_a", down)], UnsupportedError, "2 layers"),
        ):
            gguf.write(path, metadata, [gguf.blob(name, np.ascontiguousarray(array)) for name, array in blobs])
            with pytest.raises(error, match=message):
                bitnet_core.load_adapter(path, SPEC)
