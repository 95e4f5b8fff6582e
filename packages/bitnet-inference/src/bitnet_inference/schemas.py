"""JSON schemas: made from types, checked before a grammar is made of them, and answers read back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict

import msgspec

from bitnet_core.errors import FormatError, printable

Schema = Mapping[str, Any]

DEPTH_LIMIT = 32
NODES_LIMIT = 5000
SIZE_LIMIT = 256 << 10  # bytes, written
PATTERN_LIMIT = 4096  # characters
REPEAT_LIMIT = 2000  # of a pattern's counted repetitions, those inside of others multiplied
_SHOWN = 200
_BITS = 1024  # of a whole number, as many as the largest float has

# Keywords whose value is a schema, a list of schemas, or schemas by name.
_ONE = ("items", "additionalItems", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
# What a string's format may be, of those that types have.
_FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_DECIMAL = r"^-?[0-9]{1,20}(\.[0-9]{1,20})?$"
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-V[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
_NO_SIGN_ALONE = "^(?!^[-+.]*$)"  # how pydantic's pattern of a decimal begins, and no grammar looks ahead
# What a schema has that is put together of others, each of which speaks of a part of the keys.
_PARTS = ("if", "not", "dependentSchemas", "dependencies", "unevaluatedProperties")
_OTHERS = ("$ref", "anyOf", "oneOf", "allOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def refusal(where: str, expected: str, got: object) -> ValueError:
    """The error for a schema, pattern or grammar that cannot be used."""
    return ValueError(f"{where}: expected {expected}, got {printable(got, _SHOWN)}")


def check_schema(schema: object, where: str = "schema") -> dict[str, Any]:
    """A copy of the schema, where it is an object of a size that can be compiled in time."""
    if not isinstance(schema, Mapping):
        raise refusal(where, "an object", type(schema).__name__)
    nodes = 0
    level: list[tuple[str, object]] = [(where, schema)]
    # Level by level: what is too deep must not be too deep for this, either.
    for _ in range(2 * DEPTH_LIMIT + 1):
        nodes += len(level)
        if nodes > NODES_LIMIT:
            raise refusal(where, f"at most {NODES_LIMIT} values", "more")
        level = [child for path, value in level for child in _children(path, value)]
        if not level:
            break
    else:
        raise refusal(level[0][0][:_SHOWN], f"at most {DEPTH_LIMIT} schemas inside of each other", "more")
    written = json.dumps(schema, default=dict)  # mappings of any kind become objects
    if len(written) > SIZE_LIMIT:
        raise refusal(where, f"at most {SIZE_LIMIT} bytes", f"{len(written)} bytes")
    copied: dict[str, Any] = json.loads(written)
    return copied


def subschemas(schema: Schema, where: str) -> Iterator[tuple[str, Any]]:
    """The schemas directly inside of a schema, each with its path."""
    for key in _ONE:
        if isinstance(schema.get(key), Mapping):
            yield f"{where}.{key}", schema[key]
    for key in _LISTS:
        if isinstance(schema.get(key), list | tuple):
            yield from ((f"{where}.{key}[{index}]", one) for index, one in enumerate(schema[key]))
    for key in _NAMED:
        if isinstance(schema.get(key), Mapping):
            yield from ((f"{where}.{key}.{name}", one) for name, one in schema[key].items())


def close_objects(schema: dict[str, Any]) -> None:
    """Let objects that name their keys take no others, where nothing is said of others: models would make some up.

    A schema whose objects are put together of several is left as it is.
    """
    every = list(_every(schema))
    if any(map(_is_put_together, every)):
        return
    for one in every:
        names, needed = one.get("properties"), one.get("required", [])
        known = isinstance(names, dict) and isinstance(needed, list) and all(name in names for name in needed)
        if known and "minProperties" not in one:
            one.setdefault("additionalProperties", False)


def _every(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema and all inside of it."""
    yield schema
    for _, one in subschemas(schema, ""):
        if isinstance(one, dict):
            yield from _every(one)


def _is_put_together(schema: Schema) -> bool:
    names = "properties" in schema or "required" in schema
    several = isinstance(schema.get("allOf"), list) and len(schema["allOf"]) > 1
    return several or any(key in schema for key in ((*_PARTS, *_OTHERS) if names else _PARTS))


def check_pattern(pattern: object, where: str = "regex") -> str:
    """The pattern, where neither its length nor its repetitions are too many; its grammar is not looked at."""
    if not isinstance(pattern, str):
        raise refusal(where, "a string", type(pattern).__name__)
    if not 1 <= len(pattern) <= PATTERN_LIMIT:
        raise refusal(where, f"1..{PATTERN_LIMIT} characters", f"{len(pattern)}")
    check_text(pattern, where)
    if (most := _repeats(pattern)) > REPEAT_LIMIT:
        raise refusal(where, f"at most {REPEAT_LIMIT} repetitions, those inside of others multiplied", most)
    return pattern


def check_text(text: str, where: str) -> None:
    """Refuse what has no UTF-8."""
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise refusal(where, "Unicode text without lone surrogates", repr(text[:40]))


def schema_of(kind: Any, *, strict: bool = True) -> tuple[dict[str, Any], Callable[[str], Any]]:
    """A type's schema, in which objects have no other keys than it names, and what reads a text as the type.

    msgspec Structs, dataclasses, TypedDicts, enums, Literals and the built-in types; pydantic models, and all that
    pydantic knows once it is imported. Not `strict`: a number may be written as a string.
    """
    # Only a program that has imported pydantic can have its types, and its fields in the types of others.
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not any(isinstance(note, pydantic.fields.FieldInfo) for note in _notes(kind)):
        try:
            schema = msgspec.json.schema(kind)
        except (TypeError, RecursionError) as error:
            if pydantic is None:
                raise _unknown(kind, error) from error
        else:
            return _writable(schema), lambda text: msgspec.json.decode(text, type=kind, strict=strict)
    try:
        adapter = pydantic.TypeAdapter(kind)
        return _writable(adapter.json_schema()), adapter.validate_json
    except (pydantic.PydanticUserError, TypeError) as error:
        raise _unknown(kind, error) from error


def read(text: str, decode: Callable[[str], Any]) -> Any:
    """What a JSON text says, by `decode`; where it is cut or wrong, one error that shows it."""
    try:
        return decode(text)
    except (ValueError, RecursionError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        reason = lines[0] if len(lines) < 3 else f"{lines[1]}: {lines[2]}"  # pydantic's first line counts errors alone
        raise FormatError("answer", "JSON", "text that fits its schema", f"{_ends(text)} ({reason})") from error


def _unknown(kind: object, error: Exception) -> ValueError:
    return refusal("type", "one that has a JSON schema", f"{kind!r} ({str(error).partition(chr(10))[0]})")


def _ends(text: str) -> str:
    """A text, or its two ends where it is long."""
    return repr(text if len(text) <= 40 else text[:18] + "..." + text[-18:])


def _children(path: str, value: object) -> Iterator[tuple[str, object]]:
    """The values inside of a value, which is checked by itself."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            if not isinstance(key, str):
                raise refusal(path, "keys that are strings", repr(key))
            check_text(key, path)
            if key == "pattern" and isinstance(child, str):
                check_pattern(child, f"{path}.pattern")
            if key == "patternProperties" and isinstance(child, Mapping):
                for pattern in child:
                    check_pattern(pattern, f"{path}.{key}")
            yield f"{path}.{printable(key, 40)}", child
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield f"{path}[{index}]", child
    else:
        _check_plain(path, value)


def _check_plain(path: str, value: object) -> None:
    if isinstance(value, str):
        check_text(value, path)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise refusal(path, "a finite number", value)
    elif isinstance(value, int):
        if value.bit_length() > _BITS:
            raise refusal(path, f"a number of at most {_BITS} bits", f"{value.bit_length()} bits")
    elif value is not None:
        raise refusal(path, "an object, a list, a string, a number, a boolean or null", type(value).__name__)


def _notes(kind: Any, depth: int = 0) -> Iterator[Any]:
    """What stands beside the types in a type: the further arguments of each Annotated."""
    yield from getattr(kind, "__metadata__", ())
    inner = list(get_args(kind)) if get_origin(kind) is not Literal else []
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        inner += get_type_hints(kind, include_extras=True).values()
    if depth < DEPTH_LIMIT:
        for each in inner:
            yield from _notes(each, depth + 1)


def _writable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type as grammars can be made of it; what they do not know is left to the type's own check.

    Each object that names its keys takes no others.
    """
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    schema.pop("uniqueItems", None)  # of sets: what comes twice is in them once
    if isinstance(names := schema.pop("propertyNames", None), dict):
        _name_keys(schema, names)
    if schema.get("type") == "string" and schema.pop("contentEncoding", None) == "base64":
        schema["pattern"] = _BASE64
    if schema.get("format") == "decimal":
        schema["pattern"] = _DECIMAL
    if version := re.fullmatch("uuid([1-8])", str(schema.get("format"))):
        schema["pattern"] = _UUID.replace("V", version[1])
    if isinstance(schema.get("format"), str) and schema["format"] not in _FORMATS:
        del schema["format"]
    if str(schema.get("pattern", "")).startswith(_NO_SIGN_ALONE):
        schema["pattern"] = _DECIMAL
    for _, inner in subschemas(schema, ""):
        if isinstance(inner, dict):
            _writable(inner)
    return schema


def _name_keys(schema: dict[str, Any], names: Schema) -> None:
    """A dict whose keys have a type: those of an enum, or those of a pattern."""
    value = schema.get("additionalProperties", {})
    if isinstance(keys := names.get("enum", [names["const"]] if "const" in names else None), list):
        schema["properties"], schema["additionalProperties"] = dict.fromkeys(map(str, keys), value), False
    elif "pattern" in names:
        schema["patternProperties"], schema["additionalProperties"] = {names["pattern"]: value}, False


def _repeats(pattern: str) -> int:
    """How often the innermost part of a pattern may be counted off."""
    most, groups, last, place = 1, [1], 1, 0
    while place < len(pattern):
        character, start = pattern[place], place
        place += 1
        if character == "\\":
            place, last = place + 1, 1
        elif character == "[":
            place, last = _class_end(pattern, place), 1
        elif character == "(":
            groups.append(1)
        elif character == ")":
            last = groups.pop() if len(groups) > 1 else 1
            groups[-1] = max(groups[-1], last)
        elif character == "{" and (end := pattern.find("}", start)) > 0 and (count := _count(pattern[place:end])):
            last *= count
            place = end + 1
            groups[-1] = max(groups[-1], last)
            most = max(most, last)
        elif character not in "*+?":
            last = 1
    return most


def _class_end(pattern: str, place: int) -> int:
    """Behind the bracket that ends a class; classes may be inside of classes, and the first bracket ends none."""
    depth = 1
    place = _class_start(pattern, place)
    while place < len(pattern) and depth:
        character = pattern[place]
        place += 2 if character == "\\" else 1
        if character == "[":
            depth, place = depth + 1, _class_start(pattern, place)
        elif character == "]":
            depth -= 1
    return place


def _class_start(pattern: str, place: int) -> int:
    place += pattern.startswith("^", place)
    return place + pattern.startswith("]", place)


def _count(text: str) -> int:
    """The larger number in a repetition's braces, 0 where they are none."""
    parts = text.split(",")
    if (
        len(parts) > 2
        or not parts[0].strip().isascii()
        or not all(p.strip().isdecimal() or not p.strip() for p in parts)
    ):
        return 0
    # Counts of hundreds of digits are too many without being read.
    return max((int(part) if len(part) < 20 else 1 << 62 for part in map(str.strip, parts) if part), default=0)
