"""Weights from a model into the order of the kernels: each read once, and held in the runner's memory alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_core.errors import UnsupportedError
from bitnet_core.memory import Buffer, Pool
from bitnet_core.model import Array, Model, runs_of
from bitnet_core.tensor import TernaryTensor

from . import _native

_PROJECTIONS = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")
_SLAB_BYTES = 128 << 20  # of ternary matrices that lie side by side
_LINE = 64  # bytes of the cache's line, at which matrices begin
_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}  # bytes of the kinds of floats
_VECTORS = (
    "attn.norm",
    "ffn.norm",
    "attn.sub_norm",
    "ffn.sub_norm",
    "attn.q_norm",
    "attn.k_norm",
    "attn.post_norm",
    "ffn.post_norm",
)
_Rows = Iterator[npt.NDArray[np.uint8]]  # the bytes of a matrix of floats, as many rows at a time as come at once


class Placement:
    """Places one model's weights into an engine, and owns the memory that they take."""

    def __init__(self, model: Model, pool: Pool, engine: _native.Engine) -> None:
        self._model = model
        self._pool = pool
        self._engine = engine
        self._buffers: list[Buffer] = []
        self._slab = np.empty(0, np.uint8)  # what is left of the last one
        self._left = 0  # bytes that the ternary matrices to come take, if all of the layers are

    def close(self) -> None:
        """Give the memory back; the engine must not be used any more."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers.clear()
        self._slab = self._slab[:0]

    def place(self, head: str) -> None:
        """All weights of the model; `head` is "f16" or "int8"."""
        spec, engine = self._model.spec, self._engine
        ropes = [spec.rope] if spec.local_rope is None else [spec.rope, spec.local_rope]
        for rope in ropes:
            engine.add_rope(rope.frequencies(), rope.magnitude)
        shapes = spec.projections().values()
        self._left = spec.layers * sum(_whole_lines(self._ternary_bytes(*shape)) for shape in shapes)
        for layer in range(spec.layers):
            engine.set_rope(layer, ropes.index(spec.rope_of(layer)), spec.window(layer))
            self._place_layer(layer)
        embedding, last = self._place_ends(narrow=head == "int8")
        engine.set_ends(embedding, last, self._vector("norm"))
        engine.use_scratch(self.take(engine.scratch_bytes(), np.uint8))

    def take(self, shape: int | Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Memory that lives as long as the weights."""
        buffer = self._pool.take(shape, dtype)
        self._buffers.append(buffer)
        return buffer.array

    def _take_beside(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Memory behind the matrix before: huge pages hold many, and what is read ahead of one's end is the next."""
        whole = _whole_lines(nbytes)
        if whole > len(self._slab):
            self._slab = self.take(max(whole, min(self._left, _SLAB_BYTES)), np.uint8)
        self._left -= whole
        taken, self._slab = self._slab[:nbytes], self._slab[whole:]
        return taken

    def _ternary_bytes(self, rows: int, columns: int, segments: int = 1) -> int:
        return self._engine.ternary_bytes(rows=rows, columns=columns, segments=segments)

    def _place_layer(self, layer: int) -> None:
        names = set(self._model.spec.layer_shapes())
        prefix = f"layers.{layer}."
        for which, name in enumerate(_PROJECTIONS):
            matrix = self._matrix(prefix + name, floats=self._model.spec.inputs == "float")
            norm = self._vector(f"{prefix}{name}.norm") if f"{name}.norm" in names else None
            bias = self._vector(f"{prefix}{name}.bias") if f"{name}.bias" in names else None
            self._engine.set_matrix(layer, which, matrix, norm, bias)
        for which, name in enumerate(_VECTORS):
            if name in names:
                self._engine.set_vector(layer, which, self._vector(prefix + name))

    def _place_ends(self, *, narrow: bool) -> tuple[_native.Matrix, _native.Matrix]:
        """The embedding and the head, which may be one weight; `narrow` makes int8 of a head of floats."""
        found, rows = self._rows("embedding")
        if isinstance(found, TernaryTensor):
            embedding = last = self._ternary("embedding", found, floats=True)
        else:
            embedding, copied = self._dense("embedding", rows, found)
            last = self._bytes("embedding", copied, found) if self._model.spec.tied and narrow else embedding
            deque(copied, maxlen=0)
        if not self._model.spec.tied:
            last = self._matrix("head", floats=True, narrow=narrow)
        return embedding, last

    def _vector(self, name: str) -> Array:
        values = np.asarray(self._model.weights[name])
        placed = self.take(values.shape, np.float32)
        placed[...] = values
        return placed

    def _matrix(self, name: str, *, floats: bool, narrow: bool = False) -> _native.Matrix:
        found, rows = self._rows(name)
        if isinstance(found, TernaryTensor):
            return self._ternary(name, found, floats=floats)
        if narrow:
            return self._bytes(name, rows, found)
        matrix, copied = self._dense(name, rows, found)
        deque(copied, maxlen=0)
        return matrix

    def _rows(self, name: str) -> tuple[TernaryTensor | str, _Rows]:
        """A weight that is ternary, or the kind of floats that it has and all its rows."""
        runs = runs_of(self._model.weights, name)
        first = next(runs)
        rows = (_as_bytes(np.ascontiguousarray(run)) for run in chain((first,), runs))
        return first if isinstance(first, TernaryTensor) else _kind(name, first), rows

    def _dense(self, name: str, rows: _Rows, kind: str) -> tuple[_native.Matrix, _Rows]:
        """A matrix of floats, which is whole when the same rows have been taken from what is given with it."""
        count, columns = self._model.spec.shapes()[name]
        placed = self.take(count * columns * _SIZES[kind], np.uint8)

        def copied() -> _Rows:
            end = 0
            for data in rows:
                start, end = end, end + len(data)
                self._engine.copy(data, placed[start:end])
                yield data

        return _native.Matrix.dense(placed, kind=kind, rows=count, columns=columns), copied()

    def _ternary(self, name: str, tensor: TernaryTensor, *, floats: bool) -> _native.Matrix:
        rows, columns = tensor.shape
        segments = int(tensor.scale.shape[1])
        groups = -(-rows // _native.ROWS)
        data = self._take_beside(self._ternary_bytes(rows, columns, segments))
        wire = tensor.data
        if wire.shape[1] > 1 and wire.strides[1] != 1:
            wire = np.ascontiguousarray(wire)
        if not self._engine.pack(wire, tensor.layout, data, rows=rows, columns=columns, segments=segments):
            tensor.codes()  # raises, and says where
            raise UnsupportedError(f"{name}: it changed while it was read; load it again")
        each = tensor.scale.shape[0] > 1
        if each:
            scale = self.take((segments, groups * _native.ROWS), np.float32)
            scale[:, :rows] = tensor.scale.T
        else:
            scale = self.take(segments, np.float32)
            scale[...] = tensor.scale[0]
        return self._engine.ternary(
            data, scale.reshape(-1), rows=rows, columns=columns, segments=segments, each=each, floats=floats
        )

    def _bytes(self, name: str, wide: _Rows, kind: str) -> _native.Matrix:
        """Rows of floats of that kind as int8 with a scale a row: in planes where rows can be read in part."""
        rows, columns = self._model.spec.shapes()[name]
        placed_rows = -(-rows // _native.ROWS) * _native.ROWS
        scale = self.take(placed_rows, np.float32)
        planes = self._engine.splits(columns)
        unit = _native.PLANE_COLUMNS if planes else _native.COLUMNS
        data = self.take(placed_rows * -(-columns // unit) * unit, np.uint8)
        rest = self.take((_native.RESTS, placed_rows), np.float32) if planes else None
        first = 0
        for run in wide:
            if rest is None:
                self._engine.pack_rows(run, kind, data, scale, first=first, rows=rows, columns=columns)
            else:
                self._engine.pack_planes(run, kind, data, scale, rest, first=first, rows=rows, columns=columns)
            first += len(run) // (columns * _SIZES[kind])
        if rest is None:
            return _native.Matrix.bytes(data, scale, rows=rows, columns=columns)
        return _native.Matrix.planes(data, scale, rest, rows=rows, columns=columns)


def _whole_lines(nbytes: int) -> int:
    return -(-nbytes // _LINE) * _LINE


def _kind(name: str, weight: npt.NDArray[Any]) -> str:
    kind = weight.dtype.name
    if kind not in _SIZES:
        raise UnsupportedError(
            f"{name}: the cpu backend multiplies float16, bfloat16, float32 and ternary weights, got {kind}"
        )
    return kind


def _as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
