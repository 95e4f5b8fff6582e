"""What a server's log tells of its requests, in figures whose size does not grow with the log."""

from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .loglines import LIFE, Line

OTHERS = "(others)"
_FINE = 1 / math.log(1.02)  # a figure that is told from a spread is within 1 % of the true one
_GROUPS = 200  # names that are told apart: models, keys and addresses are what clients make them
_SLOWEST = 10
_BUCKETS = 1000
# Seconds of the columns of a chart: each divides the next.
_WIDTHS = (
    1,
    2,
    10,
    30,
    60,
    300,
    900,
    3600,
    10800,
    21600,
    43200,
    86400,
    604800,
    6048000,
    60480000,
    604800000,
    6048000000,
)
_UNLOADING = "unloading the model "
_DECODED = 8  # tokens from which on a speed can be told


class Spread:
    """How a figure is spread: counts in steps of 2 %."""

    __slots__ = ("_steps", "count", "largest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.largest = 0.0
        self._steps: dict[int, int] = {}

    def add(self, value: float, step: int) -> None:
        """One more figure, 0 or above, and its step."""
        self.count += 1
        self.total += value
        self.largest = max(self.largest, value)
        self._steps[step] = self._steps.get(step, 0) + 1

    def merge(self, other: Spread) -> None:
        """All of another's."""
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)
        for step, count in other._steps.items():
            self._steps[step] = self._steps.get(step, 0) + count

    def at(self, share: float) -> float | None:
        """The figure that this share of all does not pass; None where there is none."""
        if not self.count:
            return None
        left = math.ceil(share * self.count)
        if left >= self.count:
            return self.largest
        for step in sorted(self._steps):
            left -= self._steps[step]
            if left <= 0:
                return min(math.exp((step + 0.5) / _FINE), self.largest)
        return self.largest

    def record(self) -> dict[str, float | None]:
        """As JSON has it."""
        found = {f"p{share:g}": self.at(share / 100) for share in (50, 90, 95, 99)} | {"max": self.at(1)}
        return {name: None if value is None else float(f"{value:.4g}") for name, value in found.items()}


def step_of(value: float) -> int:
    """The step of a spread that a figure belongs to."""
    return math.floor(math.log(value if value > 1e-6 else 1e-6) * _FINE)


@dataclass(slots=True)
class Tally:
    """Requests that have something in common."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    seconds: Spread = field(default_factory=Spread)
    first_token_s: Spread = field(default_factory=Spread)
    queue_s: Spread = field(default_factory=Spread)
    tokens_per_s: Spread = field(default_factory=Spread)
    prompts: Spread = field(default_factory=Spread)

    def add(self, line: Line, figures: Iterable[tuple[str, float, int]]) -> None:
        """One more request, and the figures of it."""
        self.requests += 1
        if is_failed(line):
            self.failed += 1
            _bounded(self.codes, line.code or str(line.status), 1)
        if line.model is not None:
            self.prompt_tokens += line.prompt_tokens or 0
            self.cached_tokens += line.cached_tokens or 0
            self.completion_tokens += line.completion_tokens or 0
        for name, value, step in figures:
            getattr(self, name).add(value, step)

    def merge(self, other: Tally) -> None:
        """All of another's requests."""
        for name in ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.codes.update(other.codes)
        for name in ("seconds", "first_token_s", "queue_s", "tokens_per_s", "prompts"):
            getattr(self, name).merge(getattr(other, name))

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        counts = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")
        spreads = ("seconds", "first_token_s", "queue_s", "tokens_per_s")
        return (
            {name: getattr(self, name) for name in counts}
            | {name: getattr(self, name).record() for name in spreads if getattr(self, name).count}
            | ({"codes": dict(self.codes.most_common())} if self.codes else {})
        )


def figures_of(line: Line) -> list[tuple[str, float, int]]:
    """What is spread of a request: the name, the figure and its step."""
    seconds, first, written = line.seconds or 0.0, line.first_token_s, line.completion_tokens or 0
    found = [("seconds", seconds)]
    if line.model is not None:
        found.append(("prompts", float(line.prompt_tokens or 0)))
        if line.queue_s is not None:
            found.append(("queue_s", line.queue_s))
        if first is not None:
            found.append(("first_token_s", first))
            if written >= _DECODED and seconds > first and not is_failed(line):
                found.append(("tokens_per_s", (written - len(line.finish or "1")) / (seconds - first)))
    return [(name, value, step_of(value)) for name, value in found]


def is_failed(line: Line) -> bool:
    """Whether a request was refused or broken off."""
    return (line.status or 0) >= 400 or line.code is not None


class Groups:
    """Tallies by name: the largest, and one of all others."""

    def __init__(self) -> None:
        self._found: dict[str, Tally] = {}

    def add(self, name: str, line: Line, figures: Iterable[tuple[str, float, int]]) -> None:
        """One more request of this name."""
        tally = self._found.get(name)
        if tally is None:
            if len(self._found) >= 2 * _GROUPS:
                self._shrink()
            tally = self._found[name] = Tally()
        tally.add(line, figures)

    def _shrink(self) -> None:
        others = self._found.pop(OTHERS, Tally())
        for name, tally in sorted(self._found.items(), key=lambda item: -item[1].requests)[_GROUPS:]:
            others.merge(tally)
            del self._found[name]
        self._found[OTHERS] = others

    def items(self) -> list[tuple[str, Tally]]:
        """The names with most requests first."""
        return sorted(self._found.items(), key=lambda item: (item[0] == OTHERS, -item[1].requests, item[0]))

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: tally.record() for name, tally in self.items()}


@dataclass(slots=True)
class Moment:
    """A while of a log."""

    requests: int = 0
    failed: int = 0
    completion_tokens: int = 0


class Course:
    """How it went over time, in columns that grow wider as the log grows longer."""

    def __init__(self) -> None:
        self._step = 0
        self._moments: dict[int, Moment] = {}

    def add(self, line: Line) -> None:
        """One more request."""
        place = int(line.when // _WIDTHS[self._step])
        moment = self._moments.get(place)
        if moment is None:
            moment = self._moments[place] = Moment()
        moment.requests += 1
        moment.failed += is_failed(line)
        moment.completion_tokens += line.completion_tokens or 0
        while len(self._moments) > _BUCKETS and self._step + 1 < len(_WIDTHS):
            self._step, self._moments = self._step + 1, self._folded(self._step + 1)

    def _folded(self, step: int) -> dict[int, Moment]:
        times = _WIDTHS[step] // _WIDTHS[self._step]
        folded: dict[int, Moment] = {}
        for place, moment in self._moments.items():
            into = folded.setdefault(place // times, Moment())
            into.requests += moment.requests
            into.failed += moment.failed
            into.completion_tokens += moment.completion_tokens
        return folded

    def columns(self, most: int) -> Iterator[tuple[float, int, Moment]]:
        """At most so many columns: when each begins, its seconds, and what was in it; those between are empty."""
        if not self._moments:
            return
        first, last = min(self._moments), max(self._moments)
        width = _WIDTHS[self._step]
        step = next(
            (n for n in range(self._step, len(_WIDTHS)) if (last - first + 2) * width / _WIDTHS[n] <= most),
            len(_WIDTHS) - 1,
        )
        folded, width = self._folded(step), _WIDTHS[step]
        for place in range(min(folded), min(max(folded), min(folded) + most - 1) + 1):
            yield place * width, width, folded.get(place, Moment())


@dataclass(slots=True)
class Fault:
    """Warnings or errors that are the same but for their numbers."""

    level: str
    message: str
    error: str | None
    at: str | None
    first: float
    last: float
    line: str
    count: int = 1


class Traffic:
    """All that is told of a log."""

    def __init__(self) -> None:
        self.lines = 0
        self.first: float | None = None
        self.last: float | None = None
        self.all = Tally()
        self.by = {name: Groups() for name in ("status", "model", "key", "route", "address")}
        self.course = Course()
        self.finishes: Counter[str] = Counter()
        self.turned_away: Counter[str] = Counter()  # without a line of their own, by reason
        self.unloads: Counter[str] = Counter()
        self.starts = self.crashes = self.lost = 0
        self._running = False
        self._slowest: list[tuple[float, int, Line]] = []
        self._faults: dict[tuple[str | None, ...], Fault] = {}

    def add(self, line: Line, where: str) -> None:
        """One more line, and where it stands."""
        self.lines += 1
        when = line.when
        self.first = when if self.first is None else min(self.first, when)
        self.last = when if self.last is None else max(self.last, when)
        if line.is_request:
            self._add_request(line)
        elif line.logger == LIFE and line.message in ("started", "stopping", "stopped"):
            self._add_life(line)
        elif line.logger == LIFE and line.message == "refused":
            _bounded(self.turned_away, line.reason or "no reason", line.count or 1)
        elif line.logger == LIFE and line.message == "lines were lost":
            self.lost += line.count or 1
        elif line.message.startswith(_UNLOADING):
            _bounded(self.unloads, line.message.removeprefix(_UNLOADING), 1)
        elif line.level in ("warning", "error", "critical"):
            self._add_fault(line, where)

    def _add_request(self, line: Line) -> None:
        figures = figures_of(line)
        self.all.add(line, figures)
        self.course.add(line)
        for name, value in (
            ("status", str(line.status)),
            ("model", line.model),
            ("key", line.tenant or "nobody"),
            ("route", f"{line.method} {line.route}" if line.route else "no such path"),
            ("address", line.address or "unknown"),
        ):
            if value is not None:
                # Of statuses and addresses nobody asks how fast tokens came.
                self.by[name].add(value, line, figures[:1] if name in ("status", "address") else figures)
        for finish in line.finish or ():
            _bounded(self.finishes, finish, 1)
        entry = (line.seconds or 0.0, -self.lines, line)
        if len(self._slowest) < _SLOWEST:
            heapq.heappush(self._slowest, entry)
        elif entry > self._slowest[0]:
            heapq.heapreplace(self._slowest, entry)

    def _add_life(self, line: Line) -> None:
        if line.message == "started":
            self.starts += 1
            self.crashes += self._running
        self._running = line.message == "started"

    def _add_fault(self, line: Line, where: str) -> None:
        place = line.at[-1] if line.at else None
        # Numbers and what is quoted differ from one time to the next.
        plain = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "*", line.message)
        kind: tuple[str | None, ...] = (line.level, line.logger, line.error, place, plain)
        if kind not in self._faults and len(self._faults) >= _GROUPS:
            kind = (line.level, None, None, None, OTHERS)
        known = self._faults.get(kind)
        if known is None:
            message = line.message if kind[-1] is not OTHERS else OTHERS
            self._faults[kind] = Fault(line.level, message, line.error, place, line.when, line.when, where)
        else:
            known.count += 1
            known.first, known.last = min(known.first, line.when), max(known.last, line.when)

    @property
    def span(self) -> float:
        """Seconds from the first line to the last, a second at least."""
        return max(1.0, (self.last or 0.0) - (self.first or 0.0))

    @property
    def slowest(self) -> list[Line]:
        """The requests that took longest, the longest first."""
        return [line for _, _, line in sorted(self._slowest, reverse=True, key=lambda item: item[:2])]

    @property
    def faults(self) -> list[Fault]:
        """Warnings and errors, the worst and the most frequent first."""
        order = {"critical": 0, "error": 1, "warning": 2}
        return sorted(self._faults.values(), key=lambda fault: (order[fault.level], -fault.count, fault.first))


def _bounded(counter: Counter[str], name: str, count: int) -> None:
    counter[name if name in counter or len(counter) < _GROUPS else OTHERS] += count
