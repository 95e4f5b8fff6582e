"""`bitnet du`: what the cache takes, and what the disk has left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import amounts
from ..console import FLAGS, Flags, pairs


def du(
    *,
    cache: Annotated[Path | None, Parameter(help="The folder of the cache, if not the usual one.")] = None,
    flags: Flags = FLAGS,
) -> None:
    """What the cache takes, and what the disk has left."""
    from bitnet_core import hub  # noqa: PLC0415

    found = hub.disk_usage(cache=cache)
    said = {
        "cache": found.path,
        "used": amounts.size(found.used),
        "unfinished": f"{amounts.size(found.unfinished)} of it" if found.unfinished else None,
        "free": amounts.size(found.free),
    }
    flags.answer(found, pairs(said))
    if found.unfinished:
        flags.remark("bitnet rm --leftovers removes what dead downloads have left")
