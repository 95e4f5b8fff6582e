"""Models in transformers' own classes, from a shape or from anything that core reads; and back to core's types."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial, reduce
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812  # as all of torch's users call it
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import bitnet_core
from bitnet_core import Model, ModelSpec, TernaryTensor, UnsupportedError, Weights
from bitnet_core.chat import ChatTemplate
from bitnet_core.families import FAMILIES
from bitnet_core.formats.huggingface.config import config_of, parse_config, spec_from_config
from bitnet_core.formats.huggingface.names import file_name, is_shifted_norm, names_in_layer
from bitnet_core.hub import resolve
from bitnet_core.model import Weight
from bitnet_core.tokenizer import Tokenizer
from bitnet_quant import Recipe

from .linear import BitLinear
from .packed import PackedLinear
from .replace import PROJECTIONS, make_ternary, projections

Form = Literal["masters", "packed", "float"]


def build(spec: ModelSpec, recipe: Recipe | None = PROJECTIONS, *, embedding_std: float = 0.02) -> PreTrainedModel:
    """A model of random numbers, drawn from torch's generator; without a recipe it is the float twin.

    Matrices that write into the residual stream begin smaller the more layers there are, so that its variance does
    not grow with depth. `embedding_std` is that of the embedding's numbers.
    """
    model = _empty(spec)
    embedding: Any = model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight.mul_(embedding_std / model.config.initializer_range)
    for canonical, name in projections(model).items():
        if canonical.endswith((".attn.o", ".ffn.down")):
            with torch.no_grad():
                model.get_parameter(f"{name}.weight").div_((2 * spec.layers) ** 0.5)
    _make_ternary(model, spec, recipe)
    return model


def add_dropout(model: nn.Module, rate: float) -> None:
    """Let a part of what the embedding, attention and the feed-forward put out be dropped while the model trains.

    Hooks do it, so no weight gets another name, and no file knows of it.
    """
    inner = {name.rpartition(".")[0] for name in projections(model).values()}
    embedding: Any = model.get_input_embeddings
    for module in (embedding(), *map(model.get_submodule, sorted(inner))):
        module.register_forward_hook(partial(_dropped, rate))


def _dropped(rate: float, module: nn.Module, _inputs: object, output: Any) -> Any:
    if isinstance(output, tuple):  # of attention, with what it weighed
        return (F.dropout(output[0], rate, module.training), *output[1:])
    return F.dropout(output, rate, module.training)


def load(
    name: str | os.PathLike[str], form: Form = "masters", *, norms: Literal["block", "projection"] | None = None
) -> PreTrainedModel:
    """The model of a folder, a GGUF file or a name on the hub, as `from_core` makes it.

    Floats that a folder calls masters stay what they are: only a `packed` model ternarizes them now. `norms` inserts
    sub-norms as `with_norms` does.
    """
    path = resolve(os.fspath(name))
    folder = path.is_dir() and (path / "config.json").exists()
    model = bitnet_core.load(path, masters=False) if folder and form != "packed" else bitnet_core.load(path)
    return from_core(with_norms(model, norms) if norms else model, form)


def with_norms(model: Model, norms: Literal["block", "projection"]) -> Model:
    """A model with norms of ones in front of each projection, or of attention's and the feed-forward's last.

    A Llama with the latter is a BitNet: transformers has a class for it, and for no other family.
    """
    spec = model.spec
    if norms not in ("block", "projection"):
        raise ValueError(f"norms: expected block or projection, got {norms!r}")
    if spec.sub_norms != "none":
        raise ValueError(f"norms: expected a model without sub-norms, got one with those of a {spec.sub_norms}")
    if norms == "block" and spec.family != "llama":
        raise UnsupportedError(f"sub-norms of a block can be inserted in llama, not in {spec.family}; projections' can")
    family = "bitnet" if norms == "block" else spec.family
    changed = replace(spec, family=family, sub_norms=norms, sub_norm_eps=spec.norm_eps)
    makers: dict[str, Callable[[], Weight]] = {name: partial(model.weights.__getitem__, name) for name in model.weights}
    for name, shape in changed.shapes().items():
        makers.setdefault(name, partial(np.ones, shape, np.float32))
    return replace(model, spec=changed, weights=Weights(makers))


def from_core(model: Model, form: Form = "masters", recipe: Recipe = PROJECTIONS) -> PreTrainedModel:
    """A model's weights in transformers' class, one at a time.

    `masters`: what the recipe calls ternary trains as floats, which round to what they were where that was ternary.
    `packed`: ternary projections stay packed, and nothing trains. `float`: plain floats times plain floats.
    """
    if form not in get_args(Form):
        raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
    spec = model.spec
    with init_empty_weights():
        made = _empty(spec)
    packed: set[str] = set()
    if form == "packed":
        packed = _place_packed(made, model)
    else:
        _make_ternary(made, spec, recipe if form == "masters" else None)
    state = {hf: _tensor(model, name, form) for name, hf in _file_names(spec).items() if name not in packed}
    if lost := made.load_state_dict(state, strict=False, assign=True).unexpected_keys:
        raise UnsupportedError(f"transformers' {type(made).__name__} has no place for {lost[0]}")
    made.tie_weights()
    if empty := [name for name, value in made.named_parameters() if value.is_meta]:
        raise UnsupportedError(f"transformers' {type(made).__name__} has a weight that this model has not: {empty[0]}")
    made.requires_grad_(form != "packed").train(False)
    return made


def _empty(spec: ModelSpec) -> PreTrainedModel:
    make: Any = AutoModelForCausalLM.from_config
    made: PreTrainedModel = make(_config(spec), dtype=torch.float32)
    return made


def _config(spec: ModelSpec) -> Any:
    """transformers' configuration of a spec."""
    values = config_of(spec, packed=False)
    if spec.pooling != "none":
        raise UnsupportedError("a model that only makes embeddings has no head to train; load a causal one")
    if spec.sub_norms == "block" and spec.heads * spec.head_size != spec.hidden_size:
        raise UnsupportedError(
            f"transformers' BitNet has heads as wide as its stream: {spec.hidden_size}, not "
            f"{spec.heads} x {spec.head_size}"
        )
    kind, _ = values.pop("model_type"), values.pop("architectures")
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    try:
        return AutoConfig.for_model(kind, **values, **ids)
    except (KeyError, ValueError) as error:
        raise UnsupportedError(f"transformers has no class for {kind}; it can be run, not trained") from error


def _file_names(spec: ModelSpec) -> dict[str, str]:
    """transformers' names of all weights, by their canonical ones."""
    # Several of the file's names may mean one weight: the first of them is what modules here are called.
    in_layer = {canonical: hf for hf, canonical in reversed(names_in_layer(post_norms=spec.post_norms))}
    return {name: file_name(name, in_layer) for name in spec.shapes()}


def _make_ternary(made: nn.Module, spec: ModelSpec, recipe: Recipe | None) -> None:
    normed = spec.sub_norms == "projection"
    if recipe is not None:
        make_ternary(made, recipe, norm_eps=spec.sub_norm_eps if normed else None)
    elif normed:
        raise UnsupportedError("a norm in front of each projection is part of ternary layers; the floats have none")


def _place_packed(made: nn.Module, model: Model) -> set[str]:
    """Put packed layers in place of the ternary projections; gives the names of their weights."""
    spec = model.spec
    placed = set()
    for canonical, name in projections(made).items():
        weight = model.weights[canonical]
        if not isinstance(weight, TernaryTensor):
            continue
        norm_eps = spec.sub_norm_eps if spec.sub_norms == "projection" else None
        made.set_submodule(name, PackedLinear(weight, bias=f"{canonical}.bias" in spec.shapes(), norm_eps=norm_eps))
        placed.add(canonical)
    if not placed or spec.inputs != "int8":
        raise UnsupportedError("a packed base has ternary weights that multiply int8; masters and float load others")
    return placed


def _tensor(model: Model, name: str, form: Form) -> Tensor:
    """A weight as transformers stores it, float32, in memory of its own."""
    weight = model.weights[name]
    if isinstance(weight, TernaryTensor):
        masters = form == "masters" and name.startswith("layers.")
        return torch.from_numpy(masters_of(weight) if masters else weight.dense())
    values = np.array(weight, np.float32)
    if is_shifted_norm(name):
        values -= np.float32(FAMILIES[model.spec.family].norm_offset)
    return torch.from_numpy(values)


def masters_of(weight: TernaryTensor) -> npt.NDArray[np.float32]:
    """Floats whose mean magnitude is a ternary matrix's scale, and which round to its codes."""
    if weight.scale.size != 1:
        raise UnsupportedError(f"a matrix of {weight.scale.size} scales is not BitNet's; it can be run, not trained")
    codes = weight.codes().astype(np.float32)
    density = max(float(np.abs(codes).mean(dtype=np.float64)), 1 / codes.size)
    return codes * np.float32(weight.scale.item() / density)


def to_core(
    model: nn.Module,
    *,
    tokenizer: Tokenizer | None = None,
    template: ChatTemplate | None = None,
    sampling: Mapping[str, float] | None = None,
    adapted: bool = False,
    masters: bool = False,
) -> Model:
    """What is trained as core has it: weights are read when they are asked for, ternary as they are multiplied.

    `adapted` takes the base of a model that has adapters, which are left out. `masters` takes the floats that train.
    """
    if adapted:
        model = getattr(model, "get_base_model", lambda: model)()
    elif any(hasattr(module, "base_layer") for module in model.modules()):
        raise UnsupportedError("a model with adapters is no model of core's; merge them, or save them with lora")
    spec = spec_of(model)
    makers: dict[str, Callable[[], Weight]] = {}
    for name, hf in _file_names(spec).items():
        owner, _, attribute = hf.rpartition(".")
        module = reduce(lambda outer, part: _plain(getattr(outer, part)), owner.split("."), model)
        if masters and isinstance(module, PackedLinear):
            raise UnsupportedError(f"{name} is packed and has no masters; a packed folder or a GGUF file holds it")
        if attribute == "weight" and isinstance(module, BitLinear | PackedLinear) and not masters:
            makers[name] = partial(_ternary, module, name)
        else:
            shift = FAMILIES[spec.family].norm_offset if is_shifted_norm(name) else 0.0
            makers[name] = partial(_array, getattr(module, attribute), name, shift)
    if masters:
        spec = replace(spec, inputs="float")
    return Model(spec, Weights(makers), tokenizer, template, sampling or {})


def spec_of(model: nn.Module) -> ModelSpec:
    """The shape of a model, with the norms and the rounding that its projections have."""
    config = getattr(model, "config", None)
    if not isinstance(model, PreTrainedModel) or config is None:
        raise UnsupportedError(f"a causal model of transformers has a shape that is known, not {type(model).__name__}")
    layers = [_plain(model.get_submodule(name)) for name in projections(model).values()]
    ternary = [layer for layer in layers if isinstance(layer, BitLinear | PackedLinear)]
    norms = [layer.rms_norm for layer in ternary if layer.rms_norm is not None]
    if norms and len(norms) != len(layers):
        raise UnsupportedError(f"norms stand in front of all projections or of none, not of {len(norms)}")
    where = type(model).__name__
    spec = spec_from_config(
        parse_config(config.to_dict(), where),
        where,
        inputs="int8" if ternary else "float",
        projection_norms=bool(norms),
    )
    return replace(spec, sub_norm_eps=norms[0].eps) if norms and norms[0].eps is not None else spec


def _plain(module: Any) -> Any:
    return getattr(module, "base_layer", module)  # PEFT's layers stand around those that they adapt


def _ternary(module: BitLinear | PackedLinear, name: str) -> TernaryTensor:
    tensor = module.tensor()
    if not np.isfinite(tensor.scale).all():
        raise _not_finite(name)
    return tensor


def _array(tensor: Tensor, name: str, shift: float) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise _not_finite(name)
    return values + np.float32(shift) if shift else values


def _not_finite(name: str) -> UnsupportedError:
    return UnsupportedError(f"{name} holds numbers that are not finite: the training has diverged; go back in it")
