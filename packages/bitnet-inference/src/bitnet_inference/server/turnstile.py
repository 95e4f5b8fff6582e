"""Requests that are turned away before anything is done for them: when all models are full, and from who guesses keys.

A refusal takes no parser, no task and no thread, so that those who are let in keep what the server can do.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import msgspec

from .errors import RETRY_S, Refusal

log = logging.getLogger("bitnet_inference.server")

# What takes a place in a model's queue.
WRITING = frozenset(
    (
        b"/v1/chat/completions",
        b"/v1/completions",
        b"/v1/responses",
        b"/v1/embeddings",
        b"/v1/messages",
        b"/api/chat",
        b"/api/generate",
        b"/api/embed",
        b"/api/embeddings",
    )
)
_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*) HTTP/1\.([01])\r\n")
_KEY = re.compile(rb"\r\n(?:authorization:[ \t]*bearer[ \t]|x-api-key:)[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*(?=\r\n)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*(?=\r\n)", re.IGNORECASE)
HEAD_LIMIT = 16 << 10  # bytes of a request's head
_BODY = 64 << 10  # bytes that are waited for
# Whatever has one of these is left to the parser; so are line ends that others might read otherwise.
_ODD = re.compile(rb"\r\n[ \t]|\r\n(?:transfer-encoding|expect|upgrade)[ \t]*:|[^\r]\n|\r[^\n]", re.IGNORECASE)


class Answer(NamedTuple):
    """What is sent, and whether the connection stays."""

    data: bytes
    keep: bool


LATER = Answer(b"", keep=True)  # when the rest of the request is there


class Models(Protocol):
    """Which may be full."""

    @property
    def full(self) -> bool:
        """Whether none of them takes another request."""


class Tenants(Protocol):
    """Who may ask."""

    def tries(self, address: str, /) -> bool:
        """Whether keys are being guessed from there."""

    def may_try(self, address: str, /) -> bool:
        """Count another guess; False where it is one too many."""

    def knows(self, shown: str, /) -> bool:
        """Whether this could be somebody."""


class Turnstile:
    """Looks at the bytes of one request; `open_paths` need no key, and one that ends in a slash stands for those below.

    An `Answer` turns it away, `LATER` will when the rest is there, and None lets it in.
    """

    def __init__(self, models: Models, tenants: Tenants | None, open_paths: Iterable[str] = ()) -> None:
        self._models = models
        self._tenants = tenants
        paths = [path.encode() for path in open_paths]
        self._open = frozenset(paths)
        self._below = tuple(path for path in paths if path.endswith(b"/") and len(path) > 1)
        self._turned: Counter[str] = Counter()
        self._told = time.monotonic()

    @property
    def full(self) -> bool:
        """Whether nobody is let in to write."""
        return self._models.full

    def refusal(self, data: bytes, address: str) -> Answer | None:
        """What becomes of a request that begins with this."""
        full = self._models.full
        tries = self._tenants is not None and self._tenants.tries(address)
        if not full and not tries:
            return None
        line = _LINE.match(data)
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return LATER if len(data) <= HEAD_LIMIT else None
        if line is None:
            return None
        head, path = data[: end + 2], line[2].partition(b"?")[0]
        plain = _plain(head, len(data) - end - 4)
        if plain is None:
            return LATER
        keep = plain and line[3] == b"1" and not _CLOSE.search(head)
        if tries and not self._may_be_known(head, path) and not self._may_try(address):
            self._turned["wrong keys"] += 1
            return _answer("keys", path, keep=keep)
        if full and plain and line[1] == b"POST" and path in WRITING:
            self._turned["requests"] += 1
            return _answer("full", path, keep=keep)
        return None

    def turned(self) -> Counter[str]:
        """How many were turned away since this was asked last, by the reason; the log is told, too."""
        found, self._turned = self._turned, Counter()
        now, since = time.monotonic(), self._told
        self._told = now
        for reason, count in found.items():
            log.warning(
                "refused", extra={"fields": {"count": count, "reason": reason, "seconds": round(now - since, 3)}}
            )
        return found

    def count(self, reason: str) -> None:
        """One more was turned away by somebody else."""
        self._turned[reason] += 1

    def _may_try(self, address: str) -> bool:
        return self._tenants is None or self._tenants.may_try(address)

    def _may_be_known(self, head: bytes, path: bytes) -> bool:
        assert self._tenants is not None  # noqa: S101  # whoever calls has looked
        if shown := _KEY.findall(head):
            return any(self._tenants.knows(one.decode("latin-1")) for one in shown)
        return path in self._open or path.startswith(self._below)


def _plain(head: bytes, rest: int) -> bool | None:
    """Whether the request ends where these bytes do, in whatever way they are read; None: more of it is to come."""
    lengths = _LENGTH.findall(head)
    length = int(lengths[0]) if lengths else 0
    if len(lengths) > 1 or length < rest or _ODD.search(head):
        return False
    return True if length == rest else None if length <= _BODY else False


_REFUSALS = {
    "full": Refusal(503, "too many requests are waiting; try again"),
    "keys": Refusal(429, "too many wrong keys came from this address; try again later", retry_after=30),
    "connections": Refusal(503, "too many connections are open; try again", retry_after=RETRY_S),
}
_WORDS = {503: b"Service Unavailable", 429: b"Too Many Requests"}


def _answer(why: str, path: bytes, *, keep: bool) -> Answer:
    style = "anthropic" if path.startswith(b"/v1/messages") else "ollama" if path.startswith(b"/api/") else "openai"
    return _ANSWERS[why, style, keep]


def _made(refusal: Refusal, style: str, keep: bool) -> Answer:
    body = {"openai": refusal.to_openai, "anthropic": refusal.to_anthropic, "ollama": refusal.to_ollama}[style]()
    data = msgspec.json.encode(body)
    lines = [b"HTTP/1.1 %d %b" % (refusal.status, _WORDS[refusal.status]), b"content-type: application/json"]
    lines += [f"{name.lower()}: {value}".encode() for name, value in refusal.headers.items()]
    lines += [b"content-length: %d" % len(data)] + ([] if keep else [b"connection: close"])
    return Answer(b"\r\n".join([*lines, b"", data]), keep)


_ANSWERS = {
    (why, style, keep): _made(refusal, style, keep)
    for why, refusal in _REFUSALS.items()
    for style in ("openai", "anthropic", "ollama")
    for keep in (False, True)
}
CROWDED = _ANSWERS["connections", "openai", False].data
