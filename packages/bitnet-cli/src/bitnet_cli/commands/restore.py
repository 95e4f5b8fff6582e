"""`bitnet restore`: what a backup holds, in its place again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import amounts
from ..console import FLAGS, Flags, mark, table
from ..failures import Refused


def restore(
    archive: Annotated[Path | None, Parameter(help="A file that bitnet backup wrote.")] = None,
    *,
    rollback: bool = False,
    dry_run: Annotated[bool, Parameter(name=["--dry-run", "-n"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """Put what a backup holds in its place: all of it or nothing. What was there is kept for one step back.

    Parameters
    ----------
    rollback
        Undo the last restore.
    dry_run
        Prove the archive and list what is in it, and change nothing.
    """
    if (archive is None) != rollback or (rollback and dry_run):
        raise Refused("restore: name an archive, or say --rollback")
    from .. import archives, restoring  # noqa: PLC0415

    if archive is None:
        names = restoring.back()
        flags.answer({"restored": names}, mark(True, f"as before: {', '.join(names) or 'nothing had changed'}"))
        return
    found = archives.read(archive)
    listed = table("file", "size", numbers=(1,))
    for entry in found.entries:
        listed.add_row(entry.name, amounts.size(entry.size))
    if dry_run:
        flags.answer({"time": found.time, "entries": found.entries, "models": found.models}, listed)
        return
    names = restoring.put(found)
    lost = [str(model.get("name")) for model in found.models if not model.get("files")]
    flags.answer({"restored": names, "to_fetch": lost}, listed, mark(True, f"{len(names)} files are in their places"))
    if lost:
        flags.remark(f"models to fetch again with bitnet pull: {', '.join(lost)}")
    flags.remark("bitnet restore --rollback undoes it")
