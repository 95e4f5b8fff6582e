"""Every conformance case on every instruction set of a backend, and what each set reaches on one wide layer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitnet_core import Backend, Model, Step, device, reference
from bitnet_core.model import Array, Runner
from bitnet_core.testing import CASES, Case

from . import machine

_PROMPT, _DECODE = 48, 32
_WIDE_PROMPT = 128
_PASSES = 5
_PATIENCE = 0.2  # seconds, after which no more passes are made


@dataclass(frozen=True, slots=True)
class CaseFigure:
    """One case on one instruction set; times are the best of several passes."""

    isa: str
    case: str
    prompt_us: float  # a token
    decode_us: float  # a token
    difference: float  # the largest to the reference's logits, as a share of their spread


@dataclass(frozen=True, slots=True)
class WideFigure:
    """One wide layer on one instruction set, one thread."""

    isa: str
    multiplications_per_s: float  # of a long prompt
    bytes_per_s: float  # of weights at two bits, read for one token
    throughput_share: float  # of the fastest set's multiplications
    bandwidth_share: float  # of what one thread reads of so many bytes


@dataclass(frozen=True, slots=True)
class Kernels:
    """All figures of a backend."""

    backend: str
    cases: tuple[CaseFigure, ...]
    wide: tuple[WideFigure, ...]


def measure(
    backend: Backend, *, cases: Sequence[Case] = CASES, progress: Callable[[int, int, str], None] | None = None
) -> Kernels:
    """Time the cases and the wide layer."""
    sets = instruction_sets(backend)
    found = []
    for place, case in enumerate(cases):
        model = case.model()
        tokens = np.arange(_PROMPT + _DECODE, dtype=np.int32) % model.spec.vocab_size
        expected = _logits(reference.BACKEND.load(model), tokens)
        for isa in sets:
            if progress:
                progress(place, len(cases), f"{case.name} {isa}")
            found.append(_case(backend, isa, case.name, model, tokens, expected))
    raw = [(isa, *_wide(backend, isa)) for isa in sets]
    best = max(multiplied for _, multiplied, _ in raw)
    bandwidth = device.bandwidth(_products(machine.wide()) // 4, threads=1, passes=50).highest
    wide = tuple(WideFigure(isa or "any", many, read, many / best, read / bandwidth) for isa, many, read in raw)
    return Kernels(backend.name, tuple(found), wide)


def instruction_sets(backend: Backend) -> list[str]:
    """Those that a backend can be told to use, the best first: its module says so by `isas`."""
    said = getattr(sys.modules[backend.load.__module__], "isas", None)
    return list(said()) if said else [""]


def _load(backend: Backend, model: Model, isa: str) -> Runner:
    options: dict[str, Any] = {"isa": isa, "threads": 1} if isa else {}
    return backend.load(model, **options)


def _case(
    backend: Backend, isa: str, name: str, model: Model, tokens: np.ndarray[Any, np.dtype[np.int32]], expected: Array
) -> CaseFigure:
    runner = _load(backend, model, isa)
    prompts: list[float] = []
    decodes: list[float] = []
    ends = time.perf_counter() + _PATIENCE
    while not decodes or (len(decodes) < _PASSES and time.perf_counter() < ends):
        cache = runner.new_cache()
        begun = time.perf_counter()
        runner.forward([Step(tokens[:_PROMPT], cache)])
        middle = time.perf_counter()
        for token in tokens[_PROMPT:]:
            runner.forward([Step(np.array([token], np.int32), cache)])
        decodes.append(time.perf_counter() - middle)
        prompts.append(middle - begun)
        cache.close()
    apart = float(np.abs(_logits(runner, tokens) - expected).max()) / (float(np.ptp(expected)) or 1.0)
    return CaseFigure(isa or "any", name, min(prompts) / _PROMPT * 1e6, min(decodes) / _DECODE * 1e6, apart)


def _logits(runner: Runner, tokens: np.ndarray[Any, np.dtype[np.int32]]) -> Array:
    try:
        (rows,) = runner.forward([Step(tokens, runner.new_cache(), "all")])
        return np.asarray(rows, np.float32)
    finally:
        runner.close()


def _wide(backend: Backend, isa: str) -> tuple[float, float]:
    """Multiplications a second of a prompt, and bytes a second of single tokens."""
    model = machine.wide()
    runner = _load(backend, model, isa)
    products = _products(model)
    try:
        first = _timed(runner, _WIDE_PROMPT)
        # Obvious kernels take seconds for what fast ones do in milliseconds, and need no second look.
        passes = _PASSES if first < _PATIENCE else 1
        prompts = [first, *(_timed(runner, _WIDE_PROMPT) for _ in range(passes - 1))]
        steps = [_timed(runner, 1) for _ in range(10 * passes)]
    finally:
        runner.close()
    return _WIDE_PROMPT * products / min(prompts), products / 4 / min(steps)


def _products(model: Model) -> int:
    return sum(rows * cols for rows, cols in model.spec.projections().values())


def _timed(runner: Runner, count: int) -> float:
    cache = runner.new_cache()
    begun = time.perf_counter()
    runner.forward([Step(np.zeros(count, np.int32), cache, "none")])
    seconds = time.perf_counter() - begun
    cache.close()
    return seconds
