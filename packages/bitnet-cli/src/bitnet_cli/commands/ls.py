"""`bitnet ls`: the models on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import amounts
from ..console import FLAGS, Flags, table
from ..models import BUILT_IN


def ls(
    *,
    cache: Annotated[Path | None, Parameter(help="The folder of the cache, if not the usual one.")] = None,
    flags: Flags = FLAGS,
) -> None:
    """List the models on this machine, the last used first."""
    from bitnet_core import hub  # noqa: PLC0415

    found = hub.cached(cache=cache)
    shown = table("model", "revision", "size", "files", "used", "", numbers=(2, 3))
    for model in found:
        refs = ", ".join(model.refs)
        revision = f"{model.revision[:7]} {refs}".strip()
        note = "pinned" if model.pinned else ""
        size, used = amounts.size(model.size), amounts.ago(model.last_used)
        shown.add_row(model.name, revision, size, str(len(model.files)), used, note)
    none = f"none from the hub yet: bitnet search finds some, bitnet pull fetches one; {BUILT_IN} comes along"
    flags.answer(found, *([shown] if found else [none]))
