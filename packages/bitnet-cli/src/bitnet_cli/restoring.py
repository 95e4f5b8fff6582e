"""Putting a backup in its place: all of it or nothing, also where the power fails in between, and back again.

What is new is written beside what is old. Then a journal names the moves, and only then they are made: a journal that
is found later is finished first. What was there before is kept for one step back.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from .archives import Archive, Entry, contents, places, sync
from .failures import Refused

_JOURNAL, _BEFORE, _GONE = "restore.json", "before-restore", "nothing"


def state() -> Path:
    """Where the journal and what was there before are."""
    folder = os.environ.get("XDG_STATE_HOME")
    base = Path(folder) if folder and Path(folder).is_absolute() else Path("~/.local/state").expanduser()
    return base / "bitnet"


def put(archive: Archive) -> list[str]:
    """Put settings and records of an archive in their places, and models into the cache."""
    finish()
    entries = {entry.name: entry for entry in archive.entries}
    chosen = {name: place for name, place in places().items() if name in entries}
    _keep(chosen)
    moves = []
    for name, place in chosen.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        staged = place.with_name(f".{place.name}.restored")
        _write(staged, archive, entries[name])
        moves.append((str(staged), str(place)))
    _make(moves)
    models = [entry for entry in archive.entries if entry.name.startswith("models/")]
    for entry in models:
        _put_file(archive, entry)
    return [*chosen, *(entry.name for entry in models)]


def back() -> list[str]:
    """Put what was there before the last restore in its place again."""
    finish()
    before = state() / _BEFORE
    if not before.is_dir():
        raise Refused("restore: there is nothing to go back to: nothing was restored yet")
    moves = []
    for name, place in places().items():
        kept = before / name
        staged = place.with_name(f".{place.name}.restored")
        if kept.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, staged)
            sync(staged)
            moves.append((str(staged), str(place)))
        elif (before / f"{name}.{_GONE}").is_file() and place.exists():
            moves.append((_GONE, str(place)))
    _make(moves)
    shutil.rmtree(before)
    return [Path(place).name for _, place in moves]


def finish() -> None:
    """Finish the moves of a restore that was broken off."""
    journal = state() / _JOURNAL
    if not journal.is_file():
        return
    for staged, place in json.loads(journal.read_text("utf-8")):
        if staged == _GONE:
            Path(place).unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):  # it was made before
                Path(staged).replace(place)
    journal.unlink()


def _make(moves: list[tuple[str, str]]) -> None:
    from bitnet_core.durable import replacing  # noqa: PLC0415

    state().mkdir(parents=True, exist_ok=True)
    with replacing(state() / _JOURNAL) as stream:
        stream.write(json.dumps(moves).encode())
    finish()


def _keep(chosen: dict[str, Path]) -> None:
    """Keep what is there now, whole or not at all."""
    new, before = state() / f"{_BEFORE}.new", state() / _BEFORE
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, place in chosen.items():
        if place.is_file():
            shutil.copyfile(place, new / name)
            sync(new / name)
        else:
            (new / f"{name}.{_GONE}").touch()
    shutil.rmtree(before, ignore_errors=True)
    new.rename(before)


def _write(target: Path, archive: Archive, entry: Entry) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as stream:
        for piece in contents(archive, entry):
            digest.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    if digest.hexdigest() != entry.sha256:  # somebody has changed the archive since it was proven
        target.unlink()
        raise Refused(f"{archive.path}: {entry.name} changed while it was read")


def _put_file(archive: Archive, entry: Entry) -> None:
    """A file of a model as a blob of the cache with its name in a revision."""
    from bitnet_core.hub.catalogue import RemoteFile  # noqa: PLC0415
    from bitnet_core.hub.store import Store  # noqa: PLC0415

    _, organisation, model, commit, *rest = entry.name.split("/")
    repo, name = f"{organisation}/{model}", "/".join(rest)
    blob = entry.blob or ""
    if len(blob) == 64 and blob != entry.sha256:
        raise Refused(f"{archive.path}: {entry.name}: is not the content that its name in the cache stands for")
    file = RemoteFile(name, entry.size, blob, entry.sha256 if len(blob) == 64 else None)
    store = Store.at(None)
    if not store.has_blob(repo, file):
        place = store.blob(repo, file)
        place.parent.mkdir(parents=True, exist_ok=True)
        staged = place.with_name(f"{place.name}.restored")
        _write(staged, archive, entry)
        staged.replace(place)
    store.link(repo, commit, file)
    for ref in _refs(archive.models, repo, commit):
        store.note(repo, ref, commit)


def _refs(models: tuple[Any, ...], repo: str, commit: str) -> list[str]:
    found = [m for m in models if m.get("name") == repo and m.get("revision") == commit]
    return [ref for m in found for ref in m.get("refs", []) if isinstance(ref, str)]
