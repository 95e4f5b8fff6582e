"""What was used, from the rows that the ledger has written: sums for people, rows for spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TextIO

from .store import Row, Store

By = Literal["tenant", "model", "day", "hour"]

_GROUPS = {
    "tenant": "tenant",
    "model": "model",
    "day": "hour / 24",  # as numbers since 1970: no function of dates is the same everywhere
    "hour": "hour",
}
_COLUMNS = ("id", "at", "tenant", "model", "prompt", "cached", "completion", "tokens", "seconds", "joules", "customer")
_PAGE = 1000
_END = 1e11  # seconds since 1970, later than anything


@dataclass(frozen=True, slots=True)
class Sum:
    """What a group of requests has used."""

    group: str  # a tenant's id, a model's name, or the beginning of a day or an hour
    requests: int
    prompt_tokens: int
    cached_tokens: int  # of the prompt
    completion_tokens: int
    total_tokens: int
    seconds: float
    joules: float | None


def sums(
    store: Store, by: By = "tenant", *, since: float = 0.0, until: float = _END, tenant: str | None = None
) -> list[Sum]:
    """Sums of the requests admitted in a time, in seconds since 1970; of one tenant, or of all."""
    if by not in _GROUPS:
        raise ValueError(f"by: expected one of {', '.join(_GROUPS)}, got {by!r:.80}")
    with store.read() as run:
        rows = run(
            f"SELECT {_GROUPS[by]} AS part, COUNT(*), SUM(prompt), SUM(cached), SUM(completion), SUM(tokens), "  # noqa: S608
            "SUM(seconds), SUM(joules) FROM usage WHERE at >= :since AND at < :until "
            "AND (:everyone = 1 OR tenant = :tenant) GROUP BY part ORDER BY part",
            since=since,
            until=until,
            everyone=int(tenant is None),
            tenant=tenant or "",
        )
    size = {"day": 86_400, "hour": 3600}.get(by)
    return [_sum(row, size) for row in rows]


def rows(store: Store, *, since: float = 0.0, until: float = _END) -> Iterator[Row]:
    """Each request of a time, in order, in pages that keep no writer waiting."""
    last, after = since, ""
    while True:
        with store.read() as run:
            page = run(
                f"SELECT {', '.join(_COLUMNS)} FROM usage WHERE at < :until "  # noqa: S608
                "AND (at > :last OR (at = :last AND id > :after)) ORDER BY at, id LIMIT :count",
                until=until,
                last=last,
                after=after,
                count=_PAGE,
            )
        yield from page
        if len(page) < _PAGE:
            return
        after, last = page[-1][0], page[-1][1]


def export(store: Store, stream: TextIO, *, since: float = 0.0, until: float = _END) -> int:
    """Write each request of a time as a line of CSV; returns how many there were."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    count = 0
    for row in rows(store, since=since, until=until):
        at = datetime.fromtimestamp(row[1], UTC).isoformat(timespec="milliseconds")
        writer.writerow([_plain(value) for value in (row[0], at, *row[2:])])
        count += 1
    return count


def _plain(value: object) -> object:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _sum(row: Row, size: int | None) -> Sum:
    group = str(row[0]) if size is None else datetime.fromtimestamp(int(row[0]) * size, UTC).strftime("%Y-%m-%dT%H:%MZ")
    requests, prompt, cached, completion, total = (int(value) for value in row[1:6])
    joules = None if row[7] is None else float(row[7])
    return Sum(group, requests, prompt, cached, completion, total, float(row[6]), joules)
