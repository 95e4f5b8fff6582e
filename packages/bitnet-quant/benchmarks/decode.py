"""Tokens a second of a synthetic model of 2B parameters, each figure beside the ceiling it is held to.

    python benchmarks/decode.py --threads 1 2 --head int8 --reach 1

Runs of all settings are interleaved, because the speed of a machine's memory drifts. Medians, with the extremes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bitnet_core import device
from bitnet_core.model import Reach, Runner, Step
from bitnet_quant.cpu import BACKEND, isas

sys.path.insert(0, str(Path(__file__).parent))
from shapes import bitnet_2b, bytes_of_a_token, synthetic


@dataclass
class Setting:
    """One way of running, with what was measured of it, in tokens a second."""

    threads: int
    runner: Runner
    placed: float  # seconds
    prompt: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    batches: dict[int, list[float]] = field(default_factory=dict)  # decode of so many sequences, all their tokens
    bandwidth: list[float] = field(default_factory=list)  # bytes a second, read just before each decode
    spared: float = 0.0  # bytes of the head that the last decode of one sequence did not read for a token


def main() -> None:
    options = _parse()
    spec = bitnet_2b(options.layers)
    model = synthetic(spec)
    settings = []
    for threads in options.threads:
        begun = time.perf_counter()
        runner = BACKEND.load(model, threads=threads, head=options.head, isa=options.isa)
        settings.append(Setting(threads, runner, time.perf_counter() - begun))
    prompt = np.random.default_rng(1).integers(0, spec.vocab_size, options.prompt, dtype=np.int32)
    for _ in range(options.rounds):
        for setting in settings:
            setting.prompt.append(_prompt_speed(setting.runner, prompt))
            setting.bandwidth.append(device.bandwidth(256 << 20, setting.threads, 3).median)
            setting.decode.append(_decode_speed(setting.runner, prompt[:8], 1, options))
            setting.spared = _spared(setting.runner)
            for size in options.batch:
                speed = _decode_speed(setting.runner, prompt[:8], size, options)
                setting.batches.setdefault(size, []).append(speed)
    needed = bytes_of_a_token(spec, options.isa, options.head)
    found = [_report(setting, needed - setting.spared, options) for setting in settings]
    print(json.dumps({"isa": options.isa, "head": options.head, "reach": options.reach, "settings": found}))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--head", choices=("f16", "int8"), default="int8")
    parser.add_argument("--reach", type=int, default=1, help="the likeliest so many tokens matter; 0 for all")
    parser.add_argument("--isa", choices=isas(), default=isas()[0])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _prompt_speed(runner: Runner, prompt: np.ndarray) -> float:
    cache = runner.new_cache()
    begun = time.perf_counter()
    runner.forward([Step(prompt, cache)])
    seconds = time.perf_counter() - begun
    cache.close()
    return len(prompt) / seconds


def _decode_speed(runner: Runner, prompt: np.ndarray, sequences: int, options: argparse.Namespace) -> float:
    """The likeliest continuations of one prompt, so many at once, timed from the second token on."""
    count = options.count if sequences == 1 else options.count // 8
    reach = Reach(options.reach) if options.reach else None
    caches = [runner.new_cache() for _ in range(sequences)]
    tokens = [prompt] * sequences
    for step in range(count + 1):
        if step == 1:
            begun = time.perf_counter()
        found = runner.forward([Step(ids, cache, "last", reach) for ids, cache in zip(tokens, caches, strict=True)])
        tokens = [np.array([np.argmax(logits)], np.int32) for logits in found if logits is not None]
    seconds = time.perf_counter() - begun
    for cache in caches:
        cache.close()
    return count * sequences / seconds


def _spared(runner: Runner) -> float:
    """Of a head that is read in part, the bytes that its last call left alone."""
    nibbles, *bits = runner._operations._engine.rows_read()  # type: ignore[attr-defined]
    return runner.spec.hidden_size * (nibbles / 2 - sum(bits) / 8)


def _report(setting: Setting, needed: float, options: argparse.Namespace) -> dict[str, object]:
    prompt, decode = statistics.median(setting.prompt), statistics.median(setting.decode)
    bandwidth = statistics.median(setting.bandwidth)
    print(
        f"{options.isa}, head {options.head}, {setting.threads} threads, placed in {setting.placed:.2f} s: "
        f"prompt of {options.prompt} {prompt:.1f} tokens/s ({min(setting.prompt):.1f} to {max(setting.prompt):.1f}); "
        f"decode of {options.count} {decode:.1f} ({min(setting.decode):.1f} to {max(setting.decode):.1f}), "
        f"{needed * decode / 1e9:.1f} GB/s of {bandwidth / 1e9:.1f} measured, {needed * decode / bandwidth:.0%}"
    )
    batches = {size: statistics.median(speeds) for size, speeds in setting.batches.items()}
    for size, speed in batches.items():
        print(f"    {size} sequences at once: {speed:.1f} tokens/s, {speed / decode:.2f} times one")
    return {
        "threads": setting.threads,
        "placed": setting.placed,
        "prompt": prompt,
        "decode": decode,
        "bandwidth": bandwidth,
        "share": needed * decode / bandwidth,
        "batches": batches,
    }


if __name__ == "__main__":
    main()
