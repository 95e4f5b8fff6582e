"""Reading a whole GGUF file to say what is in it: damage, and a digest for each ternary tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import types
from .container import File, Tensor

_CHUNK = 1 << 22  # elements looked at at a time


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in one tensor. Indices count elements in row-major order."""

    tensor: str
    kind: str
    first_bad: int | None = None  # the first code that is none of -1, 0 and 1, or number that is not finite
    nan: int = 0  # of its numbers, or of a ternary tensor's scales
    inf: int = 0
    trits: tuple[int, int, int] | None = None  # how many are -1, 0, 1
    digest: str | None = None  # of a ternary tensor's codes
    problem: str | None = None  # one line, or None where all is well


def verify(path: str | os.PathLike[str], *, i2_s_group: Literal[64, 128] = 128) -> list[Finding]:
    """A finding for every tensor of a file, in the file's order; what cannot be opened raises."""
    with File(path, i2_s_group=i2_s_group) as file:
        return [_ternary(file, place) if place.kind.layout else _floats(file, place) for place in file.tensors.values()]


def _ternary(file: File, place: Tensor) -> Finding:
    tensor = types.stored(place.kind, file.raw(place.name), place.shape)
    nan, inf = int(np.isnan(tensor.scale).sum()), int(np.isinf(tensor.scale).sum())
    bad = tensor.first_bad_code()
    problem: str | None = None
    if bad is not None:
        problem = f"the code at row {bad // tensor.shape[1]}, column {bad % tensor.shape[1]} is none of -1, 0 and 1"
        return Finding(place.name, place.kind.name, bad, nan, inf, problem=problem)
    if nan + inf:
        problem = f"{nan + inf} of {tensor.scale.size} scales are not finite"
    elif place.kind.tail and tensor.scale[0, 0] <= 0:
        problem = f"the scale is {tensor.scale[0, 0]}"
    return Finding(place.name, place.kind.name, None, nan, inf, tensor.counts(), tensor.digest(), problem)


def _floats(file: File, place: Tensor) -> Finding:
    first: int | None = None
    nan = inf = 0
    for start, values in _chunks(file, place):
        finite = np.isfinite(values)
        if not finite.all():
            first = start + int(np.argmin(finite)) if first is None else first
            nan += int(np.isnan(values).sum())
            inf += int(np.isinf(values).sum())
    problem = f"{nan} numbers are NaN, {inf} are infinite" if nan + inf else None
    return Finding(place.name, place.kind.name, first, nan, inf, problem=problem)


def _chunks(file: File, place: Tensor) -> Iterator[tuple[int, npt.NDArray[np.floating[Any]]]]:
    """The numbers of a tensor, some at a time, each with the index of the first."""
    if place.kind.tail:  # bytes are finite if their scale is
        yield 0, np.array([types.tail_scale(place.kind, file.raw(place.name))])
    elif len(place.shape) == 2:
        rows, columns = place.shape
        step = max(1, _CHUNK // columns)
        for first in range(0, rows, step):
            yield first * columns, file.rows(place.name, first, min(first + step, rows)).reshape(-1)
    else:
        yield 0, types.numbers(place.kind, file.raw(place.name))
