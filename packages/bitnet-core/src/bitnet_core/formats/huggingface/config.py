"""config.json as a ModelSpec, and back.

Only the fields of `Config` are looked at. What else a config.json holds, such as code to import or
repositories to fetch, is inert text.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import msgspec

from ... import rope
from ...errors import FormatError, UnsupportedError, printable
from ...families import FAMILIES, Family
from ...model import ATTENTION, FFN, ModelSpec, Rope
from .fields import Config, RopeConfig, typed

_ACTIVATIONS: Mapping[str, Literal["relu2", "silu", "gelu"]] = {
    "relu2": "relu2",
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu",
}


def parse_config(value: Any, file: str | os.PathLike[str]) -> Config:
    """The fields of a config.json that are read, each of its type and within its bounds."""
    if not isinstance(value, dict):
        raise FormatError(file, "JSON", "an object", type(value).__name__)
    return typed(value, Config, file, "")


def family_of(config: Config, file: str | os.PathLike[str]) -> str:
    """The name in FAMILIES of what a config.json describes."""
    # The first BitNets call themselves "llama", and name a class of their own, whose norms Llama does not have.
    if config.model_type == "llama" and "BitnetForCausalLM" in (config.architectures or ()):
        return "bitnet"
    for name, family in FAMILIES.items():
        if config.model_type in family.model_types:
            return name
    known = ", ".join(kind for family in FAMILIES.values() for kind in family.model_types)
    got = printable(config.model_type)
    raise UnsupportedError(f"{os.fspath(file)}: model_type: {got!r} is not a family that is known; there are {known}")


def spec_from_config(
    config: Config,
    file: str | os.PathLike[str],
    *,
    inputs: Literal["int8", "float"],
    projection_norms: bool = False,
    headless: bool = False,
) -> ModelSpec:
    """The spec that a config.json describes; the flags are what only the tensors beside it tell.

    `projection_norms`: a norm stands in front of every projection. `headless`: there is no output matrix.
    """
    name = family_of(config, file)
    family = FAMILIES[name]
    _refuse_unknown_arithmetic(config, file)
    head_size = _head_size(config, family, file)
    windows = _windows(config, name, family.window, file)
    # A model that only makes embeddings is published as its trunk.
    pooled = not (config.architectures or ["ForCausalLM"])[0].endswith("ForCausalLM")
    tied = family.tied if config.tie_word_embeddings is None else config.tie_word_embeddings
    norm_eps = config.rms_norm_eps or family.eps
    layers = config.num_hidden_layers
    return ModelSpec(
        family=name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        ffn_size=config.intermediate_size,
        layers=layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_size=head_size,
        context=config.max_position_embeddings,
        rope=_rope(config, family, head_size, "full_attention", file),
        local_rope=_local_rope(config, family, head_size, file) if windows else None,
        windows=windows,
        norm_eps=norm_eps,
        activation=_activation(config, family, file),
        sub_norms="projection" if projection_norms else family.sub_norms,
        sub_norm_eps=_sub_norm_eps(config, norm_eps),
        inputs=inputs,
        qk_norm=family.qk_norm,
        post_norms=family.post_norms,
        biases=_biases(config, family),
        attention_scale=config.query_pre_attn_scalar**-0.5 if config.query_pre_attn_scalar else None,
        embedding_scale=config.hidden_size**0.5 if name == "gemma3" else config.scale_emb or 1.0,
        residual_scale=config.scale_depth / layers**0.5 if config.scale_depth else 1.0,
        logit_scale=config.dim_model_base / config.hidden_size if config.dim_model_base else 1.0,
        tied=tied or (pooled and headless),
        pooling="last" if pooled else "none",
    )


def _sub_norm_eps(config: Config, norm_eps: float) -> float:
    # transformers' own norm in front of a projection has an eps of its own; the others share the model's.
    recipe = config.quantization_config
    return recipe.rms_norm_eps or 1e-6 if recipe and recipe.use_rms_norm else norm_eps


def _refuse_unknown_arithmetic(config: Config, file: str | os.PathLike[str]) -> None:
    """Fields that would change every number if they were passed over."""
    for field in (
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "use_bidirectional_attention",
        "rope_interleaved",
    ):
        if value := getattr(config, field):
            raise UnsupportedError(
                f"{os.fspath(file)}: {field}: {value} is not supported; no ternary model is known to use it"
            )
    method = config.quantization_config.quant_method if config.quantization_config else "bitnet"
    if method != "bitnet":
        raise UnsupportedError(
            f"{os.fspath(file)}: quantization_config.quant_method: {printable(method)!r} is not ternary; 'bitnet' is"
        )


def _head_size(config: Config, family: Family, file: str | os.PathLike[str]) -> int:
    heads, keys = config.num_attention_heads, config.num_key_value_heads
    if keys and heads % keys:
        raise FormatError(file, "num_key_value_heads", f"a divisor of num_attention_heads = {heads}", keys)
    if size := config.head_dim or family.head_size:
        if size % 2:
            raise FormatError(file, "head_dim", "an even number", size)
        return size
    if config.hidden_size % (2 * heads):
        raise FormatError(file, "hidden_size", f"an even multiple of num_attention_heads = {heads}", config.hidden_size)
    return config.hidden_size // heads


def _activation(config: Config, family: Family, file: str | os.PathLike[str]) -> Literal["relu2", "silu", "gelu"]:
    name = config.hidden_activation or config.hidden_act
    if name is None:
        return family.activation
    if name not in _ACTIVATIONS:
        raise FormatError(file, "hidden_act", f"one of {', '.join(_ACTIVATIONS)}", name)
    return _ACTIVATIONS[name]


def _biases(config: Config, family: Family) -> tuple[str, ...]:
    attention = tuple(f"attn.{name}" for name in ATTENTION) if config.attention_bias else family.biases
    return attention + (tuple(f"ffn.{name}" for name in FFN) if config.mlp_bias else ())


def _windows(config: Config, family: str, default: int | None, file: str | os.PathLike[str]) -> tuple[int, ...]:
    """Positions that each layer sees back; () where all layers see everything."""
    layers = config.num_hidden_layers
    size = default if config.sliding_window is msgspec.UNSET else config.sliding_window
    if size is None or not (family in ("gemma3", "mistral") or config.use_sliding_window):
        return ()
    if family == "mistral":
        return (size,) * layers
    if config.layer_types is None:
        if family != "gemma3":
            raise FormatError(file, "layer_types", "a list, since use_sliding_window is set", "none")
        pattern = config.sliding_window_pattern or 6
        return tuple(size if (layer + 1) % pattern else 0 for layer in range(layers))
    if len(config.layer_types) != layers:
        raise FormatError(file, "layer_types", f"{layers} entries, one a layer", len(config.layer_types))
    return tuple(size if kind == "sliding_attention" else 0 for kind in config.layer_types)


def _local_rope(config: Config, family: Family, head_size: int, file: str | os.PathLike[str]) -> Rope | None:
    """The rotation of the layers with a window, if the family has one for them."""
    return _rope(config, family, head_size, "sliding_attention", file) if family.local_theta else None


def _rope(config: Config, family: Family, head_size: int, layers: str, file: str | os.PathLike[str]) -> Rope:
    """The rotation of the layers of one kind, from any of the three forms that files have it in."""
    parameters, path = config.rope_parameters or {}, "rope_parameters"
    if "full_attention" in parameters:
        parameters, path = parameters.get(layers) or {}, f"rope_parameters.{layers}"
    stretch = typed(parameters, RopeConfig, file, path)
    if config.rope_scaling and layers == "full_attention":
        stretch, path = config.rope_scaling, "rope_scaling"
    default = config.rope_theta or family.theta
    if layers == "sliding_attention":
        default = config.rope_local_base_freq or family.local_theta or default
    theta = stretch.rope_theta or default
    size = int(head_size * (stretch.partial_rotary_factor or config.partial_rotary_factor or 1.0))
    if size % 2 or not 2 <= size <= head_size:
        raise FormatError(file, "partial_rotary_factor", f"an even share of head_dim = {head_size}", size)
    return _stretched(stretch, theta, size, config.max_position_embeddings, f"{os.fspath(file)}: {path}")


def _stretched(stretch: RopeConfig, theta: float, size: int, context: int, where: str) -> Rope:
    kind = stretch.rope_type or stretch.type or "default"
    original, factor = stretch.original_max_position_embeddings or context, stretch.factor
    if kind in ("default", "dynamic"):  # the latter changes nothing within the context
        return Rope(theta=theta, size=size)
    if kind == "longrope":
        # The long divisors are for texts beyond the original length: a model that tells them apart would
        # need its cache made anew at the border, so the set of the stated context is taken for all.
        chosen = stretch.long_factor if context > original else stretch.short_factor
        if len(chosen) != size // 2:
            raise UnsupportedError(f"{where}: expected {size // 2} factors, one a pair, got {len(chosen)}")
        found = rope.longrope(theta, size, chosen, original, context)
        return replace(found, magnitude=stretch.attention_factor or found.magnitude)
    if factor is None and kind == "yarn" and context > original:
        factor = context / original
    if factor is None:
        raise UnsupportedError(f"{where}.factor: expected a number for rope_type {kind!r}, got none")
    if kind == "linear":
        return rope.linear(theta, size, factor)
    if kind == "llama3":
        if stretch.low_freq_factor >= stretch.high_freq_factor:
            got = f"{stretch.low_freq_factor} and {stretch.high_freq_factor}"
            raise UnsupportedError(f"{where}: expected low_freq_factor below high_freq_factor, got {got}")
        return rope.llama3(theta, size, factor, stretch.low_freq_factor, stretch.high_freq_factor, original)
    if kind == "yarn":
        return rope.yarn(
            theta,
            size,
            factor,
            original,
            fast=stretch.beta_fast or 32.0,
            slow=stretch.beta_slow or 1.0,
            magnitude=stretch.attention_factor or _yarn_magnitude(stretch, factor),
            whole_pairs=stretch.truncate,
        )
    raise UnsupportedError(
        f"{where}.rope_type: {printable(kind)!r} is not supported; default, dynamic, linear, llama3, longrope and yarn "
        "are"
    )


def _yarn_magnitude(stretch: RopeConfig, factor: float) -> float | None:
    """What two weights of the logarithm give together; None where they are not both there."""
    if not (stretch.mscale and stretch.mscale_all_dim) or factor <= 1:
        return None
    growth = 0.1 * math.log(factor)
    return (growth * stretch.mscale + 1) / (growth * stretch.mscale_all_dim + 1)


def config_of(spec: ModelSpec, *, packed: bool) -> dict[str, Any]:
    """The config.json of a spec: `spec_from_config` makes the same spec of it, and transformers the same model."""
    hidden_act = next(name for name, activation in _ACTIVATIONS.items() if activation == spec.activation)
    config: dict[str, Any] = {
        "architectures": [FAMILIES[spec.family].title + ("Model" if spec.pooling == "last" else "ForCausalLM")],
        "model_type": FAMILIES[spec.family].model_types[0],
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.ffn_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": hidden_act,
        "hidden_activation": hidden_act,
        "tie_word_embeddings": spec.tied,
        "attention_bias": "attn.o" in spec.biases,
        "mlp_bias": "ffn.down" in spec.biases,
        "rope_theta": spec.rope.theta,
        "partial_rotary_factor": spec.rope.size / spec.head_size,
    }
    config |= _positions_of(spec) | _scales_of(spec)
    if packed:
        config["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "use_rms_norm": spec.sub_norms == "projection",
            "rms_norm_eps": spec.sub_norm_eps,
        }
    return config


def _positions_of(spec: ModelSpec) -> dict[str, Any]:
    """What a config says of rotations and windows beyond theta."""
    config: dict[str, Any] = {}
    if spec.rope.divisors:
        # The one form that can say any stretch: a divisor for each pair.
        config["rope_scaling"] = {
            "rope_type": "longrope",
            "short_factor": list(spec.rope.divisors),
            "long_factor": list(spec.rope.divisors),
            "attention_factor": spec.rope.magnitude,
            "original_max_position_embeddings": spec.context,
        }
    if spec.family == "mistral":
        config["sliding_window"] = max(spec.windows, default=None)
    elif spec.windows:
        config["sliding_window"] = max(spec.windows)
        config["use_sliding_window"] = True
        config["layer_types"] = ["sliding_attention" if size else "full_attention" for size in spec.windows]
    if spec.local_rope:
        config["rope_local_base_freq"] = spec.local_rope.theta
    return config


def _scales_of(spec: ModelSpec) -> dict[str, Any]:
    """What the configs of two families say of scales that the others do not have."""
    if spec.family == "gemma3":
        return {"query_pre_attn_scalar": _whole(spec.query_scale**-2)}
    if spec.family == "minicpm":
        return {
            "scale_emb": spec.embedding_scale,
            "scale_depth": spec.residual_scale * spec.layers**0.5,
            "dim_model_base": spec.logit_scale * spec.hidden_size,
        }
    return {}


def _whole(value: float) -> float:
    # transformers wants an integer; a square of a square root may miss it by an ulp.
    return round(value) if abs(value - round(value)) < 1e-9 * value else value
