"""A Model as a GGUF file that llama.cpp and bitnet.cpp read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ... import layouts
from ...errors import UnsupportedError
from ...model import Model, ModelSpec, Weight
from ...tensor import TernaryTensor
from . import names, types
from .blocks import Bytes
from .metadata import ARCHITECTURES, INPUTS_KEY, read_spec
from .model import neighbour_rows, reordered, rotated_heads
from .types import Kind
from .writer import Blob, write

_EMBEDDINGS = {"f16": "F16", "f32": "F32", "bf16": "BF16"}
# What `general.file_type` says of most tensors; readers print it, and decide nothing by it.
_FILE_TYPES = {"tq1_0": 36, "tq2_0": 37, "i2_s_128": 40, "i2_s_64": 40, "q2_0_64": 41}
_UNUSED_TOKEN = 5  # of ggml's token types


def save(
    model: Model,
    path: str | os.PathLike[str],
    *,
    layout: str = "i2_s_128",
    embedding: Literal["f16", "f32", "bf16", "as stored"] = "f16",
    fallback: Literal["f16"] | None = None,
    name: str | None = None,
) -> None:
    """Write a file that is whole or not there; the same model always makes the same bytes.

    bitnet.cpp reads `i2_s_128`, llama.cpp `tq1_0`, `tq2_0` and `q2_0_64`. A ternary tensor that does not fit the
    layout is refused before anything is written, or stored as `fallback`. `embedding` is the type of a float
    embedding and head.
    """
    layouts.get(layout)
    if layout == "hf_rows":
        raise UnsupportedError("layout hf_rows is that of Hugging Face's folders; GGUF files hold the others")
    description = describe(model, layout, name=name)
    blobs = []
    for weight_name, shape in model.spec.shapes().items():
        kind = _kind(weight_name, model.weights[weight_name], layout, embedding, fallback)
        make = partial(_encoded, model, weight_name, kind, description.permuted)
        blobs.append(Blob(names.file_name(weight_name), shape, kind, make))
    write(path, description.metadata, [*blobs, *description.vectors])


@dataclass(frozen=True, slots=True)
class Description:
    """All that a file says of a model beside its weights."""

    metadata: Mapping[str, object]
    vectors: Sequence[Blob]  # tensors that are none of the model's weights
    permuted: bool  # rows of q and k lie as interleaved rotation wants them


def describe(model: Model, layout: str, *, name: str | None = None) -> Description:
    """What a file of `layout` says of a model; refuses a model that GGUF cannot say."""
    spec = model.spec
    architecture = _architecture(spec)
    metadata: dict[str, object] = {"general.architecture": architecture}
    if name:
        metadata["general.name"] = name
    metadata["general.file_type"] = np.uint32(_FILE_TYPES.get(layout, 0))
    metadata["general.quantization_version"] = np.uint32(2)
    metadata |= _described(spec, architecture) | _text(model)
    extra = _frequencies(spec, architecture)
    _check_said(spec, metadata, extra)
    kind = types.KINDS["F32"]
    vectors = [Blob(key, values.shape, kind, partial(_plain_bytes, values)) for key, values in extra.items()]
    return Description(metadata, vectors, ARCHITECTURES[architecture].permuted)


def _architecture(spec: ModelSpec) -> str:
    """The architecture that may say all of a spec; `_check_said` has the last word."""
    if spec.sub_norms == "block":
        return "bitnet-b1.58" if spec.activation == "relu2" else "bitnet"
    if spec.post_norms:
        return "gemma3"
    if spec.qk_norm:
        return "qwen3"
    if (spec.embedding_scale, spec.residual_scale, spec.logit_scale) != (1, 1, 1):
        return "minicpm"
    return "qwen2" if spec.biases == ("attn.q", "attn.k", "attn.v") else "llama"


def _described(spec: ModelSpec, architecture: str) -> dict[str, object]:
    """The values that `read_spec` makes the same spec of."""
    values: dict[str, object] = {
        "block_count": np.uint32(spec.layers),
        "context_length": np.uint32(spec.context),
        "embedding_length": np.uint32(spec.hidden_size),
        "feed_forward_length": np.uint32(spec.ffn_size),
        "attention.head_count": np.uint32(spec.heads),
        "attention.head_count_kv": np.uint32(spec.kv_heads),
        "attention.layer_norm_rms_epsilon": np.float32(spec.norm_eps),
        "rope.dimension_count": np.uint32(spec.rope.size),
        "rope.freq_base": np.float32(spec.rope.theta),
        "vocab_size": np.uint32(spec.vocab_size),
    }
    if spec.head_size * spec.heads != spec.hidden_size:
        values["attention.key_length"] = values["attention.value_length"] = np.uint32(spec.head_size)
    if len(set(spec.rope.divisors)) == 1 and spec.rope.divisors[0] != 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": np.float32(spec.rope.divisors[0])}
    if spec.rope.magnitude != 1:
        values["rope.scaling.attn_factor"] = np.float32(spec.rope.magnitude)
    if architecture == "minicpm":
        values["embedding_scale"] = np.float32(spec.embedding_scale)
        values["residual_scale"] = np.float32(spec.residual_scale)
        values["logit_scale"] = np.float32(1 / spec.logit_scale)
    if any(spec.windows):
        values |= _described_windows(spec)
    if spec.pooling == "last" or spec.sub_norms == "projection":
        values["pooling_type"] = np.uint32(3 if spec.pooling == "last" else 0)
    return {f"{architecture}.{key}": value for key, value in values.items()} | {INPUTS_KEY: spec.inputs}


def _described_windows(spec: ModelSpec) -> dict[str, object]:
    values: dict[str, object] = {
        "attention.sliding_window": np.uint32(max(spec.windows)),
        "rope.freq_base_swa": np.float32((spec.local_rope or spec.rope).theta),
    }
    narrow = [size > 0 for size in spec.windows]
    period = next((layer + 1 for layer, is_narrow in enumerate(narrow) if not is_narrow), 0)
    regular = [period == 0 or (layer + 1) % period != 0 for layer in range(spec.layers)]
    pattern = np.uint32(period) if narrow == regular else np.array(narrow)
    return values | {"attention.sliding_window_pattern": pattern}


def _frequencies(spec: ModelSpec, architecture: str) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """A divisor for each pair, where they differ, as a tensor."""
    if len(set(spec.rope.divisors)) <= 1 or not ARCHITECTURES[architecture].permuted:
        return {}
    return {names.FREQUENCIES: np.array(spec.rope.divisors, np.float32)}


def _check_said(
    spec: ModelSpec, metadata: Mapping[str, Any], extra: Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]
) -> None:
    """What a reader would make of the values is the spec; no field is lost on the way."""
    architecture = metadata["general.architecture"]
    values = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in metadata.items()
        if not key.startswith("tokenizer.")
    }
    shapes = {names.file_name(name): shape for name, shape in spec.shapes().items()}
    shapes |= {name: tuple(values.shape) for name, values in extra.items()}
    said = read_spec("GGUF", values, shapes, lambda name: extra[name], spec.inputs)
    mine, its = _comparable(spec), _comparable(said)
    if lost := [f"{name} = {mine[name]}" for name in mine if mine[name] != its[name]]:
        raise UnsupportedError(f"GGUF's architecture {architecture} cannot say {', '.join(lost)}")


def _comparable(spec: ModelSpec) -> dict[str, object]:
    """A spec's meaning: rounded as a file rounds it, without what makes no difference."""
    local = (spec.local_rope or spec.rope) if any(spec.windows) else None
    return {
        **{name: getattr(spec, name) for name in ("vocab_size", "hidden_size", "ffn_size", "layers", "heads")},
        **{name: getattr(spec, name) for name in ("kv_heads", "head_size", "context", "activation", "sub_norms")},
        **{name: getattr(spec, name) for name in ("inputs", "qk_norm", "post_norms", "pooling")},
        "biases": frozenset(spec.biases),
        "windows": spec.windows if any(spec.windows) else (),
        "tied": spec.tied,
        "rope": _rounded(spec.rope.magnitude, *spec.rope.frequencies()),
        "local_rope": local and _rounded(local.magnitude, *local.frequencies()),
        "sub_norm_eps": _rounded(spec.sub_norm_eps if spec.sub_norms != "none" else 0),
        "scales": _rounded(
            spec.norm_eps, spec.query_scale, spec.embedding_scale, spec.residual_scale, spec.logit_scale
        ),
    }


def _rounded(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.5g}" for value in values)


def _text(model: Model) -> dict[str, object]:
    """The values of the tokenizer, the template and the advice for sampling."""
    values: dict[str, object] = {}
    if model.tokenizer is not None:
        values |= _filled_up(model.tokenizer.to_gguf(), model.spec.vocab_size)
    if model.template is not None:
        values["tokenizer.chat_template"] = model.template.source
    for key, kind in (("temperature", "temp"), ("top_p", "top_p")):
        if key in model.sampling:
            values[f"general.sampling.{kind}"] = np.float32(model.sampling[key])
    if "top_k" in model.sampling:
        values["general.sampling.top_k"] = np.int32(model.sampling["top_k"])
    return values


def _filled_up(values: Mapping[str, Any], vocab_size: int) -> dict[str, object]:
    """A token for each row of the embedding: what the tokenizer lacks is unused."""
    missing = vocab_size - len(values["tokenizer.ggml.tokens"])
    if missing < 0:
        raise UnsupportedError(f"the tokenizer has {-missing} tokens more than the {vocab_size} of the embedding")
    filled = dict(values)
    for name, padding in (
        ("tokens", [f"[PAD{vocab_size - missing + i}]" for i in range(missing)]),
        ("scores", [-10000.0] * missing),
        ("token_type", [_UNUSED_TOKEN] * missing),
    ):
        if missing and (key := f"tokenizer.ggml.{name}") in filled:
            filled[key] = [*values[key], *padding]
    return filled


def _kind(name: str, weight: Weight, layout: str, embedding: str, fallback: str | None) -> Kind:
    """The type that a weight is written in."""
    if len(weight.shape) == 1:
        return types.KINDS["F32"]
    if not isinstance(weight, TernaryTensor):
        is_matrix = names.projection_of(name) is not None
        stored = is_matrix or embedding == "as stored"
        return types.by_dtype(weight.dtype) if stored else types.KINDS[_EMBEDDINGS[embedding]]
    kind = types.by_layout(layout)
    reason = why_not(kind, weight)
    if reason is None:
        return kind
    if fallback is None:
        raise UnsupportedError(f"{name}: {reason}; fallback='f16' stores such a tensor as F16")
    return types.KINDS["F16"]


def why_not(kind: Kind, weight: TernaryTensor) -> str | None:
    """Why a type cannot hold a tensor; None where it can."""
    if kind.nbytes(weight.shape) is None:
        what = f"{math.prod(weight.shape)} weights" if kind.tail else f"{weight.shape[1]} columns"
        return f"{kind.name} holds a multiple of {kind.block}, not {what}"
    try:
        types.check_scales(kind, weight)
    except (ValueError, UnsupportedError) as error:
        return str(error)
    return None


def _encoded(model: Model, name: str, kind: Kind, permuted: bool) -> Bytes:
    weight = model.weights[name]
    heads = rotated_heads(model.spec, name.removesuffix(".bias")) if permuted else 0
    if heads:
        weight = reordered(weight, neighbour_rows(weight.shape[0], heads))
    try:
        return types.encode(kind, weight)
    except (ValueError, UnsupportedError) as error:
        raise UnsupportedError(f"{name}: {error}") from error


def _plain_bytes(values: np.ndarray[Any, np.dtype[np.float32]]) -> Bytes:
    return values.view(np.uint8)
