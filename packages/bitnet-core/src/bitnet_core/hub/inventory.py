"""What the cache holds, what stays in it and what goes.

Removal is planned by huggingface_hub, which knows its stores of shared content. Its plan is followed only where it
stays inside the folder of the model: links in a cache that somebody tampered with may lead anywhere.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import HubError, NotFound
from . import names
from .names import Name
from .part import disk_errors, leftovers, parts, write_whole
from .store import Store

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, HFCacheInfo

_IDLE_S = 3600.0  # a part that has not grown for so long belongs to no living download


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One revision of a model on this machine."""

    name: str  # org/model
    revision: str  # the commit
    refs: tuple[str, ...]  # branches and tags that meant it last
    files: tuple[str, ...]
    size: int  # bytes of its files; revisions of a model may share them
    last_used: float  # seconds since 1970
    pinned: bool
    path: Path


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """What the cache takes, and what the disk under it has left; bytes."""

    path: Path
    used: int
    unfinished: int  # the share of `used` that is parts of downloads
    free: int


def cached(*, cache: str | os.PathLike[str] | None = None) -> tuple[CachedModel, ...]:
    """The models on this machine, a revision each, the last used first."""
    store = Store.at(cache)
    found = [_revision(store, repo, r) for repo in _repos(_scan(store)) for r in repo.revisions]
    return tuple(sorted(found, key=lambda model: (-model.last_used, model.name)))


def disk_usage(*, cache: str | os.PathLike[str] | None = None) -> DiskUsage:
    """What the whole cache takes, unfinished downloads included."""
    store = Store.at(cache)
    sizes: dict[tuple[int, int], int] = {}  # by device and inode: a file with two names takes its room once
    for path in names.walk(store.root):
        with suppress(OSError):
            status = path.lstat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    unfinished = sum(size for folder in _folders(store) for size, _ in parts(names.inside(folder, "blobs")))
    with disk_errors(store.root):
        place = next(p for p in (store.root, *store.root.parents) if p.exists())
        return DiskUsage(store.root, sum(sizes.values()), unfinished, shutil.disk_usage(place).free)


def pin(name: str, *, revision: str | None = None, cache: str | os.PathLike[str] | None = None) -> str:
    """Protects a revision on this machine from removal; returns the name that always means this revision."""
    wanted, store = names.parse(name, revision), Store.at(cache)
    commit = _commit_here(store, wanted)
    write_whole(store.pin(wanted.repo, commit), b"", store.blobs(wanted.repo))
    return Name(wanted.repo, commit, wanted.file).full


def unpin(name: str, *, revision: str | None = None, cache: str | os.PathLike[str] | None = None) -> None:
    """Takes the protection from a revision, or from all revisions of a model where none is named."""
    wanted, store = names.parse(name, revision), Store.at(cache)
    commits = [_commit_here(store, wanted)] if wanted.revision else _pinned(store, wanted.repo)
    for commit in commits:
        with disk_errors(store.pins(wanted.repo)):
            store.pin(wanted.repo, commit).unlink(missing_ok=True)


def remove(name: str, *, revision: str | None = None, cache: str | os.PathLike[str] | None = None) -> int:
    """Removes a revision, or all of a model where none is named; returns the bytes that this has freed."""
    wanted, store = names.parse(name, revision), Store.at(cache)
    info = _scan(store)
    known = next((repo for repo in _repos(info) if repo.repo_id == wanted.repo), None)
    pinned = set(_pinned(store, wanted.repo))
    commits = {_commit_here(store, wanted)} if wanted.revision else _commits(known) | pinned
    if kept := sorted(commits & pinned):
        raise HubError(f"{wanted.repo}@{kept[0]} is pinned; unpin it first")
    if info is not None and known is not None:
        return _remove_revisions(store, replace(info, repos=frozenset([known])), commits)
    if wanted.revision:
        raise HubError(f"{wanted}: expected a readable cache of it, got a damaged one; remove {wanted.repo} as a whole")
    return _remove_unreadable(store, wanted)


def clean_up(
    *, unused_s: float | None = None, idle_s: float = _IDLE_S, cache: str | os.PathLike[str] | None = None
) -> int:
    """Removes what dead downloads left, and revisions not used for `unused_s` and not pinned; returns bytes freed."""
    store, freed, now = Store.at(cache), 0, time.time()
    for folder in _folders(store):
        for path in leftovers(names.inside(folder, "blobs"), now - idle_s):
            with suppress(OSError):
                size = path.lstat().st_size
                path.unlink()
                freed += size
    if unused_s is not None:
        for model in cached(cache=cache):
            if not model.pinned and now - model.last_used > unused_s:
                freed += remove(model.name, revision=model.revision, cache=cache)
    return freed


def _scan(store: Store) -> HFCacheInfo | None:
    from huggingface_hub import scan_cache_dir  # noqa: PLC0415 - 240 ms
    from huggingface_hub.errors import CacheNotFound  # noqa: PLC0415

    try:
        with disk_errors(store.root):
            return scan_cache_dir(store.root)
    except CacheNotFound:
        return None


def _repos(info: HFCacheInfo | None) -> list[CachedRepoInfo]:
    return [repo for repo in info.repos if repo.repo_type == "model" and "/" in repo.repo_id] if info else []


def _revision(store: Store, repo: CachedRepoInfo, found: CachedRevisionInfo) -> CachedModel:
    return CachedModel(
        name=repo.repo_id,
        revision=found.commit_hash,
        refs=tuple(sorted(found.refs)),
        files=tuple(sorted(f.file_path.relative_to(found.snapshot_path).as_posix() for f in found.files)),
        size=found.size_on_disk,
        last_used=max((f.blob_last_accessed for f in found.files), default=found.last_modified),
        pinned=found.commit_hash in _pinned(store, repo.repo_id),
        path=found.snapshot_path,
    )


def _commit_here(store: Store, wanted: Name) -> str:
    commit = store.commit(wanted.repo, wanted.revision or "main")
    if commit is None or not store.snapshot(wanted.repo, commit).is_dir():
        raise NotFound(f"{wanted}: not in the cache at {names.shown(store.root)}")
    return commit


def _pinned(store: Store, repo: str) -> list[str]:
    with disk_errors(store.pins(repo)), suppress(FileNotFoundError):
        return sorted(entry.name for entry in os.scandir(store.pins(repo)) if names.is_commit(entry.name))
    return []


def _folders(store: Store) -> list[Path]:
    with disk_errors(store.root), suppress(FileNotFoundError):
        return [Path(entry.path) for entry in os.scandir(store.root) if _is_model(entry)]
    return []


def _is_model(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith("models--") and entry.is_dir(follow_symlinks=False)


def _remove_unreadable(store: Store, wanted: Name) -> int:
    """Removes a model of which huggingface_hub can make nothing: damaged, or never fetched to the end."""
    folder = store.folder(wanted.repo)
    if not folder.is_dir():
        raise NotFound(f"{wanted}: not in the cache at {names.shown(store.root)}")
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    with disk_errors(folder):
        shutil.rmtree(folder)
    return size


def _remove_revisions(store: Store, info: HFCacheInfo, commits: set[str]) -> int:
    """Follows huggingface_hub's plan for the one model that `info` holds."""
    (known,) = info.repos
    folder = store.folder(known.repo_id)
    unfinished = parts(store.blobs(known.repo_id)) if commits == _commits(known) else []
    freed = sum(size for size, _ in unfinished)
    plan = info.delete_revisions(*commits)
    paths = plan.repos | plan.snapshots | plan.refs | plan.blobs
    for path in paths - {folder}:
        if not path.parent.resolve().is_relative_to(folder):
            raise HubError(
                f"{names.shown(path)}: expected a file of {known.repo_id}, got one outside its folder; "
                "the cache was tampered with: remove the link by hand"
            )
    plan.execute()
    if left := sorted(path for path in paths if os.path.lexists(path)):
        raise HubError(f"{names.shown(left[0])}: could not be removed; check the rights to the folder")
    return freed + plan.expected_freed_size


def _commits(known: CachedRepoInfo | None) -> set[str]:
    return {found.commit_hash for found in known.revisions} if known else set()
