"""Usage as Stripe's meter events: each row is billed once, whatever fails on the way."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bitnet_core.errors import UnsupportedError

from .store import Run, Store

METERS = {"prompt": "bitnet_prompt_tokens", "completion": "bitnet_completion_tokens"}

_GROUPS = "customer, hour, SUM(prompt), SUM(completion)"


@dataclass(frozen=True, slots=True)
class Bill:
    """Tokens of one customer in one hour, of one kind."""

    id: str  # by which Stripe knows one that it has seen; empty before it is to be sent
    customer: str
    meter: str  # the event's name
    tokens: int
    at: float  # the beginning of the hour, seconds since 1970


def due(store: Store, meters: Mapping[str, str] = METERS) -> list[Bill]:
    """What a run would send; nothing is changed."""
    with store.read() as run:
        groups = run(
            f"SELECT {_GROUPS} FROM usage WHERE bill IS NULL AND customer IS NOT NULL "  # noqa: S608
            "GROUP BY customer, hour ORDER BY hour, customer"
        )
        return [*_unsent(run), *_bills(groups, meters)]


def send(
    store: Store,
    post: Callable[[Bill], None],
    meters: Mapping[str, str] = METERS,
    *,
    clock: Callable[[], float] = time.time,
) -> list[Bill]:
    """Send all that is due through `post`, what an earlier run did not finish first; returns what was sent.

    A bill is written down before it is sent, so one that is sent again has the same id.
    """
    name = secrets.token_hex(8)
    with store.write() as run:
        run("UPDATE usage SET bill = :name WHERE bill IS NULL AND customer IS NOT NULL", name=name)
        groups = run(f"SELECT {_GROUPS} FROM usage WHERE bill = :name GROUP BY customer, hour", name=name)  # noqa: S608
        for bill in _bills(groups, meters):
            run(
                "INSERT INTO bills VALUES (:id, :name, :customer, :meter, :tokens, :at, NULL)",
                id=secrets.token_hex(16),
                name=name,
                customer=bill.customer,
                meter=bill.meter,
                tokens=bill.tokens,
                at=bill.at,
            )
    with store.read() as run:
        bills = _unsent(run)
    for bill in bills:
        post(bill)
        with store.write() as run:
            run("UPDATE bills SET sent = :now WHERE id = :id", now=clock(), id=bill.id)
    return bills


def stripe(api_key: str, **options: Any) -> Callable[[Bill], None]:
    """A way to send bills to Stripe; `options` are its client's."""
    try:
        import stripe as library  # noqa: PLC0415  # an extra
    except ImportError:
        raise UnsupportedError(
            "billing needs Stripe's library; install it with: pip install 'bitnet-inference[billing]'"
        ) from None
    client = library.StripeClient(api_key, **options)

    def post(bill: Bill) -> None:
        client.v1.billing.meter_events.create(
            {
                "event_name": bill.meter,
                "identifier": bill.id,
                "timestamp": int(bill.at),
                "payload": {"stripe_customer_id": bill.customer, "value": str(bill.tokens)},
            }
        )

    return post


def _unsent(run: Run) -> list[Bill]:
    rows = run("SELECT id, customer, meter, tokens, at FROM bills WHERE sent IS NULL ORDER BY at, customer, meter")
    return [Bill(row[0], row[1], row[2], int(row[3]), float(row[4])) for row in rows]


def _bills(groups: list[tuple[Any, ...]], meters: Mapping[str, str]) -> list[Bill]:
    found = []
    for customer, hour, prompt, completion in groups:
        counts = {"prompt": int(prompt), "completion": int(completion)}
        for kind, meter in meters.items():
            if counts[kind]:
                found.append(Bill("", customer, meter, counts[kind], float(hour) * 3600))
    return found
