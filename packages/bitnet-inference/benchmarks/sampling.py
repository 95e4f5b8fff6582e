"""How long it takes to choose a token, at the vocabulary of Llama 3 and bitnet-b1.58-2B-4T (128,256).

    python benchmarks/sampling.py [--vocab 128256] [--repeats 200] [--tokenizer FOLDER]

For each setting the shortest and the median time of `Sampler.choose`, on logits that are peaked, as a trained model's
are, and on flat ones, where many thousands of tokens are about as probable. With a tokenizer's folder also what a
constraint adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_core.tokenizer import Tokenizer
from bitnet_inference.sampling import Sampler
from bitnet_inference.settings import Sampling
from bitnet_inference.structured import Form, Vocabulary

PROMPT = 512
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "greedy, one bias": {"temperature": 0, "logit_bias": {1: -3.0}},
    "greedy, 5 logprobs": {"temperature": 0, "logprobs": 5},
    "temperature": {},
    "top-k 40": {"top_k": 40},
    "top-p 0.95, temperature 0.8": {"top_p": 0.95, "temperature": 0.8},
    "min-p 0.05": {"min_p": 0.05},
    "top-k 40, top-p 0.95": {"top_k": 40, "top_p": 0.95},
    "top-k 40, repetition 1.1": {"top_k": 40, "repetition_penalty": 1.1},
    "top-k 40, DRY 0.8": {"top_k": 40, "dry_multiplier": 0.8},
    "typical 0.95": {"typical_p": 0.95},
    "all together": {
        "top_k": 40, "top_p": 0.95, "min_p": 0.05,
        "repetition_penalty": 1.1, "presence_penalty": 0.1, "dry_multiplier": 0.8,
    },
}  # fmt: skip
FORMS: dict[str, Callable[[], Form]] = {
    "any JSON object": lambda: Form.of("json"),
    "JSON schema": lambda: Form.json(
        {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    ),
    "regex [a-z ]+": lambda: Form.regex("[a-z ]+"),
    "5 choices": lambda: Form.choices(["yes", "no", "maybe", "always", "never"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=128_256)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--tokenizer", help="a folder with tokenizer.json")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    flat = (rng.standard_normal(options.vocab) * 2).astype(np.float32)
    peaked = flat.copy()
    peaked[rng.integers(0, options.vocab, 300)] += rng.exponential(4, 300).astype(np.float32) + 6
    prompt = rng.integers(0, options.vocab, PROMPT).astype(np.int32)
    print(f"microseconds a token, {options.vocab} logits, shortest / median of {options.repeats}")
    print(f"{'':30}{'peaked':>16}{'flat':>16}{'accept':>10}")
    found: dict[str, Any] = {}
    for name, fields in SETTINGS.items():
        sampler = Sampler(Sampling(seed=1, **fields), prompt, options.vocab, frozenset())
        times = [
            _microseconds(lambda rows=rows, one=sampler: one.choose(rows), options.repeats) for rows in (peaked, flat)
        ]
        accept = _microseconds(lambda one=sampler: one.accept(7), options.repeats)
        print(f"{name:30}" + "".join(f"{low:8.0f} /{middle:6.0f}" for low, middle in times) + f"{accept[0]:10.1f}")
        found[name] = {"peaked": times[0][0], "flat": times[1][0], "accept": accept[0]}
    if options.tokenizer:
        found["forms"] = _forms(options.tokenizer, options.repeats)
    print(json.dumps(found))


def _forms(folder: str, repeats: int) -> dict[str, Any]:
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer is None:
        raise SystemExit(f"{folder}: no tokenizer")
    start = time.perf_counter()
    vocabulary = Vocabulary(tokenizer)
    print(f"\nconstraints, {tokenizer.vocab_size} tokens; made ready once in {time.perf_counter() - start:.2f} s")
    print(f"{'':30}{'compile':>16}{'fork':>16}{'mask':>16}")
    found = {}
    for name, make in FORMS.items():
        form = make()
        matcher = vocabulary.constraint(form)
        rows = (
            _microseconds(lambda form=form: vocabulary.constraint(form), min(50, repeats)),
            _microseconds(matcher.fork, repeats),
            _microseconds(matcher.mask, repeats),
        )
        print(f"{name:30}" + "".join(f"{low:8.0f} /{middle:6.0f}" for low, middle in rows))
        found[name] = dict(zip(("compile", "fork", "mask"), (low for low, _ in rows), strict=True))
    return found


def _microseconds(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) * 1e6, statistics.median(times) * 1e6


if __name__ == "__main__":
    main()
