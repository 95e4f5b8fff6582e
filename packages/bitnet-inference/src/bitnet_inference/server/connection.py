"""A connection of a client: how long it may take to say what it wants, and how much waits for it to be read."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import Refusal
from .turnstile import HEAD_LIMIT, LATER, Turnstile

HEADER_S = 10.0  # for the head of a request, from its first byte, or from the connection on
_BUFFER = (32 << 10, 16 << 10)  # bytes: above the first a writer waits, until there are fewer than the second
_MALFORMED = {
    400: "the request is not HTTP/1.1 as it should be",
    431: f"the head of the request is larger than {HEAD_LIMIT} bytes",
    501: "transfer-encoding: expected chunked or none",
}


# What the parser would make the best of, and whoever stands before us perhaps something else.
_FOLDED = re.compile(rb"\n[ \t]")
_FRAMED = re.compile(rb"\n(?:content-length|transfer-encoding)[ \t]*:", re.IGNORECASE)
_OTHER = re.compile(rb"[^\n]* HTTP/(?!1\.[01]\r?\n)")
_END = re.compile(rb"\n\r?\n")


def _ambiguous(data: bytes) -> bool:
    """Whether a head has a folded line, another version, or more than one word on how long the body is."""
    end = _END.search(data)
    head = data[: end.start() + 1] if end else data
    if end and _OTHER.match(head):
        return True
    return _FOLDED.search(head) is not None or len(_FRAMED.findall(head)) > 1


def _whole(status: int, words: str, message: str) -> bytes:
    """An answer that ends a connection."""
    data = msgspec.json.encode(Refusal(status, message).to_openai())
    head = f"HTTP/1.1 {status} {words}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + data


LATE = _whole(408, "Request Timeout", "the head of the request did not come in time")


class Connection(H11Protocol):
    """HTTP/1.1 with a deadline for the head of each request, and a way to drop a client that does not read.

    `first` is what the client has said by now. `turnstile` looks at each request before it is parsed.
    """

    def __init__(self, *arguments: Any, turnstile: Turnstile | None = None, first: bytes = b"", **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.app_state = {**self.app_state, "abort": self._abort, "relay": self._relay}
        self._deadline: asyncio.TimerHandle | None = None
        self._turnstile = turnstile
        self._first = first
        self._held = b""  # of a request that is not whole, and will be turned away

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        transport.set_write_buffer_limits(*_BUFFER)
        self._arm()
        if self._first:
            first, self._first = self._first, b""
            self._parse(first)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._turnstile is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            data = self._held + data
            answer = self._turnstile.refusal(data, self.client[0] if self.client else "")
            if answer is LATER:
                self._held = data
                self._arm()
                return
            self._held = b""
            if answer is not None:
                self._turn_away(answer.data, answer.keep)
                return
        self._parse(data)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._disarm()
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # it is said in our own words
        """What is not HTTP is refused with the status that the standard has for it, and the connection ends."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if self._turnstile is not None:
            self._turnstile.count("malformed")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            words = {431: "Request Header Fields Too Large", 501: "Not Implemented"}.get(status, "Bad Request")
            self.transport.write(_whole(status, words, _MALFORMED.get(status, _MALFORMED[400])))
        self.transport.close()

    def _parse(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and _ambiguous(self.conn.trailing_data[0] + data):
            self.send_400_response("")
            return
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._disarm()
        elif self.conn.trailing_data[0]:
            self._arm()

    def _turn_away(self, data: bytes, keep: bool) -> None:
        self._disarm()
        self._unset_keepalive_if_required()
        self.transport.write(data)
        if keep:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self.transport.close()

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_S, self._late)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.write(LATE)
            self.transport.close()

    def _relay(self, data: bytes) -> bool:
        """Send a piece of an answer that has begun, past all who only look at its head; False: send it as others."""
        cycle = self.cycle
        if self.transport.is_closing():
            return True  # whoever read it has left
        if (
            self.flow.write_paused
            or cycle.disconnected
            or cycle.response_complete
            or self.conn.our_state is not h11.SEND_BODY
            or self.scope["http_version"] != "1.1"
        ):
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def _abort(self) -> None:
        self.transport.abort()
