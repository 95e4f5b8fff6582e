"""Files that are whole or not there: written aside, forced to the disk, then renamed over the old one."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file `path` if the block ends well; otherwise nothing has changed.

    Whoever has the old file open or mapped keeps it: the new one takes its name, not its bytes. Errors of the system
    name `path`.
    """
    target = Path(path)
    aside = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with _naming(target):
        handle = os.open(aside, flags, 0o666)
    try:
        with io.BufferedWriter(_Aside(handle, target)) as stream:
            yield stream
            stream.flush()
            with _naming(target):
                os.fsync(stream.fileno())
        with _naming(target):
            if target.exists():
                aside.chmod(target.stat().st_mode & 0o777)
            aside.replace(target)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    with _naming(target):
        sync_folder(target.parent)


class _Aside(io.FileIO):
    """What is written aside: the system's errors at it have no name of their own."""

    def __init__(self, handle: int, target: Path) -> None:
        super().__init__(handle, "wb")
        self._target = target

    def write(self, data: ReadableBuffer, /) -> int:
        with _naming(self._target):
            return super().write(data)


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """The system's errors name the file that was asked for, not the one aside."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(target)
        del error.filename2
        raise


def sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk; systems that cannot open folders do it by themselves."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
