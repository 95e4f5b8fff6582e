"""A file's bytes as arrays: mapped, or read one range at a time, and never from a file that has changed."""

from __future__ import annotations

import mmap
import os
import stat
import threading
import weakref

import numpy as np
import numpy.typing as npt

from ..errors import FormatError

Bytes = npt.NDArray[np.uint8]


class MappedFile:
    """A regular file opened for reading; arrays made from it stay valid after it is closed.

    Reading a mapping beyond the end of a file that was cut short since would end the process. So every access
    asks for the file's size and time first, and a caller copies what it keeps for long. `mapped=False` reads
    each range into memory of its own, which even a file that changes all the time cannot harm.
    """

    def __init__(self, path: str | os.PathLike[str], *, mapped: bool = True) -> None:
        self.path = os.fspath(path)
        self._handle = _open_regular(self.path)
        # Models live as long as somebody uses them, so files close when nothing refers to them any more.
        self._close = weakref.finalize(self, os.close, self._handle)
        self._lock = threading.Lock()
        self._stamp = self._current_stamp()
        self.size = self._stamp[0]
        self._map: mmap.mmap | None = None
        if mapped and self.size:
            try:
                self._map = mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)
            except OSError as error:
                self.close()
                raise FormatError(path, "file", "a file that can be mapped", error.strerror or error) from error

    def view(self, start: int, end: int, field: str = "bytes") -> Bytes:
        """Bytes from `start` to `end`, read-only; `field` is named if the file no longer has them."""
        if not 0 <= start <= end <= self.size:
            raise FormatError(self.path, field, f"bytes up to {self.size}, where the file ends", f"{start} to {end}")
        if (now := self._current_stamp()) != self._stamp:
            got = "one written to since" if now[0] == self.size else f"one changed to {now[0]} bytes"
            raise FormatError(self.path, field, f"the file of {self.size} bytes that was opened", got)
        if self._map is not None:
            return np.frombuffer(self._map, np.uint8, end - start, start)
        return self._read(start, end - start, field)

    def _read(self, start: int, count: int, field: str) -> Bytes:
        data = np.empty(count, np.uint8)
        done = 0
        with self._lock, os.fdopen(os.dup(self._handle), "rb", buffering=0) as stream:
            stream.seek(start)
            # One call gives at most 2 GiB on some systems.
            while done < count and (got := stream.readinto(data[done:].data)):
                done += got
        if done < count:
            raise FormatError(self.path, field, f"{count} bytes", done, offset=start)
        return data

    def close(self) -> None:
        """Let go of the file; arrays that were made keep the mapping alive."""
        self._close()

    def _current_stamp(self) -> tuple[int, int]:
        status = os.fstat(self._handle)
        return status.st_size, status.st_mtime_ns

    def __enter__(self) -> MappedFile:
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
