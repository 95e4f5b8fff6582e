"""Nobody comes in without a key; with one, to what its role allows; and no secret comes out."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route, WebSocketRoute

from bitnet_inference import LLM
from bitnet_inference.server import admin, page
from bitnet_inference.server.app import make_app
from bitnet_inference.server.audit import Audit, verify
from bitnet_inference.server.keys import Keys
from bitnet_inference.server.ledger import Account, Ledger
from bitnet_inference.server.metrics import Metrics
from bitnet_inference.server.models import Models
from bitnet_inference.server.routes import ENDPOINTS
from bitnet_inference.server.serve import Server, addresses, make_server
from bitnet_inference.server.store import Store
from bitnet_inference.server.tenants import Tenants
from bitnet_inference.server.usage import sums

ADMIN = "correct horse battery staple"
# Open to all: two words on how the server is, and the page, which holds nothing of anybody's.
PUBLIC = {"/health", "/healthz", "/readyz"}
OPEN = PUBLIC | {"/", "/page/me", "/page/{file}"}
PROMPT = "canary-prompt-5d1e"


class Running:
    """A server in a thread, and the ways to ask it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.server: Server = make_server(app, "127.0.0.1", 0, log_config=None, lifespan="on")
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()))
        self._thread.start()
        while not self.server.started and self._thread.is_alive():
            threading.Event().wait(0.01)
        [self.address] = addresses(self.server)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.address[1]}", timeout=30, trust_env=False)

    def ask(self, method: str, path: str, key: str | None = ADMIN, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.client.request(method, path, headers=headers, **more)

    def raw(self, data: bytes) -> tuple[int, bytes]:
        """The status and the whole of one answer."""
        with closing(socket.create_connection(self.address, timeout=10)) as connection:
            connection.sendall(data)
            found = b""
            while more := connection.recv(65536):
                found += more
            return int(found.split()[1]), found

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextmanager
def running(folder: Path, llm: LLM) -> Iterator[Running]:
    """A server with keys and an audit log in a folder."""
    metrics = Metrics()
    with Store(folder / "keys.sqlite") as store, Audit(folder / "audit.jsonl") as audit:  # noqa: SIM117  # in this order
        with Tenants(store, shared_key=ADMIN, charged=metrics.charged, tries_per_minute=1e9) as tenants:
            models = Models({"stories": llm})
            app = make_app(models, tenants=tenants, metrics=metrics, audit=audit, endpoints=page.ENDPOINTS)
            server = Running(app)
            try:
                yield server
            finally:
                server.stop()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder: Path, llm: LLM) -> Iterator[Running]:
    with running(folder, llm) as server:
        yield server


def make(server: Running, name: str = "laptop", **settings: Any) -> dict[str, Any]:
    answer = server.ask("POST", "/admin/keys", json={"name": name, **settings})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def story(**more: Any) -> dict[str, Any]:
    return {"model": "stories", "prompt": "Once upon a time", "max_tokens": 5, **more}


# Nobody comes in without a key


def routes(server: Running) -> list[Any]:
    return list(server.app.routes)


def test_every_route_is_one_that_declares_who_may_use_it(server: Running) -> None:
    """A mount or a bare route would be served without anybody asking for a key."""
    for route in routes(server):
        assert isinstance(route, Route | WebSocketRoute), route
        if isinstance(route, Route):
            assert route.endpoint.__qualname__ == "Endpoint.route.<locals>.serve", route


def _variants(path: str) -> list[bytes]:
    """The path, and others that might be taken for it."""
    plain = re.sub(r"\{[^}]*\}", "x", path)
    first, rest = plain[1:2], plain[2:]
    return [
        text.encode()
        for text in (
            plain,
            f"/{plain}",
            f"{plain}/",
            f"/.{plain}",
            f"/x/..{plain}",
            f"/x/%2e%2e{plain}",
            f"/%{ord(first or 'x'):02x}{rest}",
            plain.upper(),
            f"{plain};x=1",
            f"{plain}%00",
            f"{plain}?key={ADMIN.replace(' ', '+')}",
            f"http://localhost{plain}",
            f"/healthz/..{plain}",
            f"/healthz%2f..{plain}",
        )
    ]


HEADERS = (
    b"Host: localhost",
    b"Host: healthz/?",
    b"Host: localhost/healthz?",
    b"Host: localhost#",
    b"Host: localhost\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Prefix: /healthz\r\nForwarded: for=127.0.0.1",
    b"Host: localhost\r\nX-Original-URL: /healthz\r\nX-Rewrite-URL: /healthz\r\nX-HTTP-Method-Override: GET",
    b"Host: localhost\r\nCookie: key=x\r\nAuthorization: Basic eDp5",
)


def test_no_route_opens_without_a_key_however_it_is_asked_for(server: Running) -> None:
    """Each route, by each method, in each disguise: 401, or there is nothing there."""
    paths = sorted({route.path for route in routes(server)} - OPEN)
    assert len(paths) > 15
    asked = 0
    for path in paths:
        for method in (b"GET", b"POST", b"DELETE", b"PUT", b"PATCH", b"OPTIONS", b"HEAD", b"TRACE", b"PROPFIND"):
            for target in _variants(path):
                for headers in HEADERS if target == _variants(path)[0] else HEADERS[:1]:
                    ask = method + b" " + target + b" HTTP/1.1\r\n" + headers + b"\r\nConnection: close\r\n\r\n"
                    status, answer = server.raw(ask)
                    asked += 1
                    # 405 says no more than the document of the interface does, and nothing has been run.
                    assert status in (400, 401, 404, 405), (method, target, headers, status)
                    assert b'"error"' in answer or method == b"HEAD", answer
    assert asked > 3000


def test_no_other_route_is_declared_to_be_open(server: Running) -> None:
    for endpoint in (*ENDPOINTS, *admin.ENDPOINTS, *page.ENDPOINTS):
        assert (endpoint.role == "none") == (endpoint.path in OPEN), endpoint.path
        assert endpoint.role != "none" or endpoint.method == "GET"


def test_websockets_ask_for_a_key_too(server: Running) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    place = f"ws://127.0.0.1:{server.address[1]}"
    for path, key in (("/v1/stream", ""), ("/v1/stream", "wrong"), ("//v1/stream", ADMIN), ("/v1/%73tream", ADMIN)):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with pytest.raises(InvalidStatus), connect(f"{place}{path}", additional_headers=headers, proxy=None):
            pass
    with connect(f"{place}/v1/stream", additional_headers={"Authorization": f"Bearer {ADMIN}"}, proxy=None):
        pass


def test_what_is_open_to_all_says_nothing(server: Running) -> None:
    for path in sorted(PUBLIC):
        answer = server.ask("GET", path, None)
        assert answer.status_code == 200
        assert len(answer.content) < 40


def test_every_wrong_key_has_the_same_answer(server: Running) -> None:
    key = make(server)["key"]
    shown = [None, "x", "bn_", key[:-1], key + "a", "x" * 10_000, key.upper(), ADMIN + "x", f"{key} {key}"]
    answers = {(a.status_code, a.text) for a in (server.ask("POST", "/v1/completions", one) for one in shown)}
    status, _ = server.raw(
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        + 2 * (b"Authorization: Bearer " + key.encode() + b"\r\n")
        + b"\r\n"
    )
    assert {status for status, _ in answers} == {401} == {status}
    assert len(answers) == 1


# With one, to what its role allows


def test_roles_open_what_is_theirs(server: Running) -> None:
    keys = {role: make(server, role, role=role)["key"] for role in ("metrics", "read-only", "user", "admin")}
    expected = {
        ("GET", "/v1/models"): {"metrics": 403, "read-only": 200, "user": 200, "admin": 200},
        ("POST", "/v1/completions"): {"metrics": 403, "read-only": 403, "user": 200, "admin": 200},
        ("GET", "/admin/keys"): {"metrics": 403, "read-only": 403, "user": 403, "admin": 200},
        ("GET", "/metrics"): {"metrics": 200, "read-only": 403, "user": 403, "admin": 200},
    }
    for (method, path), statuses in expected.items():
        for role, status in statuses.items():
            assert server.ask(method, path, keys[role], json=story()).status_code == status, (path, role)


def test_every_route_of_the_admins_is_closed_to_users(server: Running) -> None:
    key = make(server)["key"]
    for route in routes(server):
        if route.path.startswith(("/admin", "/metrics")):
            [method] = route.methods - {"HEAD"}
            assert server.ask(method, route.path.replace("{key}", "x"), key).status_code == 403


def test_a_key_for_figures_opens_nothing_else(server: Running) -> None:
    key = make(server, role="metrics")["key"]
    for route in routes(server):
        if (
            isinstance(route, Route)
            and not route.path.startswith(("/health", "/readyz", "/page"))
            and route.path != "/"
        ):
            [method] = route.methods - {"HEAD"}
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            assert server.ask(method, path, key).status_code == (200 if path == "/metrics" else 403), path


def test_a_key_is_made_shown_once_changed_rotated_and_revoked(server: Running) -> None:
    made = make(server, "laptop", models=["stories"], budget=1000, period="day")
    text, place = made.pop("key"), f"/admin/keys/{made['id']}"
    listed = server.ask("GET", "/admin/keys")
    assert made in listed.json()["keys"]
    assert text not in listed.text
    assert server.ask("POST", "/v1/completions", text, json=story()).status_code == 200
    changed = server.ask("POST", place, json={"name": "desktop", "models": []}).json()
    assert changed == {**made, "name": "desktop", "models": []}
    assert server.ask("POST", "/v1/completions", text, json=story()).status_code == 404
    server.ask("POST", place, json={"models": None})
    rotated = server.ask("POST", f"{place}/rotate", json={"grace_s": 30}).json()
    assert rotated["id"] == made["id"]
    for opening in (text, rotated["key"]):
        assert server.ask("GET", "/v1/models", opening).status_code == 200
    revoked = server.ask("DELETE", place)
    assert revoked.json()["revoked"] is not None
    for shut in (text, rotated["key"]):
        assert server.ask("GET", "/v1/models", shut).status_code == 401
    assert server.ask("POST", f"{place}/rotate", json={}).status_code == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x", "role": "root"}, "role"),
        ({"name": "x", "budget": -1}, "budget"),
        ({"name": "x", "tokens_per_minute": 0}, "tokens_per_minute"),
        ({"name": "x", "models": "stories"}, "models"),
        ({"name": "x", "secret": "y"}, "secret"),
        ({}, "name"),
    ],
)
def test_a_setting_that_is_wrong_is_named(server: Running, body: dict[str, Any], param: str) -> None:
    answer = server.ask("POST", "/admin/keys", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_an_unknown_key_is_not_found(server: Running) -> None:
    for method, path in (("POST", "/admin/keys/x"), ("DELETE", "/admin/keys/x"), ("POST", "/admin/keys/x/rotate")):
        assert server.ask(method, path, json={}).status_code == 404


def test_what_a_key_uses_is_charged_and_told(server: Running) -> None:
    made = make(server, "charged", budget=10_000)
    usages = [server.ask("POST", "/v1/completions", made["key"], json=story()).json()["usage"] for _ in range(3)]
    tenants = server.app.state.tenants
    for _ in range(200):
        tenants.ledger.wait()
        found = server.ask("GET", f"/admin/usage?tenant={made['id']}").json()["usage"]
        if found and found[0]["requests"] == 3:
            break
        threading.Event().wait(0.02)
    [told] = found
    assert told["total_tokens"] == sum(usage["total_tokens"] for usage in usages)
    assert told["completion_tokens"] == sum(usage["completion_tokens"] for usage in usages)
    lines = server.ask("GET", "/admin/usage.csv").text.splitlines()
    assert sum(made["id"] in line for line in lines) == 3
    figures = server.ask("GET", "/metrics").text
    assert f'bitnet_key_requests_total{{key="{made["id"]}",name="charged"}} 3.0' in figures
    load = server.ask("GET", "/admin/load").json()
    assert load["models"][0]["name"] == "stories"
    assert load["requests"] == 0


@pytest.mark.parametrize("query", ["by=x", "since=x", "until=-1", "since=nan", "other=1"])
def test_a_question_for_usage_that_is_wrong_is_refused(server: Running, query: str) -> None:
    answer = server.ask("GET", f"/admin/usage?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_a_key_with_a_rate_is_told_when_to_come_again(server: Running) -> None:
    key = make(server, requests_per_minute=1)["key"]
    assert server.ask("POST", "/v1/completions", key, json=story()).status_code == 200
    answer = server.ask("POST", "/v1/completions", key, json=story())
    assert answer.status_code == 429
    assert 50 < int(answer.headers["retry-after"]) <= 60
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    spent = make(server, budget=0)["key"]
    answer = server.ask("POST", "/v1/completions", spent, json=story())
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")


def test_a_stream_is_cut_when_its_key_is_revoked(server: Running) -> None:
    made = make(server)
    body = story(max_tokens=500, n=8, stream=True, temperature=3.0, logit_bias={"2": -100})
    with server.client.stream("POST", "/v1/completions", json=body, headers={"x-api-key": made["key"]}) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        begun = time.monotonic()
        server.ask("DELETE", f"/admin/keys/{made['id']}")
        rest = [line for line in lines if line]
    assert time.monotonic() - begun < 5
    assert "the key was revoked" in rest[-1]


def test_prefixes_are_shared_within_a_tenant_and_not_between(server: Running) -> None:
    prompt = "Once upon a time there was a little girl who had a very big secret that nobody else knew. " * 2
    one, other = make(server, "one")["key"], make(server, "other")["key"]

    def cached(key: str) -> int:
        usage = server.ask("POST", "/v1/completions", key, json=story(prompt=prompt)).json()["usage"]
        return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0))

    assert cached(one) == 0
    assert cached(one) > 0
    assert cached(other) == 0
    assert cached(other) > 0


# No secret comes out


def test_no_secret_is_in_anything_that_is_written(tmp_path: Path, llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with running(tmp_path, llm) as server:
        made = make(server, "canary")
        text = made["key"]
        bodies = (
            story(prompt=PROMPT),
            story(prompt=PROMPT, n=PROMPT),
            story(prompt=PROMPT, model=text),
            {**story(prompt=PROMPT), text: 1},
            story(prompt=PROMPT, stream=True),
        )
        shown = [server.ask("POST", "/v1/completions", text, json=body) for body in bodies]
        shown.append(server.ask("GET", f"/v1/models/{text}", text))
        shown.append(server.ask("GET", f"/v1/models?key={text}", text))
        shown.append(server.ask("POST", "/v1/completions", text, content=f'{{"{text}": {PROMPT}'))
        shown.append(server.ask("GET", "/v1/models", text[:-1]))
        told = [server.ask("GET", path).text for path in ("/metrics", "/admin/keys", "/admin/usage", "/admin/load")]
        told.append(server.ask("GET", "/admin/usage.csv").text)
    secret = text[20:]
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert {"keys.sqlite", "audit.jsonl"} <= set(files)
    ours = [record for record in caplog.records if not record.name.startswith("http")]  # the client's own say all
    logs = "\n".join(f"{record.getMessage()} {record.__dict__.get('fields')} {record.exc_text}" for record in ours)
    assert "/v1/models/bn_" in logs
    for name, data in [*files.items(), ("logs", logs.encode()), *(("told", one.encode()) for one in told)]:
        assert secret.encode() not in data, name
        assert PROMPT.encode() not in data, name
        assert ADMIN.encode() not in data, name
    assert verify(tmp_path / "audit.jsonl").lines >= len(shown)
    events = [json.loads(line) for line in files["audit.jsonl"].splitlines()]
    [created] = [event for event in events if event["event"] == "key created"]
    assert (created["key"], created["by"]) == (made["id"], "operator")
    asked = [event for event in events if event["event"] == "request" and event["tenant"] == made["id"]]
    assert len(asked) == len(shown) - 1  # the last was nobody's
    assert {event["id"] for event in asked} == {answer.headers["x-request-id"] for answer in shown[:-1]}


def test_a_server_without_keys_has_one_tenant_and_figures(llm: LLM) -> None:
    server = Running(make_app(Models({"stories": llm})))
    try:
        assert server.ask("POST", "/v1/completions", None, json=story()).status_code == 200
        assert server.ask("GET", "/metrics", None).status_code == 200
        assert server.ask("GET", "/admin/load", None).status_code == 200
        assert server.ask("GET", "/admin/keys", None).json()["error"]["code"] == "no_keys"
    finally:
        server.stop()


SERVER = """
import sys
from bitnet_inference import LLM
from bitnet_inference.server import serve
with LLM(threads=1) as llm:
    serve({"stories": llm}, port=int(sys.argv[1]), keys=sys.argv[2], audit=sys.argv[3], log_level="critical")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_server_that_is_killed_has_written_down_what_it_did(tmp_path: Path) -> None:
    database, audit = tmp_path / "keys.sqlite", tmp_path / "audit.jsonl"
    with Store(database) as store:
        key, text = Keys(store).create("laptop", budget=10**9)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port), str(database), str(audit)])
    answered: list[int] = []
    begun = time.monotonic()

    def client() -> None:
        base, headers = f"http://127.0.0.1:{port}", {"x-api-key": text}
        with httpx.Client(base_url=base, headers=headers, timeout=30, trust_env=False) as asking:
            while time.monotonic() < begun + 60:
                try:
                    answer = asking.post("/v1/completions", json=story())
                except httpx.TransportError:
                    if answered:
                        return  # it was killed
                    threading.Event().wait(0.05)  # it has not started yet
                else:
                    answered.append(answer.json()["usage"]["total_tokens"])
                    if len(answered) == 20:
                        process.kill()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    process.wait()
    with Audit(audit):
        pass  # takes a line that was cut out, and says so
    lines = verify(audit).lines
    assert 20 - 4 <= lines <= len(answered) + 4
    with Store(database) as store:
        ledger = Ledger(store, dead_s=0.2)
        account = Account(key.id, "month")
        end = time.monotonic() + 10
        while ledger.balance(account).reserved and time.monotonic() < end:
            ledger.wait()
        spent, reserved = ledger.balance(account)
        ledger.close()
        [used] = sums(store)
    assert (spent, reserved) == (used.total_tokens, 0)
    assert sum(sorted(answered)[:-4]) <= spent <= sum(answered) + 4 * max(answered)
