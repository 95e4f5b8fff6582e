"""Every run as a record: what was measured, on what, with which versions; kept in one SQLite file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitnet_core import BitNetError, FormatError, device

FORMAT = 1  # of records: raised when an old one could no longer be compared with a new one
_PACKAGES = ("bitnet-core", "bitnet-quant", "bitnet-inference", "bitnet-training", "bitnet-benchmarks", "numpy")
_LIMIT = 64 << 20  # bytes of a record


@dataclass(frozen=True, slots=True)
class Record:
    """One run; `figures` are mappings whose keys depend on its kind."""

    id: str
    kind: str  # machine, kernels, generate, rivals, quality, train, serve
    time: str  # ISO 8601, UTC
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    model: Mapping[str, Any] | None
    options: Mapping[str, Any]
    figures: tuple[Mapping[str, Any], ...]

    def json(self) -> str:
        """The record as text."""
        return json.dumps({"format": FORMAT, **as_plain(self)}, indent=1, allow_nan=False) + "\n"


def make(
    kind: str, figures: Any, *, model: str | os.PathLike[str] | Mapping[str, Any] | None = None, **options: Any
) -> Record:
    """A record of what has just been measured here; a model is a path, or what is known of one that is elsewhere."""
    listed = figures if isinstance(figures, list | tuple) else [figures]
    return Record(
        id=secrets.token_hex(6),
        kind=kind,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        machine=as_plain(device.describe().record()),
        model=dict(model) if isinstance(model, Mapping) else None if model is None else describe_model(Path(model)),
        options=as_plain(options),
        figures=tuple(as_plain(figure) for figure in listed),
    )


def describe_model(path: Path) -> dict[str, Any]:
    """A model's name, size and SHA-256: of its file, or of the names and digests of a folder's weights."""
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")])
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {"name": path.name, "nbytes": sum(file.stat().st_size for file in files), "sha256": whole}


def read(path: str | os.PathLike[str]) -> Record:
    """A record from a file that `Record.json` wrote."""
    file = Path(path)
    if not file.is_file():
        raise FormatError(file, "record", "a file", "a folder" if file.is_dir() else "no such file")
    if file.stat().st_size > _LIMIT:
        raise FormatError(file, "record", f"at most {_LIMIT} bytes", file.stat().st_size)
    try:
        return _parse(json.loads(file.read_text("utf-8")))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(
            file, "record", "a record of a benchmark as JSON", f"{type(error).__name__}: {error}"
        ) from error


def _parse(value: Any) -> Record:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        got = value.get("format") if isinstance(value, dict) else type(value).__name__
        raise ValueError(f"a record of format {FORMAT} was expected, got {got}")
    figures = value["figures"]
    if not isinstance(figures, list) or not all(isinstance(figure, dict) for figure in figures):
        raise TypeError("figures are a list of objects")
    names = [field.name for field in fields(Record) if field.name != "figures"]
    return Record(**{name: value[name] for name in names}, figures=tuple(figures))


@dataclass(frozen=True, slots=True)
class History:
    """The records of this machine's user."""

    path: Path

    def add(self, record: Record) -> None:
        """Keep a record."""
        with self._opened() as base:
            base.execute(
                "insert into records values (?, ?, ?, ?, ?)",
                (record.id, record.kind, record.time, (record.model or {}).get("name"), record.json()),
            )

    def find(self, name: str) -> Record:
        """The record whose id begins so; "last" is the newest, "last-1" the one before."""
        with self._opened() as base:
            if name == "last" or (name.startswith("last-") and name[5:].isdecimal()):
                skip = int(name[5:] or 0) if name != "last" else 0
                rows = base.execute("select document from records order by rowid desc limit 1 offset ?", (skip,))
            else:
                rows = base.execute("select document from records where substr(id, 1, ?) = ?", (len(name), name))
            found = [row[0] for row in rows]
        if len(found) != 1:
            raise FormatError(self.path, "record", f"one whose id begins with {name!r}", f"{len(found)} of them")
        return _parse(json.loads(found[0]))

    def all(self, *, kind: str | None = None, model: str | None = None, limit: int = 1000) -> list[Record]:
        """The newest records, the oldest of them first."""
        with self._opened() as base:
            rows = base.execute(
                "select document from records where (?1 is null or kind = ?1) and (?2 is null or model = ?2) "
                "order by rowid desc limit ?3",
                (kind, model, limit),
            )
            return [_parse(json.loads(row[0])) for row in rows][::-1]

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=10)) as base, base:
                base.execute(
                    "create table if not exists records (id text primary key, kind text not null, time text not null, "
                    "model text, document text not null)"
                )
                yield base
        except (sqlite3.Error, OSError) as error:
            raise BitNetError(f"{self.path}: the history of benchmarks cannot be used: {error}") from error


def default_path() -> Path:
    """Where the history is kept: below XDG_DATA_HOME."""
    folder = os.environ.get("XDG_DATA_HOME")
    base = Path(folder) if folder and Path(folder).is_absolute() else Path("~/.local/share").expanduser()
    return base / "bitnet" / "benchmarks.sqlite"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def as_plain(value: Any) -> Any:
    """Dataclasses, arrays and paths as what JSON knows; what is no number is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(as_plain(item) for item in value)
    if hasattr(value, "tolist"):
        return as_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
