"""What the server says: a line of JSON for each record, written by a thread, so that no reader holds it up."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from bitnet_core.errors import printable

from .keys import hidden

log = logging.getLogger("bitnet_inference.server")

# And the least level of each: below it they have a line for whatever a client does wrong.
_LOGGERS = {"bitnet_inference": 0, "bitnet_core": 0, "uvicorn": logging.ERROR, "asyncio": logging.ERROR}
_FRAMES = 20
_PENDING = 10_000  # lines that may wait; who reads so slowly misses what comes then
_GATHER_S = 0.05  # in which lines come together before the thread wakes for them
_LEAVE_S = 2.0  # for the last lines to be taken


class JSONLines(logging.Formatter):
    """A record as one line of JSON; of an exception type and places alone: its words may be a client's."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
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


class _Stream:
    """A stream that somebody else opened, and keeps."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        pass


class _File:
    """A file for its owner's eyes, opened again when another, or none, stands in its place."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._handle, self._torn = self._open()

    def write(self, text: str) -> None:
        with suppress(OSError):  # the old one will do for as long as there is no other
            if not self._here():
                self.reopen()
        data, written = (b"\n" if self._torn else b"") + text.encode(), 0
        try:
            while written < len(data):
                written += os.write(self._handle, data[written:])
        finally:
            if written:
                self._torn = not data[:written].endswith(b"\n")

    def reopen(self) -> None:
        before = self._handle
        self._handle, self._torn = self._open()
        os.close(before)

    def close(self) -> None:
        os.close(self._handle)

    def _open(self) -> tuple[int, bool]:
        """The file, and whether it ends in the midst of a line."""
        handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found = os.fstat(handle)
        return handle, stat.S_ISREG(found.st_mode) and os.pread(handle, 1, max(0, found.st_size - 1)) not in (
            b"",
            b"\n",
        )

    def _here(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._handle))
        except FileNotFoundError:
            return False


class _Lines(logging.Handler):
    """Takes records in any thread, and writes them in its own; what would wait too long is lost, and counted."""

    def __init__(self, output: _Stream | _File, level: int) -> None:
        super().__init__(level)
        self._output = output
        self._inbox: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self._lost = 0
        self._moved = False  # the file was, and is to be opened again
        self._leaving = threading.Event()
        self._form = JSONLines()
        self._thread = threading.Thread(target=self._work, name="bitnet-logs", daemon=True)
        self._thread.start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Without a lock: the queue has its own."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """A record comes in."""
        if self._inbox.qsize() < _PENDING:
            self._inbox.put(record)
        else:
            self._lost += 1

    def reopen(self) -> None:
        """Open the file again, now."""
        self._moved = True
        self._inbox.put(None)

    def stop(self) -> None:
        """Write what is left, if somebody takes it, and end."""
        self._leaving.set()
        self._inbox.put(None)
        self._thread.join(_LEAVE_S)
        if not self._thread.is_alive():
            self._output.close()

    def _work(self) -> None:
        while not (self._leaving.is_set() and self._inbox.empty()):
            records = list(self._take())
            if self._moved:
                self._moved = False
                with suppress(OSError):
                    self._output.reopen()
            lost, self._lost = self._lost, 0
            if lost:
                records.append(_loss(lost))
            try:
                if records:
                    self._output.write("".join(map(self._line, records)))
            except (OSError, ValueError):  # a full disk, a stream that was closed: the server goes on without its log
                self._lost += len(records) + max(0, lost - 1)

    def _take(self) -> Iterator[logging.LogRecord]:
        """What there is, and what comes in a moment: waking for each line would take a turn from those who answer."""
        first = self._inbox.get()
        self._leaving.wait(_GATHER_S)
        if first is not None:
            yield first
        with suppress(Empty):
            for _ in range(_PENDING):
                record = self._inbox.get_nowait()
                if record is not None:
                    yield record

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self._form.format(record) + "\n"
        except (TypeError, ValueError):  # words that do not fit their places
            record.msg, record.args = str(record.msg), ()
            return self._form.format(record) + "\n"


def _loss(count: int) -> logging.LogRecord:
    fields = {"name": log.name, "levelno": logging.WARNING, "levelname": "WARNING", "msg": "lines were lost"}
    return logging.makeLogRecord({**fields, "fields": {"count": count}})


@contextmanager
def written(
    stream: TextIO | None = None, file: str | os.PathLike[str] | None = None, *, level: int = logging.INFO
) -> Iterator[None]:
    """Have the logs written as lines of JSON: to a stream from `level` up, to a file all that are worth a line.

    SIGHUP opens the file again, or does nothing where there is none, if this thread may say so.
    """
    lines = [] if stream is None else [_Lines(_Stream(stream), level)]
    if file is not None:
        lines.append(_Lines(_File(file), logging.INFO))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    wanted = min((one.level for one in lines), default=level)
    for logger in loggers:
        logger.setLevel(max(wanted, _LOGGERS[logger.name]))
        logger.propagate = False
        for one in lines:
            logger.addHandler(one)
    try:
        with _hangup(_pass if file is None else lines[-1].reopen):
            yield
    finally:
        for logger, (old, propagate) in zip(loggers, before, strict=True):
            for one in lines:
                logger.removeHandler(one)
            logger.setLevel(old)
            logger.propagate = propagate
        for one in lines:
            one.stop()


def _pass() -> None:
    """Who asks for another file, or any reload, does not mean to end the process."""
    log.warning("SIGHUP changes nothing: there is no file of the log to open anew")


@contextmanager
def _hangup(call: Callable[[], None]) -> Iterator[None]:
    """What the signal means that tells of a file that was moved."""
    if not hasattr(signal, "SIGHUP") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, lambda *_: call())
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
