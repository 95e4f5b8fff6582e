"""Keys at the server's door."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import websockets
from serving import Running, chat, events, running, talker
from starlette.routing import Route

from bitnet_inference import LLM
from bitnet_inference.server.store import Store
from bitnet_inference.server.tenants import Tenants

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Tenants]]:
    place: Path = tmp_path_factory.mktemp("keys") / "keys.db"
    with (
        Store(place) as store,
        Tenants(store, tries_per_minute=1e9) as tenants,
        LLM(talker(), threads=1) as llm,
        running({"stories": llm, "secret": llm}, tenants=tenants) as server,
    ):
        yield server, tenants


def key(tenants: Tenants, **settings: object) -> dict[str, str]:
    assert tenants.keys is not None
    _, text = tenants.keys.create("somebody", **settings)
    tenants.refresh()
    return {"Authorization": f"Bearer {text}"}


def test_every_route_but_those_of_probes_needs_a_key(keyed: tuple[Running, Tenants]) -> None:
    server, _ = keyed
    free = set()
    for route in server.app.routes:
        if not isinstance(route, Route):
            continue
        path = route.path.replace("{id}", "x").replace("{model:path}", "x").replace("{key}", "x")
        for method in route.methods or ():
            status = server.client.request(method, path, headers={"Content-Type": "application/json"}).status_code
            if status != 401:
                free.add((route.path, status))
    assert free == {("/health", 200), ("/healthz", 200), ("/readyz", 200)}


def test_wrong_keys_are_told_nothing(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    good = key(tenants)
    wrong = [
        {"Authorization": "Bearer x"},
        {"Authorization": good["Authorization"][:-1] + "_"},
        {"x-api-key": "y" * 9000},
    ]
    replies = [server.post(CHAT, chat(), **headers) for headers in wrong]
    assert {reply.status_code for reply in replies} == {401}
    assert len({reply.text for reply in replies}) == 1
    assert server.post(f"{CHAT}?key={good['Authorization'][7:]}", chat()).status_code == 401
    assert server.post(CHAT, chat(), **good).status_code == 200
    assert server.post(CHAT, chat(), **{"x-api-key": good["Authorization"][7:]}).status_code == 200


def test_a_key_reads_what_its_role_lets_it(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    reader, user, admin = key(tenants, role="read-only"), key(tenants), key(tenants, role="admin")
    assert server.client.get("/v1/models", headers=reader).status_code == 200
    assert server.post(CHAT, chat(), **reader).status_code == 403
    assert server.client.get("/admin/load", headers=user).status_code == 403
    assert server.client.get("/admin/load", headers=admin).status_code == 200


def test_a_forbidden_model_is_not_there(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    headers = key(tenants, models=["stories"])
    assert [one["id"] for one in server.client.get("/v1/models", headers=headers).json()["data"]] == ["stories"]
    forbidden = server.post(CHAT, {**chat(), "model": "secret"}, **headers)
    unknown = server.post(CHAT, {**chat(), "model": "nobody"}, **headers)
    assert forbidden.status_code == unknown.status_code == 404
    assert forbidden.text.replace("secret", "nobody") == unknown.text


def test_what_is_anothers_is_not_there(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    mine, theirs = key(tenants), key(tenants)
    reply = server.post("/v1/responses", {"model": "stories", "input": "Hi", "max_output_tokens": 2}, **mine).json()
    form = {"purpose": (None, "batch"), "file": ("x.jsonl", b"{}")}
    file = server.client.post("/v1/files", files=form, headers=mine).json()
    for path in (f"/v1/responses/{reply['id']}", f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
        assert server.client.get(path, headers=mine).status_code == 200
        assert server.client.get(path, headers=theirs).status_code == 404
    made = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    assert server.post("/v1/batches", made, **theirs).status_code == 404


def test_a_limit_is_held_and_says_when_to_come_again(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    headers = key(tenants, requests_per_minute=2)
    found = [server.post(CHAT, chat(), **headers) for _ in range(3)]
    assert [reply.status_code for reply in found] == [200, 200, 429]
    assert int(found[2].headers["Retry-After"]) >= 1
    assert found[2].json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(("path", "name"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_a_request_is_weighed_by_its_tokens_and_not_its_letters(
    keyed: tuple[Running, Tenants], llm: LLM, path: str, name: str
) -> None:
    server, tenants = keyed
    several = ["Once upon a time there was a little girl named Lily. ", "She was happy. " * 8]
    size = sum(len(llm.tokenizer.encode(text)) for text in several) + (2 * 5 if name == "prompt" else 0)
    asked = {"model": "stories", name: several} | ({"max_tokens": 5} if name == "prompt" else {})
    assert server.post(path, asked, **key(tenants, tokens_per_minute=size)).status_code == 200
    refused = server.post(path, asked, **key(tenants, tokens_per_minute=size - 1))
    assert refused.status_code == 429
    assert f"may take {size} tokens" in refused.json()["error"]["message"]
    assert not len(server.app.state.works)


def test_a_prompt_that_is_too_long_is_told_so_and_not_to_come_again(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    headers = key(tenants, tokens_per_minute=100)
    reply = server.post("/v1/completions", {"model": "stories", "prompt": "word " * 5000}, **headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_budget_is_charged_with_what_was_used(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    assert tenants.keys is not None
    made, text = tenants.keys.create("spender", budget=1000)
    tenants.refresh()
    headers = {"Authorization": f"Bearer {text}"}
    used = 0
    for stream in (True, False):
        options = {"stream_options": {"include_usage": True}} if stream else {}
        reply = server.post(CHAT, chat(stream=stream, **options), **headers)
        body = events(reply.text)[-1] if stream else reply.json()
        used += body["usage"]["total_tokens"]
    assert tenants.ledger is not None
    until = time.monotonic() + 10
    admin = key(tenants, role="admin")
    while time.monotonic() < until:
        rows = server.client.get("/admin/usage", headers=admin).json()
        if str(used) in str(rows) and made.id in str(rows):
            return
        time.sleep(0.05)
    raise AssertionError(f"{used} tokens of {made.id} are not in {rows}")


def test_a_revoked_key_ends_its_streams(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    assert tenants.keys is not None
    made, text = tenants.keys.create("short-lived")
    tenants.refresh()
    headers = {"Authorization": f"Bearer {text}", "Content-Type": "application/json"}
    begun = threading.Event()
    found: list[str] = []

    def read() -> None:
        asked = {**chat(stream=True, max_tokens=400, ignore_eos=True), "n": 8}
        with server.client.stream("POST", CHAT, json=asked, headers=headers) as reply:
            for line in reply.iter_lines():
                begun.set()
                found.append(line)

    thread = threading.Thread(target=read)
    thread.start()
    begun.wait(20)
    tenants.keys.revoke(made.id)
    tenants.refresh()
    thread.join(20)
    assert not thread.is_alive()
    assert server.post(CHAT, chat(), Authorization=f"Bearer {text}").status_code == 401
    assert "the key was revoked" in "".join(found[-4:])


def test_a_websocket_needs_a_key(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    address, headers = f"ws://{server.host}:{server.port}/v1/stream", key(tenants)

    async def talk(headers: dict[str, str]) -> bool:
        async with websockets.connect(address, additional_headers=headers) as line:
            await line.send(json.dumps(chat()))
            return "choices" in json.loads(await line.recv())

    assert asyncio.run(talk(headers))
    with pytest.raises(websockets.InvalidStatus, match="403"):
        asyncio.run(talk({}))


def test_a_batch_of_a_revoked_key_ends(keyed: tuple[Running, Tenants]) -> None:
    server, tenants = keyed
    assert tenants.keys is not None
    made, text = tenants.keys.create("batcher")
    tenants.refresh()
    headers = {"Authorization": f"Bearer {text}"}
    asked = {"method": "POST", "url": CHAT, "body": chat(max_tokens=300, ignore_eos=True)}
    lines = "\n".join(json.dumps({"custom_id": str(number), **asked}) for number in range(300)).encode()
    form = {"purpose": (None, "batch"), "file": ("x.jsonl", lines)}
    file = server.client.post("/v1/files", files=form, headers=headers).json()
    wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
    assert server.post("/v1/batches", wanted, **headers).status_code == 200
    [batch] = server.app.state.batches.of(made.id)
    tenants.keys.revoke(made.id)
    tenants.refresh()
    until = time.monotonic() + 20
    while not batch.ended and time.monotonic() < until:
        time.sleep(0.01)
    assert batch.status == "cancelled"
    assert batch.completed < 300
