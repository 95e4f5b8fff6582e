"""Whatever a client sends, it gets an answer that says what was wrong, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from serving import Running, chat

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BAD: list[Any] = ["1", True, [], {}, 1.5, -(2**31), 2**64, 2**70]
# Of each number: the smallest and the largest that are taken, and what is not.
NUMBERS: list[tuple[str, str, int | float, int | float]] = [
    (CHAT, "n", 1, 8),
    (CHAT, "top_logprobs", 0, 20),
    (CHAT, "top_k", 0, 1 << 20),
    (CHAT, "seed", -(2**63), 2**63 - 1),
    (CHAT, "priority", 0, 1000),
    (CHAT, "max_tokens", 1, 512),
    (CHAT, "max_completion_tokens", 1, 512),
    (CHAT, "penalty_window", 1, 1 << 30),
    (CHAT, "dry_allowed_length", 1, 1 << 30),
    (TEXT, "n", 1, 8),
    (TEXT, "logprobs", 0, 20),
    (TEXT, "max_tokens", 1, 512),
    (EMBED, "dimensions", 1, 256),
    (CHAT, "temperature", 0.0, 100.0),
    (CHAT, "top_p", 0.0, 1.0),
    (CHAT, "min_p", 0.0, 1.0),
    (CHAT, "typical_p", 0.0, 1.0),
    (CHAT, "presence_penalty", -2.0, 2.0),
    (CHAT, "frequency_penalty", -2.0, 2.0),
    (CHAT, "repetition_penalty", 0.01, 100.0),
    (CHAT, "dry_multiplier", 0.0, 100.0),
    (CHAT, "dry_base", 1.0, 100.0),
    (CHAT, "deadline_s", 0.0, 86400.0),
]


def asked(path: str, **more: Any) -> dict[str, Any]:
    """A request that is right but for `more`."""
    if path == EMBED:
        return {"model": "stories", "input": "A cat.", **more}
    if path == TEXT:
        return {"model": "stories", "prompt": "A cat", "max_tokens": 1, **more}
    given = {**chat("A cat", max_tokens=1), **more}
    if "top_logprobs" in more:
        given["logprobs"] = True
    if "max_completion_tokens" in more:
        del given["max_tokens"]
    return given


@pytest.mark.parametrize(("path", "name", "low", "high"), NUMBERS)
def test_every_number_has_its_range(server: Running, path: str, name: str, low: float, high: float) -> None:
    step: float = 1 if isinstance(low, int) else 0.5
    bad = [low - step, high + step, *(value for value in BAD if not (isinstance(value, float) and step != 1))]
    bad = [
        value
        for value in bad
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
    ]
    for value in bad:
        reply = server.post(path, asked(path, **{name: value}))
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, name), value
        if not isinstance(value, str | bool | list | dict):
            assert "expected" in error["message"]
    for value in (low, high):
        more = {name: value, "deadline_s": 0.0} if path == CHAT and name != "deadline_s" else {name: value}
        if name in ("max_tokens", "max_completion_tokens"):
            more[name] = min(value, 4)
        reply = server.post(path, asked(path, **more))
        assert reply.status_code == 200, (value, reply.text)


WRONG: dict[str, tuple[str, Any, str | None]] = {
    "no messages": (CHAT, {"model": "stories"}, "messages"),
    "an empty conversation": (CHAT, chat(messages=[]), "messages"),
    "too many messages": (CHAT, chat(messages=[{"role": "user", "content": "x"}] * 2049), "messages"),
    "a role that is none": (CHAT, chat(messages=[{"role": "king", "content": "x"}]), "messages[0].role"),
    "no content": (CHAT, chat(messages=[{"role": "user", "content": None}]), "messages[0].content"),
    "an image": (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]),
        "messages[0].content[0].type",
    ),
    "a message's unknown field": (
        CHAT,
        chat(messages=[{"role": "user", "content": "x", "weight": 1}]),
        "messages[0].weight",
    ),
    "a conversation longer than the context": (CHAT, chat("word " * 4000), "prompt"),
    "ids that are none": (TEXT, {"model": "stories", "prompt": [-1]}, "prompt[0]"),
    "ids beyond the vocabulary": (TEXT, {"model": "stories", "prompt": [5000]}, "prompt"),
    "ids of 64 bits": (TEXT, {"model": "stories", "prompt": [2**63]}, "prompt[0]"),
    "ids and texts": (TEXT, {"model": "stories", "prompt": [1, "a"]}, "prompt"),
    "no ids": (TEXT, {"model": "stories", "prompt": [[]]}, "prompt[0]"),
    "too many stops": (CHAT, chat(stop=["a"] * 17), "stop"),
    "an empty stop": (CHAT, chat(stop=[""]), "stop[0]"),
    "a stop of a megabyte": (CHAT, chat(stop="x" * 900_000), "stop"),
    "biases without number": (CHAT, chat(logit_bias={str(i): 1 for i in range(1025)}), "logit_bias"),
    "a bias of 1e9": (CHAT, chat(logit_bias={"1": 1e9}), "logit_bias[...]"),
    "a bias of a word": (CHAT, chat(logit_bias={"cat": 1}), "logit_bias"),
    "a bias beyond the vocabulary": (CHAT, chat(logit_bias={"1048000": 1}), "logit_bias"),
    "a template": (CHAT, chat(chat_template="{{ 1 }}"), "chat_template"),
    "variables of a template": (CHAT, chat(chat_template_kwargs={}), "chat_template_kwargs"),
    "a best of many": (TEXT, {"model": "stories", "prompt": "x", "best_of": 4}, "best_of"),
    "an empty text": (EMBED, {"model": "stories", "input": [""]}, "input"),
    "a tool without a name": (CHAT, chat(tools=[{"type": "function", "function": {}}]), "tools[0].function.name"),
    "too many tools": (
        CHAT,
        chat(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]),
        "tools",
    ),
    "a format that is none": (CHAT, chat(response_format={"type": "xml"}), "response_format.type"),
    "logprobs without logprobs": (CHAT, chat(top_logprobs=1), "top_logprobs"),
    "nothing at all": (CHAT, {}, None),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(server: Running, name: str) -> None:
    path, body, param = WRONG[name]
    reply = server.post(path, body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) <= 500
    if param is not None:
        assert error["param"] == param


def nested(depth: int) -> Any:
    found: Any = {"type": "string"}
    for _ in range(depth):
        found = {"type": "array", "items": found}
    return found


@pytest.mark.parametrize(
    "schema",
    [
        nested(70),
        5000,
        {"$ref": "#"},
        {"type": "string", "pattern": "(" * 500},
        {"type": "string", "pattern": "a{1,2000000000}"},
        {"type": "string", "pattern": "((a{1,100}){1,100}){1,100}"},
        {"enum": []},
        {"type": "elephant"},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_a_schema_that_cannot_be_compiled_is_refused_soon(server: Running, schema: Any) -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = {**chat(), "response_format": format_}
    data = _deep(body, schema) if isinstance(schema, int) else json.dumps(body).encode()
    began = time.perf_counter()
    reply = server.post(CHAT, data)
    assert reply.status_code == 400, reply.text
    assert time.perf_counter() - began < 5


def _deep(body: Any, depth: int) -> bytes:
    """A request with a schema that is too deep to be written by the json module."""
    deep = (
        b'{"type": "json_schema", "json_schema": {"name": "x", "schema": '
        + b'{"items":' * depth
        + b"{}"
        + b"}" * depth
        + b"}}"
    )
    return json.dumps({**body, "response_format": "X"}).encode().replace(b'"X"', deep)


RAW: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "half of it": b'{"model": "stories"',
    "two keys that are one": b'{"model": "stories", "model": "stories"}',
    "NaN": b'{"model": "stories", "temperature": NaN}',
    "Infinity": b'{"model": "stories", "temperature": -Infinity}',
    "1e999": b'{"model": "stories", "temperature": 1e999}',
    "a mark of byte order": b'\xef\xbb\xbf{"model": "stories"}',
    "no UTF-8": b'{"model": "\xff"}',
    "half of a character": b'{"model": "stories", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "a list": b"[]",
    "a number of many digits": b'{"n": ' + b"9" * 5000 + b"}",
    "a deep list": b"[" * 100_000,
    "a deep object": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("name", RAW)
def test_json_of_more_than_one_meaning_is_refused(server: Running, name: str) -> None:
    began = time.perf_counter()
    reply = server.post(CHAT, RAW[name])
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]
    assert time.perf_counter() - began < 1


def test_other_bodies_are_refused(server: Running) -> None:
    body = json.dumps(chat()).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert server.post(CHAT, body, **{"Content-Type": kind}).status_code == 415
    large = server.post(CHAT, b" " * (2 << 20))
    assert large.status_code == 413
    assert large.json()["error"]["code"] == "request_too_large"


def test_a_megabyte_of_one_character_is_refused_soon(server: Running) -> None:
    began = time.perf_counter()
    reply = server.post(CHAT, chat("A" * 1_000_000))
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert time.perf_counter() - began < 5


def test_what_is_not_there_is_not_found(server: Running) -> None:
    for path in ("/x", "//v1/models", "/V1/models", "/v1/../v1/models", "/v1/models;x", "/%2e%2e/healthz", "/v1/"):
        with socket.create_connection((server.host, server.port), timeout=20) as line:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert line.recv(100).split()[1] == b"404", path
    assert server.client.get(CHAT).status_code == 405
    assert server.client.post("/healthz").status_code == 405


def test_pages_of_other_sites_are_kept_out(server: Running) -> None:
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Host": "localhost.evil.example:80"},
    ):
        assert server.client.get("/v1/models", headers=headers).status_code == 403
    assert server.client.get("/v1/models", headers={"Host": "localhost:8000"}).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 60_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * (1 << 20) + b"\r\n\r\n",
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
    ids=["60,000 headers", "a long header", "a long path", "length -1", "length 2^64", "a bad chunk", "NUL", "TLS"],
)
def test_requests_that_are_none_end_the_connection(server: Running, data: bytes) -> None:
    with socket.create_connection((server.host, server.port), timeout=20) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            answer = line.recv(200)
        except OSError:  # it was closed while we were still sending
            answer = b""
    assert answer == b"" or answer.split()[1] in (b"400", b"413", b"414", b"431", b"404")
    assert server.client.get("/healthz").status_code == 200
