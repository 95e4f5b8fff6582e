"""What is written down of each request: one line of JSON, one of the audit log, and figures; never what it says."""

from __future__ import annotations

import logging
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitnet_core.errors import printable

from .audit import Audit
from .errors import Refusal
from .keys import hidden
from .limits import refuse
from .metrics import Metrics

log = logging.getLogger("bitnet_inference.server.requests")


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
        route = getattr(scope.get("route"), "path", None)
        work = state.get("work")
        fields = {
            "id": state["request_id"],
            "tenant": None if tenant is None else tenant.id,
            "method": printable(method, 16),
            "path": printable(hidden(scope["path"]), 200),
            "status": status,
            "seconds": round(seconds, 4),
            "address": None if client is None else client[0],
        }
        code = state.get("code") or ("error" if status >= 400 and status != 499 else None)
        told = {"route": route, "code": code} | ({} if work is None else work.facts())
        if self._metrics is not None:
            known = method if method in ("GET", "HEAD", "POST", "DELETE", "PATCH", "WEBSOCKET") else "other"
            self._metrics.end(route or "none", known, status, seconds)
        if self._audit is not None and tenant is not None:
            self._audit.append("request", **fields)
        log.info("request", extra={"fields": fields | told})
