"""`bitnet keys bill`: what customers have used, as meter events of Stripe."""

from __future__ import annotations

import os

from ...console import FLAGS, Flags, table
from ...failures import Refused
from .kept import DEFAULT, Place, opened

_SECRET = "STRIPE_API_KEY"  # noqa: S105  # the variable's name


def bill(*, send: bool = False, keys: Place = DEFAULT, flags: Flags = FLAGS) -> None:
    """What would be sent to Stripe as meter events; nothing is, unless --send says so.

    Parameters
    ----------
    send
        Send it, with the key in STRIPE_API_KEY; what was sent is never sent twice.
    """
    from bitnet_inference.server import billing  # noqa: PLC0415

    secret = os.environ.get(_SECRET)
    if send and not secret:
        raise Refused(f"--send needs Stripe's key in {_SECRET}")
    with opened(keys) as kept:
        bills = billing.send(kept.store, billing.stripe(secret)) if send and secret else billing.due(kept.store)
    shown = table("customer", "meter", "tokens", numbers=(2,))
    for one in bills:
        shown.add_row(one.customer, one.meter, f"{one.tokens:,}")
    flags.answer(bills, *([shown] if bills else ["nothing is due"]))
    if not send:
        flags.remark("nothing was sent; --send does")
