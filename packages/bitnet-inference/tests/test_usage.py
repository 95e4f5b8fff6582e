"""What was used is summed, exported and billed from the rows that the ledger wrote, each once."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest

from bitnet_inference.server import billing
from bitnet_inference.server.ledger import Account, Balance, Entry, Ledger
from bitnet_inference.server.store import Store
from bitnet_inference.server.usage import Sum, export, rows, sums

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "keys.sqlite") as store:
        yield store


def fill(store: Store, *entries: dict[str, Any]) -> None:
    usual = {"tenant": "a", "model": "m", "prompt": 10, "cached": 4, "completion": 5, "seconds": 0.5, "at": NOW}
    with store.read() as run:
        [(count,)] = run("SELECT COUNT(*) FROM usage")
    ledger = Ledger(store)
    for number, entry in enumerate(entries, count):
        values: Any = {"id": f"{number:06d}", **usual, **entry}
        ledger.settle(Entry(**values), Account(values["tenant"], "month"), None)
    ledger.wait()
    ledger.close()


def test_usage_is_summed_by_tenant_model_and_time(store: Store) -> None:
    fill(store, {"joules": 1.5}, {"at": NOW + 3600, "model": "n"}, {"at": NOW + 86_400, "tenant": "b", "joules": 2.0})
    assert sums(store) == [Sum("a", 2, 20, 8, 10, 30, 1.0, 1.5), Sum("b", 1, 10, 4, 5, 15, 0.5, 2.0)]
    assert [(one.group, one.requests) for one in sums(store, "model")] == [("m", 2), ("n", 1)]
    assert [(one.group, one.requests) for one in sums(store, "day")] == [
        ("2027-01-15T00:00Z", 2),
        ("2027-01-16T00:00Z", 1),
    ]
    assert [one.group for one in sums(store, "hour", tenant="a")] == ["2027-01-15T08:00Z", "2027-01-15T09:00Z"]
    assert [one.requests for one in sums(store, since=NOW, until=NOW + 3600)] == [1]
    assert sums(store, tenant="nobody") == []


@pytest.mark.parametrize("by", ["x", "tenant; DROP TABLE usage", "", None])
def test_groups_are_among_those_there_are(store: Store, by: Any) -> None:
    with pytest.raises(ValueError, match="by: expected one of tenant, model, day, hour"):
        sums(store, by)


def test_each_request_is_a_line_of_csv_in_order(store: Store) -> None:
    fill(store, *({"at": NOW + number % 7} for number in range(2500)), {"model": '=1+1,"x"\n', "customer": "@c"})
    stream = io.StringIO(newline="")
    assert export(store, stream, since=NOW, until=NOW + 7) == 2501
    lines = list(csv.DictReader(io.StringIO(stream.getvalue(), newline="")))
    assert len({line["id"] for line in lines}) == 2501
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert lines[0]["at"] == "2027-01-15T08:00:00.000+00:00"
    [strange] = [line for line in lines if line["customer"]]
    assert (strange["model"], strange["customer"]) == ('\'=1+1,"x"\n', "'@c")  # no spreadsheet calculates it
    assert sum(int(line["tokens"]) for line in lines) == sums(store)[0].total_tokens
    assert len(list(rows(store, since=NOW + 6.5))) == 0


def test_what_is_due_is_summed_by_customer_hour_and_kind_and_asking_changes_nothing(store: Store) -> None:
    fill(store, {"customer": "c"}, {"customer": "c"}, {"customer": "d", "completion": 0}, {}, {"at": NOW + 3600})
    due = [(bill.customer, bill.meter, bill.tokens, bill.at) for bill in billing.due(store)]
    assert due == [
        ("c", "bitnet_prompt_tokens", 20, NOW),
        ("c", "bitnet_completion_tokens", 10, NOW),
        ("d", "bitnet_prompt_tokens", 10, NOW),
    ]
    assert len(billing.due(store)) == 3


def test_a_row_is_billed_once(store: Store) -> None:
    fill(store, {"customer": "c"})
    sent: list[billing.Bill] = []
    billing.send(store, sent.append)
    assert [bill.tokens for bill in sent] == [5, 10]
    assert billing.due(store) == []
    assert billing.send(store, sent.append) == []
    fill(store, {"customer": "c", "prompt": 7})
    assert sorted(bill.tokens for bill in billing.send(store, sent.append)) == [5, 7]
    assert len({bill.id for bill in sent}) == 4


def test_a_bill_that_was_not_sent_is_sent_later_under_the_same_id(store: Store) -> None:
    fill(store, {"customer": "c"})
    seen: list[billing.Bill] = []

    def post(bill: billing.Bill) -> None:
        seen.append(bill)
        if len(seen) == 2:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        billing.send(store, post)
    assert [bill.id for bill in billing.due(store)] == [seen[1].id]
    billing.send(store, post)
    assert seen[2] == seen[1]
    assert len(seen) == 3


class _Stripe(BaseHTTPRequestHandler):
    """As much of Stripe as takes meter events."""

    seen: ClassVar[list[tuple[str, str, dict[str, list[str]]]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.seen.append((self.path, self.headers["Authorization"], parse_qs(body)))
        data = json.dumps({"object": "billing.meter_event", "identifier": "x"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def test_stripes_own_client_sends_meter_events(store: Store) -> None:
    pytest.importorskip("stripe", reason="NO stripe: install the extra billing")
    fill(store, {"customer": "cus_1"})
    with HTTPServer(("127.0.0.1", 0), _Stripe) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            post = billing.stripe(
                "sk_test_1", base_addresses={"api": f"http://127.0.0.1:{server.server_port}"}, max_network_retries=0
            )
            bills = billing.send(store, post)
        finally:
            server.shutdown()
    path, authorization, first = _Stripe.seen[0]
    assert (path, authorization) == ("/v1/billing/meter_events", "Bearer sk_test_1")
    assert first == {
        "event_name": ["bitnet_completion_tokens"],
        "identifier": [bills[0].id],
        "timestamp": [str(int(NOW))],
        "payload[stripe_customer_id]": ["cus_1"],
        "payload[value]": ["5"],
    }
    assert len(_Stripe.seen) == 2


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL of our own, which only a socket in a folder leads to."""
    pytest.importorskip("psycopg", reason="NO psycopg: install the extra postgres")
    pytest.importorskip("sqlalchemy", reason="NO SQLAlchemy: install the extra postgres")
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("NO PostgreSQL server on this machine")
    with TemporaryDirectory() as name:  # pytest's own folders are closed to the user that runs it
        folder = Path(name)
        who = _unprivileged(folder)
        made = [*who, "initdb", "-A", "trust", "-U", "bitnet", "-D", folder / "data"]
        subprocess.run(made, check=True, capture_output=True)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        command = [*who, "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w"]
        subprocess.run([*command, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)
        try:
            yield f"postgresql+psycopg://bitnet@/postgres?host={folder}"
        finally:
            subprocess.run([*command, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)


def _unprivileged(folder: Path) -> list[str]:
    """PostgreSQL does not run as root."""
    import os
    import pwd

    if os.geteuid() != 0:
        return []
    user = next((one for one in ("postgres", "nobody") if _exists(pwd, one)), None)
    if user is None or shutil.which("runuser") is None:
        pytest.skip("NO user whom PostgreSQL would run as")
    shutil.chown(folder, user)
    return ["runuser", "-u", user, "--"]


def _exists(pwd: Any, user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def test_postgresql_does_all_that_sqlite_does(postgres: str) -> None:
    from bitnet_inference.server.keys import Keys

    with Store(postgres) as store, Store(postgres) as other:
        keys = Keys(store, clock=lambda: NOW)
        key, text = keys.create("laptop", models=["m"], budget=100)
        assert Keys(other).get(key.id).opens(text, NOW)
        keys.update(key.id, name="desktop")
        keys.rotate(key.id, grace_s=5)
        assert keys.revoke(key.id).revoked == NOW
        assert [one.name for one in keys.list()] == ["desktop"]
        account = Account("a", "month")
        ledgers = [Ledger(one, clock=lambda: NOW) for one in (store, other)]
        futures = [ledgers[number % 2].reserve(account, 7, 100, NOW) for number in range(40)]
        found = [future.result(30) for future in futures]
        assert sum(isinstance(one, str) for one in found) == 14  # of 7 tokens each, in 100
        for number, one in enumerate(found):
            if isinstance(one, str):
                entry = Entry(
                    id=one, at=NOW, tenant="a", model="m", prompt=3, cached=0, completion=4, seconds=1.0, customer="c"
                )
                for _ in range(2):
                    ledgers[number % 2].settle(entry, account, one)
        for ledger in ledgers:
            ledger.wait()
        assert ledgers[0].balance(account) == Balance(98, 0)
        assert ledgers[1].reserve(account, 3, 100, NOW).result(30) == (98, 0)
        for ledger in ledgers:
            ledger.close()
        assert sums(store, "day") == [Sum("2027-01-15T00:00Z", 14, 42, 0, 56, 98, 14.0, None)]
        assert export(store, io.StringIO()) == 14
        assert [bill.tokens for bill in billing.send(store, lambda _: None)] == [56, 42]
        assert billing.due(other) == []


def test_the_password_of_a_database_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sqlalchemy", reason="NO SQLAlchemy: install the extra postgres")
    pytest.importorskip("psycopg", reason="NO psycopg: install the extra postgres")
    with pytest.raises(Exception) as caught:  # noqa: PT011  # whatever the driver has to say
        Store("postgresql+psycopg://bitnet:geheim@127.0.0.1:1/postgres")
    assert "geheim" not in str(caught.value)
