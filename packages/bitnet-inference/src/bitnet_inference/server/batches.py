"""OpenAI's batches: a file of requests, worked through when nobody waits for anything else."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from bitnet_core.errors import FormatError
from bitnet_core.formats.strictjson import parse_json

from .bodies import convert, read
from .errors import Refusal
from .files import Files
from .gate import INSIDE, Tenant, answer, page

log = logging.getLogger("bitnet_inference.server")

LINES_LIMIT = 50_000
BATCHES_LIMIT = 1000  # that are remembered
_AT_ONCE = 8  # lines of all batches: the queue is for those who wait
_OPEN = 2  # batches whose lines are in memory
_LAST = 1000  # their priority: whoever waits goes first
_LINE_LIMIT = 1 << 20  # bytes

_Id = Annotated[str, Meta(max_length=256)]
Target = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
_PRIORITIES = ("/v1/chat/completions", "/v1/completions")  # whose requests have one


class Create(Struct, forbid_unknown_fields=True, kw_only=True):
    """A file that is to be worked through."""

    input_file_id: _Id
    endpoint: Target
    completion_window: Literal["24h"]
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None


class Line(Struct, forbid_unknown_fields=True):
    """A request in a file."""

    custom_id: Annotated[str, Meta(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: Target
    body: dict[str, Any]


@dataclass(slots=True, eq=False)
class Batch:
    """One file on its way."""

    tenant: Tenant
    asked: Create
    id: str = field(default_factory=lambda: f"batch_{uuid.uuid4().hex}")
    status: str = "validating"
    times: dict[str, int] = field(default_factory=lambda: {"created_at": int(time.time())})
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    output: str | None = None
    failures: str | None = None

    def enter(self, status: str) -> None:
        """Say how far it is."""
        self.status = status
        self.times[f"{status}_at"] = int(time.time())

    @property
    def ended(self) -> bool:
        """Whether nothing happens any more."""
        return self.status in ("completed", "failed", "cancelled")

    def told(self) -> dict[str, Any]:
        """What a client is told."""
        stages = ("created", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired")
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.asked.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.asked.input_file_id,
            "completion_window": self.asked.completion_window,
            "status": self.status,
            "output_file_id": self.output,
            "error_file_id": self.failures,
            "expires_at": self.times["created_at"] + 86400,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.asked.metadata or {},
            **{f"{stage}_at": self.times.get(f"{stage}_at") for stage in stages},
        }


class Batches:
    """The batches of a server; each is a task of its loop."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._batches: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Semaphore(_OPEN)
        self._places = asyncio.Semaphore(_AT_ONCE)

    def add(self, tenant: Tenant, asked: Create) -> Batch:
        """Begin to work through a file."""
        kept = self._files.find(asked.input_file_id, tenant.id)
        ended = [one.id for one in self._batches.values() if one.ended]
        if len(self._batches) >= BATCHES_LIMIT:
            if not ended:
                raise Refusal(429, f"{BATCHES_LIMIT} batches are at work; try again when some have ended")
            del self._batches[ended[0]]
        batch = Batch(tenant, asked)
        self._batches[batch.id] = batch
        task = asyncio.create_task(self._in_turn(batch, self._files.path(kept)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return batch

    def find(self, id_: str, owner: str) -> Batch:
        """A batch by its id; others' are not there."""
        batch = self._batches.get(id_)
        if batch is None or batch.tenant.id != owner:
            raise Refusal(404, "batch: there is none of this id", param="batch_id")
        return batch

    def of(self, owner: str) -> list[Batch]:
        """A tenant's batches, the newest first."""
        return [batch for batch in reversed(self._batches.values()) if batch.tenant.id == owner]

    def leave(self, owner: str) -> None:
        """End those of a tenant who may not ask any more."""
        for batch in self.of(owner):
            if not batch.ended:
                batch.enter("cancelling")

    def close(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()

    @property
    def _files(self) -> Files:
        found: Files = self._app.state.files
        return found

    async def _in_turn(self, batch: Batch, path: Path) -> None:
        async with self._open:
            if batch.status == "cancelling":
                batch.enter("cancelled")
            else:
                await self._work(batch, path)

    async def _work(self, batch: Batch, path: Path) -> None:
        try:
            lines = await asyncio.to_thread(lambda: list(_lines(batch, path.read_bytes())))
            if batch.errors:
                batch.enter("failed")
                return
            batch.total = len(lines)
            if batch.status != "cancelling":
                batch.enter("in_progress")
            answers = await self._answers(batch, lines)
            if batch.status != "cancelling":
                batch.enter("finalizing")
            await asyncio.to_thread(self._write, batch, answers)
            batch.enter("cancelled" if batch.status == "cancelling" else "completed")
        except Exception:
            log.exception("the batch %s has failed", batch.id)
            batch.errors.append({"code": "server_error", "message": "the server's log says why", "line": None})
            batch.enter("failed")

    async def _answers(self, batch: Batch, lines: list[Line]) -> list[tuple[bool, dict[str, Any]]]:
        async def one(line: Line) -> tuple[bool, dict[str, Any]] | None:
            async with self._places:
                if batch.status == "cancelling":
                    return None
                return await self._answer(batch, line)

        found = await asyncio.gather(*(one(line) for line in lines))
        return [each for each in found if each is not None]

    async def _answer(self, batch: Batch, line: Line) -> tuple[bool, dict[str, Any]]:
        body = {"priority": _LAST, **line.body} if line.url in _PRIORITIES else line.body
        while True:
            status, data = await self._ask(batch, line.url, msgspec.json.encode(body))
            if status not in (429, 503) or batch.status == "cancelling" or self._app.state.works.draining:
                break
            await asyncio.sleep(1.0)  # others go first
        good = status < 400
        batch.completed += good
        batch.failed += not good
        id_ = uuid.uuid4().hex
        told = {"status_code": status, "request_id": f"req_{id_}", "body": data}
        return good, {"id": f"batch_req_{id_}", "custom_id": line.custom_id, "response": told, "error": None}

    async def _ask(self, batch: Batch, path: str, body: bytes) -> tuple[int, Any]:
        """Make a request of ourselves, by the way that clients' requests go."""
        messages: list[Message] = []
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            with suppress(StopIteration):
                return next(given)
            while batch.status != "cancelling":
                await asyncio.sleep(0.25)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "app": self._app,
            "state": {},
            INSIDE: batch.tenant,
        }
        await self._app.router(scope, receive, send)
        return messages[0]["status"], msgspec.json.decode(b"".join(one.get("body", b"") for one in messages[1:]))

    def _write(self, batch: Batch, answers: list[tuple[bool, dict[str, Any]]]) -> None:
        for good in (True, False):
            found = [msgspec.json.encode(one) + b"\n" for was_good, one in answers if was_good is good]
            if found:
                name = f"{batch.id}_{'output' if good else 'error'}.jsonl"
                kept = self._files.add(batch.tenant.id, name, "batch_output", found)
                if good:
                    batch.output = kept.id
                else:
                    batch.failures = kept.id


async def create(request: Request) -> Response:
    """Begin to work through a file."""
    body = await read(request, Create)
    return answer(_batches(request).add(request.state.tenant, body).told())


async def listing(request: Request) -> Response:
    """The tenant's batches."""
    return answer(page(request, [batch.told() for batch in _batches(request).of(request.state.tenant.id)]))


async def get(request: Request) -> Response:
    """How far one is."""
    return answer(_wanted(request).told())


async def cancel(request: Request) -> Response:
    """End one; what is done by then is written."""
    batch = _wanted(request)
    if batch.ended:
        raise Refusal(409, f"batch: expected one that is at work, got one that is {batch.status}", param="batch_id")
    batch.enter("cancelling")
    return answer(batch.told())


def _batches(request: Request) -> Batches:
    found: Batches = request.app.state.batches
    return found


def _wanted(request: Request) -> Batch:
    return _batches(request).find(request.path_params["id"], request.state.tenant.id)


def _lines(batch: Batch, data: bytes) -> Iterator[Line]:
    """The requests in a file; what is wrong with it goes to the batch's errors."""
    seen: set[str] = set()
    lines = [line for line in data.splitlines() if line.strip()]
    if not 1 <= len(lines) <= LINES_LIMIT:
        batch.errors.append(_error("invalid_file", f"expected 1..{LINES_LIMIT} lines, got {len(lines)}", None))
        return
    for number, text in enumerate(lines, 1):
        try:
            if len(text) > _LINE_LIMIT:
                raise Refusal(400, f"expected at most {_LINE_LIMIT} bytes")  # noqa: TRY301
            line, _ = convert(parse_json(text, "line"), Line)
            if line.url != batch.asked.endpoint or line.custom_id in seen or line.body.get("stream"):
                raise Refusal(  # noqa: TRY301
                    400, "expected the batch's url, a custom_id of its own, and no stream"
                )
        except (Refusal, FormatError) as error:
            batch.errors.append(_error("invalid_request", str(error), number))
            if len(batch.errors) >= 100:
                return
            continue
        seen.add(line.custom_id)
        yield line


def _error(code: str, message: str, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}
