"""`bitnet keys create`: a new key."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Literal

from cyclopts import Parameter

from ...amounts import Amount, Span
from ...console import FLAGS, Flags
from .kept import DEFAULT, Place, opened, record_of


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a key may do."""

    role: Literal["admin", "user", "read-only", "metrics"] = "user"
    """What it may do beside asking models: admin manages keys, read-only asks nothing, metrics reads figures."""
    tokens_per_minute: Amount | None = None
    """How many tokens a minute, as 10k."""
    requests_per_minute: Amount | None = None
    """How many requests a minute."""
    budget: Amount | None = None
    """How many tokens in a period, as 5M."""
    period: Literal["day", "month", "total"] = "month"
    """Of the budget."""
    customer: str | None = None
    """Who is billed."""


def create(
    name: str,
    *,
    model: tuple[str, ...] = (),
    lasts: Span | None = None,
    limits: Limits = Limits(),  # frozen
    keys: Place = DEFAULT,
    flags: Flags = FLAGS,
) -> None:
    """A new key; its text is shown this once, and only a digest of it is kept.

    Parameters
    ----------
    name
        Whose key it is.
    model
        A model that it may use; all by default.
    lasts
        How long it opens anything, as 30d.
    """
    expires = None if lasts is None else time.time() + lasts
    with opened(keys, new=True) as kept:
        key, text = kept.create(name, models=model or None, expires=expires, **asdict(limits))
    flags.remark(f"the key of {name}, id {key.id}; it is not shown again")
    flags.answer(record_of(key) | {"key": text}, text)
