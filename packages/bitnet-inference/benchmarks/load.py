"""From nothing to the first token: a new interpreter, a model's file in the page cache, a prompt of a few tokens.

python packages/bitnet-inference/benchmarks/load.py MODEL --threads 1 2
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from time import perf_counter


def main() -> None:
    """A line for each number of threads: medians with the extremes, in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once:
        measure(asked.model, asked.threads[0])
        return
    for threads in asked.threads:
        command = [sys.executable, __file__, asked.model, "--once", "--threads", str(threads)]
        runs = []
        for _ in range(asked.rounds):
            start = perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout) | {"process": perf_counter() - start})
        parts = [f"{name} {shown([run[name] for run in runs])}" for name in ("import", "load", "first token", "all")]
        print(f"{threads} threads: {', '.join(parts)} s; at most {max(run['MB'] for run in runs):.0f} MB")


def measure(path: str, threads: int) -> None:
    """One process's figures, as JSON."""
    start = perf_counter()
    from bitnet_inference import LLM

    imported = perf_counter()
    with LLM(path, threads=threads) as llm:
        loaded = perf_counter()
        next(iter(llm.engine.submit(llm_request())))
        first = perf_counter()
    found = {"import": imported - start, "load": loaded - imported, "first token": first - loaded, "all": first - start}
    print(json.dumps(found | {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))


def llm_request():
    """Eight tokens that any model has, and one to follow."""
    import numpy as np

    from bitnet_inference import Request, Sampling

    return Request(prompt=np.arange(1, 9, dtype=np.int32), sampling=Sampling(temperature=0, max_tokens=2))


def shown(times: list[float]) -> str:
    """The median, with the extremes."""
    return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


if __name__ == "__main__":
    main()
