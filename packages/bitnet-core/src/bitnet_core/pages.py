"""Pages of a pool with counted owners: what key and value caches are made of."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .memory import Buffer


class Source(Protocol):
    """What slabs are taken from: a pool, or a reservation in one."""

    def take(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Buffer:
        """A block of zeros, or OutOfMemory."""


class Pages:
    """Pages of one shape with counted owners, as key and value caches share them; any thread may call it.

    Page `id` is `slabs[id // pages_per_slab][id % pages_per_slab]`. A page holds what its last owner left there.
    """

    def __init__(
        self, source: Source, page_shape: Sequence[int], dtype: npt.DTypeLike, *, pages_per_slab: int = 64
    ) -> None:
        if pages_per_slab < 1:
            raise ValueError(f"a slab has at least one page, got {pages_per_slab}")
        self.page_shape = tuple(page_shape)
        self.dtype = np.dtype(dtype)
        self.pages_per_slab = pages_per_slab
        self._source = source
        self._lock = threading.Lock()
        self._buffers: list[Buffer | None] = []
        self._slabs: list[npt.NDArray[Any] | None] = []
        self._refs: list[int] = []  # owners of each page; 0 for a free one
        self._free: list[int] = []  # the last one freed is the first one taken: it may still be in the cache

    @property
    def slabs(self) -> tuple[npt.NDArray[Any] | None, ...]:
        """Arrays of (pages_per_slab, *page_shape); None where `trim` gave one back."""
        return tuple(self._slabs)

    @property
    def free(self) -> int:
        """Pages held that nobody owns."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Pages with an owner."""
        with self._lock:
            return sum(slab is not None for slab in self._slabs) * self.pages_per_slab - len(self._free)

    def take(self) -> int:
        """A page with one owner; raises OutOfMemory where none is free and a slab more does not fit."""
        with self._lock:
            if not self._free:
                self._grow()
            page = self._free.pop()
            self._refs[page] = 1
            return page

    def share(self, page: int) -> int:
        """Add an owner to a page."""
        with self._lock:
            self._owned(page)
            self._refs[page] += 1
            return page

    def drop(self, page: int) -> None:
        """Remove an owner; without any the page is free."""
        with self._lock:
            self._owned(page)
            self._refs[page] -= 1
            if not self._refs[page]:
                self._free.append(page)

    def copy(self, page: int) -> int:
        """A new page with one owner and the same contents, to write where others only read."""
        source = self.array(page)
        fresh = self.take()
        np.copyto(self.array(fresh), source)
        return fresh

    def refs(self, page: int) -> int:
        """How many owners a page has."""
        return self._refs[page] if 0 <= page < len(self._refs) else 0

    def array(self, page: int) -> npt.NDArray[Any]:
        """A view of one page."""
        self._owned(page)
        slab = self._slabs[page // self.pages_per_slab]
        view: npt.NDArray[Any] = slab[page % self.pages_per_slab]  # type: ignore[index]  # owned, so it is there
        return view

    def trim(self) -> int:
        """Give back the slabs in which no page has an owner; the number of slabs."""
        with self._lock:
            idle = {number for number, slab in enumerate(self._slabs) if slab is not None and not self._busy(number)}
            self._free = [page for page in self._free if page // self.pages_per_slab not in idle]
            for number in idle:
                self._release(number)
            return len(idle)

    def close(self) -> None:
        """Give all slabs back, owned or not; closing twice does nothing."""
        with self._lock:
            self._free.clear()
            for number in range(len(self._slabs)):
                self._release(number)

    def _grow(self) -> None:
        buffer = self._source.take((self.pages_per_slab, *self.page_shape), self.dtype)
        if None in self._buffers:
            number = self._buffers.index(None)
            self._buffers[number], self._slabs[number] = buffer, buffer.array
        else:
            number = len(self._buffers)
            self._buffers.append(buffer)
            self._slabs.append(buffer.array)
            self._refs.extend([0] * self.pages_per_slab)
        first = number * self.pages_per_slab
        self._free.extend(reversed(range(first, first + self.pages_per_slab)))

    def _busy(self, number: int) -> bool:
        first = number * self.pages_per_slab
        return any(self._refs[first : first + self.pages_per_slab])

    def _release(self, number: int) -> None:
        first = number * self.pages_per_slab
        self._refs[first : first + self.pages_per_slab] = [0] * self.pages_per_slab
        buffer, self._buffers[number], self._slabs[number] = self._buffers[number], None, None
        if buffer is not None:
            buffer.close()

    def _owned(self, page: int) -> None:
        if not self.refs(page):
            raise ValueError(f"page {page} has no owner: it was dropped already, or never taken")
