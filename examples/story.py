"""Text out of a ternary model: `python examples/story.py "Once upon a time"`.

The model is the small story writer of this repository; `--model` takes any folder or file that bitnet_core loads.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

import bitnet_core

STORIES = Path(__file__).resolve().parents[1] / "models" / "stories"


def main(arguments: list[str] | None = None) -> int:
    """Print the prompt and what the model makes of it; speed and backend go to standard error."""
    parser = argparse.ArgumentParser(description="Text out of a ternary model.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("--model", default=STORIES, type=Path, help="a model folder or file")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--tokens", default=200, type=int, help="the most that are written")
    parser.add_argument("--seed", type=int, help="tell the same story again")
    asked = parser.parse_args(arguments)
    try:
        tell(asked.prompt, asked.model, asked.backend, asked.tokens, asked.seed)
    except BrokenPipeError:
        # Who reads the text has read enough; the interpreter must not complain about that when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (bitnet_core.BitNetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def tell(prompt: str, path: Path, name: str, limit: int, seed: int | None) -> None:
    """Load, choose, run: the five lines of the README, with chance as the model's makers advise it."""
    backend = bitnet_core.backends.get(name)
    model = bitnet_core.load(path)
    runner = backend.load(model)
    if model.tokenizer is None:
        raise bitnet_core.UnsupportedError(f"{path}: the model has no tokenizer, so it cannot write text")
    prompt_tokens = model.tokenizer.encode(prompt)
    draw = Draw(np.random.default_rng(seed), model.sampling.get("temperature", 0.0), model.sampling.get("top_p", 1.0))
    tokens = bitnet_core.generate(runner, prompt_tokens, choose=draw, stop=model.tokenizer.eos, count=limit)
    start, pieces = perf_counter(), 0
    print(prompt, end="", flush=True)
    for text in model.tokenizer.stream(tokens, continues=True):
        print(text, end="", flush=True)
        pieces += 1
    print()
    print(f"[{pieces / (perf_counter() - start):.0f} pieces a second, backend {backend.name}]", file=sys.stderr)
    for other, reason in bitnet_core.backends.available().items():
        if reason is not None:
            print(f"[backend {other} does not run here: {reason}]", file=sys.stderr)


@dataclass(frozen=True)
class Draw:
    """A token by chance: of the likeliest that have `top_p` of the probability together."""

    random: np.random.Generator
    temperature: float  # 0 takes the likeliest
    top_p: float

    def __call__(self, logits: np.ndarray) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        order = np.argsort(-logits)
        chances = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / self.temperature)
        chances /= chances.sum()
        kept = int(np.searchsorted(chances.cumsum(), self.top_p)) + 1
        return int(self.random.choice(order[:kept], p=chances[:kept] / chances[:kept].sum()))


if __name__ == "__main__":
    sys.exit(main())
