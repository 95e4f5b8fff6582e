"""Lines of the log that `bitnet serve` writes: read one by one from files of any length, and as they come."""

from __future__ import annotations

import gzip
import os
import stat
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec

from .failures import Refused
from .models import STDIN

REQUESTS = "bitnet_inference.server.requests"
LIFE = "bitnet_inference.server"
_LINE_LIMIT = 1 << 20  # bytes
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_NAMED = 100  # damaged lines that are named; the others are counted
_LATEST = 10  # lines that are shown of what was written before
_TAIL = 64 << 10  # bytes in which they are looked for
_PAUSE_S = 0.2


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line; what a kind of line does not have is None."""

    time: datetime
    level: str
    logger: str
    message: str
    id: str | None = None
    tenant: str | None = None
    method: str | None = None
    path: str | None = None
    route: str | None = None
    status: _Count | None = None
    seconds: _Seconds | None = None
    address: str | None = None
    code: str | None = None
    model: str | None = None
    prompt_tokens: _Count | None = None
    cached_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    queue_s: _Seconds | None = None
    first_token_s: _Seconds | None = None
    finish: list[str] | None = None
    count: _Count | None = None
    reason: str | None = None
    error: str | None = None
    at: list[str] | None = None
    models: list[str] | None = None

    def __post_init__(self) -> None:
        if not 1970 < self.time.year < 3000:  # what cannot be shown as a time here
            raise ValueError(f"expected a time of these centuries, got the year {self.time.year}")

    @property
    def is_request(self) -> bool:
        """Whether it tells of a request that has ended."""
        return self.message == "request" and self.logger == REQUESTS and self.status is not None

    @property
    def when(self) -> float:
        """Seconds since 1970."""
        return (self.time if self.time.tzinfo else self.time.replace(tzinfo=UTC)).timestamp()


@dataclass(slots=True)
class Damage:
    """Lines that are none of a log: how many, and where the first of them stand."""

    count: int = 0
    named: list[tuple[str, int, str]] = field(default_factory=list)  # the file, the line, and why

    def add(self, name: str, number: int, why: str) -> None:
        """One more."""
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append((name, number, why))


def read(source: str, damage: Damage) -> Iterator[tuple[int, Line]]:
    """The lines of a file, perhaps a compressed one, or of stdin, with their numbers; damaged ones are put aside."""
    decoder = msgspec.json.Decoder(Line)
    number = 0
    with _opened(source) as stream:
        try:
            for number, data in enumerate(_pieces(_unpacked(stream)), 1):  # where it ends is told below
                try:
                    if data.strip():
                        yield number, decoder.decode(data)
                except (ValueError, RecursionError) as error:
                    damage.add(_name(source), number, _why(data, error))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            damage.add(_name(source), number + 1, f"the compressed file ends in damage: {error}")


def follow(source: str, *, whole: bool) -> Iterator[Line | str]:
    """The last lines, or the whole file, and then each as it is written; what is no line of a log is text."""
    decoder = msgspec.json.Decoder(Line)
    with _opened(source) as stream:
        if source != STDIN and _is_compressed(stream):
            raise Refused(f"{source}: nothing is added to a compressed file; leave --follow out")
        pieces = _pieces(_unpacked(stream)) if source == STDIN else _appended(Path(source).expanduser(), whole=whole)
        for data in pieces:
            try:
                yield decoder.decode(data)
            except (ValueError, RecursionError):
                yield data.decode("utf-8", "replace")


def _name(source: str) -> str:
    return "stdin" if source == STDIN else source


def _why(data: bytes, error: Exception) -> str:
    if len(data) > _LINE_LIMIT:
        return f"longer than {_LINE_LIMIT} bytes"
    return str(error) if data.endswith(b"\n") else f"cut short: {error}"


@contextmanager
def _opened(source: str) -> Iterator[Any]:
    """A stream of bytes that can be looked into before it is read; stdin stays open."""
    if source == STDIN:
        if sys.stdin.isatty():
            raise Refused("logs: expected a file, or a log on stdin; bitnet serve --log FILE writes one")
        yield sys.stdin.buffer
        return
    path = Path(source).expanduser()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise Refused(f"{path}: {(error.strerror or 'cannot be looked at').lower()}") from error
    if not stat.S_ISREG(mode):
        raise Refused(f"{path}: expected a file with a server's log, got a folder, a pipe or a device")
    with path.open("rb") as stream:
        yield stream


def _unpacked(stream: Any) -> Any:
    return gzip.GzipFile(fileobj=stream) if _is_compressed(stream) else stream


def _is_compressed(stream: Any) -> bool:
    found: bool = stream.peek(2)[:2] == b"\x1f\x8b"
    return found


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    """Whole lines; of one that is too long, its beginning."""
    while data := stream.readline(_LINE_LIMIT + 1):
        rest = data
        while not rest.endswith(b"\n") and len(rest) > _LINE_LIMIT:
            rest = stream.readline(_LINE_LIMIT + 1)
        yield data


def _appended(path: Path, *, whole: bool) -> Iterator[bytes]:
    """Lines of a file that grows; where it is moved away or emptied, the new one is read from its beginning."""
    stream = path.open("rb")
    try:
        if not whole:
            yield from _latest(stream)
        rest = b""
        while True:
            while data := stream.readline(_LINE_LIMIT):
                rest += data
                if rest.endswith(b"\n"):
                    yield rest
                if rest.endswith(b"\n") or len(rest) > _LINE_LIMIT:
                    rest = b""
            if _is_replaced(path, stream):
                stream.close()
                stream, rest = path.open("rb"), b""
            else:
                time.sleep(_PAUSE_S)
    finally:
        stream.close()


def _latest(stream: IO[bytes]) -> Iterator[bytes]:
    """The last whole lines; the stream stands behind them."""
    size = stream.seek(0, os.SEEK_END)
    begin = stream.seek(max(0, size - _TAIL))
    data = stream.read(size - begin)
    end = data.rfind(b"\n") + 1
    stream.seek(begin + end)
    lines = data[:end].splitlines(keepends=True)
    yield from deque(lines[1:] if begin else lines, _LATEST)


def _is_replaced(path: Path, stream: IO[bytes]) -> bool:
    try:
        there, here = path.stat(), os.fstat(stream.fileno())
    except OSError:  # it was moved away, and the next is not there yet
        return False
    return (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev) or there.st_size < stream.tell()
