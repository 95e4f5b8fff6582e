"""`bitnet bench train`: steps of training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from cyclopts import Parameter

from ... import trainings
from ...amounts import Count, amount
from ...console import FLAGS, Flags, pairs
from ...failures import Failed
from .kept import KEEPING, Keeping

_WORDS = "the a cat dog sun moon saw ran to from with red big small house tree and then she he they was happy".split()  # noqa: SIM905


def train(  # each is a flag
    *,
    steps: Annotated[Count, Parameter(name=["--steps", "-n"])] = 20,
    hidden: Count = 256,
    layers: Count = 4,
    batch: Count = 8,
    window: Count = 128,
    keeping: Keeping = KEEPING,
    flags: Flags = FLAGS,
) -> None:
    """Steps of training a small model from random numbers, on text that is made up.

    Parameters
    ----------
    steps
        Updates of the weights.
    hidden
        Elements of the residual stream; the feed-forward has three times as many.
    layers
        Decoder layers.
    batch
        Windows a step.
    window
        Tokens of a window.
    """
    keeping.check()
    trainings.require()
    from bitnet_benchmarks import record  # noqa: PLC0415

    with trainings.aside(flags):
        events = _events(steps, batch, {"hidden_size": hidden, "ffn_size": 3 * hidden, "layers": layers}, window)
    figure = _figure(events, batch * window, {"hidden": hidden, "layers": layers, "batch": batch, "window": window})
    made = record.make("train", [figure], steps=steps)
    keeping.keep(made, flags)
    runs = figure["step_runs"]
    said = {
        "training": f"{amount(figure['tokens_per_s'])} tokens/s",
        "a step": f"{median(runs) * 1e3:.1f} ms ({min(runs) * 1e3:.1f} to {max(runs) * 1e3:.1f})",
        "of": f"{batch} windows of {window} tokens, {layers} layers of {hidden}",
    }
    flags.answer(made.figures[0], pairs(said))


def _events(steps: int, batch: int, shape: dict[str, int], window: int) -> list[dict[str, Any]]:
    """The log of a run in a folder that is gone afterwards."""
    from bitnet_training import run as running  # noqa: PLC0415
    from bitnet_training.telemetry import read_lines  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(" ".join(_WORDS[n * n % 97 % len(_WORDS)] for n in range(steps * batch * window + 4096)))
        settings = {
            "out": f"{folder}/run",
            **{f"model.{name}": value for name, value in shape.items()},
            "model.context": window,
            "tokenizer.size": 300,
            "data.train": f'["{text}"]',
            "data.cache": f"{folder}/tokens",
            "data.window": window,
            "data.batch": batch,
            "data.rows": batch,
            "schedule.steps": steps,
            "telemetry.every": 1,
            "telemetry.evaluate": steps,
        }
        running.run(trainings.made([f"{name}={value}" for name, value in settings.items()]))
        return read_lines(f"{folder}/run/log.jsonl")


def _figure(events: list[dict[str, Any]], tokens: int, sizes: dict[str, int]) -> dict[str, Any]:
    """The seconds of each step but the first, which meets everything cold."""
    speeds = [event["tokens_per_second"] for event in events if event.get("tokens_per_second")][1:]
    if not speeds:
        raise Failed("bench train: expected two steps or more that were timed")
    runs = [tokens / speed for speed in speeds]
    return {"what": "training", **sizes, "tokens_per_s": tokens / median(runs), "step_runs": runs}
