"""The server on several machines: Ray Serve runs its replicas and sends each conversation to the one that knows it.

`serve run serve.yaml`, with this folder as the working directory; needs `pip install 'ray[serve]>=2.60'`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from bitnet_inference.server import Models, Refusal, make_app, page
from bitnet_inference.server.metrics import Metrics
from bitnet_inference.server.store import Store
from bitnet_inference.server.tenants import Tenants

Message = dict[str, Any]

_LARGEST = 1 << 20  # bytes of a body; files of batches are larger, and are the single server's work
_TRIES = 3  # replicas that may die of a request, or beside it
_STREAMS = (b"text/event-stream", b"application/x-ndjson")  # answers that are passed on while they come
_WAITING = 64  # pieces that may wait for a slow reader
_BEGINNING = 1024  # characters of a text without turns that say which conversation it is
# What a client keeps at a server lies in one replica: all of that client's requests for it go there.
_KEPT = ("/v1/responses", "/v1/files", "/v1/batches")


class Affinity(RequestRouter):
    """Each conversation has its replica, by rendezvous hashing: when one dies, only its own conversations move.

    A replica with more than `slack` requests above the idlest one's is passed by, except by what only it can answer.
    """

    def initialize_state(self, slack: int = 16) -> None:
        """Take the router's settings."""
        self._slack = slack

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas in the order in which they are to be asked."""
        wanted = {} if pending_request is None else pending_request.kwargs
        conversation = wanted.get("conversation", "")
        if not conversation:
            return [candidate_replicas]  # the idlest of all
        ranked = sorted(candidate_replicas, key=lambda one: _rank(conversation, one), reverse=True)
        if wanted.get("pinned"):
            return [ranked[:1]]
        queues = {one.replica_id: self.replica_queue_len_cache.get(one.replica_id) or 0 for one in ranked}
        limit = min(queues.values(), default=0) + self._slack
        return [[one] for one in sorted(ranked, key=lambda one: queues[one.replica_id] > limit)]


def _rank(conversation: str, replica: RunningReplica) -> bytes:
    return hashlib.sha256(f"{conversation} {replica.replica_id.unique_id}".encode()).digest()


@serve.deployment(
    max_ongoing_requests=64,
    graceful_shutdown_timeout_s=40,
    health_check_period_s=5,
    health_check_timeout_s=10,
    request_router_config=RequestRouterConfig(request_router_class=Affinity),
)
class Replica:
    """The whole server, without a socket of its own."""

    async def __init__(self, settings: Mapping[str, Any]) -> None:
        self._stack = AsyncExitStack()
        metrics = Metrics()
        keys, api_key = settings.get("keys"), os.environ.get("BITNET_SERVE_API_KEY")
        if not keys and not api_key:
            raise ValueError("keys: expected a database of keys, or BITNET_SERVE_API_KEY to be set")
        store = None if not keys else self._stack.enter_context(Store(keys))
        tenants = self._stack.enter_context(Tenants(store, shared_key=api_key, charged=metrics.charged))
        models = Models(settings.get("models"))
        self._app = make_app(models, tenants=tenants, metrics=metrics, endpoints=page.ENDPOINTS)
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        self._id = serve.get_replica_context().replica_id.unique_id

    async def __del__(self) -> None:
        await self._stack.aclose()

    async def answer(self, scope: dict[str, Any], body: bytes, **_: Any) -> AsyncIterator[Message]:
        """What the server sends, message by message; `conversation` and `pinned` were the router's to read."""
        messages: asyncio.Queue[Message] = asyncio.Queue(_WAITING)
        gone = asyncio.Event()
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for message in given:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.create_task(self._app({**scope, "state": {}}, receive, messages.put))
        try:
            more = True
            while more:
                message = await _next(messages, work)
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"x-replica", self._id.encode())]
                more = message["type"] == "http.response.start" or message.get("more_body", False)
                yield message
        finally:
            gone.set()
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work


async def _next(messages: asyncio.Queue[Message], work: asyncio.Task[None]) -> Message:
    """The next message, or why there is none."""
    waiting = asyncio.create_task(messages.get())
    try:
        await asyncio.wait((waiting, work), return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done() and messages.empty():
            work.result()
            raise RuntimeError("the server has ended without an answer")
        return await waiting
    finally:
        waiting.cancel()


@serve.deployment(max_ongoing_requests=1000)
class Front:
    """Takes requests, and passes them on to the replica that has their beginning in its cache."""

    def __init__(self, replicas: Any) -> None:
        self._replicas = replicas.options(method_name="answer", stream=True)

    async def __call__(self, request: Request) -> Response:
        """Answer as the replica does."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _LARGEST:
                return _refuse(Refusal(413, f"the body is larger than {_LARGEST} bytes"))
        conversation, pinned = conversation_of(request, bytes(body))
        for _ in range(_TRIES if _repeatable(request, pinned) else 1):
            pieces = self._replicas.remote(_scope(request), bytes(body), conversation=conversation, pinned=pinned)
            # A replica that dies loses only what was begun before the client's eyes; the rest, another one answers.
            with suppress(RayActorError):
                return await _answer(pieces)
        return _refuse(Refusal(503, "the replica is gone; try again"))


async def _answer(pieces: Any) -> Response:
    head = await anext(pieces)
    kind = next((value for name, value in head["headers"] if name == b"content-type"), b"")
    if kind.startswith(_STREAMS):
        response: Response = StreamingResponse(_passed(pieces, kind), head["status"])
    else:
        response = Response(b"".join([message.get("body", b"") async for message in pieces]), head["status"])
    response.raw_headers = head["headers"]
    return response


async def _passed(pieces: Any, kind: bytes) -> AsyncIterator[bytes]:
    try:
        async for message in pieces:
            yield message.get("body", b"")
    except RayActorError:
        refusal = Refusal(503, "the replica is gone; try again")
        if kind.startswith(_STREAMS[0]):
            yield b"data: " + json.dumps(refusal.to_openai()).encode() + b"\n\n"
        else:
            yield json.dumps(refusal.to_ollama()).encode() + b"\n"
    finally:
        pieces.cancel()


def _repeatable(request: Request, pinned: bool) -> bool:
    """Whether a request that may have been half done can be done again: texts can, and what only looks."""
    return request.method == "GET" or (request.url.path.startswith(("/v1/", "/api/")) and not pinned)


def conversation_of(request: Request, body: bytes) -> tuple[str, bool]:
    """What names the conversation that a request goes on with, and whether only its own replica can answer."""
    who = request.headers.get("authorization", "") or request.headers.get("x-api-key", "")
    if request.url.path.startswith(_KEPT):
        return _name(who), True
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return "", False
    if not isinstance(value, dict):
        return "", False
    messages = value.get("messages")
    if not isinstance(messages, list):
        text = str(value.get("prompt") or value.get("input") or "")[:_BEGINNING]
        return (_name(who, value.get("model"), text), False) if text else ("", False)
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages]
    # The system's words and the first of the user's: they stay when there are more turns.
    first = roles.index("user") + 1 if "user" in roles else len(messages)
    return _name(who, value.get("model"), value.get("system"), messages[:first]), False


def _name(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _scope(request: Request) -> dict[str, Any]:
    names = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "client")
    found = {name: request.scope[name] for name in names if name in request.scope}
    # The body is whole by now, however it came.
    dropped = (b"transfer-encoding", b"content-length")
    headers = [(bytes(name), bytes(value)) for name, value in request.scope["headers"] if name not in dropped]
    return {**found, "headers": headers}


def _refuse(refusal: Refusal) -> Response:
    return JSONResponse(refusal.to_openai(), refusal.status, refusal.headers)


def build(settings: dict[str, Any]) -> Any:
    """The application that serve.yaml names; its `args` are the settings: models, keys."""
    return Front.bind(Replica.bind(settings))
