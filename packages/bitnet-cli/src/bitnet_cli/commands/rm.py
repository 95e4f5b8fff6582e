"""`bitnet rm`: remove models from this machine."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .. import amounts, models
from ..amounts import Span
from ..console import FLAGS, Flags
from ..failures import Refused


def rm(
    names: Annotated[tuple[str, ...], Parameter(help="Models of the cache: org/model[@revision].")] = (),
    *,
    unused: Annotated[Span | None, Parameter(name="--unused-for")] = None,
    leftovers: bool = False,
    unpin: bool = False,
    flags: Flags = FLAGS,
) -> None:
    """Remove models from this machine; what is pinned stays.

    Parameters
    ----------
    unused
        Remove what nobody has used for so long, as 30d.
    leftovers
        Remove what dead downloads have left.
    unpin
        Take the protection from the named models first.
    """
    from bitnet_core import hub  # noqa: PLC0415

    if not names and unused is None and not leftovers:
        raise Refused("rm: name a model, or say --unused-for TIME or --leftovers")
    for name in names:
        if models.is_local(name):
            raise Refused(f"{name}: rm takes models out of the cache; a file of yours is yours to remove")
        models.check_name(name)
        if ":" in name:
            raise Refused(f"{name}: whole revisions are removed, not files of them")
    freed = {}
    for name in names:
        if unpin:
            hub.unpin(name)
        freed[name] = hub.remove(name)
    cleaned = hub.clean_up(unused_s=unused) if unused is not None or leftovers else 0
    total = sum(freed.values()) + cleaned
    flags.answer({"removed": freed, "cleaned": cleaned, "freed": total}, f"{amounts.size(total)} freed")
