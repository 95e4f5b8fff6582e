"""`bitnet bench history`: earlier runs, as a table, as files or as a page."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from ...amounts import Count
from ...console import FLAGS, Flags, table
from . import kept
from .kept import Base, Output


def history(
    *,
    kind: Literal["machine", "kernels", "generate", "rivals", "quality", "train", "serve"] | None = None,
    model: str | None = None,
    limit: Annotated[Count, Parameter(name=["--limit", "-l"])] = 50,
    base: Base = None,
    output: Output = None,
    flags: Flags = FLAGS,
) -> None:
    """Earlier runs, the newest last; --output page.html plots how figures went over time.

    Parameters
    ----------
    kind
        Only runs of this kind.
    model
        Only runs of the model of this name.
    limit
        The most that are taken.
    """
    kept.check_output(output)
    records = kept.history(base).all(kind=kind, model=model, limit=limit)
    if output is not None and records:
        kept.write(records, output)
    shown = table("id", "time", "kind", "model", "")
    for record in records:
        speeds = [f"{f['decode_tokens_per_s']:,.1f}" for f in record.figures if f.get("decode_tokens_per_s")]
        trained = [f"{f['tokens_per_s']:,.0f}" for f in record.figures if f.get("tokens_per_s")]
        served = [f"{f['output_tokens_per_s']:,.0f}" for f in record.figures if f.get("output_tokens_per_s")]
        said = f"training {trained[0]} tok/s" if trained else f"decode {', '.join(speeds[:4])} tok/s" if speeds else ""
        said = f"served {', '.join(served[:4])} tok/s" if served else said
        shown.add_row(
            record.id, record.time[:16].replace("T", " "), record.kind, (record.model or {}).get("name"), said
        )
    flags.answer(records, *([shown] if records else ["no runs yet"]))
