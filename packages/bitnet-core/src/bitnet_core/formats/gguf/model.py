"""A GGUF file as a Model: its tensors under their canonical names, its rows in their canonical order."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from ... import layouts
from ...errors import FormatError, UnsupportedError
from ...model import Model, ModelSpec, Weight, Weights, in_runs
from ...tensor import TernaryTensor
from .. import advice
from . import names
from .container import File
from .metadata import ARCHITECTURES, INPUTS_KEY, Inputs, architecture_of, read_spec

_SAMPLING = (
    ("temperature", "general.sampling.temp"),
    ("top_p", "general.sampling.top_p"),
    ("top_k", "general.sampling.top_k"),
)


def load(
    path: str | os.PathLike[str],
    *,
    i2_s_group: Literal[64, 128] | None = None,
    inputs: Inputs | None = None,
    strict: bool = False,
) -> Model:
    """The model in a file; of a split one, any part names it.

    `i2_s_group` is 64 for I2_S files that bitnet.cpp wrote on ARM; nothing in them says so. `inputs` is what
    ternary projections multiply; None leaves it to what the file tells. `strict` refuses bytes behind the last
    tensor.
    """
    file = File(path, strict=strict, i2_s_group=i2_s_group or 128)
    try:
        return _assemble(file, inputs)
    except BaseException:
        file.close()
        raise


def _assemble(file: File, inputs: Inputs | None) -> Model:
    from ...chat import ChatTemplate  # noqa: PLC0415  # both cost time that tools that only look do not need
    from ...tokenizer import Tokenizer  # noqa: PLC0415

    architecture = ARCHITECTURES[architecture_of(file.path, file.metadata)]
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    spec = read_spec(file.path, file.metadata, shapes, partial(_vector, file), "int8")
    _check_tensors(file, spec, permuted=architecture.permuted)
    spec = replace(spec, inputs=inputs or _inputs(file, architecture.family))
    makers = {name: _maker(file, spec, name, architecture.permuted) for name in spec.shapes()}
    whole: dict[str, str] = {name: names.file_name(name) for name in ("embedding", "head") if name in makers}
    runs = {
        name: in_runs(spec.shapes()[name], partial(file.rows, stored), makers[name])
        for name, stored in whole.items()
        if file.tensors[stored].kind.by_rows
    }
    return Model(
        spec,
        Weights(makers, runs),
        Tokenizer.from_gguf(file.metadata, file.path),
        ChatTemplate.from_gguf(file.metadata, file.path),
        _sampling(file),
    )


def _check_tensors(file: File, spec: ModelSpec, *, permuted: bool) -> None:
    """The file has every tensor of the spec, each of its shape, and no other."""
    expected = {names.file_name(name): shape for name, shape in spec.shapes().items()}
    if missing := [name for name in expected if name not in file.tensors]:
        raise FormatError(file.path, "tensors", f"{_some(missing)}, {len(missing)} in all", "none of that name")
    unused = {names.file_name(f"layers.{i}.{name}.scale") for i in range(spec.layers) for name in names.PROJECTIONS}
    if permuted:
        unused |= {names.FREQUENCIES, names.LONG_FACTORS, names.SHORT_FACTORS}
    if extra := [name for name in file.tensors if name not in expected and name not in unused]:
        what = f"the {len(expected)} of {file.metadata['general.architecture']}"
        raise FormatError(file.path, "tensors", what, f"{len(extra)} more", hint=f"{_some(extra)} are unknown")
    shapes = {name: file.tensors[name].shape for name in expected}
    if wrong := [name for name, shape in shapes.items() if shape != expected[name]]:
        first = wrong[0]
        hint = f"{len(wrong)} in all do not fit the file's values: {_some(wrong)}" if len(wrong) > 1 else None
        raise FormatError(
            file.path_of(first), f"tensor {first!r} shape", list(expected[first]), list(shapes[first]), hint=hint
        )


def _some(names_: Sequence[str]) -> str:
    return ", ".join(names_[:3])


def _inputs(file: File, family: str) -> Inputs:
    """What ternary projections multiply: activations quantized to int8, as BitNet trains them, or as they are."""
    stated = file.metadata.get(INPUTS_KEY)
    if stated is not None:
        if stated not in ("int8", "float"):
            raise FormatError(file.path, f"kv {INPUTS_KEY!r}", "int8 or float", stated)
        return "int8" if stated == "int8" else "float"
    kinds = {file.tensors[name].kind.name: name for name in _matrices(file)}
    if family == "bitnet" or "I2_S" in kinds:
        return "int8"
    # TQ types also carry models with a scale for each block, which were trained with activations as they are.
    blocks = kinds.get("TQ1_0") or kinds.get("TQ2_0")
    if family == "minicpm" or blocks is None:
        return "float"
    weight = file.tensor(blocks)
    return "int8" if isinstance(weight, TernaryTensor) and weight.scale.size == 1 else "float"


def _matrices(file: File) -> list[str]:
    """The ternary projections of the first layer."""
    stored = [names.file_name(f"layers.0.{name}") for name in names.PROJECTIONS]
    return [name for name in stored if file.tensors[name].kind.layout]


def _maker(file: File, spec: ModelSpec, name: str, permuted: bool) -> Callable[[], Weight]:
    """What makes one weight when it is asked for."""
    stored = names.file_name(name)
    if len(file.tensors[stored].shape) == 1:
        heads = rotated_heads(spec, name.removesuffix(".bias")) if permuted and name.endswith(".bias") else 0
        return partial(_vector, file, stored, heads)
    scale = names.file_name(f"{name}.scale") if names.projection_of(name) else None
    heads = rotated_heads(spec, name) if permuted else 0
    return partial(_matrix, file, stored, scale if scale in file.tensors else None, heads)


def rotated_heads(spec: ModelSpec, name: str) -> int:
    """The heads of q and k; 0 for what does not turn."""
    return {"attn.q": spec.heads, "attn.k": spec.kv_heads}.get(names.projection_of(name) or "", 0)


def _vector(file: File, stored: str, heads: int = 0) -> npt.NDArray[np.float32]:
    values = file.tensor(stored)
    if isinstance(values, TernaryTensor):
        raise UnsupportedError(f"{file.path_of(stored)}: tensor {stored!r}: a vector of ternary numbers is not read")
    vector = values.astype(np.float32, copy=False)
    return vector[half_split_rows(len(vector), heads)] if heads else vector


def _matrix(file: File, stored: str, scale: str | None, heads: int) -> Weight:
    weight = file.tensor(stored)
    if not isinstance(weight, TernaryTensor) and file.tensors[stored].kind.plain:
        # The numbers are exact: they may be a ternary matrix that was multiplied out.
        weight = TernaryTensor.detect(weight) or weight  # type: ignore[arg-type]  # it is one of the three
    if scale is not None:
        weight = _scaled(weight, _single(file, scale))
    return reordered(weight, half_split_rows(weight.shape[0], heads)) if heads else weight


def _single(file: File, stored: str) -> np.float32:
    values = _vector(file, stored)
    if values.shape != (1,) or not np.isfinite(values[0]):
        raise FormatError(file.path_of(stored), f"tensor {stored!r}", "one finite number", values.ravel()[:3])
    return np.float32(values[0])


def _scaled(weight: Weight, factor: np.float32) -> Weight:
    if isinstance(weight, TernaryTensor):
        return replace(weight, scale=weight.scale * factor)
    return weight.astype(np.float32) * factor


def half_split_rows(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Where each row of q or k lies in files whose rotation pairs neighbours; here it pairs halves of a head."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def neighbour_rows(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """The way back: what such a file has in each row."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def reordered(weight: Weight, order: npt.NDArray[np.intp]) -> Weight:
    """The same matrix with its rows in another order."""
    if not isinstance(weight, TernaryTensor):
        return weight[order]
    rows = weight.shape[0]
    scale = weight.scale if weight.scale.shape[0] == 1 else weight.scale[order]
    layout = layouts.get(weight.layout)
    single = (1, weight.shape[1])
    try:
        groups, size = layout.data_shape(single)
    except UnsupportedError:
        groups = 0
    if weight.layout != "hf_rows" and groups * rows == len(weight.data):
        # Every row is a run of whole groups: the bytes move without being unpacked.
        data = weight.data.reshape(rows, groups, size)[order].reshape(-1, size)
        return replace(weight, data=data, scale=scale)
    return TernaryTensor.from_codes(weight.codes()[order], scale, weight.layout)


def _sampling(file: File) -> Mapping[str, float]:
    """What the makers of a file advise."""
    found = {}
    for name, key in _SAMPLING:
        if key in file.metadata:
            value = advice.checked(name, file.metadata[key], file.path, f"kv {key!r}")
            found[name] = value if isinstance(value, int) else float(str(np.float32(value)))
    return found
