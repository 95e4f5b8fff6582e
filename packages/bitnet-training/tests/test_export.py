from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import bitnet_core
from bitnet_core import Model, TernaryTensor, UnsupportedError, generate, reference
from bitnet_core.chat import ChatTemplate
from bitnet_core.formats import huggingface
from bitnet_core.testing import random_model, some_tokens, tiny_spec
from bitnet_quant import Recipe, Rule, digest
from bitnet_training.export import export
from bitnet_training.linear import BitLinear
from bitnet_training.models import build, from_core, to_core, with_norms

LLAMA = tiny_spec(family="llama", activation="silu", sub_norms="none", tied=False)
PROMPT = "Once upon a time, Lily found a"
COUNT = 24


@pytest.fixture(autouse=True)
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers compiles its own ternary layers, which takes longer than all that is tested here."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")


@pytest.fixture(scope="module")
def story(stories: Path) -> Model:
    return bitnet_core.load(stories)


def greedy(model: nn.Module, prompt: np.ndarray) -> list[int]:
    tokens = torch.from_numpy(prompt.astype(np.int64))[None]
    with torch.no_grad():
        found = model.generate(  # type: ignore[operator]
            tokens,
            attention_mask=torch.ones_like(tokens),  # else what looks like padding is masked
            max_new_tokens=COUNT,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return found[0, len(prompt) :].tolist()


def core_greedy(model: Model, prompt: np.ndarray) -> list[int]:
    return list(generate(reference.load(model), prompt, count=COUNT))


def logits(model: nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: torch.Tensor = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return found.numpy()


def test_transformers_knows_where_a_text_ends_where_sampling_is_advised(story: Model, tmp_path: Path) -> None:
    huggingface.save(replace(story, sampling={"temperature": 0.5}), tmp_path)
    advised = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (advised.temperature, advised.bos_token_id, advised.eos_token_id) == (0.5, 0, [0])


def from_transformers(folder: Path) -> nn.Module:
    import transformers

    made: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return made


@pytest.mark.parametrize("form", ["packed", "masters"])
def test_floats_of_a_model_in_bfloat16_are_written_as_they_are(form: Any, tmp_path: Path) -> None:
    model = from_core(random_model(tiny_spec())).bfloat16()
    export(model, tmp_path / "half", form)
    export(model.float(), tmp_path / "whole", form)
    half, whole = (bitnet_core.load(tmp_path / name, masters=False).weights for name in ("half", "whole"))
    for name in ("embedding", "norm"):
        np.testing.assert_array_equal(np.asarray(half[name], np.float32), np.asarray(whole[name], np.float32))
    small, large = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole"))
    assert small < large - model.get_input_embeddings().weight.nbytes / 3


@pytest.mark.parametrize("form", ["packed", "masters", "i2_s", "tq1_0", "tq2_0"])
def test_a_trained_model_goes_on_with_the_same_tokens(story: Model, form: Any, tmp_path: Path) -> None:
    model = from_core(story)
    if form == "masters":  # as they are once they have trained: no two of one magnitude
        torch.manual_seed(0)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, BitLinear):
                    module.weight.add_(0.02 * module.weight.abs().mean() * torch.randn_like(module.weight))
    assert story.tokenizer is not None
    prompt = story.tokenizer.encode(PROMPT)
    said = greedy(model, prompt)
    path = tmp_path if form in ("packed", "masters") else tmp_path / "model.gguf"
    export(model, path, form, tokenizer=story.tokenizer, sampling={"temperature": 0.5})
    again = bitnet_core.load(path)
    assert core_greedy(again, prompt) == said
    assert digest(again) == digest(to_core(model)) == digest(story)
    assert again.sampling["temperature"] == 0.5
    assert again.tokenizer is not None
    assert again.tokenizer.encode(PROMPT).tolist() == prompt.tolist()
    if path.is_dir():
        assert greedy(from_transformers(path), prompt) == said


def test_a_packed_base_is_written_as_it_was_read(story: Model, tmp_path: Path) -> None:
    export(from_core(story, "packed"), tmp_path, tokenizer=story.tokenizer)
    again = bitnet_core.load(tmp_path)
    for name in story.weights:
        before, after = story.weights[name], again.weights[name]
        if isinstance(before, TernaryTensor):
            assert isinstance(after, TernaryTensor)
            np.testing.assert_array_equal(after.data, before.data)
            np.testing.assert_array_equal(after.scale, before.scale)
        else:
            np.testing.assert_array_equal(after, np.asarray(before, np.float32))


@pytest.mark.parametrize("norms", ["block", "projection"])
@pytest.mark.parametrize("form", ["packed", "masters"])
def test_transformers_computes_what_was_trained(form: Any, norms: Any, tmp_path: Path) -> None:
    model = from_core(with_norms(random_model(LLAMA), norms))
    export(model, tmp_path, form)
    tokens = some_tokens(LLAMA, 16)
    np.testing.assert_allclose(logits(from_transformers(tmp_path), tokens)[0], logits(model, tokens)[0], atol=1e-4)
    assert bitnet_core.load(tmp_path).spec == to_core(model).spec


@pytest.mark.parametrize("form", ["packed", "masters"])
def test_layers_that_stayed_floats_stay_so_for_all_who_read_them(form: Any, tmp_path: Path) -> None:
    torch.manual_seed(2)
    recipe = Recipe((Rule("layers.0.ffn.gate", "float"), Rule("*.attn.v", "float"), Rule("layers.*", "ternary")))
    model = build(LLAMA, recipe).eval()
    export(model, tmp_path, form)
    again, core = bitnet_core.load(tmp_path), to_core(model)
    floats = [name for name in core.weights if not isinstance(again.weights[name], TernaryTensor)]
    assert floats == [name for name in core.weights if not isinstance(core.weights[name], TernaryTensor)]
    assert {"layers.0.ffn.gate", "layers.1.attn.v"} <= set(floats)
    tokens = some_tokens(LLAMA, 16)
    np.testing.assert_allclose(logits(from_transformers(tmp_path), tokens)[0], logits(model, tokens)[0], atol=1e-4)


def test_a_float_twin_is_written_as_floats(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = build(LLAMA, None).eval()
    export(model, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    tokens = some_tokens(LLAMA, 16)
    np.testing.assert_allclose(logits(from_transformers(tmp_path), tokens), logits(model, tokens), atol=1e-6)


def test_a_chat_template_goes_along(tmp_path: Path) -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    export(build(LLAMA), tmp_path, template=template)
    again = bitnet_core.load(tmp_path).template
    assert again is not None
    assert again.source == template.source


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize("form", ["packed", "masters", "i2_s"])
def test_weights_that_are_not_finite_are_not_written(form: Any, name: str, tmp_path: Path) -> None:
    model = build(tiny_spec())
    with torch.no_grad():
        model.get_parameter(name)[3] = float("nan")
    with pytest.raises(UnsupportedError, match=r"(layers\.1\.ffn\.up|norm) holds numbers that are not finite"):
        export(model, tmp_path / "made", form)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.gguf"))


def test_masters_that_are_not_there_are_not_written(tmp_path: Path) -> None:
    model = from_core(random_model(LLAMA), "packed")
    with pytest.raises(UnsupportedError, match=r"layers\.0\.attn\.q is packed and has no masters"):
        export(model, tmp_path / "folder", "masters")
    assert not (tmp_path / "folder").exists()


def test_a_form_that_is_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="form: expected one of packed, masters, i2_s, tq1_0, tq2_0, got 'q4_0'"):
        export(build(LLAMA), tmp_path, "q4_0")  # type: ignore[arg-type]
