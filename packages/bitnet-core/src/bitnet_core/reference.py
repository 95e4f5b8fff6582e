"""The numpy backend: every operation in its obvious form. It is slow, it runs anywhere, and it is the oracle.

Sums of codes times int8 are exact. Other sums run in float64 and are rounded to float32 once, so that what a
result is does not depend on how a batch was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from .arithmetic import ACTIVATIONS, absmax, rms_norm, rotate
from .cache import CachePages, PagedCache
from .decoder import Batch, Decoder, Span
from .memory import Buffer, Pool
from .model import Array, Backend, Model, Reach, Runner, Tokens, runs_of
from .pages import Pages
from .tensor import TernaryTensor

_PAGE = 16  # positions a page
_CHUNK = 1 << 22  # elements that are widened at a time: bounds the scratch memory of a product
_QUERIES = 128  # rows of scores at a time, likewise


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight as it is multiplied: int8 codes with their scales, or floats as the file has them."""

    values: npt.NDArray[np.generic]
    scale: Array | None  # (1 or rows, blocks of columns); None for floats

    def rows(self, ids: Tokens) -> Array:
        """Some rows, as float32."""
        chosen: Array = self.values[ids].astype(np.float32)
        if self.scale is None:
            return chosen
        scale = np.broadcast_to(self.scale, (len(self.values), self.scale.shape[1]))[ids]
        blocks = chosen.reshape(len(ids), scale.shape[1], -1)
        scaled: Array = (blocks * scale[:, :, None]).reshape(chosen.shape)
        return scaled

    def times(self, x: Array, inputs: str) -> Array:
        """x (tokens, cols) as (tokens, rows); `inputs` says whether codes multiply int8 or floats."""
        if self.scale is None:
            return _float32(self._products(x.astype(np.float64), 1)[:, :, 0])
        blocks = int(self.scale.shape[1])
        if inputs == "float":
            sums = self._products(x.astype(np.float64), blocks)
            return _float32((sums * self.scale).sum(axis=2))
        digits, scale = absmax(x)
        # float32 holds every integer up to 2**24, so a product of so few columns is exact in it, and quick.
        exact = np.float32 if x.shape[1] // blocks * 128 <= 1 << 24 else np.float64
        sums = self._products(digits.astype(exact), blocks)
        return _float32((sums * self.scale.astype(np.float64)).sum(axis=2) / scale)

    def _products(self, x: npt.NDArray[np.floating], blocks: int) -> npt.NDArray[np.floating]:
        """The sum of each block of columns: (tokens, rows, blocks), in x's type."""
        rows, cols = self.values.shape
        size = cols // blocks
        sums = np.empty((len(x), rows, blocks), x.dtype)
        step = max(1, _CHUNK // cols)
        for first in range(0, rows, step):
            part = self.values[first : first + step].astype(x.dtype)
            for block in range(blocks):
                columns = slice(block * size, (block + 1) * size)
                sums[:, first : first + step, block] = x[:, columns] @ part[:, columns].T
        return sums


class NumpyOperations:
    """The coarse operations, composed of plain functions."""

    def __init__(self, model: Model, pool: Pool) -> None:
        self.spec = spec = model.spec
        self._buffers: list[Buffer] = []
        self._matrices: dict[str, Matrix] = {}
        self._vectors: dict[str, Array] = {}
        try:
            for name in spec.shapes():
                self._place(name, model, pool)
            shape = (spec.layers, 2, spec.kv_heads, _PAGE, spec.head_size)
            self._pages = Pages(pool, shape, np.float32, pages_per_slab=4)
        except BaseException:
            self._give_back()
            raise
        self.caches = CachePages(self._pages, _PAGE, f"numpy 1: float32 {shape}")
        ropes = [spec.rope_of(layer) for layer in range(spec.layers)]
        self._turns = [(rope.frequencies(), rope.magnitude) for rope in ropes]

    def _place(self, name: str, model: Model, pool: Pool) -> None:
        runs = runs_of(model.weights, name)
        weight = next(runs)
        values, scale = (weight.codes(), weight.scale) if isinstance(weight, TernaryTensor) else (weight, None)
        if values.ndim == 1:
            self._vectors[name] = np.array(values, np.float32)
            return
        buffer = pool.take(self.spec.shapes()[name], values.dtype)
        self._buffers.append(buffer)
        end = 0
        for rows in chain((values,), map(np.asarray, runs)):
            start, end = end, end + len(rows)
            buffer.array[start:end] = rows
        self._matrices[name] = Matrix(buffer.array, scale)

    def close(self) -> None:
        self._pages.close()
        self._give_back()

    def _give_back(self) -> None:
        self._matrices.clear()
        for buffer in self._buffers:
            buffer.close()

    def new_cache(self) -> PagedCache:
        return self.caches.new()

    def embed(self, tokens: Tokens) -> Array:
        return self._matrices["embedding"].rows(tokens) * np.float32(self.spec.embedding_scale)

    def project(self, layer: int, x: Array, batch: Batch[PagedCache]) -> tuple[Array, Array, Array]:
        spec = self.spec
        normed = self._norm(x, f"layers.{layer}.attn.norm")
        queries, keys, values = (
            self._linear(f"layers.{layer}.attn.{name}", normed, batch).reshape(len(x), -1, spec.head_size)
            for name in "qkv"
        )
        if spec.qk_norm:
            queries = self._norm(queries, f"layers.{layer}.attn.q_norm")
            keys = self._norm(keys, f"layers.{layer}.attn.k_norm")
        frequencies, magnitude = self._turns[layer]
        queries = rotate(queries, batch.positions, frequencies, magnitude)
        return queries, rotate(keys, batch.positions, frequencies, magnitude), values

    def attend(self, layer: int, queries: Array, keys: Array, values: Array, batch: Batch[PagedCache]) -> Array:
        attended = np.empty((len(queries), self.spec.heads * self.spec.head_size), np.float32)
        for span in batch.spans:
            self._write(layer, keys[span.rows], values[span.rows], span)
            held = self._read(layer, span.cache)
            for first in range(span.rows.start, span.rows.stop, _QUERIES):
                rows = slice(first, min(first + _QUERIES, span.rows.stop))
                attended[rows] = self._attention(layer, queries[rows], *held, batch.positions[rows])
        return attended

    def merge(self, layer: int, x: Array, attended: Array, batch: Batch[PagedCache]) -> Array:
        if self.spec.sub_norms == "block":
            attended = self._norm(attended, f"layers.{layer}.attn.sub_norm", self.spec.sub_norm_eps)
        return self._add(x, self._linear(f"layers.{layer}.attn.o", attended, batch), f"layers.{layer}.attn.post_norm")

    def feed(self, layer: int, x: Array, batch: Batch[PagedCache]) -> Array:
        normed = self._norm(x, f"layers.{layer}.ffn.norm")
        gate = ACTIVATIONS[self.spec.activation](self._linear(f"layers.{layer}.ffn.gate", normed, batch))
        inner = gate * self._linear(f"layers.{layer}.ffn.up", normed, batch)
        if self.spec.sub_norms == "block":
            inner = self._norm(inner, f"layers.{layer}.ffn.sub_norm", self.spec.sub_norm_eps)
        return self._add(x, self._linear(f"layers.{layer}.ffn.down", inner, batch), f"layers.{layer}.ffn.post_norm")

    def states(self, x: Array, rows: npt.NDArray[np.int64]) -> Array:
        return self._norm(x[rows], "norm")

    def head(self, states: Array, reaches: Sequence[Reach | None]) -> Array:
        del reaches  # every logit is exact
        matrix = self._matrices["embedding" if self.spec.tied else "head"]
        return matrix.times(states * np.float32(self.spec.logit_scale), "float")

    def _norm(self, x: Array, name: str, eps: float | None = None) -> Array:
        return rms_norm(x, self._vectors[name], self.spec.norm_eps if eps is None else eps)

    def _linear(self, name: str, x: Array, batch: Batch[PagedCache]) -> Array:
        if self.spec.sub_norms == "projection":
            x = self._norm(x, f"{name}.norm", self.spec.sub_norm_eps)
        y = self._matrices[name].times(x, self.spec.inputs)
        bias = self._vectors.get(f"{name}.bias")
        if bias is not None:
            y = y + bias
        for span in batch.spans:
            if span.adapter is not None and name in span.adapter.weights:
                down, up = span.adapter.weights[name]
                y[span.rows] += _float32(x[span.rows].astype(np.float64) @ down.T @ up.T)
        return y

    def _add(self, x: Array, change: Array, post_norm: str) -> Array:
        if self.spec.post_norms:
            change = self._norm(change, post_norm)
        return x + change * np.float32(self.spec.residual_scale)

    def _write(self, layer: int, keys: Array, values: Array, span: Span[PagedCache]) -> None:
        for place, rows in _page_ranges(span):
            page = self._pages.array(span.cache.table[place.start // _PAGE])
            slots = slice(place.start % _PAGE, place.start % _PAGE + place.stop - place.start)
            page[layer, 0, :, slots] = keys[rows].transpose(1, 0, 2)
            page[layer, 1, :, slots] = values[rows].transpose(1, 0, 2)

    def _read(self, layer: int, cache: PagedCache) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """All keys and values of a sequence: (kv heads, positions, head size) each."""
        pages = [self._pages.array(page)[layer] for page in cache.table]
        held = np.concatenate(pages, axis=2)[:, :, : cache.length].astype(np.float64)
        return held[0], held[1]

    def _attention(
        self,
        layer: int,
        queries: Array,
        keys: npt.NDArray[np.float64],
        values: npt.NDArray[np.float64],
        positions: npt.NDArray[np.int64],
    ) -> Array:
        """Softmax of the scaled scores over what each query may see, times the values."""
        spec = self.spec
        groups = queries.astype(np.float64).reshape(len(queries), spec.kv_heads, -1, spec.head_size)
        scores = np.einsum("tkgd,ksd->tkgs", groups, keys, optimize=True) * spec.query_scale
        ahead = np.arange(keys.shape[1]) - positions[:, None]
        hidden = ahead > 0
        if window := spec.window(layer):
            hidden |= ahead <= -window
        scores[np.broadcast_to(hidden[:, None, None, :], scores.shape)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("tkgs,ksd->tkgd", weights, values, optimize=True)
        return _float32(mixed.reshape(len(queries), -1))


def _float32(sums: npt.NDArray[np.floating]) -> Array:
    return sums.astype(np.float32)


def _page_ranges(span: Span[PagedCache]) -> Iterator[tuple[slice, slice]]:
    """The positions of a span cut at page borders, and which of its rows they are."""
    start, stop = span.start, span.start + span.rows.stop - span.rows.start
    while start < stop:
        end = min(stop, (start // _PAGE + 1) * _PAGE)
        yield slice(start, end), slice(start - span.start, end - span.start)
        start = end


def load(model: Model, *, memory: Pool | None = None) -> Runner:
    """The model on NumPy; weights and pages are taken from `memory`."""
    pool = memory or Pool(name="numpy")
    return Decoder(model.spec, NumpyOperations(model, pool))


BACKEND = Backend(name="numpy", load=load, why_not=lambda: None, priority=0)
