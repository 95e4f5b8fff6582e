"""Which tokens are left to draw from, and the draw; nothing sorts a whole vocabulary of a trained model."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bitnet_core.model import Array

from .settings import Sampling

Places = npt.NDArray[np.intp]
_BLOCK = 128
_LOWEST = np.finfo(np.float32).min
_ALL_BITS = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15  # SplitMix64's


class Pool(NamedTuple):
    """Tokens that may be drawn, in the order of their ids."""

    ids: Places | None  # None: all
    weights: Array  # the best token's is 1 at first

    def keep(self, chosen: npt.NDArray[np.bool_]) -> Pool:
        """The tokens that were chosen alone."""
        places = np.flatnonzero(chosen)
        return Pool(places if self.ids is None else self.ids[places], self.weights[places])

    def draw(self, point: float) -> int:
        """The token at this point of 0..1 of all weights in a row."""
        place = _crossing(self.weights, point, 0, "right")
        return place if self.ids is None else int(self.ids[place])


def pool(logits: Array, sampling: Sampling) -> Pool:
    """What the settings leave of logits whose best is a finite number."""
    ids: Places | None = None
    if 0 < sampling.top_k < len(logits):
        ids = best(logits, sampling.top_k)
    elif sampling.min_p > 0 and sampling.top_p == sampling.typical_p == 1:
        # min_p itself is applied below, to weights; this spares the exponential of all the others.
        ids = np.flatnonzero(logits >= float(logits.max()) - margin(sampling))
    found = logits if ids is None else logits[ids]
    # In place: memory that is fresh from the system costs more than the arithmetic.
    weights = found - found.max()
    weights *= np.float32(1 / sampling.temperature)
    left = Pool(ids, np.exp(weights, out=weights))
    if sampling.typical_p < 1:
        left = _typical(left, sampling.typical_p)
    if sampling.top_p < 1:
        left = _nucleus(left, sampling.top_p)
    if sampling.min_p > 0:
        left = left.keep(left.weights >= np.float32(sampling.min_p) * left.weights.max())
    return left


def margin(sampling: Sampling) -> float:
    """How far below the best logit min_p looks, with what float32 may be wrong by."""
    distance = -sampling.temperature * math.log(sampling.min_p)
    return distance * (1 + 1e-5) + 1e-3


def best(logits: Array, count: int) -> Places:
    """The `count` best tokens in the order of their ids, more where several are equal at the border; none of -inf."""
    columns = len(logits) // _BLOCK
    if count <= columns:
        # Where as many columns have a token as good as this, as many tokens are.
        tops = logits[: columns * _BLOCK].reshape(_BLOCK, columns).max(axis=0)
        border = max(np.partition(tops, columns - count)[columns - count], _LOWEST)
        ids = np.flatnonzero(logits >= border)
    else:
        ids = np.flatnonzero(logits >= _LOWEST)
    found = logits[ids]
    if len(found) <= count:
        return ids
    kept: Places = ids[found >= np.partition(found, len(found) - count)[len(found) - count]]
    return kept


def uniform(seed: int, index: int, position: int) -> float:
    """A number of 0..1, below 1, that depends on these three alone: each goes through SplitMix64's mixing."""
    state = 0
    for word in (seed, index, position):
        state = _mix(((state ^ (word & _ALL_BITS)) + _STEP) & _ALL_BITS)
    return (state >> 11) * 2.0**-53


def _mix(state: int) -> int:
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _ALL_BITS
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _ALL_BITS
    return state ^ (state >> 31)


def _nucleus(left: Pool, share: float) -> Pool:
    """top-p: the fewest tokens, from the best one down, that have this share."""
    total = float(left.weights.sum(dtype=np.float64))
    # All below the bound together are less than what may be missing; half of it leaves room for rounding.
    bound = 0.5 * (1 - share) * total / len(left.weights)
    left = left.keep(left.weights >= np.float32(bound))
    rising = np.sort(left.weights)  # values alone sort much faster than places
    return left.keep(left.weights >= rising[_crossing(rising, 1, -share * total, "right")])


def _typical(left: Pool, share: float) -> Pool:
    """Typical: the fewest tokens that have this share, from those whose surprise is nearest to the entropy on."""
    total = float(left.weights.sum(dtype=np.float64))
    logs = np.maximum(left.weights, np.finfo(np.float32).tiny)
    np.log(logs, out=logs)
    # Surprise is log(total) - log(weight), entropy its mean: log(total) is in both.
    distances = np.abs(np.subtract(logs, np.float32(np.dot(left.weights, logs) / total), out=logs), out=logs)
    near = _nearest(distances, left.weights, share * total)
    order = near[np.argsort(distances[near])]
    return left.keep(distances <= distances[order[_crossing(left.weights[order], 0, share * total, "left")]])


def _nearest(distances: Array, weights: Array, needed: float) -> Places:
    """The places of the least distances, enough for the weight that is needed."""
    size = 1024
    while size < len(distances):
        near = np.flatnonzero(distances <= np.partition(distances, size)[size])
        if weights[near].sum(dtype=np.float64) >= needed:
            return near
        size *= 8
    return np.arange(len(distances))


def _crossing(weights: Array, share: float, more: float, side: Literal["left", "right"]) -> int:
    """The first place at which the sum reaches (left) or passes (right) a share of all, and more; else the last."""
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK))
    block, rest = _cross(blocks, share * float(blocks.sum(dtype=np.float64)) + more, side)
    return block * _BLOCK + _cross(weights[block * _BLOCK : (block + 1) * _BLOCK], rest, side)[0]


def _cross(weights: Array, target: float, side: Literal["left", "right"]) -> tuple[int, float]:
    """The same without blocks, and what the sum lacks before the place."""
    sums = np.cumsum(weights, dtype=np.float64)
    # Rounding may put the target behind the end: the last one that has a weight is meant.
    target = min(target, float(sums[-1]) if side == "left" else math.nextafter(sums[-1], 0))
    place = int(np.searchsorted(sums, target, side=side))
    return place, target - (float(sums[place - 1]) if place else 0.0)
