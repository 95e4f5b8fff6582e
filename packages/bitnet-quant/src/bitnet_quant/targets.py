"""What a model can be written as: GGUF files and Hugging Face folders, one weight at a time.

A writer looks at every weight once before anything is written: it refuses what the form cannot hold, and names what
it would round. Then each weight is made again and goes to the disk, in parts where it is large.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from bitnet_core import Model, TernaryTensor, UnsupportedError
from bitnet_core.durable import replacing
from bitnet_core.families import FAMILIES
from bitnet_core.formats import gguf
from bitnet_core.formats.gguf import export, types
from bitnet_core.formats.gguf.model import neighbour_rows, reordered, rotated_heads
from bitnet_core.formats.gguf.names import file_name as gguf_name
from bitnet_core.formats.huggingface import names
from bitnet_core.formats.huggingface.config import config_of
from bitnet_core.formats.huggingface.writer import save_beside
from bitnet_core.formats.safetensors import DTYPES
from bitnet_core.model import Weight

from . import blocks

Array = npt.NDArray[Any]
Said = Callable[[str], None]
_CHUNK = 1 << 20  # elements that are converted at a time
_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Float types of a folder, in the order in which they are tried: the first that rounds nothing is taken.
_FLOATS = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))


@dataclass(frozen=True, slots=True)
class Rounding:
    """A weight that a form can only hold nearly."""

    name: str
    what: str
    error: float  # the largest, as a share of the number that it is an error of


class Target(Protocol):
    """One form of file or folder, for one model."""

    def look(self, name: str, weight: Weight) -> Rounding | None:
        """Refuse a weight that cannot be held, or say what would be rounded; each weight is shown once."""

    def write(self, path: Path, said: Said) -> None:
        """Write to a path that is not there yet; `said` hears the name of each weight as it is written."""


class GgufTarget:
    """A GGUF file; floats keep their types, and `forms` says which of them are stored in eight or four bits."""

    def __init__(self, model: Model, layout: str, forms: Mapping[str, str]) -> None:
        self._model, self._layout, self._forms = model, layout, forms
        self._kinds: dict[str, gguf.Kind] = {}
        self._described = export.describe(model, layout)

    def look(self, name: str, weight: Weight) -> Rounding | None:
        """Refuse a weight that the layout cannot hold, or say what would be rounded."""
        if len(weight.shape) == 1:
            self._kinds[name] = types.KINDS["F32"]
            return None
        if not isinstance(weight, TernaryTensor):
            narrow = blocks.KINDS.get(self._forms.get(name, ""))
            self._kinds[name] = types.KINDS[narrow] if narrow else types.by_dtype(weight.dtype)
            return None
        kind = types.by_layout(self._layout)
        if (reason := export.why_not(kind, weight)) is not None:
            raise UnsupportedError(f"{name}: {reason}")
        self._kinds[name] = kind
        if kind.tail:
            return None
        error = _rounding(weight.scale, np.dtype(np.float16))
        return Rounding(name, f"{kind.name} holds float16 scales", error) if error else None

    def write(self, path: Path, said: Said) -> None:
        """Write the file."""
        blobs = [
            gguf.Blob(gguf_name(name), shape, self._kinds[name], partial(self._bytes, name, said))
            for name, shape in self._model.spec.shapes().items()
        ]
        gguf.write(path, self._described.metadata, [*blobs, *self._described.vectors])

    def _bytes(self, name: str, said: Said) -> npt.NDArray[np.uint8]:
        said(name)
        weight, kind = self._model.weights[name], self._kinds[name]
        heads = rotated_heads(self._model.spec, name.removesuffix(".bias")) if self._described.permuted else 0
        if heads:
            weight = reordered(weight, neighbour_rows(weight.shape[0], heads))
        if isinstance(weight, TernaryTensor):
            return types.encode(kind, weight)
        if kind.plain:  # as it is, which needs no second copy of an embedding
            return _raw(weight.astype(kind.dtype, copy=False))
        return blocks.encode(self._forms[name], weight)  # type: ignore[arg-type]  # weights are floats here


class FolderTarget:
    """A Hugging Face folder: packed where the model multiplies int8, floats where it does not.

    All floats have one type, the narrowest that rounds none of them; scales are float32 where that one rounds any.
    """

    def __init__(self, model: Model, form: str) -> None:
        self._model, self._packed = model, form != "hf_floats"
        self._divides = form == "hf_divide"
        self._offset = np.float32(FAMILIES[model.spec.family].norm_offset)
        if self._packed != (model.spec.inputs == "int8"):
            other = "hf_multiply or hf_divide" if model.spec.inputs == "int8" else "hf_floats"
            raise UnsupportedError(
                f"{form}: what reads packed folders quantizes activations, and what reads floats does not; {other} "
                "says what this model does"
            )
        self._kinds = list(_FLOATS)
        self._floats: list[str] = []  # projections that are not ternary
        self._scales: list[float] = []
        # Several of the file's names may mean one weight: the first of them is written.
        pairs = names.names_in_layer(post_norms=model.spec.post_norms)
        self._in_layer = {canonical: stored for stored, canonical in reversed(pairs)}

    def look(self, name: str, weight: Weight) -> Rounding | None:
        """Refuse a weight that a folder cannot hold, or say what would be rounded."""
        if isinstance(weight, TernaryTensor) and not (self._packed and name.startswith("layers.")):
            self._narrow(weight.scale)
            return None
        if isinstance(weight, TernaryTensor):
            if weight.scale.size != 1 or weight.shape[0] % 4:
                raise UnsupportedError(
                    f"{name}: packed folders hold one scale a matrix and rows in fours, got {weight.scale.size} scales "
                    f"and {weight.shape[0]} rows; a .gguf file may hold it"
                )
            stored = self._stored_scale(weight.scale)
            self._scales.append(float(stored.ravel()[0]))
            back = np.float32(1) / stored if self._divides else stored
            return _difference(name, "the folder holds one over the scale", weight.scale, back)
        if len(weight.shape) == 2:
            if self._packed and name.startswith("layers."):
                self._floats.append(name)
            self._narrow(weight)
            return None
        values = np.asarray(weight, np.float32)
        stored, back = self._stored_vector(name, values)
        self._narrow(stored)
        return _difference(name, "the folder holds it less one, or over a scale", values, back)

    def _narrow(self, values: Array) -> None:
        """Drop the float types that would round some of these."""
        self._kinds = [kind for kind in self._kinds if not _rounding(values, kind)]

    def _stored_scale(self, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A scale as the folder holds it; of the numbers around one over it, the one that comes back nearest."""
        if not self._divides:
            return scale
        middle = (np.float32(1) / scale).ravel()[0]
        near = [np.nextafter(middle, np.float32(way)) for way in (0, np.inf)]
        best = min((middle, *near), key=lambda value: abs(float(np.float32(1) / value) - float(scale.ravel()[0])))
        return np.full(scale.shape, best, np.float32)

    def _stored_vector(self, name: str, values: npt.NDArray[np.float32]) -> tuple[Array, Array]:
        """A norm or a bias as the folder holds it, and as it comes back."""
        if names.is_shifted_norm(name):
            stored = values - self._offset
            return stored, stored + self._offset
        matrix = self._model.weights[name.removesuffix(".bias")] if name.endswith(".bias") else None
        if self._packed and not self._divides and isinstance(matrix, TernaryTensor):
            stored = values / matrix.scale.ravel()  # transformers adds the bias before it multiplies by the scale
            return stored, stored * matrix.scale.ravel()
        return values, values

    def write(self, path: Path, said: Said) -> None:
        """Write the folder."""
        path.mkdir()
        kind = self._kinds[0]
        _write_tensors(path / "model.safetensors", [part for name in self._model.spec.shapes()
                                                    for part in self._parts(name, kind, said)])  # fmt: skip
        config = config_of(self._model.spec, packed=self._packed)
        if self._packed:
            config["quantization_config"]["linear_class"] = "bitlinear" if self._divides else "autobitlinear"
            if self._floats:
                kept = [self._name(name).removesuffix(".weight") for name in self._floats]
                config["quantization_config"]["modules_to_not_convert"] = kept
        save_beside(self._model, path, config)

    def _name(self, name: str) -> str:
        return names.file_name(name, self._in_layer)

    def _parts(self, name: str, kind: np.dtype[Any], said: Said) -> Iterator[_Part]:
        """The tensors that a weight becomes."""
        shape = self._model.spec.shapes()[name]
        stored = self._name(name)
        if name in self._floats or len(shape) == 1 or not (self._packed and name.startswith("layers.")):
            yield _Part(stored, kind, shape, partial(self._numbers, name, kind, said))
            return
        yield _Part(stored, np.dtype(np.uint8), (shape[0] // 4, shape[1]), partial(self._codes, name, said))
        narrow = kind if not _rounding(np.array(self._scales, np.float32), kind) else np.dtype(np.float32)
        yield _Part(f"{stored}_scale", narrow, (1,), partial(self._scale, name, narrow))

    def _numbers(self, name: str, kind: np.dtype[Any], said: Said) -> Iterator[Array]:
        said(name)
        weight = self._model.weights[name]
        if isinstance(weight, TernaryTensor):
            weight = weight.dense()
        elif weight.ndim == 1:
            weight = self._stored_vector(name, np.asarray(weight, np.float32))[0]
        step = max(1, _CHUNK * weight.shape[0] // weight.size)
        for start in range(0, len(weight), step):
            yield weight[start : start + step].astype(kind)

    def _ternary(self, name: str) -> TernaryTensor:
        weight = self._model.weights[name]
        if not isinstance(weight, TernaryTensor):
            raise UnsupportedError(f"{name}: was ternary when it was looked at, and is not any more")
        return weight

    def _codes(self, name: str, said: Said) -> Iterator[Array]:
        said(name)
        yield self._ternary(name).repack("hf_rows").data

    def _scale(self, name: str, kind: np.dtype[Any]) -> Iterator[Array]:
        yield self._stored_scale(self._ternary(name).scale).reshape(1).astype(kind)


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor of a safetensors file, made in pieces when it is its turn."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    make: Callable[[], Iterator[Array]]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def _write_tensors(path: Path, parts: list[_Part]) -> None:
    """A safetensors file whose header is known before any tensor is made."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        offsets = [end, end + part.nbytes]
        header[part.name] = {"dtype": _TYPE_NAMES[part.dtype], "shape": list(part.shape), "data_offsets": offsets}
        end += part.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 64) * 64)
    with replacing(path) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            for piece in part.make():
                stream.write(_raw(piece).data)


def _raw(values: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _difference(name: str, what: str, values: Array, back: Array) -> Rounding | None:
    wrong = values != back
    if not wrong.any():
        return None
    error = np.abs(values[wrong].astype(np.float64) - back[wrong]) / np.abs(values[wrong])
    return Rounding(name, what, float(error.max()))


def _rounding(values: Array, kind: np.dtype[Any]) -> float:
    """The largest relative error that numbers have in another type; 0 where they are all in it."""
    if values.dtype == kind:
        return 0.0
    worst = 0.0
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float32)
        with np.errstate(over="ignore"):
            back = part.astype(kind).astype(np.float32)
        wrong = (part != back) & ~(np.isnan(part) & np.isnan(back))
        if wrong.any():
            with np.errstate(over="ignore", divide="ignore"):
                worst = max(worst, float((np.abs(part[wrong] - back[wrong]) / np.abs(part[wrong])).max()))
    return worst
