"""What is written down of each request: one line of JSON, one of the audit log, and figures; never what it says."""

from __future__ import annotations

import json
import logging
import secrets
import time
import traceback
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitnet_core.errors import printable

from .audit import Audit
from .errors import Refusal
from .keys import hidden
from .limits import refuse
from .metrics import Metrics

log = logging.getLogger("bitnet_inference.server.requests")

_LOGGERS = ("bitnet_inference", "bitnet_core", "uvicorn")
_FRAMES = 20


class Records:
    """ASGI middleware that gives each request an id, and writes down who asked for what and how it ended."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics | None = None, audit: Audit | None = None) -> None:
        self.app = app
        self._metrics = metrics
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        identity = f"req_{secrets.token_hex(12)}"
        state = scope.setdefault("state", {})
        state["request_id"] = identity
        status = 0 if scope["type"] == "http" else 101

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
                message = {**message, "headers": headers}
            elif message["type"] == "websocket.close" and message.get("code") == 1008:
                status = 403
            await send(message)

        if self._metrics is not None:
            self._metrics.begin()
        try:
            if self._audit is not None and self._audit.stuck:
                # What cannot be written down does not happen.
                await refuse(scope, receive, sending, Refusal(503, "the audit log cannot be written; try again later"))
            else:
                await self.app(scope, receive, sending)
        except Exception:
            status = status or 500
            raise
        finally:
            # Who left before there was an answer has none: what other servers write down as 499.
            self._note(scope, state, status or 499, time.monotonic() - begun)

    def _note(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        tenant = state.get("tenant")
        method = scope.get("method", "WEBSOCKET")
        client = scope.get("client")
        fields = {
            "id": state["request_id"],
            "tenant": None if tenant is None else tenant.id,
            "method": printable(method, 16),
            "path": printable(hidden(scope["path"]), 200),
            "status": status,
            "seconds": round(seconds, 4),
            "address": None if client is None else client[0],
        }
        if self._metrics is not None:
            route = getattr(scope.get("route"), "path", "none")
            known = method if method in ("GET", "HEAD", "POST", "DELETE", "PATCH", "WEBSOCKET") else "other"
            self._metrics.end(route, known, status, seconds)
        if self._audit is not None and tenant is not None:
            self._audit.append("request", **fields)
        log.info("request", extra={"fields": fields})


class JSONLines(logging.Formatter):
    """A record as one line of JSON; of an exception type and places alone: its words may be a client's."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(hidden(record.getMessage()), 1000),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])[-_FRAMES:]
            line["at"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line)


class _Handler(QueueHandler):
    """Hands records on as they are: they are made into text where nobody waits."""

    def prepare(self, record: logging.LogRecord) -> Any:
        return record


def write_logs(stream: TextIO, level: int = logging.INFO) -> Callable[[], None]:
    """Have the server's logs written as lines of JSON, by a thread; call what is returned to end it."""
    output = logging.StreamHandler(stream)
    output.setFormatter(JSONLines())
    queue: SimpleQueue[Any] = SimpleQueue()
    handler = _Handler(queue)
    listener = QueueListener(queue, output)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    listener.start()

    def stop() -> None:
        for logger, (old, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old)
            logger.propagate = propagate
        listener.stop()

    return stop
