"""Two records compared: better, worse or within noise, by a test that is stated.

Repeated runs are compared by the Mann-Whitney U test, exact and two-sided, which asks nothing of how times are spread.
A difference counts if chance makes one as clear in fewer than `alpha` of all cases, and the medians differ by more
than `least`. Two groups of 3 can never differ that clearly; 5 and 5 can. Single figures, as bytes, have no spread:
they count if they differ by more than `single`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any, Literal

from .record import Record

ALPHA, LEAST, SINGLE = 0.05, 0.02, 0.05
Verdict = Literal["better", "worse", "within noise"]
_RUNS = {  # seconds: fewer are better
    "prompt_runs": "prompt",
    "decode_runs": "decode",
    "step_runs": "step",
    "output_runs": "output token",
    "first_runs": "first token",
    "between_runs": "between tokens",
    "whole_runs": "whole answer",
}
_SINGLES = {"peak_bytes": -1, "perplexity": -1, "multiplications_per_s": 1}  # 1: more is better
_SPOKEN = (
    "engine",
    "backend",
    "isa",
    "case",
    "threads",
    "prompt",
    "tokens",
    "depth",
    "batch",
    "clients",
    "rate",
    "shared",
    "what",
    "hidden",
    "layers",
    "window",
)
_DRIFT = 1.1  # of bandwidth between two runs that is worth saying
_EXACT = 16  # runs in both groups together up to which all orders are counted


@dataclass(frozen=True, slots=True)
class Change:
    """One figure, before and after; `ratio` is above 1 where it became better."""

    figure: str
    where: str
    before: float
    after: float
    ratio: float
    p: float | None  # None where there is nothing to test
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures that both records have."""

    old: str
    new: str
    notes: tuple[str, ...]  # what makes the two hard to compare
    changes: tuple[Change, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        """What became worse."""
        return tuple(change for change in self.changes if change.verdict == "worse")


def compare(
    old: Record, new: Record, *, alpha: float = ALPHA, least: float = LEAST, single: float = SINGLE
) -> Comparison:
    """Every figure that both have, old first."""
    if not (0 < alpha < 1 and 0 <= least < 1 and 0 <= single < 1):
        raise ValueError(f"alpha, least and single: expected shares, got {alpha}, {least}, {single}")
    before = dict(_by_place(old.figures))
    found: dict[object, Change] = {}
    for place, figure in _by_place(new.figures):
        if place in before:
            for change in _changes(place, before[place], figure, alpha, least, single):
                # One prompt stands in the figures of every depth and batch: it is one change.
                found.setdefault((change.figure, change.before, change.after, change.p), change)
    changes = list(found.values())
    if not changes:
        raise ValueError(f"records {old.id} and {new.id} have no figure in common: {old.kind} and {new.kind}")
    return Comparison(old.id, new.id, tuple(_notes(old, new)), tuple(changes))


def _by_place(figures: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for figure in figures:
        yield ", ".join(f"{name} {figure[name]}" for name in _SPOKEN if figure.get(name) not in (None, "")), figure


def _notes(old: Record, new: Record) -> Iterator[str]:
    if old.kind != new.kind:
        yield f"one is of {old.kind}, the other of {new.kind}"
    models = [record.model or {} for record in (old, new)]
    if models[0].get("sha256") != models[1].get("sha256"):
        yield "the models differ"
    if models[0].get("url") != models[1].get("url"):
        yield f"the servers differ: {' and '.join(str(model.get('url') or 'our own') for model in models)}"
    failed = [sum(figure.get("failed") or 0 for figure in record.figures) for record in (old, new)]
    if any(failed):
        yield f"requests failed, which no time counts: {failed[0]} before, {failed[1]} after"
    speeds = [
        [f["bandwidth"] for f in record.figures if isinstance(f.get("bandwidth"), float)] for record in (old, new)
    ]
    if all(speeds):
        ratio = statistics.median(speeds[1]) / statistics.median(speeds[0])
        if not 1 / _DRIFT < ratio < _DRIFT:
            yield f"memory was read at {ratio:.2f} times the speed: the machine was busy, or is another"
    names = [record.machine.get("cpu", {}).get("name") for record in (old, new)]
    if names[0] != names[1]:
        yield f"the machines differ: {names[0]} and {names[1]}"
    for name in sorted({*old.versions, *new.versions}):
        if old.versions.get(name) != new.versions.get(name):
            yield f"{name} {old.versions.get(name)} became {new.versions.get(name)}"


def _changes(
    place: str, old: Mapping[str, Any], new: Mapping[str, Any], alpha: float, least: float, single: float
) -> Iterator[Change]:
    for name, said in _RUNS.items():
        if old.get(name) and new.get(name):
            before, after = statistics.median(old[name]), statistics.median(new[name])
            p, ratio = mann_whitney(old[name], new[name]), before / after
            clear = p < alpha and abs(math.log(ratio)) > math.log1p(least)
            yield Change(said, place, before, after, ratio, p, _verdict(ratio, clear))
    for name, sign in _SINGLES.items():
        if old.get(name) and new.get(name):
            before, after = float(old[name]), float(new[name])
            ratio = after / before if sign > 0 else before / after
            yield Change(
                name, place, before, after, ratio, None, _verdict(ratio, abs(math.log(ratio)) > math.log1p(single))
            )


def _verdict(ratio: float, clear: bool) -> Verdict:
    return "within noise" if not clear else "better" if ratio > 1 else "worse"


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> float:
    """The probability that chance orders two groups as clearly as they are, either way round."""
    m, n = len(first), len(second)
    wins = sum((a > b) + 0.5 * (a == b) for a in first for b in second)
    middle = m * n / 2
    apart = abs(wins - middle)
    if m + n <= _EXACT and len({*first, *second}) == m + n:
        counts = _orders(m, n)
        extreme = sum(count for wins_, count in enumerate(counts) if abs(wins_ - middle) >= apart - 1e-9)
        return extreme / math.comb(m + n, m)
    if m + n <= _EXACT:
        return _permuted([*first, *second], m, apart)
    spread = math.sqrt(m * n * (m + n + 1) / 12)
    return math.erfc(max(0.0, apart - 0.5) / spread / math.sqrt(2))


@lru_cache(maxsize=64)
def _orders(m: int, n: int) -> tuple[int, ...]:
    """How many orders of m and n different numbers have each count of wins."""
    if m == 0 or n == 0:
        return (1,)
    with_last, without = _orders(m - 1, n), _orders(m, n - 1)
    counts = [0] * (m * n + 1)
    for wins, count in enumerate(with_last):
        counts[wins + n] += count
    for wins, count in enumerate(without):
        counts[wins] += count
    return tuple(counts)


def _permuted(values: Sequence[float], m: int, apart: float) -> float:
    """The same with ties, by counting all ways to divide the values."""
    middle = m * (len(values) - m) / 2
    extreme = total = 0
    for chosen in combinations(range(len(values)), m):
        rest = [values[i] for i in range(len(values)) if i not in chosen]
        wins = sum((values[i] > b) + 0.5 * (values[i] == b) for i in chosen for b in rest)
        total += 1
        extreme += abs(wins - middle) >= apart - 1e-9
    return extreme / total
