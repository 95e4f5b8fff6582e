"""A download that is not complete yet: one file under a name that nobody else uses.

What makes the cache safe is here, and needs no lock: every download writes to its own file, and only a file that is
complete, proven and flushed is renamed to its final name. A part that a dead download left is copied, never
continued in place, because its owner may be alive after all where locks lie (some network file systems).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ..durable import sync_folder
from ..errors import HubError
from . import names

_PART = re.compile(r"(?P<digest>[0-9a-f]{40}|[0-9a-f]{64})\.[0-9a-f]{16}\.incomplete")
_SCRATCH = re.compile(r"[0-9a-f]{16}\.tmp")
_COPY_BYTES = 1 << 20
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_REMEDIES = {
    errno.ENOSPC: "free some space, or remove models",
    errno.EDQUOT: "the quota is used up: free some space, or remove models",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
}
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns errors of the file system into one line that names the path."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        remedy = "choose a folder that you may write to (HF_HUB_CACHE)" if code in _NO_RIGHT else _REMEDIES.get(code)
        reason = f"{error.strerror} ({errno.errorcode.get(code, code)})"
        raise HubError(f"{names.shown(path)}: {reason}; {remedy or 'check the disk'}") from error


def write_whole(path: Path, content: bytes, scratch: Path) -> None:
    """Writes a small file so that a reader, or a power cut, sees the old content or the new one."""
    with disk_errors(path):
        with scratch_file(scratch) as temporary:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)


@contextmanager
def scratch_file(scratch: Path) -> Iterator[Path]:
    """A name in `scratch` that nobody uses; what is there at the end is removed."""
    scratch.mkdir(parents=True, exist_ok=True)
    path = names.inside(scratch, f"{secrets.token_hex(8)}.tmp")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def leftovers(scratch: Path, older_than: float) -> Iterator[Path]:
    """The parts and scratch files in a folder that nobody has written to since that time."""
    with disk_errors(scratch), suppress(FileNotFoundError):
        for entry in os.scandir(scratch):
            if not (_PART.fullmatch(entry.name) or _SCRATCH.fullmatch(entry.name)):
                continue
            with suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_mtime < older_than:
                    yield Path(entry.path)


def parts(blobs: Path, digest: str | None = None) -> list[tuple[int, Path]]:
    """Size and path of the parts in a folder of blobs, of one blob if `digest` is given, the largest first."""
    found = []
    with disk_errors(blobs), suppress(FileNotFoundError):
        for entry in os.scandir(blobs):
            match = _PART.fullmatch(entry.name)
            if match is None or digest not in {None, match["digest"]}:
                continue
            with suppress(FileNotFoundError):  # other downloads end at any time
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found.append((status.st_size, Path(entry.path)))
    return sorted(found, reverse=True)


class Part:
    """The growing file of one download; use it in a `with`, which keeps what has come for the next attempt."""

    def __init__(self, blob: Path, expected: int) -> None:
        self.blob = blob
        self.expected = expected
        self.size = 0
        self.furthest = 0  # what `size` was at most: restarts do not count as progress
        self.adopted = False  # whether bytes of an earlier download are in it
        self.etag: str | None = None  # of the server's body, which must not change when a transfer is resumed
        self._path = names.inside(blob.parent, f"{blob.name}.{secrets.token_hex(8)}.incomplete")
        self._hash = self._new_hash()
        with disk_errors(self._path):
            blob.parent.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o666)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self.size == 0:
            self._drop(self._path)

    def adopt(self) -> None:
        """Copies what the furthest dead download has fetched, so that it need not be fetched again."""
        others = [path for _, path in parts(self.blob.parent, self.blob.name) if path != self._path]
        with disk_errors(self._path):
            if shutil.disk_usage(self.blob.parent).free < self.expected:
                # There is no room for both: without the old parts there is, or the caller would have refused.
                for path in others:
                    self._drop(path)
                return
            for path in others[:1]:
                self._copy(path)

    def write(self, data: bytes) -> None:
        """Appends `data`."""
        with disk_errors(self._path):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._handle(), rest) :]
        self._hash.update(data)
        self.size += len(data)
        self.furthest = max(self.furthest, self.size)

    def restart(self) -> None:
        """Forgets all that has come."""
        with disk_errors(self._path):
            os.ftruncate(self._handle(), 0)
            os.lseek(self._handle(), 0, os.SEEK_SET)
        self.size, self.adopted, self.etag, self._hash = 0, False, None, self._new_hash()

    def is_proven(self) -> bool:
        """Whether what has come is exactly the blob: its size and its digest."""
        return self.size == self.expected and self._hash.hexdigest() == self.blob.name

    def publish(self) -> None:
        """Gives the blob its final name, durably; the parts of other downloads of it have become useless."""
        with disk_errors(self._path):
            self._flush()
            try:
                self._path.replace(self.blob)
            except FileNotFoundError:
                # Another download of this blob was first, and cleared our part away.
                if not (self.blob.is_file() and self.blob.stat().st_size == self.expected):
                    raise
            sync_folder(self.blob.parent)
            for _, path in parts(self.blob.parent, self.blob.name):
                self._drop(path)

    def _flush(self) -> None:
        try:
            os.fsync(self._handle())
        except OSError:
            # The system may have thrown the pages away and call them clean: never trust this file again.
            self.size = 0
            raise
        self._close()

    def _copy(self, source: Path) -> None:
        try:
            handle = os.open(source, os.O_RDONLY | _NOFOLLOW)
        except FileNotFoundError:
            return
        with os.fdopen(handle, "rb", buffering=0) as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size > self.expected:
                return
            while self.size < status.st_size and (data := file.read(min(_COPY_BYTES, status.st_size - self.size))):
                self.write(data)
        self.adopted = self.size > 0

    def _new_hash(self) -> hashlib._Hash:
        if len(self.blob.name) == 64:
            return hashlib.sha256()
        # Small files are named as git names them.
        return hashlib.sha1(b"blob %d\0" % self.expected, usedforsecurity=False)

    def _handle(self) -> int:
        if self._file is None:
            raise HubError(f"{names.shown(self._path)}: the download has ended already")
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @staticmethod
    def _drop(path: Path) -> None:
        with suppress(OSError):  # Windows keeps files that are open; a clean-up takes them later
            path.unlink(missing_ok=True)
