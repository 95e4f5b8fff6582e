"""Text out of a ternary model: `python examples/story.py "Once upon a time"`.

The model is the small story writer of this repository; `--model` takes any folder or file that bitnet_core loads.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from time import perf_counter

import bitnet_core

STORIES = Path(__file__).resolve().parents[1] / "models" / "stories"


def main(arguments: list[str] | None = None) -> int:
    """Print the prompt and what the model makes of it; speed and backend go to standard error."""
    parser = argparse.ArgumentParser(description="Text out of a ternary model.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("--model", default=STORIES, type=Path, help="a model folder or file")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--tokens", default=200, type=int, help="the most that are written")
    asked = parser.parse_args(arguments)
    try:
        tell(asked.prompt, asked.model, asked.backend, asked.tokens)
    except BrokenPipeError:
        # Who reads the text has read enough; the interpreter must not complain about that when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (bitnet_core.BitNetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def tell(prompt: str, path: Path, name: str, limit: int) -> None:
    """Load, choose, run: the five lines of the README with their figures."""
    backend = bitnet_core.backends.get(name)
    model = bitnet_core.load(path)
    runner = backend.load(model)
    if model.tokenizer is None:
        raise bitnet_core.UnsupportedError(f"{path}: the model has no tokenizer, so it cannot write text")
    prompt_tokens = model.tokenizer.encode(prompt)
    tokens = bitnet_core.greedy(runner, prompt_tokens, stop=model.tokenizer.eos, count=limit)
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


if __name__ == "__main__":
    sys.exit(main())
