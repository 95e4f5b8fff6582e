"""`bitnet keys usage`: what was used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from ...amounts import Span
from ...console import FLAGS, Flags, table
from .kept import DEFAULT, Place, opened


def usage(
    *,
    by: Literal["tenant", "model", "day", "hour"] = "tenant",
    last: Span = 30 * 86400.0,
    csv: Path | None = None,
    keys: Place = DEFAULT,
    flags: Flags = FLAGS,
) -> None:
    """What was used, by key, model, day or hour.

    Parameters
    ----------
    by
        What the sums are of.
    last
        How far back, as 12h or 30d.
    csv
        Write each request of that time as a line into this file, too.
    """
    from bitnet_inference.server import usage as used  # noqa: PLC0415

    since = time.time() - last
    with opened(keys) as kept:
        names = {key.id: key.name for key in kept.list()}
        found = used.sums(kept.store, by, since=since)
        if csv is not None:
            with csv.open("x", encoding="utf-8", newline="") as stream:
                flags.remark(f"{used.export(kept.store, stream, since=since)} requests written to {csv}")
    shown = table(by, "requests", "prompt", "cached", "completion", "all tokens", "seconds", numbers=(1, 2, 3, 4, 5, 6))
    for one in found:
        group = f"{names.get(one.group, '')} {one.group}".strip() if by == "tenant" else one.group
        counts = (one.requests, one.prompt_tokens, one.cached_tokens, one.completion_tokens, one.total_tokens)
        shown.add_row(group, *(f"{count:,}" for count in counts), f"{one.seconds:.1f}")
    flags.answer(found, *([shown] if found else ["nothing was used"]))
