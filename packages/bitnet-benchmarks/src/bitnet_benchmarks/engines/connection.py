"""A connection to a server of HTTP/1.1, used for one request after another, whose answers come as they are read."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from urllib.parse import urlsplit

import h11

_READ = 1 << 16  # bytes asked of the socket at once


class Lost(Exception):
    """The connection could not be made, or ended before the answer did; `answered` once a byte of it had come."""

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and what it is shown."""

    secure: bool
    host: str
    port: int
    root: str  # in front of every path, without a slash at its end
    key: str | None = None

    @classmethod
    def parse(cls, url: str, key: str | None = None) -> Self:
        """The address of a URL such as http://127.0.0.1:8000/v1."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"url: expected one such as http://127.0.0.1:8000/v1, got {url!r}: {error}") from None
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment
        if wrong or parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError(f"url: expected one such as http://127.0.0.1:8000/v1, got {url!r}")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError("api key: expected printable ASCII, got other characters")
        secure = parts.scheme == "https"
        return cls(secure, str(parts.hostname), port or (443 if secure else 80), parts.path.rstrip("/"), key)

    def headers(self, nbytes: int | None) -> list[tuple[str, str]]:
        """The head of a request, with a body of so many bytes or none."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.secure else 80)
        found = [("Host", host if usual else f"{host}:{self.port}"), ("User-Agent", "bitnet-bench"), ("Accept", "*/*")]
        if self.key is not None:
            found.append(("Authorization", f"Bearer {self.key}"))
        if nbytes is not None:
            found += [("Content-Type", "application/json"), ("Content-Length", str(nbytes))]
        return found


class Connection:
    """One connection; whoever has asked reads the answer to its end before it asks again."""

    def __init__(self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.used = False
        self._address = address
        self._reader = reader
        self._writer = writer
        self._state = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, address: Address) -> Self:
        """Connect."""
        try:
            trusted = _trusted() if address.secure else None
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=trusted)
        except OSError as error:
            raise Lost(f"cannot be reached: {_said(error)}") from error
        return cls(address, reader, writer)

    async def ask(self, method: str, path: str, body: bytes | None = None) -> int:
        """Send a request; the status of the answer, whose body `read` gives."""
        head = self._address.headers(None if body is None else len(body))
        request = h11.Request(method=method, target=self._address.root + path, headers=head)
        data = self._state.send(request) or b""
        if body is not None:
            data += self._state.send(h11.Data(data=body)) or b""
        self._state.send(h11.EndOfMessage())
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Lost(f"the connection broke: {_said(error)}") from error
        while not isinstance(event := await self._event(answered=False), h11.Response):
            pass  # a word in advance, as 100 Continue
        return event.status_code

    async def read(self) -> AsyncIterator[bytes]:
        """The body, in the pieces that come."""
        while not isinstance(event := await self._event(answered=True), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def _event(self, *, answered: bool) -> h11.Event:
        try:
            while (event := self._state.next_event()) is h11.NEED_DATA:
                self._state.receive_data(await self._reader.read(_READ))
        except (OSError, h11.RemoteProtocolError) as error:
            raise Lost(f"the connection broke: {_said(error)}", answered=answered) from error
        if not isinstance(event, h11.Event):
            raise Lost("the connection was closed", answered=answered)
        return event

    def again(self) -> bool:
        """Make ready for another request; whether there can be one."""
        self.used = True
        if self._state.our_state is h11.DONE and self._state.their_state is h11.DONE:
            self._state.start_next_cycle()
            return True
        return False

    def close(self) -> None:
        """Drop the connection."""
        with suppress(OSError, RuntimeError):
            self._writer.close()


@lru_cache(maxsize=1)
def _trusted() -> ssl.SSLContext:
    """Whose certificates are believed; reading them takes longer than a token."""
    return ssl.create_default_context()


def _said(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):  # whose numbers are not the system's
        return getattr(error, "verify_message", None) or error.reason or str(error)
    known = os.strerror(error.errno).lower() if isinstance(error, OSError) and error.errno else ""
    return known or str(error) or type(error).__name__
