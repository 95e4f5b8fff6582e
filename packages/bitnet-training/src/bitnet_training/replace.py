"""Linear layers of transformers' models made ternary, as a recipe says."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from bitnet_core import UnsupportedError
from bitnet_quant import Method, Recipe, Rule

from .linear import BitLinear

# All seven projections of every layer, and nothing else: as every published BitNet is made.
PROJECTIONS = Recipe((Rule("layers.*", "ternary"),))

_MODULE = re.compile(r"(?:^|\.)layers\.(\d+)\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj$")
_FOLDERS = {"self_attn": "attn", "mlp": "ffn"}


def projection_of(name: str) -> str | None:
    """The canonical name of the weight of a module, as in "layers.3.attn.q"; None for one that is no projection."""
    found = _MODULE.search(name)
    return found and f"layers.{found[1]}.{_FOLDERS[found[2]]}.{found[3]}"


def projections(model: nn.Module) -> Mapping[str, str]:
    """The names of the modules that are projections of layers, by the canonical names of their weights."""
    return {canonical: name for name, _ in model.named_modules() if (canonical := projection_of(name))}


def make_ternary(model: nn.Module, recipe: Recipe = PROJECTIONS, *, norm_eps: float | None = None) -> int:
    """Replace what a recipe calls ternary by BitLinear, which takes over weights and biases; gives how many.

    Names are canonical, as in "layers.*.ffn.down"; the head and the embedding stay floats. `norm_eps` puts an RMS
    norm in front of each layer that is replaced.
    """
    count, known = 0, projections(model)
    if not known:
        raise UnsupportedError(
            f"{type(model).__name__} has no layers with q_proj, k_proj, ... and down_proj, as Llama has"
        )
    for canonical, name in known.items():
        rule, module = recipe.rule(canonical), model.get_submodule(name)
        if rule.form == "float" or isinstance(module, BitLinear):
            continue
        _check_rule(canonical, rule)
        if type(module) is not nn.Linear:
            raise UnsupportedError(f"{name}: a plain nn.Linear can be made ternary, not {type(module).__name__}")
        model.set_submodule(name, _replaced(module, norm_eps))
        count += 1
    if not count:
        raise ValueError("recipe: expected a rule that makes a projection of this model ternary, got none")
    return count


def _check_rule(name: str, rule: Rule) -> None:
    if rule.form != "ternary" or rule.method != Method():
        got = rule.form if rule.form != "ternary" else f"{rule.method.rule} and a scale a {rule.method.scales}"
        raise UnsupportedError(f"{name}: training makes weights ternary by absmean and a scale a tensor, not {got}")


def _replaced(module: nn.Linear, norm_eps: float | None) -> BitLinear:
    """A BitLinear around the very parameters of a linear layer."""
    weight, bias = module.weight, module.bias
    with torch.device("meta"):
        made = BitLinear(weight.shape[1], weight.shape[0], bias is not None)
    made.weight, made.bias = weight, bias
    # Weights that are still to be loaded have no memory; what is no weight has to have.
    device = None if weight.is_meta else weight.device
    made.register_buffer("strength", torch.ones((), device=device), persistent=False)
    if norm_eps is not None:
        made.rms_norm = nn.RMSNorm(weight.shape[1], norm_eps, device=weight.device, dtype=weight.dtype)
    return made.train(module.training)
