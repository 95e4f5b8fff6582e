"""Clients that leave, that do not read and that are too many; models that come and go; and the end of the server."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, chat, events, running, talker

from bitnet_core.formats import load, save_adapter
from bitnet_core.testing import random_adapter
from bitnet_inference import LLM
from bitnet_inference.llm import BUILT_IN
from bitnet_inference.server import Models, Source, connection, make_app, make_server, sse
from bitnet_inference.server.gate import Endpoint

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"max_tokens": 450, "ignore_eos": True}


def slowed(llm: LLM, seconds: float) -> LLM:
    """A model whose steps take at least so long."""
    forward = llm._runner.forward

    def slow(steps: Any) -> Any:
        time.sleep(seconds)
        return forward(steps)

    llm._runner.forward = slow  # type: ignore[method-assign]
    return llm


def raw(body: Any) -> bytes:
    """A request as bytes."""
    data = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def read_all(line: socket.socket) -> bytes:
    found = []
    with suppress(ConnectionError):
        while data := line.recv(1 << 16):
            found.append(data)
    return b"".join(found)


def until(found: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait for something; how long it took."""
    began = time.monotonic()
    while not found():
        assert time.monotonic() - began < seconds, "it never came"
        time.sleep(0.002)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def slow() -> Iterator[tuple[Running, LLM]]:
    with slowed(LLM(talker(), threads=1), 0.004) as llm, running({"stories": llm}) as server:
        yield server, llm


def idle(server: Running, llm: LLM) -> Callable[[], bool]:
    return lambda: not len(server.app.state.works) and not llm.engine.stats().running and not llm.engine.stats().waiting


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request(slow: tuple[Running, LLM], stream: bool) -> None:
    server, llm = slow
    data = raw(chat(stream=stream, **LONG))
    with socket.create_connection((server.host, server.port)) as line:
        line.sendall(data)
        until(lambda: llm.engine.stats().running == 1)
        if stream:
            assert b"200" in line.recv(1000)
    assert until(idle(server, llm)) < 1.0  # all of it would take two seconds


def test_clients_that_leave_at_any_moment_leave_nothing_behind(slow: tuple[Running, LLM]) -> None:
    server, llm = slow
    chance = random.Random(4)

    def one(number: int) -> None:
        data = raw(chat(f"Once {number}", stream=number % 2 == 0, **LONG))
        with socket.create_connection((server.host, server.port)) as line:
            line.sendall(data[: chance.randrange(len(data))] if number % 5 == 0 else data)
            time.sleep(chance.random() * 0.1)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(200)))
    assert until(idle(server, llm)) < 5.0
    assert server.post(CHAT, chat()).status_code == 200


def test_a_client_that_does_not_read_is_dropped_and_harms_nobody(
    slow: tuple[Running, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, llm = slow
    monkeypatch.setattr(sse, "STALL_S", 0.3)
    data = raw(chat(stream=True, n=8, logprobs=True, top_logprobs=20, **LONG))
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((server.host, server.port))
        line.sendall(data)
        until(lambda: len(server.app.state.works) == 1)
        reply = server.post(CHAT, chat(stream=True))
        assert len(events(reply.text)) >= 9
        until(idle(server, llm))
        assert b"[DONE]" not in read_all(line)  # what lay in the system's buffers, and no end


def test_too_many_requests_are_refused_and_told_when_to_come_again(slow: tuple[Running, LLM]) -> None:
    server, llm = slow
    queue, llm.engine.queue = llm.engine.queue, 4
    try:
        with ThreadPoolExecutor(24) as pool:
            replies = list(pool.map(lambda _: server.post(CHAT, chat(max_tokens=40, ignore_eos=True)), range(48)))
    finally:
        llm.engine.queue = queue
    found = {reply.status_code for reply in replies}
    assert found == {200, 503}
    for reply in replies:
        if reply.status_code == 503:
            assert int(reply.headers["Retry-After"]) >= 1
            assert reply.json()["error"]["code"] == "overloaded"
    assert server.post(CHAT, chat()).status_code == 200


def test_those_at_work_finish_before_the_server_stops() -> None:
    with slowed(LLM(talker(), threads=1), 0.004) as llm:
        server = Running(make_app(Models({"stories": llm})))
        with ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(server.post, CHAT, chat(stream=True, max_tokens=150, ignore_eos=True)) for _ in range(4)
            ]
            until(lambda: llm.engine.stats().running == 4)
            server.server.should_exit = True
            replies = [one.result() for one in asked]
            until(lambda: not server._thread.is_alive())
        for reply in replies:
            assert events(reply.text)[-1]["choices"][0]["finish_reason"] == "length"
            assert reply.text.endswith("data: [DONE]\n\n")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((server.host, server.port), timeout=1)
        server.stop()


def test_those_who_take_too_long_are_cut_with_an_error() -> None:
    with slowed(LLM(talker(), threads=1), 0.01) as llm:
        server = Running(make_app(Models({"stories": llm}), drain_s=0.2))
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(server.post, CHAT, chat(stream=number % 2 == 0, **LONG)) for number in range(4)]
            until(lambda: llm.engine.stats().running == 4)
            began = time.monotonic()
            server.server.should_exit = True
            replies = [one.result() for one in asked]
            until(lambda: not server._thread.is_alive())
        assert time.monotonic() - began < 3
        for reply in replies:
            error = (events(reply.text)[-1] if reply.status_code == 200 else reply.json())["error"]
            assert error["code"] == "stopping"
        assert sorted(reply.status_code for reply in replies) == [200, 200, 503, 503]
        server.stop()


def test_a_server_that_stops_is_not_ready() -> None:
    with LLM(threads=1) as llm, running({"stories": llm}) as server:
        assert server.client.get("/readyz").status_code == 200
        server.app.state.works.draining = True
        assert server.client.get("/readyz").status_code == 503
        assert server.client.get("/healthz").status_code == 200
        assert server.post(CHAT, chat()).status_code == 503


def test_models_are_loaded_when_asked_for_and_unloaded_when_idle() -> None:
    models = Models({"stories": Source(options={"threads": 1})}, idle_s=0.2)
    with running(models) as server:
        assert not models.states()[0].loaded
        assert server.post(CHAT, chat()).status_code == 200
        assert models.states()[0].loaded
        until(lambda: not models.states()[0].loaded)
        assert server.post(CHAT, chat()).status_code == 200


def test_a_model_makes_room_for_another() -> None:
    source = Source(model=BUILT_IN, memory=200 << 20, options={"threads": 1})
    models = Models({"stories": source, "other": source, "third": source}, memory=400 << 20)
    with running(models) as server:
        for name in ("stories", "other", "stories", "third"):
            assert server.post(CHAT, {**chat(), "model": name}).status_code == 200
        loaded = {state.name: state.loaded for state in models.states()}
        assert loaded == {"stories": True, "other": False, "third": True}  # the one used longest ago went
        assert sum(state.memory for state in models.states()) <= 400 << 20


def test_a_model_at_work_is_not_unloaded_for_another() -> None:
    source = Source(model=BUILT_IN, memory=300 << 20, options={"threads": 1})
    models = Models({"stories": source, "other": source}, memory=400 << 20)
    with running(models) as server:
        held = server.call(models.hold("stories"))
        reply = server.post(CHAT, {**chat(), "model": "other"})
        assert reply.status_code == 503
        assert "Retry-After" in reply.headers
        server.loop.call_soon_threadsafe(held.release)
        until(lambda: server.post(CHAT, {**chat(), "model": "other"}).status_code == 200)


def test_a_model_that_cannot_be_loaded_harms_no_other(tmp_path: Path) -> None:
    with LLM(threads=1) as llm, running({"stories": llm, "broken": Source(model=tmp_path)}) as server:
        reply = server.post(CHAT, {**chat(), "model": "broken"})
        assert reply.status_code == 503
        assert str(tmp_path) not in reply.text
        assert server.post(CHAT, chat()).status_code == 200


def test_nothing_holds_the_loop_up(slow: tuple[Running, LLM]) -> None:
    server, _ = slow
    lags: list[float] = []
    stop = threading.Event()

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            began = loop.time()
            await asyncio.sleep(0.002)
            lags.append(loop.time() - began - 0.002)

    watching = asyncio.run_coroutine_threadsafe(watch(), server.loop)
    schema = {"type": "object", "properties": {f"p{i}": {"enum": [f"v{j}" for j in range(20)]} for i in range(100)}}
    formed = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for body in (
        chat("word " * 150_000),
        chat("A" * 900_000),
        {**chat(max_tokens=2), "response_format": formed},
        chat(logprobs=True, top_logprobs=20, n=8),
        {"model": "stories", "prompt": "word " * 100_000},
    ):
        server.post(CHAT if "messages" in body else "/tokenize", body)
    stop.set()
    watching.result(10)
    lags.sort()
    assert lags[len(lags) // 2] < 0.05  # the machine may be busy; what must not be is a loop that stands still


def test_other_machines_are_let_in_only_with_keys() -> None:
    with LLM(threads=1) as llm:
        app = make_app(Models({"stories": llm}))
        for host in ("0.0.0.0", "192.168.1.1", "::", "example.org"):  # noqa: S104
            with pytest.raises(ValueError, match="host: expected an address of this machine alone"):
                make_server(app, host)
        for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
            make_server(app, host)


def test_a_route_needs_a_role() -> None:
    with pytest.raises(TypeError, match="role"):
        Endpoint(path="/x", handler=lambda _: None, summary="")  # type: ignore[call-arg, arg-type, return-value]


def test_no_address_of_a_client_is_fetched(slow: tuple[Running, LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = slow
    asked: list[Any] = []
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        client.get("/healthz")  # the connection stands
        monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
        reply = client.post(CHAT, json={**chat(), "messages": [{"role": "user", "content": [part]}]})
    assert reply.status_code == 400
    assert not asked


def test_a_head_that_does_not_come_is_not_waited_for(
    slow: tuple[Running, LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = slow
    monkeypatch.setattr(connection, "HEADER_S", 0.2)
    for data in (b"", b"GET /heal"):
        with socket.create_connection((server.host, server.port), timeout=20) as line:
            line.sendall(data)
            answer = read_all(line)
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_is_cut_short_leaves_nothing_behind(slow: tuple[Running, LLM]) -> None:
    server, llm = slow
    with socket.create_connection((server.host, server.port)) as line:
        line.sendall(raw(chat())[:-10])
    until(idle(server, llm))
    assert server.client.get("/healthz").status_code == 200


def test_an_adapter_is_a_model_of_its_own_name(tmp_path: Path) -> None:
    spec = load(BUILT_IN).spec
    save_adapter(random_adapter(spec, rank=4), tmp_path / "odd", spec)
    models = Models({"stories": Source(adapters={"odd": tmp_path / "odd"}, options={"threads": 1})})
    with running(models) as server:
        assert [one["id"] for one in server.client.get("/v1/models").json()["data"]] == ["stories", "stories:odd"]
        logprobs, vectors = [], []
        for name in ("stories", "stories:odd"):
            reply = server.post(CHAT, {**chat(temperature=0, logprobs=True), "model": name})
            logprobs.append([one["logprob"] for one in reply.json()["choices"][0]["logprobs"]["content"]])
            body = {"model": name, "input": "A cat sat.", "encoding_format": "float"}
            vectors.append(server.post("/v1/embeddings", body).json()["data"][0]["embedding"])
        assert logprobs[0] != logprobs[1]
        assert vectors[0] != vectors[1]
        assert server.post(CHAT, {**chat(), "model": "stories:even"}).status_code == 404


def test_those_who_hang_up_leave_no_lines_in_the_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    asked = raw(chat(stream=True, n=8, **LONG))
    for _ in range(20):
        with socket.create_connection((server.host, server.port), timeout=20) as line:
            line.sendall(asked)
            line.recv(2000)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets it
    until(lambda: not len(server.app.state.works))
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
