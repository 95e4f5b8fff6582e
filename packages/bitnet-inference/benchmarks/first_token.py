"""How soon the first token of a prompt comes: all of it new, and all but its end known already.

    python benchmarks/first_token.py --prompt 512

A fresh prompt and a known one in turn; the best of each, and the medians. Beside them the bare runner's time for the
whole prompt in one piece.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitnet_core import backends
from bitnet_core.model import Runner, Step
from bitnet_core.testing import SHAPES, some_tokens
from bitnet_inference.engine import Engine
from bitnet_inference.request import Request
from bitnet_inference.settings import Sampling

sys.path.insert(0, str(Path(__file__).parent))
from overhead import model_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=8, help="tokens at the end that are not known")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    spec = replace(SHAPES["2b4t"], layers=options.layers)
    threads = {} if options.threads is None else {"threads": options.threads}
    runner = backends.get(options.backend).load(model_of(spec), **threads)
    found: dict[str, list[float]] = {"bare": [], "fresh": [], "known": []}
    with Engine(runner) as engine:
        for number in range(options.rounds):
            prompt = some_tokens(spec, options.prompt, seed=number)
            known = np.concatenate([prompt[: -options.new], some_tokens(spec, options.new, seed=1000 + number)])
            found["fresh"].append(first_token(engine, prompt))
            found["known"].append(first_token(engine, known.astype(np.int32)))
    found["bare"] = [bare(runner, some_tokens(spec, options.prompt, seed=number)) for number in range(options.rounds)]
    best = {name: min(times) for name, times in found.items()}
    median = {name: statistics.median(times) for name, times in found.items()}
    print(
        f"prompt of {options.prompt}: bare {best['bare']:.3f} s, fresh {best['fresh']:.3f} s, all but {options.new} "
        f"known {best['known'] * 1e3:.1f} ms, {best['known'] / best['fresh']:.2%} of the fresh one (medians "
        f"{median['known'] / median['fresh']:.2%})"
    )
    print(json.dumps({"prompt": options.prompt, "new": options.new, "best": best, "median": median}))


def first_token(engine: Engine, prompt: np.ndarray) -> float:
    """Seconds from the request to its first token."""
    begun = time.perf_counter()
    ticket = engine.submit(Request(prompt=prompt, sampling=Sampling(temperature=0.0, max_tokens=1)))
    next(iter(ticket))
    return time.perf_counter() - begun


def bare(runner: Runner, prompt: np.ndarray) -> float:
    """The same without an engine."""
    cache = runner.new_cache()
    begun = time.perf_counter()
    runner.forward([Step(prompt, cache)])
    seconds = time.perf_counter() - begun
    cache.close()
    return seconds


if __name__ == "__main__":
    main()
