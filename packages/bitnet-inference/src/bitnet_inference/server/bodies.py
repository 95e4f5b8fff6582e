"""Requests as types: JSON of one meaning, no field that nobody reads, every number in its range."""

from __future__ import annotations

import asyncio
import difflib
import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect as types
from starlette.requests import Request

from bitnet_core.errors import printable
from bitnet_core.formats.strictjson import parse_json

from .errors import Refusal

T = TypeVar("T", bound=msgspec.Struct)

IGNORED_LIMIT = 64  # fields that a lenient request may have too many
_LARGE = 64 << 10  # bytes, from which reading is done beside the loop
_PATH = re.compile(r"^(.*?)(?: - at `(?:key in )?\$(.*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")
_LIMITED = re.compile(r"Expected `\w+` (?:of length )?[<>]=? ")
_CHOICE = re.compile(r"Invalid (?:enum )?value .*", re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read(request: Request, kind: type[T], *, any_type: bool = False) -> T:
    """The body of a request; what changes nothing goes into the header `X-Ignored-Fields`.

    That is what a lenient request has too much, its `HINTS`, fields that would change how and not what is answered,
    where they ask for what there is not; and the `LABELS` of any, fields that are for others to read.

    `any_type` takes bodies that do not say that they are JSON, though never from a page in a browser.
    """
    _check_type(request, any_type)
    data = await request.body()
    lenient = request.app.state.lenient or request.headers.get("x-unknown-fields") == "ignore"
    if len(data) > _LARGE:
        value, ignored = await asyncio.to_thread(parse, data, kind, lenient=lenient)
    else:
        value, ignored = parse(data, kind, lenient=lenient)
    labels = [name for name in getattr(kind, "LABELS", ()) if getattr(value, name) is not None]
    request.state.ignored = (*ignored, *labels)
    return value


def parse(data: bytes, kind: type[T], *, lenient: bool = False) -> tuple[T, tuple[str, ...]]:
    """A body as its type, and the fields of it that were ignored."""
    value = parse_json(data, "body")
    if _SURROGATE.search(data):
        _check_text(value)
    return convert(value, kind, lenient=lenient)


def convert(value: Any, kind: type[T], *, lenient: bool = False) -> tuple[T, tuple[str, ...]]:
    """The same of JSON that was read already; an unknown field that is null says nothing, and may stay."""
    ignored: list[str] = []
    nulls = 0
    while True:
        try:
            return msgspec.convert(value, kind), tuple(ignored)
        except msgspec.ValidationError as error:
            message, path = _parts(error)
            unknown = _UNKNOWN.fullmatch(message)
            if unknown and nulls < IGNORED_LIMIT and _at(value, path)[unknown[1]] is None:
                nulls += 1
                _drop_nulls(value, path, unknown[1])
                continue
            hint = bool(path) and path[0] in getattr(kind, "HINTS", ())
            if not (unknown or hint) or not lenient or len(ignored) >= IGNORED_LIMIT:
                raise _refusal(message, path, kind, value) from error
            place = path[:1] if hint else [*path, unknown[1] if unknown else ""]
            _at(value, place[:-1]).pop(place[-1])
            ignored.append(_shown(place))


def _check_type(request: Request, any_type: bool) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given == "application/json" or (any_type and "origin" not in request.headers):
        return
    raise Refusal(415, f"Content-Type: expected application/json, got {given or 'none'}", code="unsupported_media_type")


def _check_text(value: Any) -> None:
    """Half a character, which JSON can write and UTF-8 cannot."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise Refusal(400, "body: expected Unicode text, got a lone surrogate")
    elif isinstance(value, dict):
        for key, one in value.items():
            _check_text(key)
            _check_text(one)
    elif isinstance(value, list):
        for one in value:
            _check_text(one)


def _parts(error: msgspec.ValidationError) -> tuple[str, list[str | int]]:
    match = _PATH.match(str(error))
    if match is None:
        return str(error), []
    steps: list[str | int] = []
    for name, place in _STEP.findall(match[2] or ""):
        steps.append(name or (int(place) if place != "..." else place))
    return match[1], steps


def _refusal(message: str, path: list[str | int], kind: type, value: Any) -> Refusal:
    if unknown := _UNKNOWN.fullmatch(message):
        known = [field.encode_name for struct in _kinds(kind, path) for field in _fields(struct)]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        name = _shown([*path, unknown[1]])
        return Refusal(400, f"{name}: this server knows no such field{hint}", param=name, code="unknown_parameter")
    if missing := _MISSING.fullmatch(message):
        name = _shown([*path, missing[1]])
        return Refusal(400, f"{name}: expected, and is not there", param=name, code="missing_required_parameter")
    name = _shown(path) or "body"
    expected = _range(kind, path) if _LIMITED.match(message) else None
    if _CHOICE.fullmatch(message):
        expected = _choices(kind, path)
    if expected is None:
        return Refusal(400, f"{name}: {message[0].lower()}{message[1:]}", param=name, code="invalid_value")
    return Refusal(400, f"{name}: expected {expected}, got {_got(value, path)}", param=name, code="invalid_value")


def _shown(path: list[str | int]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) or step == "..." else f".{step}" for step in path)
    return printable(text.removeprefix("."))


def _at(value: Any, path: list[str | int]) -> Any:
    for step in path:
        value = value[step]
    return value


def _drop_nulls(value: Any, path: list[str | int], name: str) -> None:
    """Drop a field that is null, in every element of the lists on the way: clients write all of them alike."""
    found = [value]
    for step in path:
        if isinstance(step, int):
            found = [one for each in found if isinstance(each, list) for one in each]
        else:
            found = [each[step] for each in found if isinstance(each, dict) and step in each]
    for each in found:
        if isinstance(each, dict) and each.get(name, 0) is None:
            del each[name]


def _got(value: Any, path: list[str | int]) -> str:
    try:
        found = _at(value, path)
    except (KeyError, IndexError, TypeError):
        return "something else"
    if isinstance(found, list | dict):
        return f"{len(found)} of them"
    if isinstance(found, str) and len(found) > 60:
        return f"{len(found)} characters"
    return f"a number of {found.bit_length()} bits" if _is_huge(found) else printable(_written(found))


def _written(value: Any) -> str:
    """A value as JSON has it, a text as errors have it."""
    return repr(value) if isinstance(value, str) else json.dumps(value)


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 256


def _kinds(kind: Any, path: list[str | int]) -> Iterator[types.Type]:
    """The types that may stand at a place in a body."""
    found = [types.type_info(kind)]
    for step in path:
        found = [inner for one in found for inner in _inner(one, step)]
    for one in found:
        yield from _members(one)


def _members(kind: types.Type) -> Iterator[types.Type]:
    for one in kind.types if isinstance(kind, types.UnionType) else (kind,):
        yield from _members(one.type) if isinstance(one, types.Metadata) else (one,)


def _inner(kind: types.Type, step: str | int) -> Iterator[types.Type]:
    for one in _members(kind):
        if isinstance(one, types.ListType) and step != "...":
            yield one.item_type
        elif isinstance(one, types.DictType):
            yield one.value_type
        else:
            yield from (field.type for field in _fields(one) if field.encode_name == step)


def _fields(kind: types.Type) -> tuple[types.Field, ...]:
    return kind.fields if isinstance(kind, types.StructType) else ()


def _range(kind: type, path: list[str | int]) -> str | None:
    """What a number, or a count, must be at a place in a body."""
    for one in _kinds(kind, path):
        if isinstance(one, types.IntType) and one.ge is not None and one.le is not None:
            return f"a whole number of {one.ge}..{one.le}"
        if isinstance(one, types.FloatType) and one.ge is not None and one.le is not None:
            return f"a number of {one.ge:g}..{one.le:g}"
        if isinstance(one, types.StrType | types.ListType | types.DictType) and one.max_length is not None:
            if one.max_length == 0:
                return "none (it is not supported)"
            noun = "characters" if isinstance(one, types.StrType) else "of them"
            return f"{one.min_length or 0}..{one.max_length} {noun}"
    return None


def _choices(kind: type, path: list[str | int]) -> str | None:
    """What there is to choose from at a place in a body; at a tag, the tags of the types that may stand there."""
    values = [value for one in _kinds(kind, path) if isinstance(one, types.LiteralType) for value in one.values]
    around = [one for one in _kinds(kind, path[:-1]) if isinstance(one, types.StructType)]
    values += [one.tag for one in around if path and one.tag_field == path[-1]]
    return " or ".join(dict.fromkeys(_written(value) for value in values)) or None
