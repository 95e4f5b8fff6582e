"""Chat over a WebSocket: each message is a request as of /v1/chat/completions, and its answer comes in pieces."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from . import chat
from .bodies import parse
from .errors import Refusal, refusal_of
from .gate import admit
from .sse import STALL_S, encode
from .works import Works

_LATER = 16  # requests that may wait for their turn


async def talk(websocket: WebSocket) -> None:
    """Answer one request after another, each until `{"done": true}`; `{"cancel": true}` ends the one at work."""
    try:
        await admit(websocket, "user")
    except Refusal as refusal:
        await websocket.close(1008, refusal.message[:100])
        return
    await websocket.accept()
    line = _Line(websocket)
    reading = asyncio.create_task(line.read())
    try:
        await line.answer()
    except (WebSocketDisconnect, RuntimeError, TimeoutError):
        pass  # the client has left, or reads nothing
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        with suppress(RuntimeError, WebSocketDisconnect):
            await websocket.close()


class _Line:
    """A conversation with one client."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._asked: asyncio.Queue[bytes | None] = asyncio.Queue(_LATER)
        self._works: Works = websocket.app.state.works
        self._work: Any = None

    async def read(self) -> None:
        """Take what the client says, for as long as it is there."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                break
            data = (message.get("text") or "").encode("utf-8", "replace") or message.get("bytes") or b""
            if data.replace(b" ", b"") == b'{"cancel":true}':
                if self._work is not None:
                    self._work.cancel()
            else:
                await self._asked.put(data)
        if self._work is not None:
            self._work.cancel()
        while not self._asked.empty():
            self._asked.get_nowait()
        self._asked.put_nowait(None)

    async def answer(self) -> None:
        """Answer what was asked, in turn."""
        while (data := await self._asked.get()) is not None:
            try:
                await self._one(data)
            except (WebSocketDisconnect, RuntimeError, TimeoutError):
                raise
            except Exception as error:  # noqa: BLE001  # the client is told, and may ask again
                await self._send(refusal_of(error).to_openai())
            await self._send({"done": True})

    async def _one(self, data: bytes) -> None:
        body, _ = parse(data, chat.Chat)
        self._work = work = await self._works.begin(
            self._websocket, body.model, body.start, body.wishes(), names=body.names()
        )
        try:
            async for chunk in chat.chunks(work, body):
                await self._send(chunk)
        finally:
            self._work = None
            work.end()

    async def _send(self, data: dict[str, Any]) -> None:
        async with asyncio.timeout(STALL_S):
            await self._websocket.send_text(encode(data).decode())
