"""Key and value caches in shared pages: which pages belong to which sequence, whatever a backend keeps in them."""

from __future__ import annotations

import math
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from .model import CacheStats
from .pages import Pages


class CachePages:
    """The pages that all caches of one runner are made of, `tokens` positions in each."""

    def __init__(self, pages: Pages, tokens: int, layout: str = "") -> None:
        self.pages = pages
        self.tokens = tokens
        self.layout = layout
        # Garbage collection may end a cache while this thread holds the pages' lock: what it leaves is queued.
        self.abandoned: deque[list[int]] = deque()

    def new(self) -> PagedCache:
        """An empty cache; its pages are taken as it grows."""
        return PagedCache(self, [], 0)

    def restore(self, content: npt.NDArray[np.generic]) -> PagedCache:
        """A cache of its own pages that hold what a `content` gave."""
        if content.dtype != self.pages.dtype or content.shape[1:] != self.pages.page_shape:
            raise ValueError(
                f"content: expected pages of {self.pages.dtype} {self.pages.page_shape}, "
                f"got {content.dtype} {content.shape[1:]}"
            )
        cache = self.new()
        cache.extend(len(content) * self.tokens)
        for page, held in zip(cache.table, content, strict=True):
            np.copyto(self.pages.array(page), held)
        return cache

    def stats(self) -> CacheStats:
        """How many pages there are, and how big they are."""
        self._sweep()
        size = math.prod(self.pages.page_shape) * self.pages.dtype.itemsize
        return CacheStats(self.pages.used, self.pages.free, self.tokens, size, self.pages.pages_per_slab)

    def trim(self) -> None:
        """Give back the slabs in which no page has an owner."""
        self._sweep()
        self.pages.trim()

    def take(self) -> int:
        """A page of its own for one cache."""
        self._sweep()
        return self.pages.take()

    def _sweep(self) -> None:
        """Drop the pages of caches that nobody closed; any thread may."""
        with suppress(IndexError):  # two that sweep at once leave nothing to the slower
            while True:
                for page in self.abandoned.popleft():
                    self.pages.drop(page)


class PagedCache:
    """One sequence's positions as a table of pages; forks share pages, and copy the one they write to.

    A page is written only by a cache that is its single owner. One thread at a time may use a cache.
    """

    def __init__(self, owner: CachePages, table: list[int], length: int) -> None:
        self.owner = owner
        self.table = table
        self._length = length
        self._release = weakref.finalize(self, owner.abandoned.append, table)
        self._release.atexit = False

    @property
    def length(self) -> int:
        """Positions held."""
        return self._length

    @property
    def closed(self) -> bool:
        return not self._release.alive

    def check_open(self) -> None:
        """Raise ValueError if the cache was closed."""
        if self.closed:
            raise ValueError("the cache is closed")

    def extend(self, count: int) -> None:
        """Hold `count` more positions in pages of its own; raises OutOfMemory and changes nothing."""
        self.check_open()
        pages, size = self.owner.pages, self.owner.tokens
        missing = -(-(self._length + count) // size) - len(self.table)
        last = self._length // size
        shared = self._length % size and pages.refs(self.table[last]) > 1
        taken: list[int] = []
        try:
            for _ in range(missing):
                taken.append(self.owner.take())  # noqa: PERF401  # what was taken must be known when one fails
            if shared:
                mine = pages.copy(self.table[last])
                pages.drop(self.table[last])
                self.table[last] = mine
        except BaseException:
            for page in taken:
                pages.drop(page)
            raise
        self.table += taken
        self._length += count

    def fork(self, length: int | None = None) -> PagedCache:
        """A second cache with the first `length` positions of this one."""
        self.check_open()
        length = self._length if length is None else length
        self._check_length(length)
        table = self.table[: -(-length // self.owner.tokens)]
        for page in table:
            self.owner.pages.share(page)
        return PagedCache(self.owner, list(table), length)

    def truncate(self, length: int) -> None:
        """Forget what lies beyond `length`."""
        self.check_open()
        self._check_length(length)
        keep = -(-length // self.owner.tokens)
        while len(self.table) > keep:
            self.owner.pages.drop(self.table.pop())
        self._length = length

    def content(self) -> npt.NDArray[np.generic]:
        """A copy of its full pages; of the last positions, which do not fill one, there is none."""
        self.check_open()
        full = self.table[: self._length // self.owner.tokens]
        pages = [self.owner.pages.array(page) for page in full]
        shape = (len(pages), *self.owner.pages.page_shape)
        return np.stack(pages) if pages else np.empty(shape, self.owner.pages.dtype)

    def close(self) -> None:
        """Give the pages back; closing twice does nothing."""
        if self._release.detach():
            for page in self.table:
                self.owner.pages.drop(page)
            self.table.clear()
            self._length = 0

    def _check_length(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"expected a length from 0 to {self._length}, which the cache holds, got {length}")
