"""Greedy tokens beside transformers': 50 prompts of 100 tokens, in every way that the engine has to run them.

    python packages/bitnet-inference/benchmarks/parity.py MODEL TEXT

MODEL is a folder that transformers loads as well; prompts are cut from TEXT. Activations are rounded to int8, and a sum
in another order may round one to the next step, after which a text goes its own way: so the first lines say how far
transformers agrees with itself, with its own other attention and in a batch.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from bitnet_core import backends, load
from bitnet_core.model import Model, Tokens
from bitnet_inference import Engine, Request, Sampling

PROMPTS, COUNT = 50, 100


def main() -> None:
    """One line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    asked = parser.parse_args()
    model = load(asked.model)
    prompts = cut(model, asked.text.read_text(encoding="utf-8"))
    expected = theirs(asked.model, prompts)
    transformers.logging.set_verbosity_error()
    print(f"{PROMPTS} prompts of {min(map(len, prompts))} to {max(map(len, prompts))} tokens, {COUNT} tokens each")
    show("transformers, eager attention", theirs(asked.model, prompts, "eager"), expected)
    show("transformers, in a batch", theirs(asked.model, prompts, together=True), expected)
    for backend, threads, together, sharing, drafts in ways():
        got = ours(model, prompts, backend, threads, together=together, sharing=sharing, drafts=drafts)
        way = f"{backend} {threads} thread{'s' * (threads > 1)}, {'in a batch' if together else 'alone'}"
        show(f"{way}, sharing {'on' if sharing else 'off'}, speculation {drafts}", got, expected)


def show(way: str, got: list[list[int]], expected: list[list[int]]) -> None:
    """How much of it is the same, and a mark by which ways that give the same tokens are seen."""
    same = sum(a == b for a, b in zip(got, expected, strict=True))
    tokens = sum(x == y for a, b in zip(got, expected, strict=True) for x, y in zip(a, b, strict=True))
    mark = hashlib.sha256(np.array(got, np.int32).tobytes()).hexdigest()[:8]
    print(f"{way:55} {mark} {same:2} of {PROMPTS} texts, {tokens} of {PROMPTS * COUNT} tokens", flush=True)


def ways() -> Iterator[tuple[str, int, bool, bool, str]]:
    """Every way to run them."""
    runs = [("numpy", 1), ("cpu", 1), ("cpu", 2)]
    for (backend, threads), together, sharing, drafts in itertools.product(
        runs, (False, True), (False, True), ("off", "on")
    ):
        yield backend, threads, together, sharing, drafts


def cut(model: Model, text: str) -> list[Tokens]:
    """Prompts of various lengths from all over a text."""
    if model.tokenizer is None:
        raise SystemExit("the model has no tokenizer")
    tokens = model.tokenizer.encode(text[: 40 * 1000 * PROMPTS], bos=False)
    random = np.random.default_rng(0)
    places = random.integers(0, len(tokens) - 64, PROMPTS)
    first = [] if model.tokenizer.bos is None else [model.tokenizer.bos]
    return [
        np.array([*first, *tokens[place : place + size]], np.int32)
        for place, size in zip(places, random.integers(4, 48, PROMPTS), strict=True)
    ]


def theirs(path: Path, prompts: list[Tokens], attention: str = "sdpa", *, together: bool = False) -> list[list[int]]:
    """What transformers chooses, each prompt alone, or all together behind padding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)
    found: list[list[int]] = []
    for batch in [prompts] if together else [[prompt] for prompt in prompts]:
        width = max(map(len, batch))
        ids = torch.zeros((len(batch), width), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        with torch.inference_mode():
            out = model.eval().generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=COUNT,
                max_new_tokens=COUNT,
                pad_token_id=0,
                eos_token_id=None,
            )
        found += out[:, width:].tolist()
    return found


def ours(
    model: Model, prompts: list[Tokens], backend: str, threads: int, *, together: bool, sharing: bool, drafts: str
) -> list[list[int]]:
    """What the engine chooses."""
    options = {"threads": threads} if backend != "numpy" else {}
    runner = backends.get(backend).load(model, **options)
    sampling = Sampling(temperature=0, max_tokens=COUNT, ignore_eos=True)
    with Engine(runner, max_sequences=PROMPTS, prefix_cache=sharing) as engine:
        requests = [Request(prompt=prompt, sampling=sampling, drafts=drafts) for prompt in prompts]  # type: ignore[arg-type]
        if together:
            results = [ticket.result() for ticket in [engine.submit(request) for request in requests]]
        else:
            results = [engine.submit(request).result() for request in requests]
    runner.close()
    return [list(result.outputs[0].tokens) for result in results]


if __name__ == "__main__":
    main()
