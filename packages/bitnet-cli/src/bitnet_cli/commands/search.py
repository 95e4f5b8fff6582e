"""`bitnet search`: find models on the hub."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .. import amounts
from ..amounts import Count
from ..console import FLAGS, Flags, table
from ..failures import Refused


def search(
    query: str = "bitnet",
    *,
    limit: Annotated[Count, Parameter(name=["--limit", "-l"])] = 20,
    every: Annotated[bool, Parameter(name=["--all", "-a"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """Find models on the hub, the most downloaded first.

    Parameters
    ----------
    query
        Words of the name.
    limit
        The most that are listed.
    every
        Models as well that do not look ternary.
    """
    from bitnet_core import hub  # noqa: PLC0415

    if limit > 1000:
        raise Refused(f"--limit: expected at most 1000, got {limit}")
    if not query.strip() or len(query) > 200:
        raise Refused(f"query: expected 1 to 200 characters, got {len(query)}")
    found = hub.search(query, limit=limit)
    kept = [model for model in found if every or model.ternary]
    shown = table("model", "downloads", "size", "licence", "", numbers=(1, 2))
    for model in kept:
        notes = [word for word, said in (("gated", model.gated), ("not ternary", not model.ternary)) if said]
        size = amounts.size(model.size) if model.size else ""
        shown.add_row(model.name, amounts.amount(model.downloads), size, model.licence or "", ", ".join(notes))
    flags.answer(kept, *([shown] if kept else ["nothing found"]))
    if len(kept) < len(found):
        flags.remark(f"{len(found) - len(kept)} more do not look ternary: --all lists them")
