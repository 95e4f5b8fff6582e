"""Backups: one tar file whose every byte is proven before anything is put in its place, and a way back."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sqlite3
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from .failures import Refused

FORMAT = 1
_KIND, _MANIFEST = "bitnet backup", "manifest.json"
_ENTRIES, _MANIFEST_BYTES = 10_000, 16 << 20
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive; those of models have the blob that they are in the cache."""

    name: str
    size: int
    sha256: str
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that was read to its end, and is what its manifest says."""

    path: Path
    time: str
    entries: tuple[Entry, ...]
    models: tuple[Mapping[str, Any], ...]  # name, revision, pinned, and whether its files are here


def places() -> dict[str, Path]:
    """Settings and records by their names in archives."""
    from bitnet_benchmarks.record import default_path  # noqa: PLC0415

    from .settings import default_file  # noqa: PLC0415

    settings = default_file()
    found = {"benchmarks.sqlite": default_path()}
    return found if settings is None else found | {"config.toml": settings}


def write(target: Path, models: list[str]) -> Archive:
    """Write an archive of settings, records and the list of models, and the files of these; then read it back."""
    from bitnet_core.durable import replacing  # noqa: PLC0415

    sources = {name: path for name, path in places().items() if path.is_file()}
    listed, files = _models(models)
    with replacing(target) as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entries = []
        for name, path in sources.items():
            data = _database(path) if path.suffix == ".sqlite" else path.read_bytes()
            entries.append(Entry(name, len(data), hashlib.sha256(data).hexdigest()))
            _add(tar, name, io.BytesIO(data), len(data))
        for name, path in files.items():
            with path.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
                source.seek(0)
                entries.append(Entry(name, path.stat().st_size, digest, path.resolve().name))
                _add(tar, name, source, path.stat().st_size)
        manifest = {
            "kind": _KIND,
            "format": FORMAT,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "entries": [{"name": e.name, "size": e.size, "sha256": e.sha256, "blob": e.blob} for e in entries],
            "models": listed,
        }
        data = json.dumps(manifest).encode()
        _add(tar, _MANIFEST, io.BytesIO(data), len(data))
    return read(target)


def _database(path: Path) -> bytes:
    """A database as it is at one moment, whoever writes to it meanwhile."""
    with closing(sqlite3.connect(path)) as base, closing(sqlite3.connect(":memory:")) as copy:
        base.backup(copy)
        return copy.serialize()


def _models(wanted: list[str]) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Every model of the cache, and the files of those that are wanted."""
    from bitnet_core import hub  # noqa: PLC0415

    cached = hub.cached()
    if lost := sorted(set(wanted) - {model.name for model in cached}):
        raise Refused(f"{lost[0]}: not in the cache; bitnet ls lists what is")
    files: dict[str, Path] = {}
    for model in cached:
        if model.name in wanted:
            files |= {f"models/{model.name}/{model.revision}/{file}": model.path / file for file in model.files}
    listed = [
        {
            "name": m.name,
            "revision": m.revision,
            "refs": list(m.refs),
            "pinned": m.pinned,
            "files": m.name in wanted,
        }
        for m in cached
    ]
    return listed, files


def _add(tar: tarfile.TarFile, name: str, source: BinaryIO | io.BytesIO, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    tar.addfile(info, source)


def read(path: Path) -> Archive:
    """An archive, proven: nothing but plain files of safe names, with the bytes that the manifest says."""
    if not path.is_file():
        raise Refused(f"{path}: expected a backup, got {'a folder' if path.is_dir() else 'no such file'}")
    try:
        with tarfile.open(path, "r:") as tar:
            found, manifest = _members(tar, path)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise Refused(f"{path}: expected a backup, got a damaged one or another file: {error}") from error
    entries = tuple(_entry(item, path) for item in manifest["entries"])
    if {entry.name: (entry.size, entry.sha256) for entry in entries} != found or len(entries) != len(found):
        raise Refused(f"{path}: its files are not those of its manifest; it is damaged")
    return Archive(path, str(manifest["time"]), entries, tuple(manifest["models"]))


def _members(tar: tarfile.TarFile, path: Path) -> tuple[dict[str, tuple[int, str]], dict[str, Any]]:
    """Size and digest of every file, and the manifest."""
    found: dict[str, tuple[int, str]] = {}
    manifest: dict[str, Any] | None = None
    room = path.stat().st_size  # nothing is packed: no file can be larger than the archive
    for count, member in enumerate(tar, 1):
        _check(member, room, path)
        if count > _ENTRIES or member.name in found:
            raise Refused(f"{path}: expected at most {_ENTRIES} files with names of their own")
        stream = tar.extractfile(member)
        if stream is None:
            raise Refused(f"{path}: {member.name} cannot be read")
        if member.name == _MANIFEST:
            manifest = _manifest(stream.read(_MANIFEST_BYTES), path)
        else:
            found[member.name] = (member.size, hashlib.file_digest(stream, "sha256").hexdigest())  # type: ignore[arg-type]
    if manifest is None:
        raise Refused(f"{path}: expected a backup, got an archive without a manifest")
    return found, manifest


def _check(member: tarfile.TarInfo, room: int, path: Path) -> None:
    from bitnet_core import HubError  # noqa: PLC0415
    from bitnet_core.hub import names  # noqa: PLC0415

    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise Refused(f"{path}: {member.name!r}: expected plain files alone, got a link, a device or a folder")
    try:
        names.check_path(member.name, "file")
    except HubError as error:
        raise Refused(f"{path}: {error}") from error
    if not 0 <= member.size <= room:
        raise Refused(f"{path}: {member.name!r}: expected at most {room} bytes, got {member.size}")
    if member.name not in {_MANIFEST, *places()} and not member.name.startswith("models/"):
        raise Refused(f"{path}: {member.name!r}: expected files of a backup, got another")


def _manifest(data: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path}: its manifest is no JSON") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise Refused(f"{path}: expected a backup, got something else")
    if manifest.get("format") != FORMAT:
        raise Refused(
            f"{path}: expected a backup of format {FORMAT}, got {manifest.get('format')}; another version made it"
        )
    models, entries = manifest.get("models"), manifest.get("entries")
    if not isinstance(entries, list) or not isinstance(models, list) or not all(isinstance(m, dict) for m in models):
        raise Refused(f"{path}: its manifest is damaged")
    return manifest


def _entry(item: Any, path: Path) -> Entry:
    try:
        return Entry(str(item["name"]), int(item["size"]), str(item["sha256"]), item.get("blob"))
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(f"{path}: its manifest is damaged") from error


def contents(archive: Archive, entry: Entry) -> Iterator[bytes]:
    """The bytes of a file, some at a time."""
    with tarfile.open(archive.path, "r:") as tar:
        stream = tar.extractfile(entry.name)
        while stream is not None and (piece := stream.read(_PIECE)):
            yield piece


def sync(path: Path) -> None:
    """Force a file to the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
