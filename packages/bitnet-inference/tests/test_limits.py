"""What is too long, too slow or in disguise is refused before anybody looks at who sent it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bitnet_inference.server.connection import Connection
from bitnet_inference.server.errors import refusal_of
from bitnet_inference.server.gate import refuse
from bitnet_inference.server.limits import Limits

Ask = Callable[[bytes], tuple[int, bytes]]


async def echo(request: Request) -> Response:
    try:
        return Response(str(len(await request.body())))
    except Exception as error:  # noqa: BLE001  # as every route of the server does it
        return refuse(refusal_of(error))


async def deaf(_: Request) -> Response:
    return Response(status_code=401)


ROUTES = [
    Route("/", echo, methods=["GET", "POST"]),
    Route("/v1/echo", echo, methods=["GET", "POST"]),
    Route("/v1/files", echo, methods=["POST"]),
    Route("/v1/models/{model:path}", echo),
    Route("/deaf", deaf, methods=["POST"]),
]


@contextmanager
def serving(**settings: Any) -> Iterator[tuple[str, int]]:
    """A server with these limits, in a thread."""
    app = Starlette(routes=ROUTES, middleware=[Middleware(Limits, **settings)])
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        h11_max_incomplete_event_size=16 << 10,
        timeout_keep_alive=5,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with serving(body=10_000, larger={"/v1/files": 100_000}, body_s=0.6) as address:
        yield address


@pytest.fixture
def ask(address: tuple[str, int]) -> Ask:
    def ask(data: bytes) -> tuple[int, bytes]:
        with closing(socket.create_connection(address, timeout=10)) as connection:
            connection.sendall(data)
            return answer(connection)

    return ask


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return 0, data
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().splitlines() if line.startswith(b"content-length:")), 0)
    while len(body) < length and (more := connection.recv(65536)):
        body += more
    return int(head.split()[1]), body


def request(target: bytes = b"/v1/echo", *headers: bytes, body: bytes = b"", method: bytes = b"POST") -> bytes:
    lines = [method + b" " + target + b" HTTP/1.1", *headers]
    if not any(header.lower().startswith(b"host:") for header in headers):
        lines.append(b"Host: localhost")
    if body and not any(header.lower().startswith((b"content-length:", b"transfer-")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def test_what_is_within_the_limits_passes(ask: Ask) -> None:
    assert ask(request(body=b"x" * 10_000)) == (200, b"10000")
    assert ask(request(b"/v1/files", body=b"x" * 100_000)) == (200, b"100000")
    assert ask(request(b"/", method=b"GET")) == (200, b"0")
    assert ask(request(b"/v1/echo?" + b"q" * 8000, method=b"GET"))[0] == 200
    assert ask(request(b"/v1/models/org%2Fname", method=b"GET"))[0] == 200
    chunked = b"5\r\nhello\r\n0\r\n\r\n"
    assert ask(request(b"/v1/echo", b"Transfer-Encoding: chunked", body=chunked)) == (200, b"5")


@pytest.mark.parametrize(
    "target",
    [
        b"//v1/echo",
        b"/v1//echo",
        b"/v1/echo/",
        b"/v1/./echo",
        b"/v1/../v1/echo",
        b"/v1/%2e%2e/v1/echo",
        b"/%76%31/echo",
        b"/v1%2f%2fecho",
        b"/v1/echo%00",
        b"/v1/echo%0a",
        b"/v1/echo%20",
        b"/v1/echo;x=1",
        b"/v1/echo%3bx",
        b"/v1\\echo",
        b"/v1%5cecho",
        b"/v1/echo%3fx",
        b"/v1/echo%23x",
        b"/v1/echo%2525",
        b"/v1/echo%zz",
        b"/v1/echo%",
        b"/V1/ECHO",
        b"/v1/models/..%2f..%2fadmin",
        b"/v1/models/%ff",
    ],
)
def test_a_path_in_disguise_leads_nowhere(ask: Ask, target: bytes) -> None:
    status, _ = ask(request(target, method=b"GET"))
    assert status in (400, 404)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([b"Host: x/v1?"], 400),
        ([b"Host: x#y"], 400),
        ([b"Host: user@x"], 400),
        ([b"Host:"], 400),
        ([b"Host: a", b"Host: b"], 400),
        ([b"Content-Length: 1", b"Content-Length: 2"], 400),
        ([b"Content-Length: 1", b"Transfer-Encoding: chunked"], 400),
        ([b"Content-Length: -1"], 400),
        ([b"Content-Length: 1x"], 400),
        ([b"Content-Length: 18446744073709551616"], 400),
        ([b"Content-Length: 999999999999999999"], 413),
        ([b"Content-Length: 10001"], 413),
        ([b"Transfer-Encoding: gzip"], 400),
        ([b"Content-Encoding: gzip", b"Content-Length: 1"], 415),
        ([b"Content-Type: a", b"Content-Type: b"], 400),
        ([b"X-Nothing: a\0b"], 400),
        ([b"X: y"] * 101, 431),
        ([b"X: " + b"y" * 16_350], 431),
    ],
)
def test_headers_that_are_not_plain_are_refused(ask: Ask, headers: list[bytes], status: int) -> None:
    found, _ = ask(request(b"/v1/echo", *headers, body=b"x"))
    # What HTTP itself forbids is refused by the connection: as 400, or in the words of the standard.
    assert found in ((400, 431, 501) if status == 400 else (status,))


BAD = {
    "no HTTP": b"GARBAGE\r\n\r\n",
    "an encrypted greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another version": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "a folded line": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "a folded line after a bare end": b"GET / HTTP/1.1\nHost: x\nX: a\n\tb\n\n",
    "a space before the colon": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 1\r\n\r\nx",
    "a line without a colon": b"GET / HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n",
    "a name with a space": b"GET / HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    "a bare return": b"GET / HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
    "a length twice, the same": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    "a length in a list": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\nx",
    "a length with a sign": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx",
    "a length and chunks": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks twice": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "another encoding": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "chunked in disguise": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
    "no size of a chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "a chunk below zero": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
    "a chunk beyond numbers": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    "a chunk that goes on": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxyz\r\n",
    "a tunnel": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("pieces", [1, 7])
def test_what_is_not_http_is_refused_in_json_and_the_connection_ends(
    address: tuple[str, int], kind: str, pieces: int
) -> None:
    data = BAD[kind]
    step = -(-len(data) // pieces)
    with closing(socket.create_connection(address, timeout=10)) as connection:
        with suppress(OSError):  # it may have been refused before its end
            for place in range(0, len(data), step):
                connection.sendall(data[place : place + step])
        status, body = answer(connection)
        assert status in ((400, 501) if kind in ("another encoding", "chunked in disguise") else (400,))
        error = json.loads(body)["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert closed(connection)


def test_a_head_that_is_too_large_is_refused_by_its_own_status(ask: Ask) -> None:
    for headers in ([b"X: " + b"y" * 20_000], [b"X: y"] * 60_000, [b"X: y"] * 101):
        status, body = ask(request(b"/v1/echo", *headers))
        assert status == 431
        assert "head" in json.loads(body)["error"]["message"]


def test_a_host_may_have_a_port_and_be_an_address(ask: Ask) -> None:
    for host in (b"localhost:8000", b"[::1]:80", b"192.0.2.1", b"a_b.example"):
        assert ask(request(b"/v1/echo", b"Host: " + host, method=b"GET"))[0] == 200


@pytest.mark.parametrize("target", [b"http://localhost/v1/echo", b"*", b"localhost:80"])
def test_the_target_is_a_path(ask: Ask, target: bytes) -> None:
    assert ask(request(target, method=b"GET"))[0] in (400, 404)


def test_a_url_that_is_too_long_is_refused(ask: Ask) -> None:
    assert ask(request(b"/v1/echo?" + b"q" * 8200, method=b"GET"))[0] == 414
    assert ask(request(b"/" + b"q" * 8200, method=b"GET"))[0] == 414


def test_a_body_that_grows_too_large_is_cut(address: tuple[str, int]) -> None:
    with closing(socket.create_connection(address, timeout=10)) as connection:
        connection.sendall(request(b"/v1/echo", b"Transfer-Encoding: chunked"))
        with suppress(OSError):  # the server may close while there is still something to send
            for _ in range(100):
                connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        status, body = answer(connection)
        assert status == 413
        assert b"larger than 10000 bytes" in body
        assert closed(connection)


def closed(connection: socket.socket) -> bool:
    """Whether the other end has hung up, in peace or with what it did not read."""
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def test_a_body_that_does_not_come_is_not_waited_for(address: tuple[str, int]) -> None:
    with closing(socket.create_connection(address, timeout=10)) as connection:
        connection.sendall(request(b"/v1/echo", b"Content-Length: 100") + b"x")
        status, body = answer(connection)
        assert (status, b"did not come in time" in body) == (408, True)
        assert closed(connection)


def test_who_is_answered_before_the_body_was_read_is_not_listened_to_any_more(address: tuple[str, int]) -> None:
    with closing(socket.create_connection(address, timeout=10)) as connection:
        connection.sendall(request(b"/deaf", b"Content-Length: 9000"))
        assert answer(connection)[0] == 401
        assert closed(connection)


def test_one_connection_serves_several_requests(address: tuple[str, int]) -> None:
    with closing(socket.create_connection(address, timeout=10)) as connection:
        for size in (3, 10_000, 0):
            connection.sendall(request(body=b"x" * size))
            assert answer(connection) == (200, str(size).encode())


def test_thousands_of_requests_in_a_row_are_answered_one_by_one(address: tuple[str, int]) -> None:
    with closing(socket.create_connection(address, timeout=20)) as connection:
        many = request(method=b"GET") * 2000
        sender = threading.Thread(target=connection.sendall, args=(many,))
        sender.start()
        found = b""
        while found.count(b"HTTP/1.1 200") < 2000 and (more := connection.recv(65536)):
            found += more
        sender.join()
        assert found.count(b"HTTP/1.1 200") == 2000


def test_each_protocol_is_refused_in_its_own_words(ask: Ask) -> None:
    openai = ask(request(b"/v1/chat/completions", b"Content-Length: 20000"))
    assert openai[1].startswith(b'{"error":{"message":')
    assert ask(request(b"/v1/messages", b"Content-Length: 20000"))[1].startswith(b'{"type":"error","error":')
    assert ask(request(b"/api/chat", b"Content-Length: 20000"))[1].startswith(b'{"error":"the body')
