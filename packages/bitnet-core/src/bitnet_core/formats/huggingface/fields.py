"""The fields of config.json that are read: an allow-list, each with its type and bounds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from ...errors import FormatError

Count = Annotated[int, Meta(ge=1, le=2**24)]
Depth = Annotated[int, Meta(ge=1, le=4096)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
NotNegative = Annotated[float, Meta(ge=0, le=1e3)]
Theta = Annotated[float, Meta(gt=1, le=1e12)]
LinearClass = Literal["bitlinear", "autobitlinear"]
QuantizationMode = Literal["offline", "online"]
LayerType = Literal["full_attention", "sliding_attention"]


class RopeConfig(msgspec.Struct):
    """How positions are stretched: `rope_scaling` of older files, `rope_parameters` of newer ones."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    factor: Positive | None = None
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    attention_factor: Positive | None = None
    mscale: NotNegative | None = None
    mscale_all_dim: NotNegative | None = None
    truncate: bool = True
    original_max_position_embeddings: Annotated[int, Meta(ge=2, le=2**24)] | None = None
    partial_rotary_factor: Positive | None = None
    short_factor: list[Positive] = []
    long_factor: list[Positive] = []


class QuantizationConfig(msgspec.Struct):
    """What transformers' BitNet integration writes."""

    quant_method: str = ""
    linear_class: LinearClass | None = None
    quantization_mode: QuantizationMode | None = None
    modules_to_not_convert: list[str] | None = None
    use_rms_norm: bool | None = None
    rms_norm_eps: Positive | None = None


class Config(msgspec.Struct):
    """The allow-list of config.json: every field that is read, with its bounds."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Depth
    num_attention_heads: Depth
    vocab_size: Count
    model_type: str = ""
    architectures: list[str] | None = None
    num_key_value_heads: Depth | None = None
    head_dim: Annotated[int, Meta(ge=2, le=4096)] | None = None
    max_position_embeddings: Count = 2048
    rms_norm_eps: Annotated[float, Meta(gt=0, lt=1)] | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    tie_word_embeddings: bool | None = None
    rope_theta: Theta | None = None
    rope_scaling: RopeConfig | None = None
    rope_parameters: dict[str, Any] | None = None  # a RopeConfig, or one for each kind of layer
    rope_local_base_freq: Theta | None = None
    rope_interleaved: bool | None = None
    partial_rotary_factor: Positive | None = None
    layer_types: list[LayerType] | None = None
    sliding_window: Count | msgspec.UnsetType | None = msgspec.UNSET  # null says that there is none
    sliding_window_pattern: Depth | None = None
    use_sliding_window: bool | None = None
    use_bidirectional_attention: bool | None = None
    query_pre_attn_scalar: Positive | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    scale_emb: Positive | None = None
    scale_depth: Positive | None = None
    dim_model_base: Positive | None = None
    quantization_config: QuantizationConfig | None = None


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "linear_class": get_args(LinearClass),
    "quantization_mode": get_args(QuantizationMode),
    "layer_types": get_args(LayerType),
}
_Typed = TypeVar("_Typed")


def typed(value: Any, kind: type[_Typed], file: str | os.PathLike[str], path: str) -> _Typed:
    """`value` as a struct; `path` says where in the file it stands."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        # A value that is shown may look like a path itself: the last one is the library's.
        *before, inner = str(error).rsplit(" - at `$", 1)
        message, inner = (before[0], inner) if before else (inner, "")
        got, name = value, ""
        for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", inner):
            name = key or name
            got = got.get(key) if isinstance(got, dict) else got[int(index)] if isinstance(got, list) else got
        field = f"{path}{inner.rstrip('`')}".lstrip(".") or "JSON"
        if missing := re.search(r"missing required field `(\w+)`", message):
            raise FormatError(file, missing[1], "a value", "none") from error
        expected = message.removeprefix("Expected ").split(", got")[0].replace("`", "")
        if message.startswith("Invalid enum value"):
            expected = f"one of {', '.join(_CHOICES[name])}"
        raise FormatError(file, field, expected, repr(got)) from error
