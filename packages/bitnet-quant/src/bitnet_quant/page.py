"""A quality report as one HTML page: its plots are SVG inside it, and it fetches nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .quality import ModelQuality, Report, WeightQuality

# Negative, zero and positive codes: two hues around a grey, told apart by lightness, too.
_STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #1c1c1a; --soft: #6b6a65; --line: #e2e1dc;
  --minus: #2f6fd0; --zero: #c9c8c2; --plus: #d9622b; --dot: #2f6fd0; }
@media (prefers-color-scheme: dark) { :root { --paper: #191918; --ink: #eeede8; --soft: #9c9b95; --line: #353431;
  --minus: #6aa2f2; --zero: #55544f; --plus: #ef8a55; --dot: #6aa2f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1080px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1.2rem; } h2 { font-size: 1.1rem; margin: 2.4rem 0 .2rem; }
p.note { margin: 0 0 1rem; color: var(--soft); max-width: 70ch; }
.figures { display: flex; flex-wrap: wrap; gap: .8rem 2rem; }
.figures div { min-width: 8rem; } .figures b { display: block; font-size: 1.5rem; font-weight: 600; }
.figures span, .key { color: var(--soft); font-size: .85rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: 1.2rem 1.6rem; }
figure { margin: 0; } figcaption { font-size: .85rem; font-weight: 600; margin-bottom: .2rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 10px; }
.grid { stroke: var(--line); stroke-width: 1; } .minus { fill: var(--minus); } .zero { fill: var(--zero); }
.plus { fill: var(--plus); } .dot { fill: var(--dot); } .path { fill: none; stroke: var(--dot); stroke-width: 1.5; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 1em; }
.key i:first-child { margin-left: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--soft); font-weight: 500; }
""".strip()
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 250, 120, 36, 18, 6
_CODES = (("minus", "−1"), ("zero", "0"), ("plus", "+1"))
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
"""
_KEY = (
    '<p class="note key"><i style="background:var(--minus)"></i>−1<i style="background:var(--zero)"></i>0'
    '<i style="background:var(--plus)"></i>+1, as shares of each matrix</p>'
)
_NOTE = (
    '<p class="note">Signal over error in decibels: higher is nearer to the master. A matrix that equals it has no '
    "dot.</p>"
)
_COLUMNS = ("weight", "shape", "form", "bits", "zeros", "scale", "MSE", "SQNR dB", "cosine", "angle")


def render(title: str, report: Report) -> str:
    """The page of a report."""
    parts = [f"<h1>{escape(title)}</h1>", _figures(report)]
    if ternary := [weight for weight in report.weights if weight.trits]:
        parts += ["<h2>Trits by layer</h2>", _KEY, _panels(ternary, _Scale(0, 1, ".0%"), _trits)]
    layers = [weight for weight in report.weights if _layer(weight.name) is not None]
    if any(math.isfinite(weight.fidelity.sqnr) for weight in layers):
        parts += ["<h2>Error by layer</h2>", _NOTE, _panels(layers, _decibels(layers), _errors)]
    parts += ["<h2>Weights</h2>", _table(report.weights)]
    name, body = escape(title), "\n".join(parts)
    return f"{_HEAD}<title>{name}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"


def _figures(report: Report) -> str:
    """The few numbers that matter most."""
    size = sum(weight.shape[0] * weight.shape[1] for weight in report.weights)
    held = sum(weight.shape[0] * weight.shape[1] * weight.bits for weight in report.weights)
    figures = [(f"{held / size:.2f}", "bits a weight, on average")]
    counts = [weight.trits for weight in report.weights if weight.trits]
    if counts:
        share = sum(zeros for _, zeros, _ in counts) / sum(map(sum, counts))
        figures.append((f"{share:.1%}", "of ternary codes are 0"))
    if report.model:
        figures += _said(report.model)
    cells = "".join(f"<div><b>{value}</b><span>{what}</span></div>" for value, what in figures)
    return f'<div class="figures">{cells}</div>'


def _said(quality: ModelQuality) -> list[tuple[str, str]]:
    return [
        (f"{quality.perplexity:.3f}", f"perplexity, the master's {quality.master_perplexity:.3f}"),
        (f"{quality.divergence:.4f}", "nats of divergence a token"),
        (f"{quality.agreement:.1%}", f"the same likeliest of {quality.tokens}"),
    ]


def _layer(name: str) -> int | None:
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "layers" else None


@dataclass(frozen=True, slots=True)
class _Scale:
    """The values that all panels of a figure reach over."""

    low: float
    high: float
    style: str  # a tick's format

    def y(self, value: float) -> float:
        """The height of a value."""
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


_Marks = Callable[["Sequence[WeightQuality]", _Scale], Iterator[str]]


def _panels(weights: Sequence[WeightQuality], scale: _Scale, marks: _Marks) -> str:
    """A small plot for each kind of matrix, layers along it; those outside layers stand in one of their own."""
    kinds: dict[str, list[WeightQuality]] = {}
    for weight in weights:
        kind = "others" if _layer(weight.name) is None else weight.name.split(".", 2)[-1]
        kinds.setdefault(kind, []).append(weight)
    figures = [
        f"<figure><figcaption>{escape(kind)}</figcaption>{_panel(held, scale, marks)}</figure>"
        for kind, held in kinds.items()
    ]
    return '<div class="panels">' + "".join(figures) + "</div>"


def _panel(weights: Sequence[WeightQuality], scale: _Scale, marks: _Marks) -> str:
    lines = []
    for tick in (scale.low, (scale.low + scale.high) / 2, scale.high):
        y = scale.y(tick)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{tick:{scale.style}}</text>')
    for place in sorted({0, len(weights) - 1}):
        x, name = _x(place, weights), _label(weights[place])
        lines.append(f'<text x="{x:.1f}" y="{_HEIGHT - 4}" text-anchor="middle">{name}</text>')
    inside = "".join([*lines, *marks(weights, scale)])
    return f'<svg viewBox="0 0 {_WIDTH + 10} {_HEIGHT}" role="img">{inside}</svg>'


def _x(place: int, weights: Sequence[WeightQuality]) -> float:
    """The middle of the place of a weight."""
    return _LEFT + (place + 0.5) * (_WIDTH - _LEFT) / len(weights)


def _trits(weights: Sequence[WeightQuality], scale: _Scale) -> Iterator[str]:
    """Three shares on each other for every layer."""
    width = min(0.82 * (_WIDTH - _LEFT) / len(weights), 26)
    for place, weight in enumerate(weights):
        counts = weight.trits or (0, 0, 0)
        base, left = 0.0, _x(place, weights) - width / 2
        for (style, code), count in zip(_CODES, counts, strict=True):
            share = count / sum(counts)
            top, height = scale.y(base + share), scale.y(base) - scale.y(base + share)
            yield (
                f'<rect class="{style}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}">'
                f"<title>{escape(weight.name)}: {share:.1%} are {code}</title></rect>"
            )
            base += share


def _errors(weights: Sequence[WeightQuality], scale: _Scale) -> Iterator[str]:
    """A dot for every layer, and a line through them."""
    dots = [
        (_x(place, weights), scale.y(weight.fidelity.sqnr), weight)
        for place, weight in enumerate(weights)
        if math.isfinite(weight.fidelity.sqnr)
    ]
    yield f'<polyline class="path" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, _ in dots)}"/>'
    for x, y, weight in dots:
        said = f"{escape(weight.name)}: {weight.fidelity.sqnr:.2f} dB"
        yield f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{said}</title></circle>'


def _decibels(weights: Sequence[WeightQuality]) -> _Scale:
    """Whole decibels around all that is finite."""
    values = [weight.fidelity.sqnr for weight in weights if math.isfinite(weight.fidelity.sqnr)]
    low = math.floor(min(values))
    return _Scale(low, low + 2 * max(1, math.ceil((max(values) - low) / 2)), "g")


def _label(weight: WeightQuality) -> str:
    layer = _layer(weight.name)
    return escape(weight.name) if layer is None else f"layer {layer}"


def _table(weights: Sequence[WeightQuality]) -> str:
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(weight))}</tr>\n" for weight in weights)
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'


def _cells(weight: WeightQuality) -> Iterator[str]:
    near = weight.fidelity
    yield escape(weight.name)
    yield f"{weight.shape[0]} × {weight.shape[1]}"
    yield weight.form
    yield f"{weight.bits:.3g}"
    yield "" if weight.zeros is None else f"{weight.zeros:.1%}"
    yield "" if weight.scale is None else f"{weight.scale:.4g}"
    yield f"{near.mse:.2e}" if near.mse else "0"
    yield "∞" if math.isinf(near.sqnr) and near.sqnr > 0 else f"{near.sqnr:.2f}"
    yield f"{near.cosine:.5f}"
    yield f"{near.angle:.2f}°"
