"""How published models stretch their rotary positions: each way becomes the divisors of a Rope."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .model import Rope


def linear(theta: float, size: int, factor: float) -> Rope:
    """Every position divided by `factor`."""
    return Rope(theta=theta, size=size, divisors=(float(factor),) * (size // 2))


def llama3(theta: float, size: int, factor: float, low: float, high: float, original: int) -> Rope:
    """Slow turns are slowed by `factor`, fast ones are left, and those between are blended.

    A turn is slow if fewer than `low` of it, fast if more than `high` of it fit in `original` positions.
    """
    turns = original * Rope(theta=theta, size=size).frequencies() / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return Rope(theta=theta, size=size, divisors=_floats(1 / ((1 - blend) / factor + blend)))


def yarn(
    theta: float,
    size: int,
    factor: float,
    original: int,
    *,
    fast: float = 32.0,
    slow: float = 1.0,
    magnitude: float | None = None,
    whole_pairs: bool = True,
) -> Rope:
    """As `llama3`, with a ramp over the pairs' numbers between the one that turns `fast` times and `slow`.

    The ramp begins and ends at `whole_pairs`, or where the turns would be exact.
    """

    def pair_that_turns(times: float) -> float:
        return size * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_turns(fast), pair_that_turns(slow)
    if whole_pairs:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = np.clip((np.arange(size // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)
    if magnitude is None:
        magnitude = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    return Rope(theta=theta, size=size, divisors=_floats(1 / (ramp / factor + 1 - ramp)), magnitude=magnitude)


def longrope(theta: float, size: int, divisors: Sequence[float], original: int, context: int) -> Rope:
    """A divisor for each pair, as they were searched for; the score's spread grows with the stretch."""
    stretch = context / original
    magnitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return Rope(theta=theta, size=size, divisors=_floats(np.asarray(divisors)), magnitude=magnitude)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
