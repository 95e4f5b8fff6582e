"""Who did what: a file of JSON lines, each sealed with the hash of all before it, so that none can be changed alone.

A line is with the operating system as soon as its thread comes to it, and on the disk within a second. Whoever can
write the whole file can also make it anew: to notice that, keep a head (the last hash) elsewhere and verify against it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Self

import msgspec

from bitnet_core.durable import sync_folder
from bitnet_core.errors import FormatError, UnsupportedError, printable

log = logging.getLogger("bitnet_inference.server")

_START = "0" * 64
_SEAL = b',"hash":"'
_SEALED = len(_SEAL) + 64 + 2  # bytes of a line from the seal on
_LINE = 64 << 10  # bytes, no line is longer
_FIELD = 200  # characters
_SYNC = 0.25  # seconds between two syncs
_AGAIN = 1.0  # until what could not be written is tried again
_PENDING = 10_000  # lines that may wait


class Head(NamedTuple):
    """How far a log goes."""

    lines: int
    hash: str


class Audit:
    """A log of its own for one server; `append` returns at once."""

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._clock = clock
        self._inbox: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._failed = False
        self._held = 0  # lines that are being written
        self._closed = False
        self._handle, self._size, self.head, torn = _open(self.path)
        self._thread = threading.Thread(target=self._work, name="bitnet-audit", daemon=True)
        self._thread.start()
        if torn:
            self.append("recovered", bytes_lost=torn)

    def append(self, event: str, **fields: str | float | None) -> None:
        """One line; texts are cut at 200 characters, and what would break a line is escaped."""
        at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        shown = {name: printable(value, _FIELD) if isinstance(value, str) else value for name, value in fields.items()}
        self._inbox.put({"at": at, "event": event, **shown})

    @property
    def stuck(self) -> bool:
        """Whether so much waits to be written that nothing may happen unseen any more."""
        return self._failed and self._held + self._inbox.qsize() > _PENDING

    def close(self, timeout: float = 10.0) -> None:
        """Write what is left, and let go of the file."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            self._thread.join(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        synced, dirty, leaving = -_SYNC, False, False
        while not leaving:
            batch, leaving = self._take(_SYNC if dirty else None)
            if batch:
                self._write(batch, patient=not leaving)
                dirty = True
            now = time.monotonic()
            if dirty and (leaving or now - synced >= _SYNC):
                with suppress(OSError):  # what cannot be synced now is synced with what follows
                    os.fsync(self._handle)
                    synced, dirty = now, False
        os.close(self._handle)

    def _take(self, wait: float | None) -> tuple[list[dict[str, Any]], bool]:
        batch: list[dict[str, Any]] = []
        with suppress(Empty):
            while len(batch) < 1000:
                entry = self._inbox.get_nowait() if batch else self._inbox.get(timeout=wait)
                if entry is None:
                    return batch, True
                batch.append(entry)
        return batch, False

    def _write(self, batch: list[dict[str, Any]], *, patient: bool) -> None:
        """All of the batch in one piece; what a full disk took half of is taken back, and tried again."""
        lines, head, self._held = b"", self.head, len(batch)
        for entry in batch:
            line, head = _seal(head, entry)
            lines += line
        while True:
            try:
                _write_all(self._handle, lines)
                break
            except OSError as error:
                log.error("%s: the audit log cannot be written: %s", self.path, error)  # noqa: TRY400
                self._failed = True
                with suppress(OSError):
                    os.ftruncate(self._handle, self._size)
                if not patient or self._closed:
                    log.error("%s: %d lines are lost", self.path, len(batch))  # noqa: TRY400
                    return
                time.sleep(_AGAIN)
        self._failed, self._held = False, 0
        self._size += len(lines)
        self.head = head


def verify(path: str | os.PathLike[str], *, head: Head | None = None) -> Head:
    """Check each line against all before it; `head`: a former one that must be in the log. Returns the last."""
    found, seen = Head(0, _START), head is None or head.lines == 0
    for line in _lines(Path(path)):
        found = _check(Path(path), line, found)
        if head is not None and found.lines == head.lines:
            seen = found.hash == head.hash
            if not seen:
                break
    if not seen and head is not None:
        raise FormatError(path, f"line {head.lines}", f"the hash {head.hash}", f"{found.hash} (line {found.lines})")
    return found


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while line := stream.readline(_LINE + 1):
            yield line


def _check(path: Path, line: bytes, before: Head) -> Head:
    """The head after a line."""
    field = f"line {before.lines + 1}"
    body = line[: -_SEALED - 1] + b"}"
    if not line.endswith(b'"}\n') or line[-_SEALED - 1 : -67] != _SEAL:
        raise FormatError(path, field, "a whole, sealed line", repr(line[-80:]), hint="it was cut, or changed")
    try:
        entry = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise FormatError(path, field, "JSON", error) from None
    if entry.get("n") != before.lines + 1 or entry.get("previous") != before.hash:
        raise FormatError(path, field, f"number {before.lines + 1} after {before.hash}", f"number {entry.get('n')}")
    digest = hashlib.sha256(body).hexdigest()
    if digest.encode() != line[-67:-3]:
        raise FormatError(path, field, f"the hash {digest}", line[-67:-3].decode("ascii", "replace"), hint="changed")
    return Head(before.lines + 1, digest)


def _seal(head: Head, entry: dict[str, Any]) -> tuple[bytes, Head]:
    body = msgspec.json.encode({"n": head.lines + 1, **entry, "previous": head.hash})
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + _SEAL + digest.encode() + b'"}\n', Head(head.lines + 1, digest)


def _open(path: Path) -> tuple[int, int, Head, int]:
    """The file to append to, its size, where it is, and the bytes of a last line that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
    try:
        _claim(handle, path)
        if new:
            sync_folder(path.parent)
        size = os.fstat(handle).st_size
        start = max(0, size - 2 * _LINE)
        os.lseek(handle, start, os.SEEK_SET)
        tail = os.read(handle, size - start)
        whole = tail.rfind(b"\n") + 1
        torn = len(tail) - whole
        if torn:
            os.ftruncate(handle, size - torn)
        return handle, size - torn, _head(path, tail[:whole], start), torn
    except BaseException:
        os.close(handle)
        raise


def _head(path: Path, tail: bytes, start: int) -> Head:
    """The head at the end of a log, from its last line alone."""
    if not tail:
        if start:
            raise FormatError(path, "last line", f"at most {_LINE} bytes", "more")
        return Head(0, _START)
    line = tail[tail[:-1].rfind(b"\n") + 1 :]
    try:
        entry = msgspec.json.decode(line, type=dict[str, Any])
        return _check(path, line, Head(int(entry["n"]) - 1, str(entry["previous"])))
    except (msgspec.DecodeError, KeyError, ValueError, TypeError) as error:
        raise FormatError(path, "last line", "a sealed line", error, hint="verify it, and begin another") from None


def _claim(handle: int, path: Path) -> None:
    """Two writers would break each other's chain."""
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415  # not everywhere

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UnsupportedError(f"{path}: another process writes this audit log; give each its own") from None


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]
