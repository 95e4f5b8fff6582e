"""The decoder's coarse operations as one native call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_core import device
from bitnet_core.cache import CachePages, PagedCache
from bitnet_core.decoder import Batch
from bitnet_core.memory import Buffer, Pool
from bitnet_core.model import Array, Model, ModelSpec, Reach, Tokens
from bitnet_core.pages import Pages

from . import _native
from .adapters import AdapterPlaces
from .placement import Placement

_SLAB_BYTES = 16 << 20  # of pages that are taken at once


class CpuOperations:
    """Operations over weights in kernel order; x is changed where it stands."""

    def __init__(self, model: Model, pool: Pool, *, isa: str, threads: int, head: str, kv: str) -> None:
        self.spec = spec = model.spec
        self._pool = pool
        shape = _shape(spec, kv)
        crew = max(threads, device.cpu().usable_cores)
        self._engine: _native.Engine | None = _native.Engine(isa, threads, shape, crew)
        self._placement = Placement(model, pool, self._engine)
        self._rows: dict[str, Buffer] = {}
        self._adapters = AdapterPlaces(spec, pool, shape)
        # Of the batch that the engine was told of; to hold the batch itself would keep its adapters alive.
        self._begun: npt.NDArray[np.int64] | None = None
        try:
            self._placement.place(head)
            page = spec.layers * spec.kv_heads * _native.head_bytes(spec.head_size, kv)
            self._pages = Pages(pool, (page,), np.uint8, pages_per_slab=max(1, min(64, _SLAB_BYTES // page)))
        except BaseException:
            self._placement.close()
            raise
        sizes = f"{spec.layers} layers, {spec.kv_heads} heads of {spec.head_size}"
        self.caches = CachePages(self._pages, _native.POSITIONS, f"cpu 1: {kv}, {sizes}, {_native.POSITIONS} positions")

    def close(self) -> None:
        self._engine = None
        self._begun = None
        self._pages.close()
        self._placement.close()
        self._adapters.close()
        for buffer in self._rows.values():
            buffer.close()
        self._rows.clear()

    def new_cache(self) -> PagedCache:
        self._open()
        return self.caches.new()

    def embed(self, tokens: Tokens) -> Array:
        x = self._take("x", len(tokens), self.spec.hidden_size)
        self._open().embed(tokens, x)
        return x

    def project(self, layer: int, x: Array, batch: Batch[PagedCache]) -> tuple[Array, Array, Array]:
        engine, spec = self._open(), self.spec
        if batch.positions is not self._begun:
            self._begin(engine, batch)
        width = spec.kv_heads * spec.head_size
        queries = self._take("queries", len(x), spec.heads * spec.head_size)
        keys, values = self._take("keys", len(x), width), self._take("values", len(x), width)
        engine.project(layer, x, queries, keys, values)
        return queries, keys, values

    def attend(self, layer: int, queries: Array, keys: Array, values: Array, batch: Batch[PagedCache]) -> Array:
        del batch  # begun by project
        attended = self._take("attended", len(queries), self.spec.heads * self.spec.head_size)
        self._open().attend(layer, queries, keys, values, attended)
        return attended

    def merge(self, layer: int, x: Array, attended: Array, batch: Batch[PagedCache]) -> Array:
        del batch
        self._open().merge(layer, x, attended)
        return x

    def feed(self, layer: int, x: Array, batch: Batch[PagedCache]) -> Array:
        del batch
        self._open().feed(layer, x)
        return x

    def states(self, x: Array, rows: npt.NDArray[np.int64]) -> Array:
        states = np.empty((len(rows), self.spec.hidden_size), np.float32)
        self._open().states(x, rows, states)
        return states

    def head(self, states: Array, reaches: Sequence[Reach | None]) -> Array:
        logits = np.empty((len(states), self.spec.vocab_size), np.float32)
        wanted = [(0, 0) if reach is None else (reach.best, reach.margin) for reach in reaches]
        scaled = np.ascontiguousarray(states * np.float32(self.spec.logit_scale))
        self._open().head(scaled, np.array(wanted, np.float64).reshape(-1, 2), logits)
        return logits

    def _open(self) -> _native.Engine:
        if self._engine is None:
            raise ValueError("the runner is closed")
        return self._engine

    def _take(self, name: str, rows: int, columns: int) -> npt.NDArray[Any]:
        """The first rows of an array that is kept from call to call, and grows when it must."""
        buffer = self._rows.get(name)
        if buffer is None or len(buffer.array) < rows:
            fresh = self._pool.take((rows, columns), np.float32)
            if buffer is not None:
                buffer.close()
            self._rows[name] = buffer = fresh
        return buffer.array[:rows]

    def _begin(self, engine: _native.Engine, batch: Batch[PagedCache]) -> None:
        """Tell the engine whose tokens these are, and where the pages lie."""
        self._begun = None
        adapters = [None if span.adapter is None else self._adapters.of(span.adapter) for span in batch.spans]
        sequences = [(span.rows.start, span.rows.stop - span.rows.start, span.start) for span in batch.spans]
        tables = [span.cache.table for span in batch.spans]
        engine.begin(np.array(sequences, np.int64).reshape(-1, 3), self._addresses(tables))
        if kept := engine.adapt(adapters):
            engine.keep_in(self._take("kept", kept, engine.kept_columns))
        self._begun = batch.positions

    def _addresses(self, tables: Sequence[Sequence[int]]) -> npt.NDArray[np.uint64]:
        pages = np.array([page for table in tables for page in table], np.int64)
        slabs = [0 if slab is None else slab.ctypes.data for slab in self._pages.slabs]
        slab, place = np.divmod(pages, self._pages.pages_per_slab)
        starts = np.array(slabs, np.uint64)[slab]
        return starts + (place * self._pages.page_shape[0]).astype(np.uint64)


def _shape(spec: ModelSpec, kv: str) -> _native.Shape:
    return _native.Shape(
        hidden=spec.hidden_size,
        ffn=spec.ffn_size,
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_size=spec.head_size,
        gate=spec.activation,
        held=kv,
        norm_eps=spec.norm_eps,
        sub_norm_eps=spec.sub_norm_eps,
        query_scale=spec.query_scale,
        embedding_scale=spec.embedding_scale,
        residual_scale=spec.residual_scale,
    )
