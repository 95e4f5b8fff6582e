"""A run as one HTML page: its plots are SVG inside it, and it fetches nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .telemetry import shown

# Two hues that stay apart for most eyes, and grey; each plot says in words which is which.
_STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #1c1c1a; --soft: #6b6a65; --line: #e2e1dc;
  --first: #2f6fd0; --second: #d9622b; }
@media (prefers-color-scheme: dark) { :root { --paper: #191918; --ink: #eeede8; --soft: #9c9b95; --line: #353431;
  --first: #6aa2f2; --second: #ef8a55; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1080px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1.2rem; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .2rem; }
p.note { margin: 0 0 1rem; color: var(--soft); max-width: 70ch; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem 2rem; }
.figures div { min-width: 8rem; } .figures b { display: block; font-size: 1.5rem; font-weight: 600; }
.figures span { color: var(--soft); font-size: .85rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 1.4rem 1.8rem; }
figure { margin: 0; } figcaption { font-size: .85rem; font-weight: 600; margin-bottom: .2rem; }
figcaption i { font-style: normal; font-weight: 400; color: var(--soft); margin-left: .8em; }
figcaption i::before { content: ""; display: inline-block; width: .8em; height: .2em; margin-right: .35em;
  vertical-align: middle; background: currentColor; }
figcaption i.first::before { background: var(--first); } figcaption i.second::before { background: var(--second); }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 10px; }
.grid { stroke: var(--line); stroke-width: 1; }
.path { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
.path.first { stroke: var(--first); } .path.second { stroke: var(--second); }
.dot.first { fill: var(--first); } .dot.second { fill: var(--second); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--soft); font-weight: 500; }
""".strip()
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 346, 150, 50, 18, 6
_FIGURES = ("loss", "held_out", "bits_per_byte")
_WATCHED = (
    ("zeros", "Zeros among the codes"),
    ("flips", "Codes that flipped since the look before"),
    ("border", "Masters near a border between codes"),
    ("clipped", "Masters beyond one scale and a half"),
    ("dead", "Rows of zeros alone"),
    ("drift", "Scales over what they were at first"),
    ("gradient", "Gradient over masters, by their norms"),
)
_COLUMNS = ("zeros", "flips", "dead", "border", "clipped", "scale", "drift", "gradient")
_SHARES = frozenset({"zeros", "flips", "dead", "border", "clipped"})
Event = Mapping[str, Any]
Points = Sequence[tuple[float, float]]


def render(title: str, events: Sequence[Event]) -> str:
    """The page of a run's events."""
    parts = [f"<h1>{escape(title)}</h1>", _figures(events)]
    if alarms := [event for event in events if "alarm" in event]:
        rows = "".join(f"<tr><td>step {event['step']}</td><td>{escape(event['alarm'])}</td></tr>" for event in alarms)
        parts.append(f'<h2>Alarms</h2><div class="scroll"><table>{rows}</table></div>')
    parts += ["<h2>Training</h2>", _panels(_training(events))]
    looks = [event for event in events if "ternary" in event]
    if looks:
        note = "Means over all ternary matrices, at each look at them."
        parts += ["<h2>Ternary weights</h2>", f'<p class="note">{note}</p>', _panels(_weights(looks))]
        parts += [f"<h2>Matrices at step {looks[-1]['step']}</h2>", _table(looks[-1]["matrices"])]
    name, body = escape(title), "\n".join(parts)
    return f"{_HEAD}<title>{name}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"


def _figures(events: Sequence[Event]) -> str:
    """The few numbers that matter most."""
    found: dict[str, str] = {}
    for event in events:
        found |= {name: shown(event[name]) for name in _FIGURES if event.get(name) is not None}
        if "tokens" in event:
            found["tokens"] = f"{event['tokens']:,}"
        found["step"] = str(event["step"])
    said = {
        "step": "steps",
        "tokens": "tokens learned",
        "loss": "nats a token, in training",
        "held_out": "nats a token, held out",
        "bits_per_byte": "bits a byte, held out",
    }
    cells = [f"<div><b>{found[name]}</b><span>{what}</span></div>" for name, what in said.items() if name in found]
    return f'<div class="figures">{"".join(cells)}</div>'


def _training(events: Sequence[Event]) -> Iterator[str]:
    losses = {"in training": _points(events, "loss"), "held out": _points(events, "held_out")}
    yield _figure("Loss, nats a token", losses)
    for name, caption in (
        ("gradient", "Norm of the gradient"),
        ("learning_rate", "Learning rate"),
        ("strength", "Strength of rounding"),
        ("tokens_per_second", "Tokens a second"),
        ("memory_gb", "Memory, GB"),
    ):
        yield _figure(caption, {"": _points(events, name)})


def _weights(looks: Sequence[Event]) -> Iterator[str]:
    for name, caption in _WATCHED:
        points = [(float(event["step"]), float(event["ternary"][name])) for event in looks]
        yield _figure(caption, {"": points}, "%" if name in _SHARES else "")


def _points(events: Iterable[Event], name: str) -> list[tuple[float, float]]:
    return [(float(event["step"]), float(event[name])) for event in events if event.get(name) is not None]


def _panels(figures: Iterable[str]) -> str:
    return '<div class="panels">' + "".join(figures) + "</div>"


@dataclass(frozen=True, slots=True)
class _Scales:
    """From steps and values to places."""

    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        return _LEFT + (step - self.steps[0]) / (self.steps[1] - self.steps[0]) * (_WIDTH - _LEFT)

    def y(self, value: float) -> float:
        share = (value - self.values[0]) / (self.values[1] - self.values[0])
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _figure(caption: str, series: Mapping[str, Points], unit: str = "") -> str:
    """A plot of one or two lines over the steps; nothing where there are no points."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return ""
    everything = [point for points in drawn.values() for point in points]
    steps = [step for step, _ in everything]
    scales = _Scales((min(steps), max(*steps, min(steps) + 1)), _range([value for _, value in everything]))
    parts = list(_axes(scales, unit))
    for style, (name, points) in zip(("first", "second"), drawn.items(), strict=False):
        places = [(scales.x(step), scales.y(value)) for step, value in points]
        parts.append(f'<polyline class="path {style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        if len(points) <= 60:
            for (x, y), (step, value) in zip(places, points, strict=True):
                said = f"{name or caption}, step {step:.0f}: {_said(value, unit)}"
                dot = f'<circle class="dot {style}" cx="{x:.1f}" cy="{y:.1f}" r="2">'
                parts.append(f"{dot}<title>{said}</title></circle>")
    keys = zip(("first", "second"), drawn, strict=False)
    key = "".join(f'<i class="{style}">{name}</i>' for style, name in keys if name)
    svg = f'<svg viewBox="0 0 {_WIDTH + 10} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(caption)}{key}</figcaption>{svg}</figure>"


def _axes(scales: _Scales, unit: str) -> Iterator[str]:
    low, high = scales.values
    for tick in (low, (low + high) / 2, high):
        y = scales.y(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{_tick(tick, high - low, unit)}</text>'
    for step, anchor in zip(scales.steps, ("start", "end"), strict=True):
        yield f'<text x="{scales.x(step):.1f}" y="{_HEIGHT - 4}" text-anchor="{anchor}">{step:.0f}</text>'


def _tick(value: float, span: float, unit: str) -> str:
    """A number beside an axis, with the digits that tell it from the next."""
    if unit:
        return f"{value:.{max(0, -math.floor(math.log10(50 * span)))}%}"
    return f"{value / 1000:,.0f}k" if abs(value) >= 10_000 else shown(value)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Round numbers around all values."""
    low, high = min(values), max(values)
    if high == low:
        return (low - 0.5 * abs(low), high + 0.5 * abs(high)) if low else (0.0, 1.0)
    unit = 10 ** math.floor(math.log10(high - low))
    step = next(part * unit for part in (0.1, 0.2, 0.5, 1.0) if (high - low) / (part * unit) <= 20)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def _said(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit else shown(value)


def _table(matrices: Mapping[str, Mapping[str, float]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("matrix", *_COLUMNS))
    rows = []
    for name, look in matrices.items():
        cells = "".join(f"<td>{_said(look[key], '%' if key in _SHARES else '')}</td>" for key in _COLUMNS)
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>'
