"""Who asks, what they may, and what they have left."""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self

from ..request import Usage
from .buckets import Bucket, Clock, Failures
from .errors import Refusal
from .keys import NOBODY, Key, Keys, Period, Role, digest_of, id_of
from .ledger import Account, Balance, Entry, Ledger
from .store import Store

log = logging.getLogger("bitnet_inference.server")

_WAIT_S = 15.0  # for the database
_METERS = 10_000  # tenants whose minutes are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who asks: a key, or a subject that a provider of identities vouches for."""

    id: str
    name: str
    role: Role = "user"
    models: frozenset[str] | None = None  # None: all
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    budget: int | None = None  # tokens in a period
    period: Period = "month"
    customer: str | None = None
    secret: bytes = field(default=b"", repr=False)  # keeps its cached prefixes apart from others'


class Limited(Refusal):
    """The tenant has used up what a minute, or its budget, allows."""

    def __init__(self, reason: str, retry_after_s: float | None, *, code: str = "rate_limit_exceeded") -> None:
        wait = None if retry_after_s is None else max(1, math.ceil(retry_after_s))  # a client that waits is let in
        super().__init__(429, reason, code=code, retry_after=wait)


class Verifier(Protocol):
    """Finds out who shows a signed token; None if it is nobody."""

    def __call__(self, token: str, /) -> Tenant | None: ...


class Lease:
    """What a request has set aside; whoever has it settles or releases it, once. Both return at once."""

    def __init__(self, finish: Callable[[Usage | None], None], take: Callable[[int], None]) -> None:
        self._finish: Callable[[Usage | None], None] | None = finish
        self._take = take
        self._lock = threading.Lock()

    def extend(self, tokens: int) -> None:
        """Set more aside; raises `Limited`. Waits for the database if the tenant has a budget."""
        with self._lock:
            if self._finish is None:
                raise Refusal(503, "the request has ended")
            self._take(tokens)

    def settle(self, usage: Usage) -> None:
        """What was used in truth is charged, and the rest given back; nothing happens the second time."""
        self._end(usage)

    def release(self) -> None:
        """Nothing was used."""
        self._end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _end(self, usage: Usage | None) -> None:
        with self._lock:
            finish, self._finish = self._finish, None
        if finish is not None:
            finish(usage)


@dataclass(slots=True)
class _Claim:
    """What one request has taken by now."""

    tenant: Tenant
    model: str
    at: float
    begun: float
    tokens: int = 0
    reservations: list[str] = field(default_factory=list)

    @property
    def account(self) -> Account:
        return Account(self.tenant.id, self.tenant.period)


class _Meters:
    """What a tenant has left of this minute."""

    __slots__ = ("requests", "tokens")

    def __init__(self, tenant: Tenant, clock: Clock) -> None:
        self.requests = Bucket(tenant.requests_per_minute, clock)
        self.tokens = Bucket(tenant.tokens_per_minute, clock)

    def resize(self, tenant: Tenant) -> None:
        self.requests.resize(tenant.requests_per_minute)
        self.tokens.resize(tenant.tokens_per_minute)

    @property
    def full(self) -> bool:
        return self.requests.full and self.tokens.full


class Tenants:
    """All tenants of a server: the keys of a store, one key that the operator gives, and tokens of a provider.

    An address from which more than `tries_per_minute` requests came with no right key is heard with a right one alone.

    Minutes are counted in each process by itself, budgets in the store, for all processes together.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        shared_key: str | None = None,
        verifier: Verifier | None = None,
        charged: Callable[[Tenant, str, Usage], None] = lambda *_: None,
        tries_per_minute: float = 300,
        clock: Callable[[], float] = time.time,
        ticks: Clock = time.monotonic,
    ) -> None:
        if shared_key is not None and (len(shared_key) < 16 or not shared_key.isascii()):
            raise ValueError(f"shared_key: expected 16 or more ASCII characters, got {len(shared_key)}")
        self.keys = None if store is None else Keys(store, clock=clock)
        self._shared = None if shared_key is None else digest_of(shared_key)
        self._operator = Tenant(id="operator", name="operator", role="admin", secret=secrets.token_bytes(32))
        self._verifier = verifier
        self._charged = charged
        self._clock = clock
        self._ticks = ticks
        self._failures = Failures(clock=ticks)  # that are written down
        self._tries = Failures(tries_per_minute, ticks)  # of whoever shows no right key
        self._forgeries = Failures(clock=ticks)  # of those, tokens
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._meters: dict[str, _Meters] = {}
        self._known: dict[str, Key] = {}
        self._version = -1
        self._live: frozenset[str] = frozenset()
        self._gone: list[Callable[[str], None]] = []
        self.refresh()
        self.ledger = None if store is None else Ledger(store, watch=self.refresh, clock=clock)

    def authenticate(self, headers: Any, address: str = "") -> Tenant | None:
        """Whoever shows a key or a token in these headers (Starlette's); None for nobody."""
        shown = _shown(headers)
        tenant = None if shown is None else self._find(shown, address)
        if tenant is None and not self.tries(address):  # of others, each is counted before it comes here
            self._tries.add(address)
        if tenant is None and shown is not None and self._failures.add(address):
            log.warning("a wrong key was shown from %s", address or "an unknown address")
        return tenant

    def tries(self, address: str) -> bool:
        """Whether so many came from there with no right key that others are looked at before they are let in."""
        return self._tries.some(address)

    def may_try(self, address: str) -> bool:
        """Count one more; False where it is one too many."""
        return self._tries.add(address)

    def knows(self, shown: str) -> bool:
        """Whether this is a key that opens something, or may be a token that does."""
        if self._verifier is not None and shown.count(".") == 2:
            return True
        return self._key(shown) is not None

    def admit(self, tenant: Tenant, model: str, tokens: int) -> Lease:
        """Set tokens aside for a request; raises `Limited`. Waits for the database if the tenant has a budget.

        With none, it is only seen whether the tenant may ask; the lease is extended when they are counted.
        """
        claim = _Claim(tenant, model, self._clock(), self._ticks())
        self._take(claim, 1, tokens)
        return Lease(partial(self._finish, claim), partial(self._take, claim, 0))

    def when_gone(self, tell: Callable[[str], None]) -> None:
        """Have a tenant's id told, in another thread, when its key is revoked or has expired."""
        self._gone.append(tell)

    def refresh(self) -> None:
        """See what has changed in the store; the ledger's thread does it a few times a second."""
        if self.keys is None:
            return
        with self._refreshing:
            version = self.keys.version()
            if version != self._version:
                self._known = {key.id: key for key in self.keys.list()}
                self._version = version
            now = self._clock()
            live = frozenset(key.id for key in self._known.values() if key.live(now))
            gone, self._live = self._live - live, live
        for identity in gone:
            for tell in self._gone:
                with suppress(RuntimeError):  # whoever it would tell has stopped
                    tell(identity)

    def close(self) -> None:
        """Write what is left to write."""
        if self.ledger is not None:
            self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, shown: str, address: str) -> Tenant | None:
        found = self._key(shown)
        # A signature costs more than a digest: whoever shows wrong ones all the time waits.
        if found is None and self._verifier is not None and shown.count(".") == 2 and not self._forgeries.many(address):
            found = self._verifier(shown)
            if found is None:
                self._forgeries.add(address)
        return found

    def _key(self, shown: str) -> Tenant | None:
        if self._shared is not None and hmac.compare_digest(digest_of(shown), self._shared):
            return self._operator
        key = self._known.get(id_of(shown) or "", NOBODY)
        return _tenant(key) if key.opens(shown, self._clock()) else None

    def _take(self, claim: _Claim, requests: int, tokens: int) -> None:
        """Set more aside; a request that is refused has not taken its place in the minute."""
        tenant = claim.tenant
        self._meter(tenant, requests, tokens, claim.tokens + tokens)
        if tenant.budget is not None and self.ledger is not None and tokens:
            try:
                claim.reservations.append(self._reserve(tenant, claim.account, tokens, claim.at))
            except BaseException:
                self._return(tenant, tokens, requests=1)
                raise
        claim.tokens += tokens

    def _finish(self, claim: _Claim, usage: Usage | None) -> None:
        used = 0 if usage is None else usage.total_tokens
        self._return(claim.tenant, claim.tokens - used)
        rest = list(claim.reservations)
        if self.ledger is not None and usage is not None and used:
            seconds = self._ticks() - claim.begun
            entry = _entry(claim.tenant, claim.model, usage, claim.at, seconds)
            self.ledger.settle(entry, claim.account, rest.pop() if rest else None)
        if self.ledger is not None:
            for reservation in rest:
                self.ledger.release(reservation)
        if usage is not None:
            self._charged(claim.tenant, claim.model, usage)

    def _meter(self, tenant: Tenant, requests: int, tokens: int, together: int) -> None:
        """Take a request and its tokens out of this minute."""
        if tenant.tokens_per_minute is not None and together > tenant.tokens_per_minute:
            self._return(tenant, 0, requests=1 - requests)
            raise Limited(
                f"the request may take {together} tokens, more than this key's {tenant.tokens_per_minute} a minute; "
                "ask for fewer",
                None,
            )
        with self._lock:
            meters = self._meters_of(tenant)
            if requests and (wait := meters.requests.take(requests)):
                raise Limited(f"this key has {tenant.requests_per_minute} requests a minute", wait)
            if wait := meters.tokens.take(tokens):
                meters.requests.give(1)
                raise Limited(f"this key has {tenant.tokens_per_minute} tokens a minute", wait)

    def _return(self, tenant: Tenant, tokens: int, requests: int = 0) -> None:
        with self._lock:
            meters = self._meters_of(tenant)
            meters.tokens.give(tokens)
            meters.requests.give(requests)

    def _meters_of(self, tenant: Tenant) -> _Meters:
        meters = self._meters.get(tenant.id)
        if meters is None:
            if len(self._meters) >= _METERS:
                self._meters = {name: one for name, one in self._meters.items() if not one.full}
            meters = self._meters[tenant.id] = _Meters(tenant, self._ticks)
        meters.resize(tenant)
        return meters

    def _reserve(self, tenant: Tenant, account: Account, tokens: int, at: float) -> str:
        assert self.ledger is not None  # noqa: S101  # whoever calls has looked
        budget = tenant.budget or 0
        try:
            found = self.ledger.reserve(account, tokens, budget, at).result(_WAIT_S)
        except Exception as error:
            log.exception("a budget cannot be read")
            raise Refusal(503, "the budget of this key cannot be read now; try again") from error
        if isinstance(found, Balance):
            # What others have set aside comes back soon; what is spent, with the next period.
            waiting = found.spent + tokens <= budget
            raise Limited(
                f"of this key's {budget} tokens a {tenant.period}, {found.spent} are spent and {found.reserved} set "
                f"aside; the request may take {tokens}",
                5.0 if waiting else account.rest(at),
                code="rate_limit_exceeded" if waiting else "insufficient_quota",
            )
        return found


def _shown(headers: Any) -> str | None:
    """The one key or token in the headers; a key in the URL is never looked for."""
    bearers = headers.getlist("authorization")
    found: list[str] = headers.getlist("x-api-key")
    for bearer in bearers:
        scheme, _, text = bearer.partition(" ")
        found.append(text.strip() if scheme.lower() == "bearer" else "")
    if len(bearers) > 1 or len(set(found)) != 1:
        return None  # two that differ: who asks is not clear
    return found[0]


def _tenant(key: Key) -> Tenant:
    return Tenant(
        id=key.id,
        name=key.name,
        role=key.role,
        models=key.models,
        tokens_per_minute=key.tokens_per_minute,
        requests_per_minute=key.requests_per_minute,
        budget=key.budget,
        period=key.period,
        customer=key.customer,
        secret=key.secret,
    )


def _entry(tenant: Tenant, model: str, usage: Usage, at: float, seconds: float) -> Entry:
    return Entry(
        id=secrets.token_hex(16),
        at=at,
        tenant=tenant.id,
        model=model,
        prompt=usage.prompt_tokens,
        cached=usage.cached_tokens,
        completion=usage.completion_tokens,
        seconds=round(seconds, 6),
        joules=usage.joules,
        customer=tenant.customer,
    )
