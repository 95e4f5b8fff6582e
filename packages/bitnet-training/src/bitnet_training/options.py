"""Frozen dataclasses from TOML and back: every key known, typed and in range, or one sentence with its line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from bitnet_core import FormatError
from bitnet_core.formats.strictjson import read_bounded

_Section = TypeVar("_Section")
_LIMIT = 1 << 20  # bytes of a file; an honest one has a few thousand
_TABLE = re.compile(r"\s*\[\s*([A-Za-z0-9_.-]+)\s*\]")
_KEY = re.compile(r"\s*\"?([A-Za-z0-9_-]+)\"?\s*=")
_TYPES = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def option(default: Any, about: str, *, at_least: float = -math.inf, at_most: float = math.inf) -> Any:
    """A field with what it is for, and between which numbers it may lie."""
    return field(default=default, metadata={"about": about, "range": (at_least, at_most)})


@dataclass(frozen=True, slots=True)
class Source:
    """A text of settings: what it is called, and on which line each key stands."""

    file: str
    lines: Mapping[str, int] = field(default_factory=dict)

    def error(self, path: str, expected: str, got: object, hint: str | None = None) -> FormatError:
        """What is wrong with the value at a path of keys."""
        line = self.lines.get(path)
        return FormatError(self.file, f"line {line}, {path}" if line else path, expected, got, hint=hint)


def load(kind: type[_Section], path: str | os.PathLike[str], changes: Iterable[str] = ()) -> _Section:
    """The settings in a TOML file; `changes` are later words on them, as in "optimizer.learning_rate=1e-3"."""
    data = read_bounded(path, _LIMIT)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(path, "text", "UTF-8", f"byte {data[error.start]:#04x}", offset=error.start) from error
    return parse(kind, text, path, changes)


def parse(
    kind: type[_Section], text: str, file: str | os.PathLike[str] = "config", changes: Iterable[str] = ()
) -> _Section:
    """The settings in a text of TOML."""
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FormatError(file, "TOML", "well-formed text", error) from error
    changed = [_change(values, change) for change in changes]
    # What is wrong with a change does not stand on the line that it changes.
    lines = {path: line for path, line in _lines(text).items() if path not in changed}
    return read(kind, values, Source(os.fspath(file), lines))


def read(kind: type[_Section], values: Mapping[str, Any], source: Source, path: str = "") -> _Section:
    """The settings in a table of values."""
    types = get_type_hints(kind)
    fields: Any = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    found = {}
    for key, value in values.items():
        place = f"{path}{key}"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1, 0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"keys are {', '.join(fields)}"
            raise source.error(place, "a key that is known", f"{key!r}", hint)
        if dataclasses.is_dataclass(types[key]):
            if not isinstance(value, dict):
                raise source.error(place, f"a table [{place}]", _shown(value))
            section: Any = types[key]
            found[key] = read(section, value, source, f"{place}.")
        else:
            found[key] = _checked(types[key], value, fields[key].metadata.get("range"), source, place)
    try:
        return kind(**found)
    except ValueError as error:  # of a section's own rules, which name the field first
        name, _, rule = str(error).partition(": ")
        raise source.error(f"{path}{name}", rule, _given(kind, found, name)) from error


def _given(kind: Any, found: Mapping[str, Any], name: str) -> str:
    """The value of a setting, or of one of a section's, and whether nobody chose it."""
    first, _, rest = name.partition(".")
    defaults = {one.name: one for one in dataclasses.fields(kind)}
    if first in found:
        return _shown(getattr(found[first], rest) if rest else found[first])
    default = defaults[first]
    value = default.default_factory() if default.default_factory is not dataclasses.MISSING else default.default
    return f"{_shown(getattr(value, rest) if rest else value)}, the default"


def toml(settings: Any, *, about: bool = False) -> str:
    """The settings as text that `parse` reads; `about` adds what each is for, which makes a template."""
    top, tables = [], []
    types = get_type_hints(type(settings))
    for one in dataclasses.fields(settings):
        value = getattr(settings, one.name)
        if dataclasses.is_dataclass(value):
            tables.append(f"\n[{one.name}]\n{toml(value, about=about)}")
        else:
            note = f"  # {_about(types[one.name], one.metadata['about'])}" if about else ""
            top.append(f"{one.name} = {_written(value)}{note}\n")
    return "".join(top + tables)


def differences(one: Any, other: Any, path: str = "") -> list[tuple[str, object, object]]:
    """Where two settings of one kind differ: the path of keys, and both values."""
    found: list[tuple[str, object, object]] = []
    for each in dataclasses.fields(one):
        pair = getattr(one, each.name), getattr(other, each.name)
        if dataclasses.is_dataclass(pair[0]):
            found += differences(*pair, f"{path}{each.name}.")
        elif pair[0] != pair[1]:
            found.append((f"{path}{each.name}", *pair))
    return found


def _about(kind: Any, about: str) -> str:
    """What a setting is for, behind the words that it may be."""
    return f"{', '.join(get_args(kind))}: {about}" if get_origin(kind) is Literal else about


def _checked(kind: Any, value: Any, limits: tuple[float, float] | None, source: Source, path: str) -> Any:
    """The value as its type has it."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            near = difflib.get_close_matches(str(value), get_args(kind), 1)
            hint = f"did you mean {near[0]!r}?" if near else None
            raise source.error(path, f"one of {', '.join(map(repr, get_args(kind)))}", _shown(value), hint)
        return value
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        items = [value] if type(value) is inner else value
        if not isinstance(items, list):
            raise source.error(path, f"a list, each {_TYPES[inner]}", _shown(value))
        return tuple(_checked(inner, item, limits, source, path) for item in items)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise source.error(path, _TYPES[kind], _shown(value))
    if kind in (int, float):
        low, high = limits or (-math.inf, math.inf)
        if not low <= value <= high or not math.isfinite(value):
            raise source.error(path, _span(low, high), _shown(value))
    return kind(value)


def _span(low: float, high: float) -> str:
    if math.isfinite(low) and math.isfinite(high):
        return f"a number of {low} to {high}"
    return f"a number of at least {low}" if math.isfinite(low) else "a finite number"


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return _written(tuple(value))
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    # JSON's strings are TOML's but for DEL, and for characters beyond 16 bits where escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else repr(value)


def _change(values: dict[str, Any], change: str) -> str:
    """Put the value of "a.b=c" into the table; c is TOML, or else a string as it stands. Gives the path."""
    path, equals, text = change.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ValueError(f"a change is written as section.key=value, got {change!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = values
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{change!r}: {key} is a value, not a section")  # noqa: TRY004  # of a text
        table = inner
    table[keys[-1]] = value
    return ".".join(keys)


def _lines(text: str) -> dict[str, int]:
    """On which line each key stands, where it is written in the usual way."""
    found, table = dict[str, int](), ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            table = f"{match[1]}."
            found.setdefault(match[1], number)
        elif match := _KEY.match(line):
            found.setdefault(f"{table}{match[1]}", number)
    return found
