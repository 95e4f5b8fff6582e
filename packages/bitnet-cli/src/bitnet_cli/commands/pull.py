"""`bitnet pull`: fetch a model from the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import amounts, models
from ..console import FLAGS, Flags, mark, pairs, table
from ..failures import Failed, Refused

if TYPE_CHECKING:
    from bitnet_core.hub import Description


def pull(
    name: Annotated[str, Parameter(help="org/model[@revision][:file] on the hub.")],
    *,
    revision: str | None = None,
    pin: bool = False,
    dry_run: Annotated[bool, Parameter(name=["--dry-run", "-n"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """Fetch a model from the hub; what was begun before is continued.

    Parameters
    ----------
    revision
        A branch, a tag or a commit.
    pin
        Protect this revision from removal.
    dry_run
        Say what would be fetched, and fetch nothing.
    """
    from bitnet_core import Offline, hub  # noqa: PLC0415

    if models.is_local(name):
        raise Refused(f"{name}: is on this machine already; pull takes a name on the hub")
    models.check_name(name, revision)
    try:
        known = hub.describe(name, revision=revision)
    except Offline:
        if dry_run:
            raise
        known = None
    if known is not None:
        _check(known)
        if dry_run or not flags.json:
            flags.answer(_record(known), _summary(known))
        if dry_run:
            return
    path = models.find(name, flags, revision=revision)
    pinned = hub.pin(name, revision=revision) if pin else None
    record = {**(_record(known) if known else {"name": name}), "path": path, "pinned": pinned}
    flags.answer(record, pairs({"path": path, "pinned": pinned}))


def _check(known: Description) -> None:
    if known.choices:
        shown = "\n  ".join(known.choices)
        raise Refused(f"{known.name} has several files of which one must be named: {shown}")
    if not known.needed:
        raise Failed(f"{known.name}: nothing there that runs")


def _record(known: Description) -> dict[str, Any]:
    return {
        "name": known.name,
        "revision": known.revision,
        "licence": known.licence,
        "gated": known.gated,
        "ternary": known.ternary,
        "size": known.size,
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in known.needed],
        "fits": _fits(known),
    }


def _fits(known: Description) -> bool:
    from bitnet_core import memory  # noqa: PLC0415

    return known.size * 1.2 < memory.available()


def _summary(known: Description) -> Any:
    from rich.console import Group  # noqa: PLC0415

    files = table("file", "size", numbers=(1,))
    for file in known.needed:
        files.add_row(file.name, amounts.size(file.size))
    kind = mark(True, "ternary") if known.ternary else mark(None, "does not look like a ternary model")
    fits = mark(True, "fits in memory") if _fits(known) else mark(False, "larger than the memory that is free")
    said = {
        "model": f"{known.name}@{known.revision[:12]}",
        "licence": known.licence or "not stated",
        "size": amounts.size(known.size),
        "kind": kind,
        "memory": fits,
    }
    return Group(pairs(said), files)
