"""Prints the perplexity of a model over a text: `python perplexity.py MODEL TEXT --characters 60000 --windows 64`.

The text is cut into windows of BOS and `--window` less one tokens; every token of a window but BOS is predicted.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np

import bitnet_core
from bitnet_core.testing import run


def main() -> None:
    parser = argparse.ArgumentParser(description="The perplexity of a model over a text.")
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--characters", type=int, help="of the beginning of the text; all of it by default")
    parser.add_argument("--window", type=int, default=256, help="tokens, BOS among them")
    parser.add_argument("--windows", type=int, help="the most that are used")
    asked = parser.parse_args()
    model = bitnet_core.load(asked.model)
    backend = bitnet_core.backends.get(asked.backend)
    text = asked.text.read_text(encoding="utf-8")[: asked.characters]
    tokens = model.tokenizer.encode(text, bos=False)
    size = asked.window - 1
    windows = tokens[: len(tokens) // size * size].reshape(-1, size)[: asked.windows]
    start = perf_counter()
    losses = window_losses(backend.load(model), model.tokenizer.bos, windows)
    seconds = perf_counter() - start
    print(
        f"nll {losses.mean():.5f}, perplexity {np.exp(losses.mean()):.4f} over {losses.size} tokens, "
        f"{losses.size / seconds:.0f} tokens/s, backend {backend.name}"
    )


def window_losses(runner: bitnet_core.Runner, bos: int, windows: np.ndarray) -> np.ndarray:
    """The negative log-likelihood of every token of every window."""
    losses = []
    for window in windows:
        logits = run(runner, np.concatenate([[bos], window[:-1]]).astype(np.int32)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        losses.append(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(window)), window])
    return np.array(losses)


if __name__ == "__main__":
    main()
