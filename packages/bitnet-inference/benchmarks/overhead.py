"""What the engine adds to a step of decoding, beside a loop that calls the runner and takes the best token.

    python benchmarks/overhead.py --batch 1 32

Both are run in turn, because the speed of a machine's memory drifts. The overhead is told twice: by the best step of
each, and by the time that each spends outside of the runner, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from bitnet_core import backends
from bitnet_core.model import Model, ModelSpec, Runner, Step
from bitnet_core.testing import SHAPES, random_model, some_tokens, tiny_spec
from bitnet_inference.engine import Engine
from bitnet_inference.request import Request
from bitnet_inference.settings import Sampling


class Timed:
    """A runner that measures its steps, and what lies between them."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.steps: list[tuple[int, float, float]] = []  # tokens, begin, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, steps: list[Step]) -> Any:
        begun = time.perf_counter()
        found = self._runner.forward(steps)
        self.steps.append((sum(len(step.tokens) for step in steps), begun, time.perf_counter()))
        return found

    def decoding(self, batch: int) -> tuple[list[float], list[float]]:
        """Of steps with a token for each sequence: the seconds inside, and those since the one before."""
        inside, between = [], []
        for (_, _, last), (size, begin, end) in itertools.pairwise(self.steps):
            if size == batch:
                inside.append(end - begin)
                between.append(begin - last)
        return inside[2:], between[2:]


def bare(runner: Timed, prompt: np.ndarray, batch: int, count: int) -> None:
    """The shortest loop there is."""
    caches = [runner.new_cache() for _ in range(batch)]
    tokens = [prompt] * batch
    for _ in range(count):
        found = runner.forward([Step(ids, cache) for ids, cache in zip(tokens, caches, strict=True)])
        tokens = [np.array([int(np.argmax(logits))], np.int32) for logits in found]
    for cache in caches:
        cache.close()


def engine(runner: Timed, prompt: np.ndarray, batch: int, count: int, drafts: Any) -> None:
    """The same through the engine, each sequence read by nobody but its ticket."""
    with Engine(runner, max_sequences=batch, prefix_cache=False) as found:
        sampling = Sampling(temperature=0.0, max_tokens=count)
        requests = [Request(prompt=prompt, sampling=sampling, drafts=drafts) for _ in range(batch)]
        for ticket in [found.submit(request) for request in requests]:
            if batch == 1:
                for _ in ticket:
                    pass
            ticket.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--drafts", choices=("auto", "off"), default="auto")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: the overhead alone")
    options = parser.parse_args()
    spec = tiny_spec(vocab_size=128256) if options.tiny else replace(SHAPES["2b4t"], layers=options.layers)
    threads = {} if options.threads is None else {"threads": options.threads}
    runner = backends.get(options.backend).load(model_of(spec), **threads)
    prompt = some_tokens(spec, 8)
    for batch in options.batch:
        found: dict[str, tuple[list[float], list[float]]] = {"bare": ([], []), "engine": ([], [])}
        for _ in range(options.rounds):
            for name, (inside, between) in found.items():
                timed = Timed(runner)
                run = bare if name == "bare" else engine
                run(*(timed, prompt, batch, options.count), *((options.drafts,) if name == "engine" else ()))
                for kept, new in zip((inside, between), timed.decoding(batch), strict=True):
                    kept.extend(new)
        report(batch, found)


def model_of(spec: ModelSpec) -> Model:
    """Random weights, those of one layer in all of them; a backend makes its own copies."""
    one = random_model(replace(spec, layers=1, vocab_size=4096)).weights
    weights = {name: one[f"layers.0.{name.split('.', 2)[2]}" if "." in name else name] for name in spec.shapes()}
    rows = np.asarray(one["embedding"])
    return Model(spec, weights | {"embedding": np.tile(rows, (-(-spec.vocab_size // len(rows)), 1))[: spec.vocab_size]})


def report(batch: int, found: dict[str, tuple[list[float], list[float]]]) -> None:
    """One line for people, one for programs."""
    step = {name: min(inside) + min(between) for name, (inside, between) in found.items()}
    outside = {name: statistics.median(between) for name, (_, between) in found.items()}
    inside = statistics.median(found["bare"][0])
    share = (outside["engine"] - outside["bare"]) / (inside + outside["bare"])
    print(
        f"batch {batch}: a bare step takes {inside * 1e3:.2f} ms, and {outside['bare'] * 1e6:.0f} us to the next, in "
        f"the engine {outside['engine'] * 1e6:.0f} us: {share:.2%} more; the best steps of each differ by "
        f"{step['engine'] / step['bare'] - 1:+.2%}"
    )
    print(json.dumps({"batch": batch, "step": inside, "outside": outside, "overhead": share, "best": step}))


if __name__ == "__main__":
    main()
