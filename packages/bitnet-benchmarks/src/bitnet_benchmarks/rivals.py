"""Our engines beside other people's: the same tokens, in turns, as ratios with their spread."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .generation import Figure


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster the first is than the second; rounds are compared one by one."""

    what: Literal["prompt", "decode"]
    first: str
    second: str
    threads: int
    depth: int
    batch: int
    median: float
    lowest: float
    highest: float


def ratios(figures: Sequence[Figure], first: str) -> list[Ratio]:
    """The engine called `first` against every other, where both ran the same."""
    found = []
    for ours in (figure for figure in figures if figure.engine == first):
        for theirs in figures:
            alike = (theirs.threads, theirs.depth, theirs.batch) == (ours.threads, ours.depth, ours.batch)
            if theirs.engine == first or not alike:
                continue
            if (ours.depth, ours.batch) == (figures[0].depth, figures[0].batch):
                found.append(_ratio("prompt", ours, theirs, ours.prompt_runs, theirs.prompt_runs))
            found.append(_ratio("decode", ours, theirs, ours.decode_runs, theirs.decode_runs))
    return found


def _ratio(
    what: Literal["prompt", "decode"], ours: Figure, theirs: Figure, fast: Sequence[float], slow: Sequence[float]
) -> Ratio:
    each = [theirs_s / ours_s for ours_s, theirs_s in zip(fast, slow, strict=True)]
    where = (ours.engine, theirs.engine, ours.threads, ours.depth, ours.batch)
    return Ratio(what, *where, statistics.median(each), min(each), max(each))


def has_module(python: str, module: str) -> bool:
    """Whether an interpreter has a module."""
    if Path(python).absolute() == Path(sys.executable).absolute():  # links lead out of virtual environments
        return importlib.util.find_spec(module) is not None
    try:
        look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        return subprocess.run([python, "-c", look], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
