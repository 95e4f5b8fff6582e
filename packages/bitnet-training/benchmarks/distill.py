"""A float model made ternary by what it taught itself: held-out perplexity beside its own, and beside plain rounding.

    python distill.py BASE --learn TEXT... --valid TEXT --out FOLDER

BASE is a folder or GGUF file of floats, and the teacher. The tokens learned are few on purpose, and fixed: 24.6 million
by default. Last comes the curve of what is held out while rounding comes in and is learned with; FOLDER/run/report.html
shows it.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import bitnet_core
from bitnet_core.tokenizer import Tokenizer
from bitnet_training import config, distributed, models
from bitnet_training.evaluate import perplexity, torch_scorer
from bitnet_training.run import run

WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(description="Distillation of a float model into its ternary self.")
    parser.add_argument("base", type=Path)
    parser.add_argument("--learn", type=Path, nargs="+", required=True, help="texts to learn from")
    parser.add_argument("--valid", type=Path, required=True, help="a text to hold out")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    parser.add_argument("--steps", type=int, default=1500, help="of 32 windows of 512 tokens")
    parser.add_argument("--bytes", type=int, default=200_000, help="of the text held out, that are judged")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in data.rows=8")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = bitnet_core.load(asked.base).tokenizer
    if tokenizer is None:
        parser.error(f"{asked.base}: expected a model with its tokenizer")
    text = asked.valid.read_bytes()[: asked.bytes].decode(errors="ignore")
    asked.out.mkdir(parents=True, exist_ok=True)

    said = [judge("float teacher", models.load(asked.base, "float"), tokenizer, text)]
    said += [judge("rounded, nothing learned", models.load(asked.base, "masters"), tokenizer, text)]
    made = learn(asked)
    said += [judge("distilled", models.load(made / "model", "packed"), tokenizer, text)]
    print(f"\n{len(text.encode())} bytes held out, in windows of {WINDOW} tokens")
    print(*said, sep="\n")
    print_curve(made / "log.jsonl")


def judge(name: str, model: Any, tokenizer: Tokenizer, text: str) -> str:
    """A line of what a model makes of the text."""
    scorer = torch_scorer(model.to(distributed.choose("auto")), batch_tokens=16384)
    found = perplexity(scorer, tokenizer.encode(text, bos=False), len(text.encode()), window=WINDOW, bos=tokenizer.bos)
    figures = f"{found.loss:.4f} nats a token, perplexity {found.perplexity:.3f}, {found.bits_per_byte:.4f} bits a byte"
    line = f"{name:26}{figures}"
    print(line, flush=True)
    return line


def learn(asked: argparse.Namespace) -> Path:
    """The run's folder."""
    folder, recipe = asked.out / "run", asked.out / "distill.toml"
    recipe.write_text("")
    changes = {
        "method": "distill", "out": str(folder), "model.base": str(asked.base), "teacher.base": str(asked.base),
        "model.rounding": 0.3, "data.train": [str(path) for path in asked.learn], "data.valid": [str(asked.valid)],
        "data.overlap": "leave out", "data.separator": "<|endoftext|>", "data.window": WINDOW, "data.batch": 32,
        "data.rows": 32, "schedule.steps": asked.steps, "schedule.kind": "cosine", "schedule.warmup": 0.05,
        "optimizer.learning_rate": 3e-4, "optimizer.weight_decay": 0.01, "teacher.temperature": 1.0,
        "teacher.logits": 1.0, "teacher.attention": 0.0, "export": ["packed"], "checkpoints.every": asked.steps,
        "checkpoints.keep": 1, "telemetry.evaluate": max(1, asked.steps // 20), "telemetry.windows": 64,
        "telemetry.watch": max(1, asked.steps // 5),
    }  # fmt: skip
    run(config.load(recipe, [*(f"{key}={json.dumps(value)}" for key, value in changes.items()), *asked.set]))
    return folder


def print_curve(log: Path) -> None:
    """Held-out loss of the run, over its steps."""
    print(f"\n{'step':>6}{'strength':>10}{'held out, nats a token':>24}{'bits a byte':>13}")
    strength = 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        strength = event.get("strength", strength)
        if "held_out" in event:
            print(f"{event['step']:6}{strength:10.2f}{event['held_out']:24.4f}{event.get('bits_per_byte', 0):13.4f}")


if __name__ == "__main__":
    main()
