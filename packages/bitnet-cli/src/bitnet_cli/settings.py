"""Where flags come from when the command line does not name them: the environment, then a TOML file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cyclopts.config import Dict, Env

from .failures import Refused

PREFIX = "BITNET_"
_LIMIT = 1 << 20  # bytes of a file of settings


def sources(tokens: Sequence[str], commands: Sequence[str]) -> list[Callable[..., Any]]:
    """What cyclopts asks for flags, the first first."""
    return [Env(PREFIX, show=False), *_file(tokens, commands)]


def _file(tokens: Sequence[str], commands: Sequence[str]) -> list[Callable[..., Any]]:
    named = value_of(tokens, "--config") or os.environ.get(f"{PREFIX}CONFIG")
    path = Path(named) if named else default_file()
    if path is None or (not named and not path.is_file()):
        return []
    return [Dict(data=_read(path, commands), source=str(path))]


def default_file() -> Path | None:
    """Where settings are looked for when no file is named; None for a user without a home."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    if folder and Path(folder).is_absolute():
        return Path(folder) / "bitnet" / "config.toml"
    try:
        return Path.home() / ".config" / "bitnet" / "config.toml"
    except RuntimeError:
        return None


def value_of(tokens: Sequence[str], flag: str) -> str | None:
    """The value of a flag that must be known before the others are read."""
    for index, word in enumerate(tokens):
        if word == "--":
            return None
        if word == flag and index + 1 < len(tokens):
            return tokens[index + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _read(path: Path, commands: Sequence[str]) -> dict[str, Any]:
    import difflib  # noqa: PLC0415  # only where there is a file
    import tomllib  # noqa: PLC0415

    try:
        if not path.is_file():
            raise Refused(f"{path}: expected a file of settings, got {'a folder' if path.is_dir() else 'no such file'}")
        if path.stat().st_size > _LIMIT:
            raise Refused(f"{path}: expected at most {_LIMIT} bytes of settings, got {path.stat().st_size}")
        tables = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: expected a readable file of settings, got {error}") from error
    for name, table in tables.items():
        if name not in commands:
            near = difflib.get_close_matches(name, commands, n=1)
            hint = f"; did you mean [{near[0]}]?" if near else ""
            raise Refused(f"{path}: expected a table for each command, as [run], got {name!r}{hint}")
        if not isinstance(table, dict):
            raise Refused(f"{path}: {name}: expected a table [{name}], got {type(table).__name__}")
    return tables
