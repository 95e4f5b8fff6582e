from __future__ import annotations

import pytest
import torch
from torch import nn

from bitnet_core import UnsupportedError
from bitnet_core.testing import tiny_spec
from bitnet_quant import Method, Recipe, Rule
from bitnet_training.linear import BitLinear
from bitnet_training.models import build
from bitnet_training.replace import make_ternary, projection_of, projections

FAMILIES = {
    "bitnet": tiny_spec(),
    "llama": tiny_spec(family="llama", activation="silu", sub_norms="none", tied=False),
    "qwen3": tiny_spec(family="qwen3", activation="silu", sub_norms="none", qk_norm=True, norm_eps=1e-6),
    "gemma3": tiny_spec(
        family="gemma3", activation="gelu", sub_norms="none", qk_norm=True, post_norms=True, embedding_scale=128**0.5
    ),
}


def bit_linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BitLinear)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seven_projections_of_every_layer_become_ternary_and_nothing_else(family: str) -> None:
    model = build(FAMILIES[family], None)
    weights = {name: value.data_ptr() for name, value in model.named_parameters()}
    assert make_ternary(model) == 14
    assert all(projection_of(name) for name in bit_linears(model))
    assert type(model.get_submodule("lm_head")) is nn.Linear
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == weights


def test_a_recipe_decides_by_canonical_names() -> None:
    model = build(FAMILIES["llama"], None)
    recipe = Recipe((Rule("layers.0.*", "float"), Rule("*.ffn.down", "float"), Rule("layers.*", "ternary")))
    assert make_ternary(model, recipe) == 6
    assert {projection_of(name) for name in bit_linears(model)} == {
        f"layers.1.{name}" for name in ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up")
    }


def test_norms_are_put_in_front_where_they_are_asked_for() -> None:
    model = build(FAMILIES["qwen3"], None)
    make_ternary(model, norm_eps=1e-6)
    norms = [model.get_submodule(name).rms_norm for name in bit_linears(model)]
    assert len(norms) == 14
    assert {norm.eps for norm in norms if isinstance(norm, nn.RMSNorm)} == {1e-6}


def test_layers_that_are_ternary_already_are_left_alone() -> None:
    model = build(FAMILIES["llama"], Recipe((Rule("layers.0.*", "ternary"),)))
    before = {name: model.get_submodule(name) for name in bit_linears(model)}
    assert make_ternary(model) == 7
    assert all(model.get_submodule(name) is module for name, module in before.items())


def test_a_model_keeps_its_device_and_its_mode() -> None:
    model = build(FAMILIES["llama"], None).to("meta").train(False)
    make_ternary(model)
    made = model.get_submodule(bit_linears(model)[0])
    assert isinstance(made, BitLinear)
    assert made.weight.is_meta
    assert not made.training
    assert not made.strength.is_meta  # no file will hold it


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe((Rule("layers.*", "int8"),)), "by absmean and a scale a tensor, not int8"),
        (Recipe((Rule("*", "ternary", Method("optimal")),)), "not optimal and a scale a tensor"),
        (Recipe((Rule("*", "ternary", Method(scales="row")),)), "not absmean and a scale a row"),
    ],
)
def test_what_cannot_be_trained_is_refused(recipe: Recipe, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        make_ternary(build(FAMILIES["llama"], None), recipe)


def test_a_recipe_that_makes_nothing_ternary_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a rule that makes a projection of this model ternary, got none"):
        make_ternary(build(FAMILIES["llama"], None), Recipe((Rule("layer.*", "ternary"),)))


def test_a_model_of_other_layers_is_refused_by_its_name() -> None:
    with pytest.raises(UnsupportedError, match=r"Sequential has no layers with q_proj, k_proj, \.\.\. and down_proj"):
        make_ternary(torch.nn.Sequential(torch.nn.Linear(4, 4)))


def test_a_layer_that_is_no_plain_linear_layer_is_refused() -> None:
    model = build(FAMILIES["llama"], None)
    model.set_submodule("model.layers.0.mlp.up_proj", torch.nn.LazyLinear(4))
    with pytest.raises(UnsupportedError, match=r"up_proj: a plain nn\.Linear can be made ternary, not LazyLinear"):
        make_ternary(model)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("model.layers.3.self_attn.q_proj", "layers.3.attn.q"),
        ("layers.12.mlp.down_proj", "layers.12.ffn.down"),
        ("base_model.model.model.layers.0.mlp.gate_proj", "layers.0.ffn.gate"),
        ("model.layers.3.self_attn.q_proj.base_layer", None),
        ("model.layers.3.self_attn.q_norm", None),
        ("lm_head", None),
    ],
)
def test_projections_are_known_by_the_end_of_their_names(name: str, canonical: str | None) -> None:
    assert projection_of(name) == canonical


def test_projections_are_listed_by_canonical_name() -> None:
    assert projections(build(FAMILIES["bitnet"]))["layers.1.attn.o"] == "model.layers.1.self_attn.o_proj"
