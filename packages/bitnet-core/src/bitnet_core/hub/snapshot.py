"""A model on this machine: from the cache if it is there, from the hub if it is not."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ..errors import HubError, NotFound, Offline, printable
from . import names
from .catalogue import RemoteFile, choose, fetch_commit, fetch_listing, is_vital
from .names import Name
from .part import Part
from .patience import PATIENCE, Patience
from .store import Store
from .transfer import Hub, is_offline

_LOG = logging.getLogger(__name__)
_REPORT_BYTES = 1 << 20
_REPORT_S = 0.1
_INDEX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download has come; sizes in bytes, those of one file and those of all that must be fetched."""

    file: str
    done: int
    total: int
    files_done: int
    files_total: int
    all_done: int
    all_total: int


def resolve(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    offline: bool | None = None,
    progress: Callable[[Progress], None] | None = None,
    cache: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
    patience: Patience = PATIENCE,
) -> Path:
    """The local folder or file of a model: a path that exists, or `org/model[@revision][:file]` of the hub.

    Whatever `progress` raises ends the download; what has come is continued the next time.
    """
    local = os.path.expanduser(name)  # noqa: PTH111 - pathlib raises where there is no such user
    if os.path.exists(local):  # noqa: PTH110 - or where the name is too long to be one
        return _checked(Path(local))
    wanted = names.parse(os.fspath(name), revision)
    store = Store.at(cache)
    stay = is_offline() if offline is None else offline
    try:
        held: _Held | None = _Held.find(store, wanted)
    except HubError:
        if stay:
            raise
        held = None
    if held is not None and (stay or (held.is_complete and names.is_commit(wanted.revision or ""))):
        return held.place()
    try:
        # Where the cache could do, one question is enough to learn that there is no network.
        hub = Hub.connect(endpoint, token, replace(patience, retries=0) if held else patience)
        commit = fetch_commit(hub, wanted)
        files = store.listing(wanted.repo, commit) or fetch_listing(hub, wanted, commit)
    except Offline as unreachable:
        if held is None:
            raise
        _LOG.warning("%s; using what the cache has: %s@%s", unreachable, wanted.repo, held.commit)
        return held.place()
    chosen = choose(files, wanted)
    _Download(store, replace(hub, patience=patience), wanted, commit, progress).run(chosen)
    store.keep(wanted.repo, commit, files)
    store.note(wanted.repo, wanted.revision or "main", commit)
    return _Held(store, wanted, commit, chosen, True).place()


def _checked(local: Path) -> Path:
    if local.is_file():
        names.refuse_pickle(local.name)
    return local


@dataclass(frozen=True, slots=True)
class _Held:
    """A revision whose vital files are all on this machine."""

    store: Store
    wanted: Name
    commit: str
    files: tuple[RemoteFile, ...]
    is_complete: bool  # all that the hub listed and the model needs is here

    @classmethod
    def find(cls, store: Store, wanted: Name) -> _Held:
        """What the cache can give without the hub; raises where that is not a model."""
        repo = wanted.repo
        commit = store.commit(repo, wanted.revision or "main")
        present = store.present(repo, commit) if commit else ()
        if commit is None or not present:
            raise _missing(store, wanted, "any file of it")
        listing = store.listing(repo, commit)
        try:
            chosen = choose(listing or present, wanted)
        except NotFound:
            if listing:
                raise
            raise _missing(store, wanted, wanted.file or "its weights") from None
        lost = [file.name for file in chosen if not store.has(repo, commit, file)]
        here = tuple(file for file in chosen if file.name not in lost)
        vital = [file.name for file in chosen if file.name in lost and (is_vital(file) or wanted.file)]
        if vital or (listing is None and (vital := _lost_shards(store, repo, commit, here))):
            raise _missing(store, wanted, ", ".join(vital[:5]))
        return cls(store, wanted, commit, here, listing is not None and not lost)

    def place(self) -> Path:
        """The file or folder, marked as used."""
        repo = self.wanted.repo
        self.store.touch(repo, self.commit, self.files)
        gguf = [file.name for file in self.files if file.name.endswith(".gguf")]
        file = self.wanted.file or (gguf[0] if gguf else None)
        return self.store.entry(repo, self.commit, file) if file else self.store.snapshot(repo, self.commit)


@dataclass(frozen=True, slots=True)
class _Download:
    """Fetches what is missing of a revision."""

    store: Store
    hub: Hub
    wanted: Name
    commit: str
    progress: Callable[[Progress], None] | None

    def run(self, files: Sequence[RemoteFile]) -> None:
        missing = [file for file in files if not self.store.has(self.wanted.repo, self.commit, file)]
        self.store.make_room(self.wanted.repo, missing)
        total, before = sum(file.size for file in missing), 0
        for index, file in enumerate(missing):
            meter = _Meter(self.progress, file, (index, len(missing)), (before, total))
            meter.show(0)
            self._fetch(file, meter)
            self.store.link(self.wanted.repo, self.commit, file)
            meter.show(file.size, finished=True)
            before += file.size

    def _fetch(self, file: RemoteFile, meter: _Meter) -> None:
        repo = self.wanted.repo
        with self.store.turn(repo, file, self.hub.patience, meter.tick):
            if self.store.has_blob(repo, file):
                return
            with Part(self.store.blob(repo, file), file.size) as part:
                part.adopt()
                self.hub.fetch(replace(self.wanted, file=file.name), self.commit, part, meter.tick)
                part.publish()


class _Meter:
    """Tells about one file: at its begin and end, and between them seldom enough to draw."""

    def __init__(
        self,
        progress: Callable[[Progress], None] | None,
        file: RemoteFile,
        files: tuple[int, int],
        size: tuple[int, int],
    ) -> None:
        self._progress = progress
        self._file = file
        self._files = files
        self._sizes = size
        self._last = (0, time.monotonic())

    def tick(self, done: int) -> None:
        shown, when = self._last
        if done - shown >= _REPORT_BYTES or time.monotonic() - when >= _REPORT_S:
            self.show(done)

    def show(self, done: int, *, finished: bool = False) -> None:
        self._last = (done, time.monotonic())
        if self._progress is not None:
            (index, count), (before, total) = self._files, self._sizes
            self._progress(
                Progress(self._file.name, done, self._file.size, index + finished, count, before + done, total)
            )


def _missing(store: Store, wanted: Name, what: str) -> Offline:
    return Offline(
        f"{wanted}: the cache at {names.shown(store.root)} has not {printable(what, 120)}, and the network is off "
        "(offline, BITNET_OFFLINE or HF_HUB_OFFLINE); fetch it once with the network on"
    )


def _lost_shards(store: Store, repo: str, commit: str, files: Sequence[RemoteFile]) -> list[str]:
    """The files that an index of weights names and `files` lacks; nothing where there is no index."""
    index = next((file for file in files if file.name.endswith(".index.json")), None)
    if index is None:
        return []
    try:
        content = store.entry(repo, commit, index.name).read_bytes() if index.size <= _INDEX_BYTES else b""
        shards = set(msgspec.json.decode(content, type=_Index).weight_map.values())
    except (OSError, msgspec.DecodeError, UnicodeError, RecursionError):
        return [index.name]
    return sorted(shards - {file.name for file in files})


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
