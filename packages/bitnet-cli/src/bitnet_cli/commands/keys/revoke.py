"""`bitnet keys revoke`: a key that opens nothing any more."""

from __future__ import annotations

from ...console import FLAGS, Flags
from .kept import DEFAULT, Place, id_of, opened, record_of


def revoke(identity: str, *, keys: Place = DEFAULT, flags: Flags = FLAGS) -> None:
    """Let a key open nothing any more; servers that run know it within a second.

    Parameters
    ----------
    identity
        The key's id, as bitnet keys list shows it, or a name that no other living key has.
    """
    with opened(keys) as kept:
        key = kept.revoke(id_of(kept, identity))
    flags.answer(record_of(key), f"{key.id}, the key of {key.name}, is revoked")
