"""A file's bytes as arrays, read one range at a time, and never from a file that has changed."""

from __future__ import annotations

import os
import stat
import threading
import weakref

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

Bytes = npt.NDArray[np.uint8]


class RangeFile:
    """A regular file opened for reading; what was read from it stays valid whatever becomes of it.

    Files are not mapped: reading a mapping beyond the end of a file that somebody cuts short ends the process.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._handle = _open_regular(self.path)
        # Models live as long as somebody uses them, so files close when nothing refers to them any more.
        self._close = weakref.finalize(self, os.close, self._handle)
        self._lock = threading.Lock()
        self._stamp = self._current_stamp()
        self.size = self._stamp[0]

    def read(self, start: int, end: int, field: str = "bytes") -> Bytes:
        """Bytes from `start` to `end`; `field` is named if the file no longer has them."""
        if not 0 <= start <= end <= self.size:
            raise FormatError(self.path, field, f"bytes up to {self.size}, where the file ends", f"{start} to {end}")
        data = np.empty(end - start, np.uint8)
        done = 0
        # One call gives at most 2 GiB on some systems.
        while done < len(data) and (got := self._read_into(data[done:].data, start + done)):
            done += got
        # Looked at afterwards, the stamp is of a file that had these bytes all the while.
        if (now := self._current_stamp()) != self._stamp:
            found = "one written to since" if now[0] == self.size else f"one changed to {now[0]} bytes"
            raise FormatError(self.path, field, f"the file of {self.size} bytes that was opened", found)
        if done < len(data):
            raise FormatError(self.path, field, f"{len(data)} bytes", done, offset=start)
        return data

    def _read_into(self, room: memoryview, at: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._handle, [room], at)
        with self._lock:  # without it, there is one place in the file for all threads
            os.lseek(self._handle, at, os.SEEK_SET)
            data = os.read(self._handle, len(room))
        room[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Let go of the file; arrays that were read stay."""
        self._close()

    def _current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns

    def __enter__(self) -> RangeFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_regular(path: str) -> int:
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags)
    except OSError as error:
        raise FormatError(path, "file", "a readable file", error.strerror or error) from error
    except ValueError as error:
        raise FormatError(path, "file", "a path", "one with a NUL character") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise FormatError(path, "file", "a regular file", _kind(mode))
    return handle


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for test, name in kinds if test(mode)), "a device")
