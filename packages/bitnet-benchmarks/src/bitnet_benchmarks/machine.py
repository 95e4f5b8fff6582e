"""The ceilings of a machine, measured now: every other figure is printed against them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bitnet_core import Backend, Model, Step, TernaryTensor, backends, device
from bitnet_core.device import CpuCache, Machine, Measured
from bitnet_core.model import ModelSpec, Rope, Weight

_PROMPT = 256  # tokens: enough that weights are read seldom, and attention is cheap
_SMALLEST = 256 << 10  # bytes of a cache whose reading a clock in Python can time


@dataclass(frozen=True, slots=True)
class Throughput:
    """Multiplications of int8 and ternary numbers a second, over several passes of a prompt."""

    backend: str
    threads: int
    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class CacheSpeed:
    """A cache, and how fast one thread reads what fits in it; None where it is too small to time."""

    cache: CpuCache
    bandwidth: Measured | None


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What bounds decoding (bytes a second) and prompts (multiplications a second)."""

    machine: Machine
    bandwidth: tuple[Measured, ...]  # one for each number of threads
    throughput: tuple[Throughput, ...]
    caches: tuple[CacheSpeed, ...]


def measure(threads: Sequence[int] = (), *, backend: str = "auto", passes: int = 5) -> Ceilings:
    """Measure for each number of threads; none names one and all that may be used."""
    machine = device.describe()
    counts = tuple(threads) or tuple(sorted({1, machine.cpu.usable_cores}))
    chosen = backends.get(backend)
    bandwidth: dict[int, list[float]] = {count: [] for count in counts}
    nbytes = 0
    # In turns: the speed of a machine drifts, and a drift should not look like a difference.
    for _ in range(passes):
        for count in counts:
            found = device.bandwidth(threads=count, passes=2)
            bandwidth[count].append(found.highest)
            nbytes = found.nbytes
    read = tuple(Measured(statistics.median(v), min(v), max(v), nbytes, n) for n, v in bandwidth.items())
    return Ceilings(
        machine,
        read,
        tuple(throughput(chosen, count, passes) for count in counts),
        tuple(_cache(cache) for cache in machine.cpu.caches),
    )


def throughput(backend: Backend, threads: int, passes: int = 5) -> Throughput:
    """What a backend multiplies when it need not wait for memory: one wide layer, and a long prompt."""
    model = wide()
    options = {} if backend.name == "numpy" else {"threads": threads}
    runner = backend.load(model, **options)
    tokens = np.zeros(_PROMPT, np.int32)
    count = _PROMPT * sum(rows * cols for rows, cols in model.spec.projections().values())
    speeds = []
    try:
        for _ in range(passes + 1):
            cache = runner.new_cache()
            begun = time.perf_counter()
            runner.forward([Step(tokens, cache, "none")])
            speeds.append(count / (time.perf_counter() - begun))
            cache.close()
    finally:
        runner.close()
    del speeds[0]  # the first one meets cold pages
    return Throughput(backend.name, threads, statistics.median(speeds), min(speeds), max(speeds))


def wide() -> Model:
    """A model of one layer that has much to multiply."""
    spec = ModelSpec(
        family="bitnet",
        vocab_size=32,
        hidden_size=2048,
        ffn_size=4096,
        layers=1,
        heads=16,
        kv_heads=4,
        head_size=128,
        context=_PROMPT,
        rope=Rope(theta=500_000.0, size=128),
        norm_eps=1e-5,
        activation="relu2",
        sub_norms="block",
        tied=True,
    )
    random = np.random.default_rng(0)
    weights: dict[str, Weight] = {}
    for name, shape in spec.shapes().items():
        if len(shape) == 1:
            weights[name] = np.ones(shape, np.float32)
        elif name.startswith("layers."):
            weights[name] = TernaryTensor.from_codes(random.integers(-1, 2, shape, dtype=np.int8), 0.02)
        else:
            weights[name] = random.standard_normal(shape, np.float32).astype(np.float16)
    return Model(spec, weights)


def _cache(cache: CpuCache) -> CacheSpeed:
    size = cache.size // 2
    if size < _SMALLEST:
        return CacheSpeed(cache, None)
    return CacheSpeed(cache, device.bandwidth(size, 1, passes=200))
