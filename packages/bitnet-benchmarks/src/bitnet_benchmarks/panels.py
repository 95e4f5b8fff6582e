"""Plots of load on a server: what it answers, and how long clients wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .plots import Bar, bars

_WAITS = (
    ("first", "First token: milliseconds, median to 99th percentile"),
    ("between", "Token to token: milliseconds, median to 99th percentile"),
    ("whole", "Whole answer: milliseconds, median to 99th percentile"),
)


def label(figure: Mapping[str, Any]) -> str:
    """A load in two words: 4 clients, 2.5 requests/s."""
    if figure.get("rate"):
        return f"{figure['rate']:g} requests/s"
    return f"{figure['clients']} client{'s' if figure['clients'] > 1 else ''}"


def served(figures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A bar for each load: tokens a second, and each kind of waiting."""
    timed = [figure for figure in figures if figure.get("output_runs")]
    yield bars("Output of all clients together: tokens a second", [_output(figure) for figure in timed])
    for name, title in _WAITS:
        yield bars(title, [_wait(figure, name) for figure in timed if figure.get(f"{name}_p50_s") is not None])


def _output(figure: Mapping[str, Any]) -> Bar:
    speeds = [1 / seconds for seconds in figure["output_runs"]]
    return Bar(label(figure), figure["output_tokens_per_s"], min(speeds), max(speeds))


def _wait(figure: Mapping[str, Any], name: str) -> Bar:
    median, longest = figure[f"{name}_p50_s"] * 1e3, figure[f"{name}_p99_s"] * 1e3
    return Bar(label(figure), median, median, longest)
