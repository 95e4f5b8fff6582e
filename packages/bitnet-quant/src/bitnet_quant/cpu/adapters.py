"""Adapters in the order of the kernels: each placed when it is first used, and held as long as the adapter lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from bitnet_core.memory import Buffer, Pool
from bitnet_core.model import Adapter, Array, ModelSpec

from . import _native

_TOP = 15  # magnitudes below 2 ** 15, and half precision has its whole range under them
_FAR = 60  # exponents beyond which their sum might leave float32


@dataclass(frozen=True, slots=True)
class _Placed:
    """One adapter as the engine takes it, and the memory under it."""

    native: _native.Adapter
    buffer: Buffer


class AdapterPlaces:
    """The adapters of one runner; one that nobody refers to any more gives its memory back by itself."""

    def __init__(self, spec: ModelSpec, pool: Pool, shape: _native.Shape) -> None:
        self._which = {name: which for which, name in enumerate(spec.projections())}
        self._pool = pool
        self._shape = shape
        self._placed: WeakKeyDictionary[Adapter, _Placed] = WeakKeyDictionary()

    def of(self, adapter: Adapter) -> _native.Adapter:
        """The adapter in kernel order."""
        placed = self._placed.get(adapter)
        if placed is None:
            self._placed[adapter] = placed = self._place(adapter)
        return placed.native

    def close(self) -> None:
        """Give the memory back; the engine must not be used any more."""
        for placed in self._placed.values():
            placed.buffer.close()
        self._placed.clear()

    def _place(self, adapter: Adapter) -> _Placed:
        changes = {name: _parts(down, up) for name, (down, up) in adapter.weights.items() if len(down)}
        # One block, which the system may give huge pages; what stands in it is read in this order.
        buffer = self._pool.take(sum(_padded(part) for parts in changes.values() for part in parts), np.uint8)
        native, room = _native.Adapter(self._shape), buffer.array
        for name, parts in changes.items():
            _, layer, projection = name.split(".", 2)
            down, up, scale = _filled(room, parts)
            native.set(int(layer), self._which[projection], down, up, scale.view(np.float32))
            room = room[sum(map(_padded, parts)) :]
        return _Placed(native, buffer)


_Parts = tuple[npt.NDArray[np.floating], npt.NDArray[np.floating], Array]


def _parts(down: Array, up: Array) -> _Parts:
    """Both matrices of a change in kernel order, and what their products are multiplied by."""
    first, second = _stored(down), _stored(up.T)
    scale = np.ldexp(np.float32(1), first.exponents + second.exponents)
    return first.values, _in_groups(second.values), scale


class _Matrix(NamedTuple):
    """What is stored of a matrix (rank, others), and the powers of two by which its rows are to be multiplied."""

    values: npt.NDArray[np.floating]
    exponents: npt.NDArray[np.int32]


def _stored(by_rank: Array) -> _Matrix:
    """Half precision where that says the same, as it does of all that ever was in it; else the matrix as it is."""
    exponents = np.frexp(np.abs(by_rank).max(axis=1))[1] - _TOP
    if np.abs(exponents).max() < _FAR:
        shifted = np.ldexp(by_rank, -exponents[:, None])
        halves = shifted.astype(np.float16)
        if np.array_equal(halves, shifted):
            return _Matrix(halves, exponents)
    return _Matrix(by_rank, np.zeros_like(exponents))


def _in_groups(by_rank: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """(rank, rows) as (groups of 64 rows, rank, 64), with zeros for the rows that the last group lacks."""
    rank, rows = by_rank.shape
    padded = np.zeros((rank, -(-rows // _native.ROWS) * _native.ROWS), by_rank.dtype)
    padded[:, :rows] = by_rank
    return padded.reshape(rank, -1, _native.ROWS).transpose(1, 0, 2)


def _filled(room: npt.NDArray[np.uint8], parts: _Parts) -> list[npt.NDArray[np.uint8]]:
    """The parts' bytes behind one another, as views of the room."""
    views = []
    for part in parts:
        view = room[: part.nbytes]
        view.view(part.dtype).reshape(part.shape)[...] = part
        views.append(view)
        room = room[_padded(part) :]
    return views


def _padded(part: npt.NDArray[np.floating]) -> int:
    """Bytes up to where the next part may begin."""
    return -(-part.nbytes // 64) * 64
