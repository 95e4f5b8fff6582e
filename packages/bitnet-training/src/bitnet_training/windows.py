"""Windows of a fixed size over a corpus, their order, and the batches of each step: all are functions of its number."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .corpus import Corpus

NOTHING = -100  # the target where nothing is to be learned, as torch's cross entropy has it
_Ints = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Windows that are computed together, each (rows, window)."""

    tokens: Tensor
    targets: Tensor  # the token that follows, or NOTHING
    positions: Tensor  # counted from each document's beginning, where documents do not see each other

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        on_cuda = device.type == "cuda"  # which copies on the side only what lies in memory that stays in its place
        return Batch(*((part.pin_memory() if on_cuda else part).to(device, non_blocking=True) for part in self))

    @property
    def learned(self) -> int:
        """How many tokens have something to learn."""
        return int((self.targets != NOTHING).sum())


class Windows(Protocol):
    """A sequence of windows: tokens, targets and positions, stacked (3, window)."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: int, /) -> _Ints: ...


@dataclass(frozen=True, slots=True)
class Stream:
    """The corpus cut into windows of equal size, wherever documents end; what is left over behind is not used."""

    corpus: Corpus
    size: int
    apart: bool  # documents do not see each other

    def __len__(self) -> int:
        return max(0, len(self.corpus.tokens) - 1) // self.size

    def __getitem__(self, place: int) -> _Ints:
        low = place * self.size
        window = _laid(self.corpus, low, low + self.size, goes_on=True)
        if not self.apart:
            window[2] = np.arange(self.size)
            return window
        first, last = np.searchsorted(self.corpus.starts, (low + 1, low + self.size))
        for start in self.corpus.starts[first : last + 1] - low:
            if start <= self.size:
                window[1, start - 1] = NOTHING  # a document's last token says nothing about the next document
            window[2, start:] -= window[2, start] if start < self.size else 0
        return window


@dataclass(frozen=True, slots=True)
class Whole:
    """Windows of whole documents, the best that fit together; the longest are cut, and the rest is filled up."""

    corpus: Corpus
    size: int
    apart: bool
    documents: _Ints  # their numbers, window after window
    ends: _Ints  # of each window in that list
    cut: int  # documents that are longer than a window
    left_out: int  # conversations without an answer in what is left of them

    @classmethod
    def of(cls, corpus: Corpus, size: int, apart: bool) -> Whole:
        """Each document, from the longest to the shortest, goes where it leaves the least room."""
        lengths = np.minimum(np.diff(corpus.starts), size)
        teaching = _teaching(corpus, lengths)
        windows: list[list[int]] = []
        room: list[tuple[int, int]] = []  # what each window has left, and the window; sorted
        for document in np.argsort(-lengths, kind="stable").tolist():
            if not teaching[document]:
                continue
            length = int(lengths[document])
            place = bisect_left(room, (length, -1))
            left, window = room.pop(place) if place < len(room) else (size, len(windows))
            if window == len(windows):
                windows.append([])
            windows[window].append(document)
            if left > length:
                insort(room, (left - length, window))
        ends = np.cumsum([len(window) for window in windows], dtype=np.int64)
        order = np.array([document for window in windows for document in window], np.int64)
        cut = int((np.diff(corpus.starts) > size).sum())
        return cls(corpus, size, apart, order, ends, cut, int((~teaching).sum()))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> _Ints:
        window = np.zeros((3, self.size), np.int64)
        window[1] = NOTHING
        at = 0
        for document in self.documents[self.ends[place - 1] if place else 0 : self.ends[place]]:
            low, high = self.corpus.starts[document : document + 2]
            high = min(high, low + self.size)
            window[:, at : at + high - low] = _laid(self.corpus, low, high, goes_on=False)
            at += high - low
        if not self.apart:
            window[2] = np.arange(self.size)
        return window


def _teaching(corpus: Corpus, lengths: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether there is something to learn in so many first tokens of each document."""
    if corpus.learned is None:
        return np.ones(len(lengths), np.bool_)
    places = zip(corpus.starts.tolist(), lengths.tolist(), strict=False)
    return np.array([corpus.learned[low + 1 : low + length].any() for low, length in places], np.bool_)


def _laid(corpus: Corpus, low: int, high: int, *, goes_on: bool) -> _Ints:
    """Tokens from one place to another, what follows each, and positions."""
    window = np.full((3, high - low), NOTHING, np.int64)
    window[0] = corpus.tokens[low:high]
    end = high + 1 if goes_on else high
    window[1, : end - low - 1] = corpus.tokens[low + 1 : end]
    window[2] = np.arange(high - low)
    if corpus.learned is not None:
        window[1, : end - low - 1][corpus.learned[low + 1 : end] == 0] = NOTHING
    return window


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of each step: all windows in a new order each epoch, shared out over the processes.

    A step's batches follow from its number and the seed alone, so a run that goes on needs to know no more.
    """

    windows: Windows
    batch: int  # windows a step, over all processes
    rows: int  # windows of one process that are computed at once
    seed: int
    process: int = 0
    processes: int = 1

    def __call__(self, step: int) -> list[Batch]:
        """What this process computes in a step."""
        places = np.arange(step * self.batch + self.process, (step + 1) * self.batch, self.processes)
        return [self._batch(places[at : at + self.rows]) for at in range(0, len(places), self.rows)]

    def epoch(self, step: int) -> float:
        """How often all windows have been seen before a step."""
        return step * self.batch / len(self.windows)

    def _batch(self, places: _Ints) -> Batch:
        count = len(self.windows)
        order = [
            int(shuffled(place % count, count, (self.seed, place // count)))
            for place in places.tolist()
        ]  # fmt: skip
        return stacked(self.windows, order)


def in_order(windows: Windows, rows: int, limit: int = 0, process: int = 0, processes: int = 1) -> Iterator[Batch]:
    """Windows one after another, as for evaluation; with a limit, so many of them, evenly spread.

    All processes have as many batches, since they gather the shards of a model together: one without a window left
    computes another's for nothing.
    """
    count = min(len(windows), limit or len(windows))
    places = np.linspace(0, len(windows), count, endpoint=False).astype(np.int64)
    mine = places[process::processes]
    for at in range(0, -(-count // processes), rows):
        batch = stacked(windows, (mine[at : at + rows] if at < len(mine) else places[:1]).tolist())
        yield batch if at < len(mine) else batch._replace(targets=torch.full_like(batch.targets, NOTHING))


def stacked(windows: Windows, places: Sequence[int]) -> Batch:
    """Some windows as one batch."""
    return Batch(*torch.from_numpy(np.stack([windows[place] for place in places], 1)))


def shuffled(place: int, count: int, key: tuple[int, int]) -> int:
    """Where a place comes in an order of `count` that follows from the key.

    A Feistel network permutes the numbers of an even count of bits; those beyond `count` go round again. So the
    order needs no memory, and any place of it can be asked for.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(6):
            left, right = right, left ^ (mixed(right, turn, *key) & mask)
        place = left << half | right
        if place < count:
            return place


def mixed(*numbers: int) -> int:
    """A well-mixed number of 64 bits (the finisher of splitmix64, chained)."""
    found = 0
    for number in numbers:
        found = (found + number + 0x9E3779B97F4A7C15) & (1 << 64) - 1
        found = ((found ^ found >> 30) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
        found = ((found ^ found >> 27) * 0x94D049BB133111EB) & (1 << 64) - 1
        found ^= found >> 31
    return found
