"""Answers that come in pieces: each sent as it is there, to a client that stays and reads."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import Refusal, refusal_of
from .works import Watch, Work

DONE = b"data: [DONE]\n\n"
BEAT_S = 15.0  # of silence, after which a comment keeps proxies from closing the connection
STALL_S = 30.0  # that a client may take to read what lies in the buffer
_BEAT = b": \n\n"

encode = msgspec.json.Encoder().encode


def event(data: Any, name: str | None = None) -> bytes:
    """An event of server-sent events."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encode(data) + b"\n\n"


def line(data: Any) -> bytes:
    """A line of newline-delimited JSON."""
    return encode(data) + b"\n"


class Stream(Response):
    """An answer of pieces that ends with its work; `failed` makes the last piece of one that went wrong."""

    def __init__(
        self,
        work: Work,
        pieces: AsyncIterator[bytes],
        failed: Callable[[Refusal], bytes],
        *,
        media_type: str = "text/event-stream",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            None, 200, {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})}, media_type
        )
        del self.headers["content-length"]
        self._work = work
        work.streamed = True
        self._pieces = pieces
        self._failed = failed
        self._writes_since: float | None = None  # since when a piece waits to be taken
        self._wrote_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""

        state = scope.setdefault("state", {})
        relay = state.get("relay", _leave)

        async def put(data: bytes, more: bool = True) -> None:
            if more and data and relay(data):
                self._wrote_at = time.monotonic()
                return
            self._writes_since = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": more})
            self._writes_since, self._wrote_at = None, time.monotonic()

        async def beat() -> None:
            now = time.monotonic()
            if self._writes_since is None:
                if now - self._wrote_at >= BEAT_S and self.media_type == "text/event-stream":
                    await put(_BEAT)
            elif now - self._writes_since >= STALL_S:
                # It reads nothing, and would hold what waits for it: the connection is not closed but dropped.
                self._work.cancel()
                state.get("abort", _leave)()

        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            every_s = min(BEAT_S, STALL_S) / 2
            async with Watch(receive, self._work.cancel, beat, every_s), aclosing(self._events(state)) as events:
                async for data in events:
                    await put(data)
            await put(b"", more=False)
        finally:
            self._work.end()

    async def _events(self, state: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        try:
            async for data in self._pieces:
                yield data
        except Exception as error:  # noqa: BLE001  # the answer has begun, so its end must tell
            refusal = refusal_of(error)
            state["code"] = refusal.short
            yield self._failed(refusal)


def _leave(_: bytes = b"") -> bool:
    """Where the server gives no way past itself, connections end and pieces go as with others."""
    return False
