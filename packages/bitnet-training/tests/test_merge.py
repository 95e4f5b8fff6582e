from __future__ import annotations

import numpy as np
import pytest
import torch

from bitnet_core import Adapter, Model, Step, TernaryTensor, UnsupportedError, reference
from bitnet_core.testing import logits_of, random_model, some_tokens, tiny_spec
from bitnet_quant import Method
from bitnet_training.linear import BitLinear
from bitnet_training.lora import adapter_of, add_adapter
from bitnet_training.merge import fold, merge
from bitnet_training.models import build, from_core, to_core

SPEC = tiny_spec()
WINDOWS = [some_tokens(SPEC, 20, seed) for seed in (1, 2)]


def ternary(model: Model, name: str) -> TernaryTensor:
    weight = model.weights[name]
    assert isinstance(weight, TernaryTensor)
    return weight


def replacing_rows(model: Model, name: str, rows: int) -> Adapter:
    """An adapter that turns the first rows of a matrix around."""
    dense = ternary(model, name).dense()
    up = np.zeros((len(dense), rows), np.float32)
    up[np.arange(rows), np.arange(rows)] = 1
    return Adapter("turned", {name: (-2 * dense[:rows], up)})


def test_a_change_that_trits_can_say_is_merged_whole() -> None:
    base = random_model(SPEC)
    adapter = replacing_rows(base, "layers.0.ffn.up", 3)
    merged = merge(base, adapter, WINDOWS)
    before, after = (ternary(model, "layers.0.ffn.up").codes() for model in (base, merged.model))
    np.testing.assert_array_equal(after[:3], -before[:3])
    np.testing.assert_array_equal(after[3:], before[3:])
    flips = merged.flips["layers.0.ffn.up"]
    assert (flips.trits, flips.flipped) == (before.size, np.count_nonzero(before[:3]))
    assert flips.scale_after == pytest.approx(flips.scale_before, rel=1e-6)
    assert merged.quality is not None
    assert merged.base_quality is not None
    # What is left: an adapter multiplies floats, and trits what they are rounded to.
    assert 0 < merged.quality.divergence < 0.1 * merged.base_quality.divergence
    assert merged.quality.tokens == 38


def test_other_weights_stay_as_they_are() -> None:
    base = random_model(SPEC)
    merged = merge(base, replacing_rows(base, "layers.0.ffn.up", 3))
    assert merged.quality is None
    assert merged.model.weights["layers.1.ffn.up"] is base.weights["layers.1.ffn.up"]
    assert merged.model.weights["norm"] is base.weights["norm"]


def test_a_change_too_small_for_trits_is_lost_and_the_report_says_what_that_costs() -> None:
    base = random_model(SPEC)
    random = np.random.default_rng(0)
    small = {"layers.0.attn.o": (random.normal(0, 0.01, (2, 128)), random.normal(0, 0.01, (128, 2)))}
    adapter = Adapter("small", {name: (a.astype(np.float32), b.astype(np.float32)) for name, (a, b) in small.items()})
    merged = merge(base, adapter, WINDOWS)
    assert merged.flips["layers.0.attn.o"].flipped == 0
    assert merged.quality is not None
    assert merged.quality.divergence > 0
    lines = merged.table().splitlines()
    assert lines[1].split()[:4] == ["layers.0.attn.o", "16384", "0", "0.000%"]
    assert lines[-2].startswith("merged: ")
    assert lines[-1].endswith("nats a token from base and adapter, over 38")


def test_the_method_can_be_chosen() -> None:
    base = random_model(SPEC)
    adapter = replacing_rows(base, "layers.0.ffn.up", 3)
    by_mean = ternary(merge(base, adapter, method=Method("absmean")).model, "layers.0.ffn.up")
    density = np.count_nonzero(by_mean.codes()) / by_mean.codes().size
    expected = ternary(base, "layers.0.ffn.up").scale.item() * density
    assert by_mean.scale.item() == pytest.approx(expected, rel=1e-4)  # why it is not the default


def test_floats_are_not_merged_into() -> None:
    torch.manual_seed(0)
    floats = to_core(build(SPEC, None))
    adapter = replacing_rows(random_model(SPEC), "layers.0.ffn.up", 1)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.ffn\.up: an adapter is merged into ternary matrices"):
        merge(floats, adapter)


def test_masters_take_up_an_adapter_and_round_as_before() -> None:
    torch.manual_seed(0)
    base = build(SPEC).eval()
    before = {name: base.get_parameter(f"{name}.weight").detach().clone() for name in ("model.layers.0.mlp.up_proj",)}
    model = add_adapter(base, rank=2, alpha=4, targets=("up",)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.02)
    adapter = adapter_of(model)
    folded, merged = fold(model, WINDOWS)
    down, up = adapter.weights["layers.0.ffn.up"]
    layer = folded.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, BitLinear)
    expected = before["model.layers.0.mlp.up_proj"].numpy() + up @ down
    np.testing.assert_allclose(layer.weight.detach(), expected, atol=1e-6)
    assert 0 < merged.flips["layers.0.ffn.up"].flipped < 0.5 * 128 * 256
    assert merged.quality is not None
    tokens = WINDOWS[0]
    runner = reference.load(merged.model)
    with torch.no_grad():
        found = folded(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    said = logits_of(runner, Step(tokens, runner.new_cache(), "all"))
    np.testing.assert_allclose(found[0], said[0], atol=1e-4)


def test_from_a_packed_base_to_a_merged_one() -> None:
    base = random_model(SPEC)
    torch.manual_seed(0)
    model = add_adapter(from_core(base, "packed"), rank=2, alpha=4, targets=("q", "down"))
    merged = merge(base, adapter_of(model))  # an adapter begins as no change
    assert set(merged.flips) == {f"layers.{i}.{name}" for i in (0, 1) for name in ("attn.q", "ffn.down")}
    assert all(flips.flipped == 0 for flips in merged.flips.values())
