from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bitnet_core
from bitnet_core import FormatError, Model, Step, UnsupportedError, reference
from bitnet_core.testing import logits_of, random_model, some_tokens, tiny_spec
from bitnet_quant import digest
from bitnet_training.lora import adapter_of, add_adapter, load_adapter, save_adapter
from bitnet_training.models import from_core, to_core, with_norms

LLAMA = tiny_spec(family="llama", activation="silu", sub_norms="none", tied=False)
BASES = {
    "bitnet": random_model(tiny_spec()),
    "llama": random_model(LLAMA),
    "projection norms": with_norms(random_model(LLAMA), "projection"),
}


def logits(model: nn.Module, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: torch.Tensor = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return found.numpy()


def adapted(base: Model, form: Any, **options: Any) -> peft.PeftModel:
    """A base with an adapter that changes something."""
    torch.manual_seed(4)
    model = add_adapter(from_core(base, form), rank=4, alpha=6, **options)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.02)
    return model.eval()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("form", ["masters", "packed"])
def test_core_adds_what_was_trained(base: str, form: str) -> None:
    model, tokens = adapted(BASES[base], form), some_tokens(LLAMA, 16)
    runner = reference.load(BASES[base])
    expected = logits_of(runner, Step(tokens, runner.new_cache(), "all", adapter=adapter_of(model)))
    found = logits(model, tokens)
    assert np.abs(found[0] - expected[0]).max() < 1e-4
    assert np.abs(found - expected).max() < 2e-2 * np.ptp(expected)  # where an activation stands at a tie
    plain = logits(from_core(BASES[base], form), tokens)  # type: ignore[arg-type]
    assert np.abs(found - plain).max() > 0.03 * np.ptp(expected)


def test_an_adapter_learns_while_a_packed_base_stays_as_it_is() -> None:
    torch.manual_seed(0)
    base = random_model(tiny_spec())
    model = add_adapter(from_core(base, "packed"), rank=8, alpha=16).train()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert len(trained) == 28
    assert all("lora_" in name for name in trained)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name not in trained}
    tokens = torch.randint(0, 96, (4, 24))
    adam = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    losses = []
    for _ in range(25):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert digest(to_core(model, adapted=True)) == digest(base)


@pytest.mark.parametrize("form", ["masters", "packed"])
def test_a_saved_adapter_is_pefts_and_comes_back(form: Any, tmp_path: Path) -> None:
    base, tokens = BASES["projection norms"], some_tokens(LLAMA, 8)
    model = adapted(base, form, targets=("q", "down"))
    save_adapter(model, tmp_path)
    again = load_adapter(from_core(base, form), tmp_path).eval()
    np.testing.assert_array_equal(logits(again, tokens), logits(model, tokens))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 6)
    assert sorted(config["target_modules"]) == ["down_proj", "q_proj"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert len(tensors) == 8
    first = "base_model.model.model.layers.0.self_attn.q_proj"
    down, up = adapter_of(model).weights["layers.0.attn.q"]
    np.testing.assert_array_equal(tensors[f"{first}.lora_A.weight"], down)
    np.testing.assert_allclose(tensors[f"{first}.lora_B.weight"] * 6 / 4, up, rtol=1e-6)


def test_core_reads_what_was_saved(tmp_path: Path) -> None:
    model = adapted(BASES["bitnet"], "packed")
    save_adapter(model, tmp_path)
    found, expected = bitnet_core.load_adapter(tmp_path, tiny_spec()), adapter_of(model)
    assert set(found.weights) == set(expected.weights)
    for name, (down, up) in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name][0], down)
        np.testing.assert_allclose(found.weights[name][1], up, rtol=1e-6)


def test_what_core_saves_is_trained_on(tmp_path: Path) -> None:
    base, tokens = BASES["bitnet"], some_tokens(LLAMA, 8)
    model = adapted(base, "packed")
    bitnet_core.save_adapter(adapter_of(model), tmp_path, tiny_spec())
    again = load_adapter(from_core(base, "packed"), tmp_path).eval()
    np.testing.assert_allclose(logits(again, tokens)[0], logits(model, tokens)[0], atol=1e-4)


def test_an_adapter_is_trained_on(tmp_path: Path) -> None:
    save_adapter(adapted(BASES["llama"], "packed"), tmp_path)
    model = load_adapter(from_core(BASES["llama"], "packed"), tmp_path, trains=True)
    assert sum(value.requires_grad for value in model.parameters()) == 28


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    save_adapter(adapted(BASES["llama"], "packed"), tmp_path)
    other = from_core(random_model(LLAMA, seed=1), "packed")
    with pytest.raises(FormatError, match=r"base\.json: trits: expected [0-9a-f]{12}\.\.\., those of this base, got"):
        load_adapter(other, tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_refused(name: str, tmp_path: Path) -> None:
    save_adapter(adapted(BASES["llama"], "packed"), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FormatError, match=f"{name}: expected a file in this folder"):
        load_adapter(from_core(BASES["llama"], "packed"), tmp_path)


def test_pefts_own_layers_on_bit_linear_give_the_same_where_no_norm_is_part_of_it() -> None:
    model, tokens = adapted(BASES["llama"], "masters"), some_tokens(LLAMA, 8)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=r".*_proj", task_type="CAUSAL_LM")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # which is between PEFT and transformers
        plain = peft.get_peft_model(from_core(BASES["llama"], "masters"), config)
    plain.load_state_dict(model.state_dict())
    np.testing.assert_allclose(logits(plain.eval(), tokens), logits(model, tokens), atol=1e-5)


def test_disabled_it_is_the_base() -> None:
    model, tokens = adapted(BASES["bitnet"], "packed"), some_tokens(LLAMA, 8)
    with model.disable_adapter():
        found = logits(model, tokens)
    np.testing.assert_array_equal(found, logits(from_core(BASES["bitnet"], "packed"), tokens))


def test_masters_take_it_up_and_give_it_back() -> None:
    model, tokens = adapted(BASES["bitnet"], "masters"), some_tokens(LLAMA, 8)
    base = logits(from_core(BASES["bitnet"], "masters"), tokens)
    apart = logits(model, tokens)
    model.merge_adapter()
    together = logits(model, tokens)
    assert np.abs(together - apart).max() > 1e-3  # now it is rounded, too
    with model.disable_adapter():
        np.testing.assert_allclose(logits(model, tokens)[0], base[0], atol=1e-4)


class TestRefusals:
    def test_of_packed_weights_to_take_up_an_adapter(self) -> None:
        with pytest.raises(UnsupportedError, match="packed weights cannot take up an adapter"):
            adapted(BASES["llama"], "packed").merge_and_unload()

    def test_of_projections_that_there_are_not(self) -> None:
        with pytest.raises(ValueError, match=r"targets: expected some of q, k, v, o, gate, up, down, got qkv"):
            add_adapter(from_core(BASES["llama"]), targets=("q", "qkv"))
        with pytest.raises(ValueError, match="got none"):
            add_adapter(from_core(BASES["llama"]), targets=())

    def test_of_adapters_by_names_that_there_are_not(self) -> None:
        with pytest.raises(ValueError, match="name: expected one of default, got 'other'"):
            adapter_of(adapted(BASES["llama"], "packed"), "other")

    def test_of_models_with_adapters_where_plain_ones_are_meant(self) -> None:
        with pytest.raises(UnsupportedError, match="a model with adapters is no model of core's"):
            to_core(adapted(BASES["llama"], "packed"))
