"""`bitnet keys rotate`: a new text for a key."""

from __future__ import annotations

from ...amounts import Span
from ...console import FLAGS, Flags
from .kept import DEFAULT, Place, id_of, opened, record_of


def rotate(
    identity: str,
    *,
    grace: Span = 0.0,
    keys: Place = DEFAULT,
    flags: Flags = FLAGS,
) -> None:
    """A new text for a key, shown this once; its limits and what it has used stay.

    Parameters
    ----------
    identity
        The key's id, as bitnet keys list shows it, or a name that no other living key has.
    grace
        How long the old text still opens, as 1h.
    """
    with opened(keys) as kept:
        key, text = kept.rotate(id_of(kept, identity), grace_s=grace)
    flags.remark(f"the new key of {key.name}; it is not shown again")
    flags.answer(record_of(key) | {"key": text}, text)
