"""What each tenant may still spend and has spent: reserved before the work, settled after it, exact through crashes.

A thread of its own is the process's one writer: what arrives while it writes is written together, in one transaction.
A reservation whose process is gone, which is seen by its beat standing still, is given back.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from .keys import Period
from .store import Run, Store

log = logging.getLogger("bitnet_inference.server")

_TURN = 0.25  # seconds between looks at what other processes have changed
_BEAT = 5.0  # between signs of life
_DEAD = 30.0  # without a sign
_TOGETHER = 256  # operations in a transaction
_AGAIN = 1.0  # seconds until what could not be written is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row of usage: what one request took."""

    id: str
    at: float  # when it was admitted, seconds since 1970
    tenant: str
    model: str
    prompt: int
    cached: int  # of the prompt
    completion: int
    seconds: float
    joules: float | None = None
    customer: str | None = None


class Account(NamedTuple):
    """What a tenant has in a period of the calendar."""

    tenant: str
    period: Period

    def label(self, now: float) -> str:
        """The name of the period that a moment is in."""
        return {"day": f"{_day(now):%Y-%m-%d}", "month": f"{_day(now):%Y-%m}", "total": "total"}[self.period]

    def start(self, now: float) -> float:
        """When that period began."""
        day = _day(now).replace(hour=0, minute=0, second=0, microsecond=0)
        return {"day": day, "month": day.replace(day=1), "total": _day(0)}[self.period].timestamp()

    def rest(self, now: float) -> float | None:
        """Seconds until the next one begins; None: never."""
        if self.period == "total":
            return None
        later = _day(self.start(now)) + timedelta(days=1 if self.period == "day" else 32)
        return self.start(later.timestamp()) - now


def _day(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)


class Balance(NamedTuple):
    """Tokens of an account in its period."""

    spent: int
    reserved: int


class _Operation(NamedTuple):
    run: Callable[[Run], Any]
    future: Future[Any]
    lasting: bool  # is tried again until it is written


class Ledger:
    """Balances and usage in a store. Its methods return at once; futures hold what came of them."""

    def __init__(
        self,
        store: Store,
        *,
        watch: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        dead_s: float = _DEAD,
    ) -> None:
        self.store = store
        self._watch = watch  # is called a few times a second
        self._clock = clock
        self._dead = dead_s
        self._worker = secrets.token_hex(8)
        self._inbox: SimpleQueue[_Operation | None] = SimpleQueue()
        self._beats: dict[str, tuple[int, float]] = {}  # of all workers, and since when they stand
        self._beaten = -_BEAT
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="bitnet-ledger", daemon=True)
        with store.write() as run:
            run("INSERT INTO workers VALUES (:id, 0)", id=self._worker)
        self._thread.start()

    def reserve(self, account: Account, tokens: int, budget: int, at: float) -> Future[str | Balance]:
        """Set tokens aside if the budget has them: the reservation's id, or what there is."""
        return self._put(lambda run: self._reserve(run, account, tokens, budget, at))

    def settle(self, entry: Entry, account: Account, reservation: str | None) -> Future[None]:
        """Write down what was used, and give back what was set aside; once, however often it is asked."""
        return self._put(lambda run: _settle(run, entry, account, reservation), lasting=True)

    def release(self, reservation: str) -> Future[None]:
        """Give back what was set aside: nothing was used."""
        return self._put(lambda run: _release(run, reservation), lasting=True)

    def balance(self, account: Account) -> Balance:
        """What an account has spent and set aside in this period; blocks."""
        label = account.label(self._clock())
        with self.store.read() as run:
            rows = run(
                "SELECT spent, reserved FROM balances WHERE tenant = :tenant AND period = :label",
                tenant=account.tenant,
                label=label,
            )
        return Balance(*rows[0]) if rows else Balance(0, 0)

    def wait(self, timeout: float = 15.0) -> None:
        """Block until all that was put so far is written."""
        self._put(lambda _: None).result(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """Write what is left, and go."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            self._thread.join(timeout)

    def _put(self, run: Callable[[Run], Any], *, lasting: bool = False) -> Future[Any]:
        future: Future[Any] = Future()
        if self._closed:
            future.set_exception(RuntimeError("the ledger was closed"))
        else:
            self._inbox.put(_Operation(run, future, lasting))
        return future

    def _work(self) -> None:
        left: list[_Operation] = []  # that could not be written yet
        leaving = False
        while True:
            batch, told = self._take(wait=_AGAIN if left else _TURN)
            leaving |= told
            left = self._write([*left, *batch])
            if leaving and self._inbox.empty():
                break
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001  # whatever the database has, the next turn tries again
                log.warning("the database of keys cannot be read: %s", error)
        if left:
            log.error("%d rows of usage could not be written and are lost", len(left))
        self._leave()

    def _take(self, wait: float) -> tuple[list[_Operation], bool]:
        batch: list[_Operation] = []
        while len(batch) < _TOGETHER:
            try:
                operation = self._inbox.get(timeout=wait) if not batch else self._inbox.get_nowait()
            except Empty:
                break
            if operation is None:
                return batch, True
            batch.append(operation)
        return batch, False

    def _write(self, batch: list[_Operation]) -> list[_Operation]:
        """Write operations in one transaction; those that are to be tried again."""
        if not batch:
            return []
        try:
            with self.store.write() as run:
                results = [operation.run(run) for operation in batch]
        except Exception as error:  # noqa: BLE001  # a full disk, a lost connection: the caller is told
            if len(batch) > 1:  # one of them may be to blame
                return [left for operation in batch for left in self._write([operation])]
            if batch[0].lasting:
                log.warning("usage cannot be written, and is tried again: %s", error)
                return batch
            batch[0].future.set_exception(error)
            return []
        for operation, result in zip(batch, results, strict=True):
            operation.future.set_result(result)
        return []

    def _turn(self) -> None:
        self._watch()
        now = time.monotonic()
        if now - self._beaten < min(_BEAT, self._dead / 3):
            return
        self._beaten = now
        with self.store.write() as run:
            # Others may have taken this one for dead, and have struck it off.
            run(
                "INSERT INTO workers VALUES (:id, 0) ON CONFLICT (id) DO UPDATE SET beat = workers.beat + 1",
                id=self._worker,
            )
            for worker, beat in run("SELECT id, beat FROM workers"):
                if self._beats.get(worker, (None, 0.0))[0] != beat:
                    self._beats[worker] = (beat, now)
                elif worker != self._worker and now - self._beats[worker][1] > self._dead:
                    _bury(run, worker)

    def _leave(self) -> None:
        try:
            with self.store.write() as run:
                _bury(run, self._worker)
        except Exception as error:  # noqa: BLE001  # others will find that this one is gone
            log.warning("the database of keys was not left in order: %s", error)

    def _reserve(self, run: Run, account: Account, tokens: int, budget: int, at: float) -> str | Balance:
        label = _open(run, account, at)
        taken = run(
            "UPDATE balances SET reserved = reserved + :tokens WHERE tenant = :tenant AND period = :label "
            "AND spent + reserved + :tokens <= :budget RETURNING reserved",
            tenant=account.tenant,
            label=label,
            tokens=tokens,
            budget=budget,
        )
        if not taken:
            return Balance(
                *run(
                    "SELECT spent, reserved FROM balances WHERE tenant = :tenant AND period = :label",
                    tenant=account.tenant,
                    label=label,
                )[0]
            )
        identity = secrets.token_hex(16)
        run(
            "INSERT INTO reservations VALUES (:id, :tenant, :label, :tokens, :worker)",
            id=identity,
            tenant=account.tenant,
            label=label,
            tokens=tokens,
            worker=self._worker,
        )
        return identity


def _open(run: Run, account: Account, at: float) -> str:
    """The label of the period, whose balance begins with what the log of usage says."""
    label = account.label(at)
    run(
        "INSERT INTO balances SELECT :tenant, :label, "
        "COALESCE((SELECT SUM(tokens) FROM usage WHERE tenant = :tenant AND at >= :start), 0), 0 "
        "WHERE NOT EXISTS (SELECT 1 FROM balances WHERE tenant = :tenant AND period = :label) ON CONFLICT DO NOTHING",
        tenant=account.tenant,
        label=label,
        start=account.start(at),
    )
    return label


def _settle(run: Run, entry: Entry, account: Account, reservation: str | None) -> None:
    label = _open(run, account, entry.at)
    tokens = entry.prompt + entry.completion
    written = run(
        "INSERT INTO usage (id, at, hour, tenant, model, prompt, cached, completion, tokens, seconds, joules, "
        "customer) VALUES (:id, :at, :hour, :tenant, :model, :prompt, :cached, :completion, :tokens, :seconds, "
        ":joules, :customer) ON CONFLICT DO NOTHING RETURNING id",
        hour=int(entry.at // 3600),
        tokens=tokens,
        **asdict(entry),
    )
    if written:
        run(
            "UPDATE balances SET spent = spent + :tokens WHERE tenant = :tenant AND period = :label",
            tenant=account.tenant,
            label=label,
            tokens=tokens,
        )
    if reservation is not None:
        _release(run, reservation)


def _release(run: Run, reservation: str) -> None:
    for tenant, label, tokens in run(
        "DELETE FROM reservations WHERE id = :id RETURNING tenant, period, tokens", id=reservation
    ):
        run(
            "UPDATE balances SET reserved = reserved - :tokens WHERE tenant = :tenant AND period = :label",
            tenant=tenant,
            label=label,
            tokens=tokens,
        )


def _bury(run: Run, worker: str) -> None:
    """Give back what a process that is gone had set aside."""
    for (reservation,) in run("SELECT id FROM reservations WHERE worker = :worker", worker=worker):
        _release(run, reservation)
    run("DELETE FROM workers WHERE id = :worker", worker=worker)
