"""Whoever shows a key is known, and takes no more than the key allows, whatever happens at the same time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from bitnet_inference.request import Usage
from bitnet_inference.server.buckets import Bucket, Failures
from bitnet_inference.server.errors import Refusal
from bitnet_inference.server.ledger import Account, Balance, Entry, Ledger
from bitnet_inference.server.store import Store
from bitnet_inference.server.tenants import Limited, Tenant, Tenants

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Clock:
    return Clock()


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "keys.sqlite") as store:
        yield store


@pytest.fixture
def tenants(store: Store, clock: Clock, ticks: Clock) -> Iterator[Tenants]:
    with Tenants(store, clock=clock, ticks=ticks) as tenants:
        yield tenants


def bearer(text: str) -> Headers:
    return Headers({"authorization": f"Bearer {text}"})


def used(prompt: int, completion: int = 0) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def made(tenants: Tenants, name: str = "laptop", **settings: Any) -> tuple[Tenant, str]:
    """A new key as the tenant that it stands for."""
    assert tenants.keys is not None
    _, text = tenants.keys.create(name, **settings)
    tenants.refresh()
    tenant = tenants.authenticate(bearer(text))
    assert tenant is not None
    return tenant, text


def balance(tenants: Tenants, tenant: Tenant) -> Balance:
    assert tenants.ledger is not None
    tenants.ledger.wait()
    return tenants.ledger.balance(Account(tenant.id, tenant.period))


def logged(store: Store, tenant: str) -> int:
    with store.read() as run:
        return int(run("SELECT COALESCE(SUM(prompt + completion), 0) FROM usage WHERE tenant = :id", id=tenant)[0][0])


# Who asks


def test_a_key_is_known_by_either_header(tenants: Tenants) -> None:
    tenant, text = made(tenants, models=["a"], role="read-only")
    assert (tenant.name, tenant.models, tenant.role) == ("laptop", {"a"}, "read-only")
    for headers in ({"x-api-key": text}, {"authorization": f"bearer {text}"}, {"Authorization": f"Bearer  {text} "}):
        assert tenants.authenticate(Headers(headers)) == tenant
    both = Headers({"x-api-key": text, "authorization": f"Bearer {text}"})
    assert tenants.authenticate(both) == tenant


def test_whatever_is_not_one_right_key_is_nobody(tenants: Tenants) -> None:
    _, text = made(tenants)
    _, other = made(tenants, "other")
    wrong: list[list[tuple[str, str]]] = [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", text)],
        [("authorization", f"Basic {text}")],
        [("authorization", f"Bearer {text[:-1]}")],
        [("authorization", f"Bearer {text} {text}")],
        [("authorization", f"Bearer {text[:3]}{other[3:19]}{text[19:]}")],
        [("authorization", f"Bearer {'x' * 10_000}")],
        [("authorization", "Bearer k\u00e9y")],
        [("authorization", f"Bearer {text}"), ("authorization", f"Bearer {text}")],
        [("authorization", f"Bearer {text}"), ("x-api-key", other)],
        [("x-api-key", text), ("x-api-key", other)],
        [("api-key", text)],
        [("cookie", f"key={text}")],
    ]
    for pairs in wrong:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in pairs]
        assert tenants.authenticate(Headers(raw=raw)) is None


def test_each_tenant_has_a_secret_of_its_own_that_rotation_keeps(tenants: Tenants) -> None:
    tenant, text = made(tenants)
    other, _ = made(tenants, "other")
    assert len(tenant.secret) == 32
    assert tenant.secret != other.secret
    assert tenants.keys is not None
    _, new = tenants.keys.rotate(tenant.id)
    tenants.refresh()
    assert tenants.authenticate(bearer(new)) == tenant
    assert tenants.authenticate(bearer(text)) is None


def test_the_operators_own_key_is_an_admin(ticks: Clock) -> None:
    tenants = Tenants(shared_key="correct horse battery", ticks=ticks)
    tenant = tenants.authenticate(bearer("correct horse battery"))
    assert tenant is not None
    assert tenant.role == "admin"
    assert tenants.authenticate(bearer("correct horse batterx")) is None
    with tenants.admit(tenant, "m", 10**9) as lease:
        lease.settle(used(5))


@pytest.mark.parametrize("key", ["", "short", "pa\u00dfw\u00f6rter sind lang genug"])
def test_the_operators_own_key_must_be_long(key: str) -> None:
    with pytest.raises(ValueError, match="shared_key: expected 16 or more"):
        Tenants(shared_key=key)


def test_a_running_server_learns_of_other_processes_changes_within_a_second(store: Store, tmp_path: Path) -> None:
    with Tenants(store) as tenants:
        tenant, text = made(tenants)
        gone = threading.Event()
        tenants.when_gone(lambda identity: gone.set() if identity == tenant.id else None)
        with Store(tmp_path / "keys.sqlite") as elsewhere, Tenants(elsewhere) as other:
            assert other.keys is not None
            other.keys.revoke(tenant.id)
        assert gone.wait(1.0)
        assert tenants.authenticate(bearer(text)) is None


def test_requests_of_a_key_that_expires_are_told_of_it(tenants: Tenants, clock: Clock) -> None:
    tenant, text = made(tenants, expires=NOW + 10)
    gone: list[str] = []
    tenants.when_gone(gone.append)
    clock.now += 10
    assert tenants.authenticate(bearer(text)) is None
    tenants.refresh()
    tenants.refresh()
    assert gone == [tenant.id]


def test_wrong_keys_are_logged_a_bounded_number_of_times(tenants: Tenants, caplog: pytest.LogCaptureFixture) -> None:
    _, text = made(tenants)
    begun = time.process_time()
    for number in range(2000):
        assert tenants.authenticate(bearer(f"guess{number}"), "192.0.2.1") is None
    assert time.process_time() - begun < 1.0
    assert len(caplog.records) <= 31
    assert not any("guess" in record.getMessage() for record in caplog.records)
    assert tenants.authenticate(bearer(text), "192.0.2.1") is not None  # a right one opens from there, too


def test_addresses_are_remembered_by_customer_and_in_bounded_number(ticks: Clock) -> None:
    failures = Failures(per_minute=3, clock=ticks, addresses=10)
    assert [failures.add(f"2001:db8:1:2::{place}") for place in range(4)] == [True, True, True, False]
    assert failures.many("2001:db8:1:2:ffff::1")
    assert not failures.many("2001:db8:1:3::1")
    ticks.now += 20
    assert not failures.many("2001:db8:1:2::1")
    for place in range(50):
        failures.add(f"192.0.2.{place}")
    assert len(failures._buckets) == 10


# So much a minute


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 60)), max_size=60),
)
def test_a_bucket_gives_exactly_what_its_rate_says(rate: int, asks: list[tuple[int, int]]) -> None:
    """Milliseconds and counts against the same in whole numbers; a wait that was told is long enough and no longer."""
    clock = Clock()
    bucket = Bucket(rate, clock)
    now, level = 0, rate * 60_000  # in sixty-thousandths
    for pause, count in asks:
        now += pause
        level = min(rate * 60_000, level + pause * rate)
        clock.now = now / 1000
        wait = bucket.take(count)
        short = count * 60_000 - level
        if abs(short) <= 1:  # a rounding of floats may go either way here
            level -= count * 60_000 if wait == 0 else 0
        elif short < 0:
            assert wait == 0
            level -= count * 60_000
        else:
            assert wait * 1000 * rate == pytest.approx(short)


@given(st.integers(1, 20), st.lists(st.floats(0, 10), min_size=1, max_size=200))
def test_no_stretch_of_time_has_more_than_a_full_bucket_and_its_rate(rate: int, pauses: list[float]) -> None:
    clock = Clock()
    bucket = Bucket(rate, clock)
    taken: list[float] = []
    for pause in pauses:
        clock.now += pause
        if bucket.take(1) == 0:
            taken.append(clock.now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= rate * (1 + (taken[last] - taken[first]) / 60) + 1e-6


def test_a_bucket_that_changes_its_rate_forgets_nothing() -> None:
    clock = Clock()
    bucket = Bucket(10, clock)
    assert bucket.take(8) == 0
    bucket.resize(20)
    assert bucket.take(12) == 0
    assert bucket.take(1) == 3.0
    bucket.resize(None)
    assert bucket.take(10**12) == 0
    bucket.resize(6)
    assert bucket.take(7) == 10.0


def test_requests_a_minute_are_limited_and_the_wait_is_true(tenants: Tenants, ticks: Clock) -> None:
    tenant, _ = made(tenants, requests_per_minute=3)
    for _ in range(3):
        tenants.admit(tenant, "m", 1).release()
    with pytest.raises(Limited, match="3 requests a minute") as caught:
        tenants.admit(tenant, "m", 1)
    assert caught.value.status == 429
    assert caught.value.headers["Retry-After"] == "20"
    ticks.now += 20
    tenants.admit(tenant, "m", 1).release()
    ticks.now += 13.5
    with pytest.raises(Limited) as caught:
        tenants.admit(tenant, "m", 1)
    ticks.now += float(caught.value.headers["Retry-After"])
    tenants.admit(tenant, "m", 1).release()


def test_tokens_a_minute_are_what_was_used_not_what_was_feared(tenants: Tenants, ticks: Clock) -> None:
    tenant, _ = made(tenants, tokens_per_minute=100)
    lease = tenants.admit(tenant, "m", 90)
    with pytest.raises(Limited, match="100 tokens a minute"):
        tenants.admit(tenant, "m", 20)
    lease.settle(used(5, 5))
    lease.settle(used(50, 50))  # the first time counts
    tenants.admit(tenant, "m", 90).settle(used(100, 100))  # more than was feared: it is owed
    with pytest.raises(Limited) as caught:
        tenants.admit(tenant, "m", 1)
    assert caught.value.retry_after == 67
    with pytest.raises(Limited, match="ask for fewer") as caught:
        tenants.admit(tenant, "m", 101)
    assert caught.value.retry_after is None


def test_a_refused_request_takes_nothing(tenants: Tenants) -> None:
    tenant, _ = made(tenants, tokens_per_minute=10, requests_per_minute=2)
    first = tenants.admit(tenant, "m", 10)
    for _ in range(5):
        with pytest.raises(Limited, match="tokens a minute"):
            tenants.admit(tenant, "m", 10)
    first.release()
    tenants.admit(tenant, "m", 10).release()


def test_minutes_do_not_hear_of_the_wall_clock(tenants: Tenants, clock: Clock) -> None:
    tenant, _ = made(tenants, requests_per_minute=1)
    tenants.admit(tenant, "m", 1).release()
    for jump in (-86_400.0, 3 * 86_400.0):
        clock.now += jump
        with pytest.raises(Limited) as caught:
            tenants.admit(tenant, "m", 1)
        assert caught.value.retry_after == 60


# So much a period


def test_a_budget_is_reserved_before_and_settled_after(tenants: Tenants, store: Store) -> None:
    tenant, _ = made(tenants, budget=100)
    lease = tenants.admit(tenant, "m", 80)
    assert balance(tenants, tenant) == (0, 80)
    with pytest.raises(Limited, match="0 are spent and 80 set aside") as caught:
        tenants.admit(tenant, "m", 21)
    assert (caught.value.code, caught.value.retry_after) == ("rate_limit_exceeded", 5)
    lease.settle(used(20, 10))
    assert balance(tenants, tenant) == (30, 0)
    with pytest.raises(Limited, match="30 are spent") as caught:
        tenants.admit(tenant, "m", 71)
    assert caught.value.code == "insufficient_quota"
    assert caught.value.retry_after == pytest.approx(16 * 86400 + 16 * 3600)  # until February
    with tenants.admit(tenant, "m", 70):
        pass
    assert balance(tenants, tenant) == (30, 0)
    assert logged(store, tenant.id) == 30


def test_what_is_counted_later_is_set_aside_later_and_all_of_it_comes_back(tenants: Tenants, store: Store) -> None:
    tenant, _ = made(tenants, budget=100, tokens_per_minute=90, requests_per_minute=2)
    lease = tenants.admit(tenant, "m", 0)
    assert balance(tenants, tenant) == (0, 0)
    lease.extend(30)
    lease.extend(40)
    assert balance(tenants, tenant) == (0, 70)
    with pytest.raises(Limited, match="may take 91 tokens, more than this key's 90 a minute"):
        lease.extend(21)
    lease.settle(used(20, 10))
    assert balance(tenants, tenant) == (30, 0)
    assert logged(store, tenant.id) == 30
    with pytest.raises(Refusal, match="has ended"):
        lease.extend(1)
    for _ in range(3):  # who is refused has not asked
        second = tenants.admit(tenant, "m", 0)
        with pytest.raises(Limited, match="tokens a minute"):
            second.extend(70)
        second.release()
    assert balance(tenants, tenant) == (30, 0)


@pytest.mark.parametrize(
    ("period", "rest"), [("day", 16 * 3600.0), ("month", 16 * 86400 + 16 * 3600.0), ("total", None)]
)
def test_periods_are_of_the_calendar(period: Any, rest: float | None) -> None:
    account = Account("t", period)
    assert account.rest(NOW) == rest
    assert account.label(NOW) == {"day": "2027-01-15", "month": "2027-01", "total": "total"}[period]
    if rest is not None:
        assert account.label(NOW + rest) != account.label(NOW) == account.label(NOW + rest - 0.01)
        assert account.start(NOW + rest) == NOW + rest


def test_a_new_period_begins_with_nothing_spent(tenants: Tenants, clock: Clock) -> None:
    tenant, _ = made(tenants, budget=100, period="day")
    lease = tenants.admit(tenant, "m", 100)
    clock.now += 86_400
    tenants.admit(tenant, "m", 100).release()
    lease.settle(used(60))  # of the day that it began in
    assert balance(tenants, tenant) == (0, 0)
    clock.now -= 86_400
    assert balance(tenants, tenant) == (60, 0)


def test_what_was_used_before_there_was_a_budget_counts(tenants: Tenants) -> None:
    tenant, text = made(tenants)
    tenants.admit(tenant, "m", 10).settle(used(70))
    assert tenants.keys is not None
    tenants.keys.update(tenant.id, budget=100, period="day")
    tenants.refresh()
    limited = tenants.authenticate(bearer(text))
    assert limited is not None
    with pytest.raises(Limited, match="70 are spent"):
        tenants.admit(limited, "m", 31)
    tenants.admit(limited, "m", 30).release()


def test_two_hundred_clients_at_once_spend_no_more_than_there_is(tenants: Tenants, store: Store) -> None:
    tenant, _ = made(tenants, budget=10_000)

    def client(number: int) -> int:
        spent = 0
        for turn in range(5):
            try:
                lease = tenants.admit(tenant, "m", 50)
            except Limited:
                continue
            took = (number * 7 + turn * 13) % 51
            lease.settle(used(took))
            spent += took
        return spent

    with ThreadPoolExecutor(200) as pool:
        spent = sum(pool.map(client, range(200)))
    assert balance(tenants, tenant) == (spent, 0)
    assert logged(store, tenant.id) == spent
    assert 5_000 < spent <= 10_000
    tenants.admit(tenant, "m", 10_000 - spent).release()  # what is left is left, to the last token
    with pytest.raises(Limited):
        tenants.admit(tenant, "m", 10_001 - spent)


def test_servers_that_share_a_store_share_its_budgets(store: Store, tmp_path: Path, clock: Clock) -> None:
    with (
        Store(tmp_path / "keys.sqlite") as other,
        Tenants(store, clock=clock) as one,
        Tenants(other, clock=clock) as two,
    ):
        tenant, _ = made(one, budget=1000)

        def client(tenants: Tenants) -> int:
            admitted = 0
            for _ in range(40):
                try:
                    lease = tenants.admit(tenant, "m", 10)
                except Limited:
                    continue
                lease.settle(used(10))
                admitted += 1
            return admitted

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(client, [one, two] * 4)) == 100
        assert balance(one, tenant)[0] + balance(two, tenant)[0] == 2 * 1000


CRASH = """
import sys, threading
from starlette.datastructures import Headers
from bitnet_inference.request import Usage
from bitnet_inference.server.store import Store
from bitnet_inference.server.tenants import Limited, Tenants

tenants = Tenants(Store(sys.argv[1]))
tenant = tenants.authenticate(Headers({"authorization": "Bearer " + sys.argv[2]}))
lock = threading.Lock()
def client():
    while True:
        lease = tenants.admit(tenant, "m", 100)
        with lock:
            print("admitted", flush=True)
        lease.settle(Usage(prompt_tokens=3, completion_tokens=4))
        tenants.ledger.wait()
        with lock:
            print("settled", flush=True)
for _ in range(8):
    threading.Thread(target=client, daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
@pytest.mark.parametrize("lines", [1, 60, 201])
def test_after_a_kill_what_is_spent_is_what_the_log_says(tmp_path: Path, lines: int) -> None:
    file = tmp_path / "keys.sqlite"
    with Store(file) as store, Tenants(store) as tenants:
        tenant, text = made(tenants, budget=10**9)
    process = subprocess.Popen([sys.executable, "-c", CRASH, str(file), text], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [process.stdout.readline() for _ in range(lines)]
    process.send_signal(signal.SIGKILL)
    seen += process.stdout.read().splitlines(keepends=True)
    process.wait()
    process.stdout.close()
    with Store(file) as store:
        ledger = Ledger(store, dead_s=0.2)
        account = Account(tenant.id, tenant.period)
        begun = time.monotonic()
        while ledger.balance(account).reserved and time.monotonic() - begun < 10:
            ledger.wait()
        spent, reserved = ledger.balance(account)
        ledger.close()
        assert reserved == 0  # what the dead process had set aside is given back
        assert spent == logged(store, tenant.id)
        settled, admitted = seen.count("settled\n"), seen.count("admitted\n")
        assert 7 * settled <= spent <= 7 * (admitted + 8)


def test_a_server_that_was_taken_for_dead_lives_on(store: Store, tmp_path: Path) -> None:
    account = Account("t", "total")
    with Store(tmp_path / "keys.sqlite") as other:
        sleeper = Ledger(store, dead_s=1000)  # beats once in five seconds
        reservation = sleeper.reserve(account, 10, 100, NOW).result(10)
        ledger = Ledger(other, dead_s=0.1)
        end = time.monotonic() + 10
        while ledger.balance(account).reserved and time.monotonic() < end:
            ledger.wait()
        assert ledger.balance(account) == (0, 0)
        assert isinstance(reservation, str)
        entry = Entry(id="x", at=NOW, tenant="t", model="m", prompt=3, cached=0, completion=4, seconds=1.0)
        sleeper.settle(entry, account, reservation).result(10)
        assert ledger.balance(account) == (7, 0)
        sleeper._beaten = -1e9
        end = time.monotonic() + 10
        while not _workers(store) >= {sleeper._worker} and time.monotonic() < end:
            sleeper.wait()
        assert sleeper._worker in _workers(store)
        ledger.close()
        sleeper.close()
    assert _workers(store) == set()


def _workers(store: Store) -> set[str]:
    with store.read() as run:
        return {worker for (worker,) in run("SELECT id FROM workers")}


def test_a_row_that_is_settled_twice_is_charged_once(store: Store, clock: Clock) -> None:
    ledger = Ledger(store, clock=clock)
    account = Account("t", "month")
    entry = Entry(id="x", at=NOW, tenant="t", model="m", prompt=3, cached=0, completion=4, seconds=1.0)
    for _ in range(3):
        ledger.settle(entry, account, None).result(10)
    assert ledger.balance(account) == (7, 0)
    ledger.close()
    assert logged(store, "t") == 7


def test_what_cannot_be_written_now_is_written_later(store: Store, clock: Clock) -> None:
    ledger = Ledger(store, clock=clock)
    account = Account("t", "month")
    with store.write() as run:
        run("ALTER TABLE usage RENAME TO hidden")
    entry = Entry(id="x", at=NOW, tenant="t", model="m", prompt=3, cached=0, completion=4, seconds=1.0)
    future = ledger.settle(entry, account, None)
    with pytest.raises(Exception, match="usage"):
        ledger.reserve(account, 1, 1, NOW).result(10)  # nobody is let in on a guess
    assert not future.done()
    with store.write() as run:
        run("ALTER TABLE hidden RENAME TO usage")
    future.result(10)
    assert ledger.balance(account) == (7, 0)
    ledger.close()


def test_a_budget_that_cannot_be_read_lets_nobody_in(tenants: Tenants, store: Store) -> None:
    tenant, _ = made(tenants, budget=100, requests_per_minute=2)
    with store.write() as run:
        run("ALTER TABLE balances RENAME TO hidden")
    for _ in range(4):  # and the request is not counted
        with pytest.raises(Exception, match="cannot be read now") as caught:
            tenants.admit(tenant, "m", 1)
        assert caught.value.status == 503  # type: ignore[attr-defined]
