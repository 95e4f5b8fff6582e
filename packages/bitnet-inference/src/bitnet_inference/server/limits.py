"""What every request is held to before anybody looks at who sent it: its size, its time, and a plain path."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Refusal

# A path that says the same in another way would pass by whoever looks at paths: escapes of letters, digits, "-._~".
_DISGUISED = re.compile(
    rb"%(?![0-9A-Fa-f]{2})|%(?:2[dDeE]|3[0-9]|4[1-9a-fA-F]|5[0-9aAfF]|6[1-9a-fA-F]|7[0-9aAeE])", re.ASCII
)
_ODD = re.compile(r"[\x00-\x20\x7f-\x9f\\;%?#\ufffd]")
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_ONCE = (b"content-length", b"content-type", b"host", b"transfer-encoding")
_PACE = 64 << 10  # bytes that buy a body another second


class Limits:
    """ASGI middleware that refuses what is too long, too slow or in disguise. Sizes in bytes, `body_s` in seconds.

    `larger` has the body limits of single paths. The head's own deadline is the connection's.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        url: int = 8 << 10,
        head: int = 16 << 10,
        headers: int = 100,
        body: int = 1 << 20,
        larger: Mapping[str, int] | None = None,
        body_s: float = 30.0,
    ) -> None:
        self.app = app
        self._url = url
        self._head = head
        self._headers = headers
        self._body = body
        self._larger = dict(larger or {})
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        limit = self._larger.get(scope["path"], self._body)
        try:
            self._check_url(scope)
            length = self._check_headers(scope["headers"])
            if length is not None and length > limit:
                raise _too_large(limit)
        except Refusal as refusal:
            await refuse(scope, receive, send, refusal)
            return
        if scope["type"] == "websocket" or length is None:
            await self.app(scope, receive, send)
            return
        body = _Body(receive, send, limit, self._body_s)
        await self.app(scope, body.receive, body.send)

    def _check_url(self, scope: Scope) -> None:
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        if len(raw) + len(scope["query_string"]) > self._url:
            raise Refusal(414, f"the URL is longer than {self._url} bytes")
        if not raw.startswith(b"/"):
            raise Refusal(400, "the target of the request must be a path")
        segments = scope["path"][1:].split("/")
        strange = scope["path"] != "/" and not {"", ".", ".."}.isdisjoint(segments)
        if strange or _DISGUISED.search(raw) or _ODD.search(scope["path"]):
            raise Refusal(404, "there is nothing at this path")

    def _check_headers(self, headers: list[tuple[bytes, bytes]]) -> int | None:
        """The length of the body: None if there is none, 0 if it is not said."""
        size = sum(len(name) + len(value) + 4 for name, value in headers)
        if size > self._head or len(headers) > self._headers:
            raise Refusal(431, f"the headers are more than {self._head} bytes or {self._headers} lines")
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in _ONCE and name in found:
                raise Refusal(400, f"{name.decode()}: expected once")
            found[name] = value
        if not _HOST.fullmatch(found.get(b"host", b"localhost")):
            raise Refusal(400, "host: expected a name or an address, perhaps with a port")
        if found.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refusal(415, "content-encoding: expected none; send the body as it is")
        length = found.get(b"content-length")
        if b"transfer-encoding" in found:
            if length is not None:
                raise Refusal(400, "content-length: expected none beside transfer-encoding")
            return 0
        if length is None:
            return None
        if not re.fullmatch(rb"[0-9]{1,19}", length):
            raise Refusal(400, "content-length: expected a number")
        return int(length) or None


class _Body:
    """A body on its way in: counted, and within its time."""

    def __init__(self, receive: Receive, send: Send, limit: int, seconds: float) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        self._size = 0
        self._coming = True
        self._end = asyncio.get_running_loop().time() + seconds

    async def receive(self) -> Message:
        if not self._coming:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end + self._size / _PACE):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(408, "the body did not come in time") from None
        self._size += len(message.get("body", b""))
        self._coming = bool(message.get("more_body", False))
        if self._size > self._limit:
            self._coming = True  # there may be more, which nobody reads
            raise _too_large(self._limit)
        return message

    async def send(self, message: Message) -> None:
        # Who is answered before all was read may send the rest for as long as it likes, if the connection stays.
        if self._coming and message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self._send(message)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than {limit} bytes")


async def refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal) -> None:
    """Answer with a refusal, in the words of the path's protocol, and hang up."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    scope.setdefault("state", {})["code"] = refusal.short
    path = scope["path"]
    if path.startswith("/api/"):
        body = refusal.to_ollama()
    else:
        body = refusal.to_anthropic() if path.startswith("/v1/messages") else refusal.to_openai()
    data = msgspec.json.encode(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
