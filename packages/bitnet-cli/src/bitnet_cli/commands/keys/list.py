"""`bitnet keys list`: all keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...amounts import ago
from ...console import FLAGS, Flags, table
from .kept import DEFAULT, Place, opened, record_of

if TYPE_CHECKING:
    from bitnet_inference.server.keys import Key


def list(*, keys: Place = DEFAULT, flags: Flags = FLAGS) -> None:  # noqa: A001  # the command is called so
    """All keys, the oldest first; their texts are not kept."""
    with opened(keys) as kept:
        found = kept.list()
    shown = table("id", "name", "role", "models", "limits", "made", "")
    for key in found:
        models = "all" if key.models is None else ", ".join(sorted(key.models))
        shown.add_row(key.id, key.name, key.role, models, _limits(key), ago(key.created), _state(key))
    flags.answer([record_of(key) for key in found], *([shown] if found else ["no keys yet"]))


def _limits(key: Key) -> str:
    parts = [
        f"{key.tokens_per_minute:,} tokens/min" if key.tokens_per_minute else "",
        f"{key.requests_per_minute:,} requests/min" if key.requests_per_minute else "",
        "" if key.budget is None else f"{key.budget:,} tokens a {key.period}" if key.period != "total" else "",
        f"{key.budget:,} tokens in all" if key.budget is not None and key.period == "total" else "",
    ]
    return ", ".join(filter(None, parts)) or "none"


def _state(key: Key) -> str:
    return f"revoked {ago(key.revoked)}" if key.revoked is not None else ""
