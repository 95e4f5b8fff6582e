"""Memory with a hard limit: pools, reservations, and how much the machine has left.

A pool maps memory from the system and keeps account of it. A block of more than half a page has a mapping of its
own, made for it and given back with it, so scratch memory is taken once and kept. Smaller blocks share pages, one
size a page, sizes being powers of two. The limit holds for what is mapped, before it is mapped.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import psutil

from . import cgroup
from .errors import OutOfMemory

PAGE = mmap.PAGESIZE
_HUGE = 2 << 20  # bytes of a huge page on x86 and on Arm with 4 KiB pages
_ALIGN = 64  # a line of the cache, and the widest vector


@dataclass(frozen=True, slots=True)
class Stats:
    """A pool at one moment; sizes in bytes."""

    in_use: int  # of the live blocks, as asked for
    reserved: int  # promised, and not yet drawn
    mapped: int  # taken from the system
    limit: int | None  # of mapped and reserved together
    high_water: int  # the most ever mapped at once
    blocks: int  # that are live

    @property
    def fragmentation(self) -> float:
        """The share of the mapped bytes that no block uses."""
        return 1 - self.in_use / self.mapped if self.mapped else 0.0


class _Memory:
    """What the arrays of a block hold on to: as long as one lives, so does the mapping under it.

    NumPy asks it for `__array_interface__` and makes it the base of every view, where an array would be
    skipped; so the block goes back to its pool with the last view and not with the first.
    """

    __slots__ = ("__array_interface__", "__weakref__", "_mapping")

    def __init__(self, mapping: mmap.mmap, address: int, nbytes: int) -> None:
        self._mapping = mapping
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": (nbytes,), "typestr": "|u1"}


class Buffer:
    """A block of a pool as an array of zeros; it goes back when it is closed, or when nothing refers to it."""

    __slots__ = ("_array", "_release")

    def __init__(self, array: npt.NDArray[Any], release: Callable[[], object]) -> None:
        self._array: npt.NDArray[Any] | None = array
        self._release = release

    @property
    def array(self) -> npt.NDArray[Any]:
        """The block; after `close` its views must not be used, since the next owner writes there."""
        array = self._array
        if array is None:
            raise ValueError("the buffer is closed")
        return array

    def close(self) -> None:
        """Give the block back, from any thread; closing twice does nothing."""
        self._array = None
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Shelf:
    """A page cut into blocks of one size."""

    __slots__ = ("address", "free", "mapping", "size")

    def __init__(self, mapping: mmap.mmap, address: int, size: int) -> None:
        self.mapping = mapping
        self.address = address
        self.size = size
        self.free = list(range(PAGE - size, -1, -size))  # offsets; the lowest is taken first

    @property
    def empty(self) -> bool:
        return len(self.free) * self.size == PAGE


class _Place(NamedTuple):
    """Where a block lies: in a shelf, or alone in a mapping."""

    nbytes: int
    mapped: int  # bytes of its own mapping; 0 in a shelf
    shelf: _Shelf | None = None
    offset: int = 0


class _Promise:
    """What is left of a reservation; changed only under the pool's lock."""

    __slots__ = ("left",)

    def __init__(self, left: int) -> None:
        self.left = left


class Pool:
    """Blocks of memory, aligned and zeroed, under one hard limit in bytes; any thread may call it.

    What is mapped counts in whole pages. Above 2 MiB the system is asked for huge pages, where it has them.
    """

    def __init__(self, limit: int | None = None, *, name: str = "memory", huge_pages: bool = True) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"the limit of pool {name!r} is a number of bytes, got {limit}")
        self.limit = limit
        self.name = name
        self.huge_pages = huge_pages
        self._lock = threading.Lock()
        # Collecting garbage may end a block inside our own locked sections, where to wait for the lock would be
        # for ever: what is given back is queued, and entered into the account by the next who has the lock.
        self._queue: deque[Callable[[], None]] = deque()
        self._shelves: dict[int, dict[int, _Shelf]] = {}  # those with room, by size and address
        self._in_use = self._reserved = self._mapped = self._high_water = self._blocks = 0

    def take(self, shape: int | Sequence[int], dtype: npt.DTypeLike, align: int = _ALIGN) -> Buffer:
        """A block of zeros; raises OutOfMemory, and changes nothing, where the limit or the system forbids it."""
        return self._take(shape, dtype, align, None)

    def reserve(self, nbytes: int) -> Reservation:
        """Set bytes aside, in whole pages, or raise OutOfMemory: how a request is let in before it takes its blocks."""
        if nbytes < 0:
            raise ValueError(f"a reservation is a number of bytes, got {nbytes}")
        with self._locked():
            size = _pages(nbytes)
            self._check(size, nbytes)
            promise = _Promise(size)
            self._reserved += size
        return Reservation(self, promise)

    def would_fit(self, nbytes: int) -> bool:
        """Whether so many bytes could be mapped now; a small block may find a hole even where they could not."""
        with self._locked():
            return self.limit is None or self._mapped + self._reserved + _pages(nbytes) <= self.limit

    def stats(self) -> Stats:
        """The account at this moment."""
        with self._locked():
            return Stats(self._in_use, self._reserved, self._mapped, self.limit, self._high_water, self._blocks)

    def _take(self, shape: int | Sequence[int], dtype: npt.DTypeLike, align: int, promise: _Promise | None) -> Buffer:
        dims, kind, nbytes = _measure(shape, dtype)
        if align < 1 or align & (align - 1):
            raise ValueError(f"an alignment is a power of two, got {align}")
        size = 1 << (max(nbytes, align, _ALIGN) - 1).bit_length()
        with self._locked():
            if size <= PAGE // 2:
                memory, place = self._share(size, nbytes, promise)
            else:
                memory, place = self._map_alone(nbytes, align, promise)
            self._in_use += nbytes
            self._blocks += 1
        release = weakref.finalize(memory, self._queue.append, lambda: self._free(place))
        release.atexit = False  # at exit the system takes everything back at once
        raw = np.asarray(memory)
        if place.shelf is not None:
            raw.fill(0)  # somebody else may have had it before; a new mapping is zero already
        return Buffer(raw.view(kind).reshape(dims), release)

    def _share(self, size: int, nbytes: int, promise: _Promise | None) -> tuple[_Memory, _Place]:
        shelves = self._shelves.setdefault(size, {})
        if shelves:
            shelf = next(iter(shelves.values()))
        else:
            shelf = _Shelf(*self._map(PAGE, PAGE, nbytes, promise), size)
            shelves[shelf.address] = shelf
        offset = shelf.free.pop()
        if not shelf.free:
            del shelves[shelf.address]
        memory = _Memory(shelf.mapping, shelf.address + offset, nbytes)
        return memory, _Place(nbytes, 0, shelf, offset)

    def _map_alone(self, nbytes: int, align: int, promise: _Promise | None) -> tuple[_Memory, _Place]:
        mapped = _pages(nbytes)
        mapping, address = self._map(mapped, align, nbytes, promise)
        return _Memory(mapping, address, nbytes), _Place(nbytes, mapped)

    def _map(self, size: int, align: int, asked: int, promise: _Promise | None) -> tuple[mmap.mmap, int]:
        """Map pages within the limit, drawing on the promise first: the mapping, and its first aligned address."""
        drawn = min(size, promise.left) if promise else 0
        self._check(size - drawn, asked)
        huge = self.huge_pages and size >= _HUGE
        try:
            mapping, offset = _map(size, max(align, _HUGE if huge else PAGE), huge)
        except (OSError, OverflowError, ValueError, MemoryError) as error:
            raise OutOfMemory(f"{self._account(asked)}; the system refuses: {error}") from error
        if promise:
            promise.left -= drawn
        self._reserved -= drawn
        self._mapped += size
        self._high_water = max(self._high_water, self._mapped)
        return mapping, _address(mapping) + offset

    def _check(self, size: int, asked: int) -> None:
        if self.limit is not None and self._mapped + self._reserved + size > self.limit:
            raise OutOfMemory(f"{self._account(asked)}; close what is not needed, or raise the limit")

    def _account(self, asked: int) -> str:
        limit = "no limit" if self.limit is None else f"limit {self.limit}"
        return (
            f"pool {self.name!r}: {asked} bytes asked for, {self._in_use} in use, {self._mapped} mapped, "
            f"{self._reserved} reserved, {limit}"
        )

    def _free(self, place: _Place) -> None:
        self._in_use -= place.nbytes
        self._blocks -= 1
        self._mapped -= place.mapped
        shelf = place.shelf
        if shelf is None:
            return
        shelves = self._shelves.setdefault(shelf.size, {})
        shelf.free.append(place.offset)
        shelves[shelf.address] = shelf
        if shelf.empty:
            del shelves[shelf.address]
            self._mapped -= PAGE

    def _cancel(self, promise: _Promise) -> None:
        self._reserved -= promise.left
        promise.left = 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            while self._queue:
                self._queue.popleft()()
            yield


class Reservation:
    """Bytes set aside in a pool: blocks that fit in them, each rounded up to whole pages, cannot be refused."""

    __slots__ = ("__weakref__", "_pool", "_promise", "_release")

    def __init__(self, pool: Pool, promise: _Promise) -> None:
        self._pool = pool
        self._promise = promise
        self._release = weakref.finalize(self, pool._queue.append, lambda: pool._cancel(promise))
        self._release.atexit = False

    @property
    def left(self) -> int:
        """Bytes not yet drawn."""
        with self._pool._locked():
            return self._promise.left

    def take(self, shape: int | Sequence[int], dtype: npt.DTypeLike, align: int = _ALIGN) -> Buffer:
        """A block from the reservation, and what it lacks from the pool; closed, the block returns to the pool."""
        return self._pool._take(shape, dtype, align, self._promise)

    def close(self) -> None:
        """Return what was not drawn, from any thread; closing twice does nothing."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _measure(shape: int | Sequence[int], dtype: npt.DTypeLike) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """The dimensions, the type and the bytes of an array."""
    dims = tuple(index(size) for size in (shape if isinstance(shape, Sequence) else (shape,)))
    kind = np.dtype(dtype)
    if kind.hasobject or not kind.itemsize:
        raise ValueError(f"a pool holds numbers, got an array of {kind}")
    if any(size < 0 for size in dims):
        raise ValueError(f"an array has no negative dimensions, got shape {dims}")
    return dims, kind, math.prod(dims) * kind.itemsize


def _pages(nbytes: int) -> int:
    return max(1, -(-nbytes // PAGE)) * PAGE  # an empty block has an address too


def _map(size: int, align: int, huge: bool) -> tuple[mmap.mmap, int]:
    """A mapping of zeros with `size` bytes from an aligned address on, and the offset of that address."""
    # What is mapped beyond `size` to find one in is never touched: it costs addresses and no memory.
    length = size + align - PAGE
    if sys.platform == "win32":
        mapping = mmap.mmap(-1, length)
    else:
        # Python's default is shared memory, which gets no huge pages and which a forked child would write to.
        mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    offset = -_address(mapping) % align
    if sys.platform != "win32" and huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages; small ones do as well, only slower
            mapping.madvise(mmap.MADV_HUGEPAGE, offset, size)
    return mapping, offset


def _address(mapping: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


@dataclass(frozen=True, slots=True)
class Pressure:
    """How short this process is of memory, by whatever has the least left: the machine or a control group.

    The level is "critical" with less than 1/20 of the limit left, or when in the last 10 s all tasks at once
    waited for memory 5% of the time; "some" with less than 1/8 left, or when some task waited 10% of the time.
    """

    limit: int  # bytes; what files keep in memory but can be dropped counts as available
    used: int
    available: int
    kills: int  # processes of the group that the kernel has ended for want of memory, ever
    level: Literal["none", "some", "critical"]


def pressure(root: Path = Path("/")) -> Pressure:
    """Read the state of memory from the files below `root`, and from the system where it has no such files."""
    limit, available = _system(root)
    group = cgroup.limits(root)
    if group.memory is not None and group.used is not None and group.memory - group.used < available:
        limit, available = group.memory, max(0, group.memory - group.used)
    level: Literal["none", "some", "critical"] = "none"
    if available * 20 < limit or (group.blocked or 0) >= 5:
        level = "critical"
    elif available * 8 < limit or (group.stalled or 0) >= 10:
        level = "some"
    return Pressure(limit, limit - available, available, group.kills, level)


def available(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: the smaller of what the machine and its control groups have left."""
    return pressure(root).available


def _system(root: Path) -> tuple[int, int]:
    """Bytes of memory, and those available without swapping."""
    lines = (line.split() for line in cgroup.read(root / "proc/meminfo").splitlines())
    sizes = {words[0]: int(words[1]) << 10 for words in lines if len(words) == 3 and words[1].isdecimal()}
    if "MemTotal:" in sizes and "MemAvailable:" in sizes:
        return sizes["MemTotal:"], sizes["MemAvailable:"]
    memory = psutil.virtual_memory()
    return memory.total, memory.available
