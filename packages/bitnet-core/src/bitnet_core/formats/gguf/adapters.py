"""Adapters as llama.cpp has them: a GGUF file with two low-rank matrices for each weight that they change."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ...errors import FormatError, UnsupportedError, printable
from ...model import Adapter, Array, ModelSpec
from ...tensor import TernaryTensor
from . import names
from .container import File
from .metadata import ARCHITECTURES, architecture_of
from .model import half_split_rows, rotated_heads

_ALPHA = "adapter.lora.alpha"


def load_adapter(path: str | os.PathLike[str], spec: ModelSpec, name: str | None = None) -> Adapter:
    """The adapter in a file, for a model of this spec; it is called as the file is, if nobody says otherwise."""
    with File(path) as file:
        architecture = ARCHITECTURES[architecture_of(file.path, file.metadata)]
        alpha = _alpha(file)
        expected = "llama" if spec.family == "mistral" else spec.family  # GGUF has one name for both
        if architecture.family != expected:
            raise FormatError(file.path, "kv 'general.architecture'", expected, architecture.family)
        projections = {
            names.file_name(f"layers.{layer}.{projection}"): f"layers.{layer}.{projection}"
            for layer in range(spec.layers)
            for projection in names.PROJECTIONS
        }
        for stored in file.tensors:
            weight, _, side = stored.rpartition(".")
            if weight not in projections or side not in ("lora_a", "lora_b"):
                raise UnsupportedError(
                    f"{file.path}: tensor {printable(stored)}: only lora_a and lora_b of the seven projections of "
                    f"this model's {spec.layers} layers are supported"
                )
        found = {
            canonical: _pair(file, spec, weight, canonical, alpha, permuted=architecture.permuted)
            for weight, canonical in projections.items()
            if f"{weight}.lora_a" in file.tensors or f"{weight}.lora_b" in file.tensors
        }
    if not found:
        raise FormatError(file.path, "tensors", "lora_a and lora_b of projections", "none")
    return Adapter(name or Path(path).stem, found)


def _alpha(file: File) -> float:
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        if (got := file.metadata.get(key)) != expected:
            raise FormatError(file.path, f"kv {key!r}", expected, "none" if got is None else got)
    if "adapter.alora.invocation_tokens" in file.metadata:
        raise UnsupportedError(f"{file.path}: an adapter that begins at certain tokens is not supported")
    alpha = file.metadata.get(_ALPHA)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e30:
        raise FormatError(file.path, f"kv {_ALPHA!r}", "a number", "none" if alpha is None else alpha)
    return float(alpha)


def _pair(
    file: File, spec: ModelSpec, weight: str, canonical: str, alpha: float, *, permuted: bool
) -> tuple[Array, Array]:
    """Both matrices of a projection, the scale multiplied into the second, whose rows are in canonical order."""
    rows, columns = spec.projections()[canonical.split(".", 2)[2]]
    down, up = _matrix(file, f"{weight}.lora_a"), _matrix(file, f"{weight}.lora_b")
    rank = down.shape[0]
    for side, matrix, shape in (("a", down, (rank, columns)), ("b", up, (rows, rank))):
        if matrix.shape != shape or not rank:
            raise FormatError(file.path, f"tensor '{weight}.lora_{side}' shape", list(shape), list(matrix.shape))
    if permuted and (heads := rotated_heads(spec, canonical)):
        up = up[half_split_rows(rows, heads)]
    # Without an alpha, llama.cpp leaves the product as it is.
    return down, up * np.float32(alpha / rank if alpha else 1.0)


def _matrix(file: File, stored: str) -> Array:
    if stored not in file.tensors:
        raise FormatError(file.path, "tensors", f"{stored!r} beside its partner", "none of that name")
    values = file.tensor(stored)
    if isinstance(values, TernaryTensor) or values.ndim != 2:
        raise FormatError(file.path, f"tensor {stored!r}", "a matrix of floats", file.tensors[stored].kind.name)
    matrix = np.array(values, np.float32)
    if not np.isfinite(matrix).all():
        raise FormatError(file.path, f"tensor {stored!r}", "finite numbers", matrix[~np.isfinite(matrix)][0])
    return matrix
