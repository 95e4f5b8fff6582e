"""`bitnet backup`: settings, records and models in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import amounts
from ..console import FLAGS, Flags, mark, pairs
from ..failures import Refused


def backup(
    target: Annotated[Path, Parameter(help="A new file, which ends in .tar.")],
    *,
    model: tuple[str, ...] = (),
    force: Annotated[bool, Parameter(name=["--force", "-f"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """Settings, records of benchmarks and the list of models in one file, which is read back before it counts.

    Parameters
    ----------
    model
        The files of this model of the cache as well.
    force
        Write over a file that is there.
    """
    if target.suffix != ".tar":
        raise Refused(f"{target}: expected a name that ends in .tar")
    if target.exists() and not force:
        raise Refused(f"{target}: is there already; --force writes over it")
    if not target.absolute().parent.is_dir():
        raise Refused(f"{target}: there is no folder {target.absolute().parent}")
    from .. import archives  # noqa: PLC0415

    found = archives.write(target, list(model))
    said = {
        "file": target,
        "size": amounts.size(target.stat().st_size),
        "files": len(found.entries),
        "models": f"{len(found.models)} listed, {sum(bool(m.get('files')) for m in found.models)} with their files",
        "read back": mark(True, "every byte is as it was written"),
    }
    record = {"file": target, "entries": found.entries, "models": found.models, "size": target.stat().st_size}
    flags.answer(record, pairs(said))
