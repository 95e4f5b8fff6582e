"""Bars and lines as SVG that takes its colours from the page around it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LEFT, _RIGHT, _ROW = 540, 190, 92, 24
_HEIGHT, _BOTTOM, _TOP, _SIDE = 180, 22, 10, 46


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure with its spread, and the ceiling that it is held to."""

    label: str
    value: float
    lowest: float | None = None
    highest: float | None = None
    ceiling: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A figure over time."""

    name: str
    points: Sequence[tuple[str, float]]


def bars(title: str, values: Sequence[Bar]) -> str:
    """Horizontal bars from zero, so that their lengths may be compared."""
    if not values:
        return ""
    reach = max(max(bar.ceiling or 0, bar.highest or bar.value) for bar in values) or 1.0
    span = _WIDTH - _LEFT - _RIGHT
    parts: list[str] = []
    for place, bar in enumerate(values):
        parts += _bar(place * _ROW, bar, span / reach)
    height = len(values) * _ROW + 4
    return _figure(title, _WIDTH, height, "".join(parts))


def _bar(top: float, bar: Bar, unit: float) -> Iterator[str]:
    y, middle = top + 3, top + _ROW / 2
    yield f'<text x="{_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar.label)}</text>'
    share = f", {bar.value / bar.ceiling:.0%} of the ceiling" if bar.ceiling else ""
    spread = f" ({bar.lowest:.4g} to {bar.highest:.4g})" if bar.lowest is not None and bar.highest is not None else ""
    said = f"<title>{escape(bar.label)}: {bar.value:.4g}{spread}{share}</title>"
    if bar.ceiling:
        width = f"{bar.ceiling * unit:.1f}"
        yield f'<rect class="rest" x="{_LEFT}" y="{y}" width="{width}" height="{_ROW - 6}">{said}</rect>'
    yield f'<rect class="c0" x="{_LEFT}" y="{y}" width="{bar.value * unit:.1f}" height="{_ROW - 6}">{said}</rect>'
    if bar.lowest is not None and bar.highest is not None:
        low, high = _LEFT + bar.lowest * unit, _LEFT + bar.highest * unit
        yield f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>'
    end = _LEFT + max(bar.value, bar.highest or 0, bar.ceiling or 0) * unit
    text = _short(bar.value) + (f" · {bar.value / bar.ceiling:.0%}" if bar.ceiling else "")
    yield f'<text class="value" x="{end + 5:.1f}" y="{middle + 4:.1f}">{text}</text>'


def lines(title: str, series: Sequence[Series]) -> str:
    """Values in the order of their times, evenly apart."""
    values = [value for one in series for _, value in one.points]
    low, high = _rounded(min(values), max(values))
    parts = list(_axis(low, high))
    for place, one in enumerate(series):
        count = max(1, len(one.points) - 1)
        dots = [
            (_SIDE + k / count * (_WIDTH - _SIDE - 12), _y(value, low, high), when, value)
            for k, (when, value) in enumerate(one.points)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in dots)
        parts.append(f'<polyline class="path s{place % 4}" points="{path}"/>')
        parts += [
            f'<circle class="c{place % 4}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(when)}: {value:.4g}</title>'
            "</circle>"
            for x, y, when, value in dots
        ]
    first, last = series[0].points[0][0], series[0].points[-1][0]
    parts.append(f'<text x="{_SIDE}" y="{_HEIGHT - 5}">{escape(first[:16])}</text>')
    parts.append(f'<text x="{_WIDTH - 12}" y="{_HEIGHT - 5}" text-anchor="end">{escape(last[:16])}</text>')
    return _figure(title, _WIDTH, _HEIGHT, "".join(parts))


def _axis(low: float, high: float) -> Iterator[str]:
    for tick in (low, (low + high) / 2, high):
        y = _y(tick, low, high)
        yield f'<line class="grid" x1="{_SIDE}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_SIDE - 5}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'


def _y(value: float, low: float, high: float) -> float:
    return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Round numbers around a range, with zero where it is not far."""
    if low > 0 and low < high * 0.7:
        low = 0.0
    step = 10 ** math.floor(math.log10(max(high - low, abs(high) * 0.02, 1e-9)))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return (low, high) if high > low else (low - step, high + step)


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.1f}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _figure(title: str, width: int, height: float, inside: str) -> str:
    svg = f'<svg viewBox="0 0 {width} {height:.0f}" role="img">{inside}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"
