"""The card of a trained model: what it is, what it learned from, how well, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import options
from .config import Config
from .telemetry import shown


def write(config: Config, events: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """The card as Markdown, from the config, the log and the files of a run."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != "README.md"}
    rows = {
        "weights": "ternary projections with one scale each" if config.model.ternary else "floats",
        "method": config.method + (f", from {config.model.base}" if config.model.base else ", from random numbers"),
        **({} if config.model.base else {"sizes": _sizes(config)}),
        "learned from": ", ".join(Path(name).name for name in config.data.train),
        "held out": ", ".join(Path(name).name for name in config.data.valid) or f"{config.data.held_out:.0%} of these",
        **_results(events, best=config.checkpoints.best),
        "files": f"{sum(sizes.values()):,} bytes: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()),
    }
    table = "\n".join(f"| {name} | {said} |" for name, said in rows.items())
    return (
        f"# {Path(config.out).name}\n\n| | |\n| --- | --- |\n{table}\n\n"
        f"## Made by\n\n    python -m bitnet_training config.toml\n\nwith this config.toml:\n\n"
        f"```toml\n{options.toml(config)}```\n"
    )


def _sizes(config: Config) -> str:
    asked = config.model
    return (
        f"hidden {asked.hidden_size}, feed-forward {asked.ffn_size}, {asked.layers} layers, {asked.heads} heads over "
        f"{asked.kv_heads} of keys and values; {asked.activation}, sub-norms {asked.sub_norms}; context {asked.context}"
    )


def _results(events: Sequence[Mapping[str, Any]], *, best: bool) -> dict[str, str]:
    """The last word of the log on each figure; where the best weights were kept, theirs on what was held out."""
    last: dict[str, Any] = {}
    for event in events:
        last |= event
    looks = [event for event in events if event.get("held_out") is not None]
    if best and looks:
        kept = min(looks, key=lambda event: event["held_out"])
        last |= {**kept, "step": last["step"], "kept": kept["step"]}
    names = {
        "step": "steps",
        "tokens": "tokens learned",
        "loss": "nats a token, in training",
        "kept": "weights of step, which did best on what was held out",
        "held_out": "nats a token, held out",
        "bits_per_byte": "bits a byte, held out",
    }
    return {what: shown(last[name]) for name, what in names.items() if last.get(name) is not None}
