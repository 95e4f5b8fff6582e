"""Who is turned away costs next to nothing, and nobody keeps others out by saying nothing."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bitnet_inference import LLM
from bitnet_inference.server import Models, connection, make_app, make_server
from bitnet_inference.server.serve import Server, addresses
from bitnet_inference.server.tenants import Tenants

KEY = "correct horse battery"
CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "stories", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 2}).encode()


class Running:
    """A server in a thread."""

    def __init__(self, app: Any, **settings: Any) -> None:
        self.app = app
        self.server: Server = make_server(app, port=0, log_level="critical", **settings)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()))
        self._thread.start()
        while not self.server.started:
            time.sleep(0.005)
        self.address = addresses(self.server)[0]

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def ask(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        with closing(self.connect()) as line:
            line.sendall(data)
            return answer(line)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextmanager
def running(llm: LLM, *, tenants: Tenants | None = None, **settings: Any) -> Iterator[Running]:
    server = Running(make_app(Models({"stories": llm}), tenants=tenants), **settings)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(threads=1) as llm:
        yield llm


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[Running]:
    with running(llm) as server:
        yield server


@contextmanager
def full(llm: LLM) -> Iterator[None]:
    queue, llm.engine.queue = llm.engine.queue, 0
    try:
        yield
    finally:
        llm.engine.queue = queue


def request(path: str = CHAT, *lines: str, body: bytes = BODY, method: str = "POST", key: str = KEY) -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}", *lines]
    if body:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body


def answer(line: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of one answer, and no byte of the next; 0 where there was none."""
    head, body = b"", b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := line.recv(1)):
            return 0, {}, head
        head += more
    status, *lines = head.decode().rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += line.recv(int(headers["content-length"]) - len(body))
    return int(status.split()[1]), headers, body


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


# When all models are full


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
def test_who_comes_when_all_is_full_is_told_so_in_its_own_words(server: Running, llm: LLM, path: str) -> None:
    with full(llm):
        status, headers, body = server.ask(request(path))
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    error = json.loads(body)["error"]
    assert "too many requests are waiting" in (error if isinstance(error, str) else error["message"])


def test_a_connection_that_was_turned_away_may_ask_again(server: Running, llm: LLM) -> None:
    with closing(server.connect()) as line:
        for _ in range(2):
            with full(llm):
                for _ in range(3):
                    line.sendall(request())
                    assert answer(line)[0] == 503
            for _ in range(2):  # from here on there is a parser behind it
                line.sendall(request())
                assert answer(line)[0] == 200


@pytest.mark.parametrize("known", [False, True])
def test_a_body_that_comes_later_belongs_to_its_head(server: Running, llm: LLM, known: bool) -> None:
    data = request()
    with closing(server.connect()) as line:
        if known:
            line.sendall(data)
            assert answer(line)[0] == 200
        with full(llm):
            for piece in (data[:20], data[20:-10], data[-10:]):
                time.sleep(0.02)
                line.sendall(piece)
            assert answer(line)[0] == 503
        line.sendall(data[:-10])
        time.sleep(0.02)
        line.sendall(data[-10:])
        assert answer(line)[0] == 200


def test_a_server_that_is_full_answers_all_else(server: Running, llm: LLM) -> None:
    with full(llm):
        for path in ("/healthz", "/readyz", "/v1/models", "/metrics"):
            assert server.ask(request(path, method="GET", body=b""))[0] == 200
        assert server.ask(request("/nowhere"))[0] == 404


@pytest.mark.parametrize(
    "lines",
    [
        ["Transfer-Encoding: chunked"],
        ["Content-Length: 3"],
        ["Expect: 100-continue"],
        ["X: y\r\n folded"],
        ["X: y\nZ: z"],
    ],
)
def test_what_others_might_read_otherwise_goes_to_the_parser(server: Running, llm: LLM, lines: list[str]) -> None:
    """Who is turned away must not leave behind what somebody in between takes for another request."""
    with full(llm), closing(server.connect()) as line:
        line.sendall(request(CHAT, *lines))
        status, headers, _ = answer(line)
        while status == 100:
            status, headers, _ = answer(line)
        assert status in (400, 503)
        if status == 400:
            assert headers["connection"] == "close"


def test_two_requests_in_one_go_are_two(server: Running, llm: LLM) -> None:
    with full(llm), closing(server.connect()) as line:
        line.sendall(request() + request("/healthz", method="GET", body=b""))
        assert [answer(line)[0], answer(line)[0]] == [503, 200]


def test_it_is_the_same_behind_tls_and_it_is_counted(llm: LLM, tmp_path: Path) -> None:
    certificate, key = certified(tmp_path)
    trusted = ssl.create_default_context(cafile=certificate)
    with running(llm, ssl_certfile=str(certificate), ssl_keyfile=str(key)) as server:
        with full(llm), trusted.wrap_socket(server.connect(), server_hostname="localhost") as line:
            line.sendall(request())
            assert answer(line)[0] == 503
        figure = ("bitnet_refused_requests_total", {"reason": "requests"})
        until(lambda: server.app.state.metrics.registry.get_sample_value(*figure) == 1)


def certified(folder: Path) -> tuple[Path, Path]:
    """A certificate of this machine that nobody else has signed, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "certificate.pem", folder / "key.pem"


# Guessed keys


@pytest.fixture
def guarded(llm: LLM) -> Iterator[Running]:
    with Tenants(shared_key=KEY, tries_per_minute=5) as tenants, running(llm, tenants=tenants) as server:
        yield server


def test_who_guesses_keys_is_not_looked_at_and_a_right_key_is(guarded: Running) -> None:
    found = [guarded.ask(request(key=f"guess number {number}")) for number in range(12)]
    assert [status for status, _, _ in found] == [401] * 5 + [429] * 7
    assert int(found[-1][1]["retry-after"]) >= 1
    assert json.loads(found[-1][2])["error"]["code"] == "rate_limit_exceeded"
    assert guarded.ask(request())[0] == 200
    assert guarded.ask(request(method="GET", path="/healthz", key="no", body=b""))[0] == 429
    keyless = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
    assert guarded.ask(keyless % b"/v1/models")[0] == 429
    assert guarded.ask(keyless % b"/healthz")[0] == 200
    assert guarded.ask(b"POST /v1/messages HTTP/1.0\r\n\r\n")[2].startswith(b'{"type":"error"')
    figure = b'bitnet_refused_requests_total{reason="wrong keys"} 10.0'
    until(lambda: figure in guarded.ask(request("/metrics", method="GET", body=b""))[2])


# Connections


def test_who_says_nothing_makes_room_for_who_does(llm: LLM) -> None:
    with running(llm, limit=20) as server:
        silent = [server.connect() for _ in range(300)]
        assert server.ask(request())[0] == 200
        assert answer(silent[0])[0] == 503  # the first of them had to go
        for line in silent:
            line.close()


def test_beyond_the_limit_only_questions_for_health_are_heard(llm: LLM) -> None:
    with running(llm, limit=4) as server:
        lines = [server.connect() for _ in range(4)]
        for line in lines:
            line.sendall(request()[:-1])  # a body that does not come yet
        until(lambda: len(server.server.server_state.connections) == 4)
        for _ in range(3):
            assert server.ask(request("/healthz", method="GET", body=b""))[0] == 200
            status, headers, body = server.ask(request("/v1/models", method="GET", body=b""))
            assert (status, headers["connection"]) == (503, "close")
            assert b"too many connections" in body
        for line in lines:
            line.sendall(request()[-1:])
            assert answer(line)[0] == 200
            line.close()
        until(lambda: server.ask(request("/v1/models", method="GET", body=b""))[0] == 200)


PROGRAM = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
from bitnet_inference.server import Models, serve
serve(Models({}), port=int(sys.argv[1]), log_level="critical")
"""


def test_files_that_run_out_do_not_shut_the_door() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(address[1])], env=environment) as process:
        try:
            silent: list[socket.socket] = []
            while not silent:
                try:
                    silent.append(socket.create_connection(address, timeout=20))
                except ConnectionRefusedError:
                    time.sleep(0.05)
            silent += [socket.create_connection(address, timeout=20) for _ in range(600)]
            for _ in range(3):
                with closing(socket.create_connection(address, timeout=20)) as line:
                    line.sendall(request("/healthz", method="GET", body=b""))
                    assert answer(line)[0] == 200
            for line in silent:
                line.close()
        finally:
            process.terminate()
            process.wait(20)


def test_a_head_that_does_not_come_is_not_waited_for(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEADER_S", 0.2)
    for data in (b"", b"GET /heal", request()[:60]):
        with closing(server.connect()) as line:
            line.sendall(data)
            status, headers, body = answer(line)
        assert (status, headers["connection"]) == (408, "close")
        assert json.loads(body)["error"]["message"].startswith("the head of the request")


def test_what_is_not_http_is_counted_and_has_no_line_of_its_own(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    with running(llm) as server:
        for _ in range(5):
            assert server.ask(b"GARBAGE\r\n\r\n")[0] == 400
        figure = b'bitnet_refused_requests_total{reason="malformed"} 5.0'
        until(lambda: figure in server.ask(request("/metrics", method="GET", body=b""))[2])
    fields = [record.fields for record in caplog.records if record.message == "refused"]  # type: ignore[attr-defined]
    told = [found["count"] for found in fields if found["reason"] == "malformed"]
    assert len(told) < 5 <= sum(told)  # another server that still runs may tell of its own


def test_a_limit_that_lets_nobody_in_is_refused(llm: LLM) -> None:
    with pytest.raises(ValueError, match="limit: expected 1 or more"):
        make_server(make_app(Models({"stories": llm})), limit=0)
