"""Custom suites: what to measure, as TOML, one record for each table."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import bitnet_core
from bitnet_core import FormatError

from . import generation, kernels, machine, quality, record, serving
from .record import Record
from .workers import Setting

_KEYS: Mapping[str, Mapping[str, type]] = MappingProxyType(
    {
        "machine": {"threads": list},
        "kernels": {"backend": str},
        "generate": {
            "model": str,
            "backend": str,
            "prompt": int,
            "tokens": int,
            "threads": list,
            "depths": list,
            "batches": list,
            "rounds": int,
        },
        "serve": {
            "model": str,
            "url": str,
            "backend": str,
            "threads": int,
            "clients": list,
            "rates": list,
            "prompt": int,
            "tokens": int,
            "shared": int,
            "requests": int,
            "rounds": int,
        },
        "quality": {"model": str, "backend": str, "text": str, "windows": int, "window": int},
    }
)
_NEEDED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"generate": ("model",), "serve": ("model",), "quality": ("model", "text")}
)
_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Suite:
    """Tables of what to measure, in the order of the file."""

    file: Path
    runs: tuple[tuple[str, Mapping[str, Any]], ...]


def load(path: str | os.PathLike[str]) -> Suite:
    """A suite: arrays of tables named for what they measure; paths count from the file's folder."""
    file = Path(path)
    try:
        if not file.is_file() or file.stat().st_size > _LIMIT:
            raise FormatError(file, "suite", f"a TOML file of at most {_LIMIT} bytes", "something else")
        tables = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FormatError(file, "suite", "a TOML file", error) from error
    runs = []
    for kind, listed in tables.items():
        if kind not in _KEYS:
            raise FormatError(file, "table", f"one of {', '.join(_KEYS)}", kind)
        for place, table in enumerate(listed if isinstance(listed, list) else [listed], 1):
            runs.append((kind, _checked(file, f"[[{kind}]] {place}", kind, table)))
    if not runs:
        raise FormatError(file, "suite", "a table [[generate]] or another", "none")
    return Suite(file, tuple(runs))


def _checked(file: Path, where: str, kind: str, table: Any) -> Mapping[str, Any]:
    if not isinstance(table, dict):
        raise FormatError(file, where, "a table", type(table).__name__)
    for name in _NEEDED.get(kind, ()):
        if name not in table:
            raise FormatError(file, where, f"the key {name}", ", ".join(table) or "none")
    for name, value in table.items():
        if name not in _KEYS[kind]:
            raise FormatError(file, where, f"keys of {', '.join(_KEYS[kind])}", name)
        if type(value) is not _KEYS[kind][name]:
            raise FormatError(file, f"{where} {name}", _KEYS[kind][name].__name__, repr(value))
        numbers = (int, float) if name == "rates" else (int,)
        if isinstance(value, list) and not all(type(item) in numbers and item >= 0 for item in value):
            raise FormatError(file, f"{where} {name}", "a list of whole numbers", repr(value))
    return table


def run(suite: Suite, *, progress: Callable[[int, int, str], None] | None = None) -> Iterator[Record]:
    """Measure one table after another."""
    for place, (kind, table) in enumerate(suite.runs):
        if progress:
            progress(place, len(suite.runs), kind)
        yield _RUN[kind](suite.file.parent, table)


def _machine(_: Path, table: Mapping[str, Any]) -> Record:
    return record.make("machine", machine.measure(tuple(table.get("threads", ()))), **table)


def _kernels(_: Path, table: Mapping[str, Any]) -> Record:
    return record.make("kernels", kernels.measure(bitnet_core.backends.get(table.get("backend", "auto"))), **table)


def _generate(folder: Path, table: Mapping[str, Any]) -> Record:
    path = str(folder / table["model"])
    options = (("backend", table.get("backend", "auto")),)
    settings = [Setting("runner", path, threads, options) for threads in table.get("threads", [1])]
    plan = generation.Plan(
        prompt=table.get("prompt", 512),
        tokens=table.get("tokens", 128),
        depths=tuple(table.get("depths", [0])),
        batches=tuple(table.get("batches", [1])),
        rounds=table.get("rounds", 5),
    )
    said = {name: value for name, value in table.items() if name != "model"}
    return record.make("generate", generation.measure(settings, plan), model=path, **said)


def _serve(folder: Path, table: Mapping[str, Any]) -> Record:
    """Our own server with a model, or the one at a url that has a model of this name."""
    asked = {name: value for name, value in table.items() if name not in ("model", "url", "backend", "threads")}
    loads = {"clients": (), "rates": ()} if "clients" in asked or "rates" in asked else {}
    plan = serving.Plan(**loads | {n: tuple(value) if isinstance(value, list) else value for n, value in asked.items()})
    if "url" in table:
        model, url = table["model"], table["url"]
        figures = serving.measure(serving.Remote(url=url, model=model, key=os.environ.get(serving.KEY)), plan)
        return record.make("serve", figures, model={"name": model, "url": url}, plan=plan)
    path, threads = str(folder / table["model"]), table.get("threads", 1)
    setting = Setting("server", path, threads, (("backend", table.get("backend", "auto")),))
    return record.make("serve", serving.measure(setting, plan), model=path, threads=threads, plan=plan)


def _quality(folder: Path, table: Mapping[str, Any]) -> Record:
    model = bitnet_core.load(folder / table["model"])
    if model.tokenizer is None:
        raise FormatError(folder / table["model"], "tokenizer", "one", "none")
    text = (folder / table["text"]).read_text("utf-8")
    windows = quality.windows_of(model.tokenizer, text, size=table.get("window", 256), count=table.get("windows", 16))
    found = quality.measure(model, windows, bitnet_core.backends.get(table.get("backend", "auto")))
    return record.make("quality", found, model=folder / table["model"])


_RUN: Mapping[str, Callable[[Path, Mapping[str, Any]], Record]] = MappingProxyType(
    {"machine": _machine, "kernels": _kernels, "generate": _generate, "serve": _serve, "quality": _quality}
)
