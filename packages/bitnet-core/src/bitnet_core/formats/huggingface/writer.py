"""Writing Hugging Face folders that transformers loads: packed weights, or floats where those cannot say it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...durable import replacing
from ...errors import UnsupportedError
from ...families import FAMILIES
from ...model import Model
from ...tensor import TernaryTensor
from ..safetensors import write
from . import names
from .config import config_of

_FLOATS = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_ENTRY_BYTES = 512  # more than a header says about one weight and its scale


def save(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    floats: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:
    """Write config.json, model.safetensors and the tokenizer's files; each is whole or not there.

    A model whose ternary projections multiply int8 is written packed, two bits a weight, with a scale that
    multiplies. Any other is written as floats, since what reads packed folders quantizes activations.
    All `floats` have one type, since transformers multiplies them as they are; float32 rounds none of them.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    packed = model.spec.inputs == "int8"
    room = _ENTRY_BYTES * len(model.spec.shapes())
    write(target / "model.safetensors", _arrays(model, _FLOATS[floats], packed=packed), header_room=room)
    save_beside(model, target, config_of(model.spec, packed=packed))


def save_beside(model: Model, folder: Path, config: Mapping[str, Any]) -> None:
    """Write all that stands beside the weights: tokenizer, template and advice, and this config with their numbers."""
    # Without a word on them, transformers would take the numbers of some well-known model.
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
        ids = {"bos_token_id": model.tokenizer.bos, "eos_token_id": sorted(model.tokenizer.eos) or None}
    if model.template is not None:
        _write_text(folder / "chat_template.jinja", model.template.source)
    if model.sampling:  # with the ids: where this file is, transformers looks for them in no other
        _write_json(folder / "generation_config.json", {**ids, "do_sample": True, **model.sampling})
    _write_json(folder / "config.json", {**config, **ids})


def _arrays(model: Model, kind: np.dtype[Any], *, packed: bool) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The file's tensors under its names, each made when it is its turn."""
    spec = model.spec
    offset = FAMILIES[spec.family].norm_offset
    # Several of the file's names may mean one weight: the first of them is written.
    in_layer = {canonical: hf for hf, canonical in reversed(names.names_in_layer(post_norms=spec.post_norms))}
    for name in spec.shapes():
        weight, hf = model.weights[name], names.file_name(name, in_layer)
        if not isinstance(weight, TernaryTensor):
            values = weight.astype(np.float32)
            if names.is_shifted_norm(name):
                values -= np.float32(offset)
            matrix = model.weights[name.removesuffix(".bias")] if packed and name.endswith(".bias") else None
            if isinstance(matrix, TernaryTensor):
                values /= matrix.scale.ravel()  # transformers adds the bias before it multiplies by the scale
            yield hf, values.astype(kind)
        elif packed and name.startswith("layers."):
            _check_packable(name, weight)
            yield hf, weight.repack("hf_rows").data
            yield f"{hf}_scale", weight.scale.reshape(1).astype(kind)
        else:
            yield hf, weight.dense().astype(kind)


def _check_packable(name: str, weight: TernaryTensor) -> None:
    rows, scales = weight.shape[0], weight.scale.size
    if scales != 1 or rows % 4:
        raise UnsupportedError(
            f"{name}: packed folders hold one scale a tensor and rows in fours, got {scales} scales and {rows} rows; "
            "a GGUF file holds it"
        )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as stream:
        stream.write(text.encode())
