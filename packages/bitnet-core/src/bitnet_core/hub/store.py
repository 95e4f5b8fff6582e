"""The cache on this machine, in the layout of huggingface_hub, so that both use what either has fetched.

models--org--name/
    blobs/<digest>                  content, named by its sha256 (large files) or its git id (small ones)
    snapshots/<commit>/<file>       links to blobs; plain files where the system has no links
    refs/<branch or tag>            the commit that it meant last
    trees/<commit>.json             the files of the commit, with sizes and digests
    pins/<commit>                   ours: empty; this revision stays
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..durable import sync_folder
from ..errors import HubError, printable
from . import names
from .catalogue import RemoteFile
from .part import disk_errors, parts, scratch_file, write_whole
from .patience import Patience

_TREE_BYTES = 64 << 20
_LOCK_POLL_S = 0.2


class _Listed(msgspec.Struct, omit_defaults=True):
    size: int
    blob_id: str
    lfs_sha256: str | None = None
    lfs_size: int | None = None


class _Tree(msgspec.Struct):
    format_version: int
    files: dict[str, _Listed]


@dataclass(frozen=True, slots=True)
class Store:
    """The cache of models in one folder."""

    root: Path

    @classmethod
    def at(cls, cache: str | os.PathLike[str] | None) -> Store:
        """The cache in that folder; by default huggingface_hub's (HF_HUB_CACHE, HF_HOME)."""
        from huggingface_hub import constants  # noqa: PLC0415 - 240 ms

        # The user may keep the whole cache behind a link; below its root no folder may be one.
        return cls(Path(cache or constants.HF_HUB_CACHE).expanduser().resolve())

    def folder(self, repo: str) -> Path:
        """Where everything of a model is."""
        return names.inside(self.root, "models--" + repo.replace("/", "--"))

    def blobs(self, repo: str) -> Path:
        """Where the contents of a model's files are."""
        return names.inside(self.folder(repo), "blobs")

    def snapshot(self, repo: str, commit: str) -> Path:
        """Where the files of a revision are, by their names."""
        return names.inside(self.folder(repo), "snapshots", names.check_commit(commit))

    def entry(self, repo: str, commit: str, file: str) -> Path:
        """Where one file of a revision is."""
        return names.inside(self.snapshot(repo, commit), *names.check_path(file, "file"), link=True)

    def commit(self, repo: str, revision: str) -> str | None:
        """The commit that `revision` means on this machine, without asking the hub."""
        if names.is_commit(revision):
            return revision
        try:
            text = self._ref(repo, revision).read_text("ascii").strip()
        except (OSError, UnicodeError):
            return None
        return text if names.is_commit(text) else None

    def note(self, repo: str, revision: str, commit: str) -> None:
        """Remembers what a branch or tag means; a cache that is read-only simply does not."""
        if revision != commit and self.commit(repo, revision) != commit:
            with suppress(HubError):
                write_whole(self._ref(repo, revision), commit.encode("ascii"), self.blobs(repo))

    def listing(self, repo: str, commit: str) -> tuple[RemoteFile, ...] | None:
        """The files of a revision as the hub listed them, if that was kept."""
        path = self._tree(repo, commit)
        try:
            if path.stat().st_size > _TREE_BYTES:
                return None
            tree = msgspec.json.decode(path.read_bytes(), type=_Tree)
        except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
            return None
        if tree.format_version != 1:
            return None
        return tuple(RemoteFile(n, f.lfs_size or f.size, f.blob_id, f.lfs_sha256) for n, f in tree.files.items())

    def keep(self, repo: str, commit: str, files: tuple[RemoteFile, ...]) -> None:
        """Remembers what the hub listed."""
        listed = {f.name: _Listed(f.size, f.git_id, f.sha256, f.size if f.sha256 else None) for f in files}
        with suppress(HubError):
            write_whole(self._tree(repo, commit), msgspec.json.encode(_Tree(1, listed)), self.blobs(repo))

    def present(self, repo: str, commit: str) -> tuple[RemoteFile, ...]:
        """The files of a revision that are on this machine; their digests are not known."""
        top = self.snapshot(repo, commit)
        found = []
        for path in names.walk(top):
            name = path.relative_to(top).as_posix()
            with suppress(HubError, OSError):
                found.append(RemoteFile(name, self._real(self.entry(repo, commit, name)).stat().st_size, "", None))
        return tuple(sorted(found, key=lambda f: f.name))

    def has(self, repo: str, commit: str, file: RemoteFile) -> bool:
        """Whether a file of a revision is here, in its full size."""
        return self._is_whole(self.entry(repo, commit, file.name), file)

    def has_blob(self, repo: str, file: RemoteFile) -> bool:
        """Whether the content of a file is here, in its full size."""
        return self._is_whole(self.blob(repo, file), file)

    def blob(self, repo: str, file: RemoteFile) -> Path:
        """Where the content of a file is, or goes."""
        return names.inside(self.blobs(repo), names.check_digest(file.digest), link=True)

    def link(self, repo: str, commit: str, file: RemoteFile) -> None:
        """Gives a blob that is here its name in a revision."""
        blob, entry = self.blob(repo, file), self.entry(repo, commit, file.name)
        with disk_errors(entry):
            entry.parent.mkdir(parents=True, exist_ok=True)
            with scratch_file(self.blobs(repo)) as temporary:
                try:
                    temporary.symlink_to(os.path.relpath(blob, entry.parent))
                except OSError:
                    blob.replace(entry)  # no links on this system: huggingface_hub moves the file, too
                else:
                    temporary.replace(entry)
            sync_folder(entry.parent)

    def touch(self, repo: str, commit: str, files: tuple[RemoteFile, ...]) -> None:
        """Marks files as used now: many systems do not keep times of access."""
        for file in files:
            path = self.entry(repo, commit, file.name)
            with suppress(OSError):
                os.utime(path, (time.time(), path.stat().st_mtime))

    def make_room(self, repo: str, files: list[RemoteFile]) -> None:
        """Raises if the disk cannot hold `files`; parts of earlier downloads of them count as room."""
        missing = {file.digest: file for file in files if not self.has_blob(repo, file)}
        blobs, needed = self.blobs(repo), sum(file.size for file in missing.values())
        old = sum(self._fetched(repo, file) for file in missing.values())
        with disk_errors(blobs):
            place = next(path for path in (blobs, *blobs.parents) if path.exists())
            free = shutil.disk_usage(place).free
        if needed > free + old:
            raise HubError(
                f"{names.shown(place)}: expected {needed} bytes of free space for {repo}, got {free + old}; "
                "free some space, remove models, or choose another disk (HF_HUB_CACHE)"
            )

    @contextmanager
    def turn(self, repo: str, file: RemoteFile, patience: Patience, report: Callable[[int], None]) -> Iterator[None]:
        """Waits while another download of the same file gets on. It saves bandwidth; nothing relies on it."""
        from filelock import FileLock, Timeout  # noqa: PLC0415 - not needed where all is here

        folder = names.inside(self.root, ".locks", self.folder(repo).name)
        lock = names.inside(folder, f"{names.check_digest(file.digest)}.lock")
        with ExitStack() as stack:
            mark, size = time.monotonic(), -1
            while time.monotonic() - mark < patience.stall_s:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(FileLock(lock, timeout=_LOCK_POLL_S, mode=0o664))
                    break
                except Timeout:
                    now = self._fetched(repo, file)
                    report(now)
                    if now != size:
                        mark, size = time.monotonic(), now
                except (OSError, NotImplementedError):
                    break  # no locks here
            yield

    def pins(self, repo: str) -> Path:
        """Where the revisions are named that stay."""
        return names.inside(self.folder(repo), "pins")

    def pin(self, repo: str, commit: str) -> Path:
        """The file that says that a revision stays."""
        return names.inside(self.pins(repo), names.check_commit(commit))

    def _fetched(self, repo: str, file: RemoteFile) -> int:
        sizes = [size for size, _ in parts(self.blobs(repo), file.digest) if size <= file.size]
        return max(sizes, default=0)

    def _ref(self, repo: str, revision: str) -> Path:
        return names.inside(self.folder(repo), "refs", *names.check_path(revision, "revision"))

    def _tree(self, repo: str, commit: str) -> Path:
        return names.inside(self.folder(repo), "trees", f"{names.check_commit(commit)}.json")

    def _is_whole(self, path: Path, file: RemoteFile) -> bool:
        try:
            real = self._real(path)
            return real.is_file() and real.stat().st_size == file.size
        except OSError:
            return False

    def _real(self, path: Path) -> Path:
        """Where a link of the cache leads, which must be in the cache."""
        real = path.resolve(strict=True)
        if not real.is_relative_to(self.root):
            raise HubError(
                f"{names.shown(path)}: expected a link into the cache, got one to {printable(real, 120)}; remove it"
            )
        return real
