"""`bitnet doctor`: health of hardware, packages and cache, with advice."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from ..console import FLAGS, Flags, mark, table
from ..failures import FAILED
from ..health import Check, checks


def doctor(
    *,
    measure: Annotated[bool, Parameter(negative="--no-measure")] = True,
    online: bool = False,
    flags: Flags = FLAGS,
) -> int:
    """Health of hardware, packages and cache, with advice; exit code 1 if something is wrong.

    Parameters
    ----------
    measure
        Measure how fast memory is read: this takes a moment.
    online
        Ask the hub as well.
    """
    found = list(checks(measure=measure, online=online))
    wrong = [check for check in found if check.fine is False]
    flags.answer({"healthy": not wrong, "checks": found}, _shown(found), mark(not wrong, _verdict(len(wrong))))
    return FAILED if wrong else 0


def _verdict(wrong: int) -> str:
    return "all is well" if not wrong else f"{wrong} thing{'s' if wrong > 1 else ''} to see to"


def _shown(found: list[Check]) -> Any:
    from rich.text import Text  # noqa: PLC0415

    shown = table("", "", "")
    shown.show_header = False
    for check in found:
        said = Text(check.said)
        if check.advice:
            said.append(f"\n{check.advice}", style="yellow" if check.fine is None else "red")
        shown.add_row(mark(check.fine), Text(check.what, style="dim"), said)
    return shown
