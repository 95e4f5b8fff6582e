"""Trained models as files: packed folders, GGUF, and folders of masters that train on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from bitnet_core import ModelSpec, UnsupportedError, layouts
from bitnet_core.chat import ChatTemplate
from bitnet_core.durable import replacing
from bitnet_core.formats import gguf, huggingface
from bitnet_core.formats.strictjson import read_json
from bitnet_core.tokenizer import Tokenizer

from .linear import BitLinear
from .models import to_core
from .packed import PackedLinear
from .replace import projections

Form = Literal["packed", "masters", "i2_s", "tq1_0", "tq2_0"]
_LAYOUTS = {"i2_s": "i2_s_128", "tq1_0": "tq1_0", "tq2_0": "tq2_0"}
_HALVES: dict[torch.dtype, Literal["bfloat16", "float16"]] = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
_CONFIG_LIMIT = 4 << 20


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    form: Form = "packed",
    *,
    tokenizer: Tokenizer | None = None,
    template: ChatTemplate | None = None,
    sampling: Mapping[str, float] | None = None,
    embedding: Literal["f16", "f32", "bf16"] = "f16",
) -> None:
    """Write a model with its tokenizer and chat template: `packed` and `masters` are folders, the others GGUF files.

    A packed folder and a GGUF file hold the trits that the model multiplies, for bitnet_core, transformers,
    bitnet.cpp (`i2_s`) and llama.cpp (`tq1_0`, `tq2_0`). TQ files round scales to float16; `embedding` is the type of
    the embedding and the head in a GGUF file, and float32 alone rounds nothing. Folders round no floats: those of a
    model in bfloat16 or float16 are written as such, others as float32.
    """
    if form not in get_args(Form):
        raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
    core = to_core(model, tokenizer=tokenizer, template=template, sampling=sampling, masters=form == "masters")
    if form in _LAYOUTS:
        gguf.save(core, path, layout=_LAYOUTS[form], embedding=embedding)
        return
    kinds = {weight.dtype for weight in model.parameters()}
    huggingface.save(core, path, floats=_HALVES.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32")
    layers = {name: model.get_submodule(name) for name in projections(model).values()}
    ternary = {name: layer for name, layer in layers.items() if isinstance(layer, BitLinear | PackedLinear)}
    if ternary and (form == "masters" or len(ternary) < len(layers)):
        floats = sorted(layers.keys() - ternary.keys())
        _say_quantization(Path(path) / "config.json", core.spec, floats, "online" if form == "masters" else "offline")


def check_form(model: nn.Module, form: str) -> None:
    """Refuse a form that cannot hold the model's matrices, before it has been trained for days."""
    if form not in _LAYOUTS:
        return
    for name in projections(model).values():
        layer: Any = model.get_submodule(name)
        if isinstance(layer, BitLinear | PackedLinear):
            try:
                layouts.get(_LAYOUTS[form]).data_shape((layer.out_features, layer.in_features))
            except UnsupportedError as error:
                raise UnsupportedError(f"export: {name}: {error}") from error


def _say_quantization(path: Path, spec: ModelSpec, floats: list[str], mode: str) -> None:
    """Tell transformers which layers it has to quantize; what core's writer says holds for all of them."""
    config: dict[str, Any] = read_json(path, limit=_CONFIG_LIMIT)
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": mode,
        "use_rms_norm": spec.sub_norms == "projection",
        "rms_norm_eps": spec.sub_norm_eps,
        "modules_to_not_convert": ["lm_head", *floats] if floats else None,
    }
    with replacing(path) as stream:
        stream.write((json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
