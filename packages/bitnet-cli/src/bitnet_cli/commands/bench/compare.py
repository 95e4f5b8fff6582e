"""`bitnet bench compare`: two runs, by a stated test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ...amounts import size
from ...console import FLAGS, Flags, table
from ...failures import FAILED
from .kept import Base, history

if TYPE_CHECKING:
    from bitnet_benchmarks.record import Record

_WHICH = Parameter(help="A file of a record, the begin of its id, or last, last-1 and so on.")


def compare(
    old: Annotated[str, _WHICH],
    new: Annotated[str, _WHICH],
    *,
    alpha: float = 0.05,
    least: float = 0.02,
    single: float = 0.05,
    base: Base = None,
    flags: Flags = FLAGS,
) -> int:
    """Two runs: better, worse or within noise; exit code 1 if anything became worse.

    Repeated runs are compared by the Mann-Whitney U test, exact and two-sided; single figures by their difference.

    Parameters
    ----------
    alpha
        How seldom chance may look as clear as what counts.
    least
        The smallest difference of medians that counts.
    single
        The smallest difference of single figures that counts.
    """
    from bitnet_benchmarks import compare as comparing  # noqa: PLC0415

    found = comparing.compare(_record(old, base), _record(new, base), alpha=alpha, least=least, single=single)
    shown = table("figure", "of", "before", "after", "ratio", "p", "", numbers=(2, 3, 4, 5))
    same = set.intersection(*(set(change.where.split(", ")) for change in found.changes))
    for change in found.changes:
        where = ", ".join(part for part in change.where.split(", ") if part not in same)
        p = "" if change.p is None else f"{change.p:.3f}"
        what = change.figure.replace("_", " ") if change.p is None else f"{change.figure}, seconds"
        row = (*(_figure(change.figure, value) for value in (change.before, change.after)), f"{change.ratio:.3f}", p)
        shown.add_row(what, where, *row, _verdict(change.verdict))
    for note in found.notes:
        flags.remark(f"note: {note}")
    if same:
        flags.remark(f"all of {', '.join(part for part in found.changes[0].where.split(', ') if part in same)}")
    test = f"Mann-Whitney U, exact, two-sided: p below {alpha:g} and medians apart by {least:.0%}"
    flags.answer({"changes": found.changes, "notes": found.notes, "test": test}, shown, test)
    return FAILED if found.regressions else 0


def _figure(name: str, value: float) -> str:
    return size(value) if name.endswith("_bytes") else f"{value:.4g}"


def _verdict(verdict: str) -> Any:
    from rich.text import Text  # noqa: PLC0415

    return Text(verdict, style={"better": "green", "worse": "bold red"}.get(verdict, "dim"))


def _record(name: str, base: Path | None) -> Record:
    from bitnet_benchmarks import record  # noqa: PLC0415

    if Path(name).exists() or name.endswith(".json"):
        return record.read(name)
    return history(base).find(name)
