"""What an adapter of all projections costs: tokens a second of a synthetic model of 2B parameters.

    python benchmarks/adapters.py --threads 2 --rank 16

Steps with and without are interleaved, because the speed of a machine drifts: medians, and the least of each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from bitnet_core.model import Adapter, ModelSpec, Runner, Step
from bitnet_quant.cpu import BACKEND, isas

sys.path.insert(0, str(Path(__file__).parent))
from shapes import bitnet_2b, synthetic


def main() -> None:
    options = _parse()
    spec = bitnet_2b(options.layers)
    runner = BACKEND.load(synthetic(spec), threads=options.threads, head="int8", isa=options.isa)
    adapters = {
        "none": None,
        "half": _adapter(spec, options.rank, np.float16),
        "single": _adapter(spec, options.rank, np.float32),
    }
    found: dict[str, object] = {"isa": options.isa, "threads": options.threads, "rank": options.rank}
    for name, adapter in adapters.items():
        begun = time.perf_counter()
        _steps(runner, adapter, 1, 1, 1)
        found[f"first {name}"] = time.perf_counter() - begun
    for what, sequences, tokens, count in (
        ("decode", 1, 1, options.count),
        ("decode of 8", 8, 1, options.count // 4),
        ("prompt of 256", 1, 256, 1),
    ):
        seconds: dict[str, list[float]] = {name: [] for name in adapters}
        for _ in range(options.rounds):
            for name, adapter in adapters.items():
                seconds[name] += _steps(runner, adapter, sequences, tokens, count)
        base = {"median": statistics.median(seconds["none"]), "least": min(seconds["none"])}
        for name, times in seconds.items():
            median, least = statistics.median(times), min(times)
            print(
                f"{options.isa}, {options.threads} threads, {what}, adapter {name}: "
                f"{sequences * tokens / median:.1f} tokens/s, {median * 1e3:.2f} ms a step "
                f"({median / base['median'] - 1:+.1%}; least {least * 1e3:.2f} ms, {least / base['least'] - 1:+.1%})"
            )
            found[f"{what}, {name}"] = {"median": median, "least": least}
    print(json.dumps(found))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--isa", choices=isas(), default=isas()[0])
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _adapter(spec: ModelSpec, rank: int, kind: type[np.floating]) -> Adapter:
    """One for all projections, of numbers that the type holds; layers share arrays that the backend copies."""
    random = np.random.default_rng(0)
    pairs = {
        name: tuple(
            (0.02 * random.standard_normal(shape)).astype(kind).astype(np.float32)
            for shape in ((rank, columns), (rows, rank))
        )
        for name, (rows, columns) in spec.projections().items()
    }
    return Adapter(
        "bench", {f"layers.{layer}.{name}": pair for layer in range(spec.layers) for name, pair in pairs.items()}
    )


def _steps(runner: Runner, adapter: Adapter | None, sequences: int, tokens: int, count: int) -> list[float]:
    """Seconds of each step: so many tokens more, in each of so many sequences."""
    random = np.random.default_rng(1)
    caches = [runner.new_cache() for _ in range(sequences)]
    seconds = []
    for step in range(count + (tokens == 1)):
        ids = random.integers(0, runner.spec.vocab_size, (sequences, tokens), dtype=np.int32)
        begun = time.perf_counter()
        runner.forward([Step(row, cache, adapter=adapter) for row, cache in zip(ids, caches, strict=True)])
        if step or tokens > 1:  # the first token of a sequence wakes everything
            seconds.append(time.perf_counter() - begun)
    for cache in caches:
        cache.close()
    return seconds


if __name__ == "__main__":
    main()
