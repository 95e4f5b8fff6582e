"""JSON as model files hold it, read without trust: one meaning or a refusal, in bounded time and memory."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import FormatError

_DEPTH_LIMIT = 64  # the deepest honest file, a tokenizer's, has fewer than ten levels
_ESCAPES = re.compile(rb"\\.", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # up, and down as an int8
_CHUNK = 1 << 20  # bytes looked at at a time
# A string runs to its end or to the file's: a start without an end must not be scanned from again.
_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)


def read_json(path: str | os.PathLike[str], *, limit: int, same_duplicates: bool = False) -> Any:
    """The value in a JSON file of at most `limit` bytes."""
    return parse_json(read_bounded(path, limit), path, same_duplicates=same_duplicates)


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """A whole regular file of at most `limit` bytes."""
    file = Path(path)
    try:
        # A pipe or a device could block for ever, or never end.
        if not file.is_file():
            raise FormatError(path, "file", "a regular file", "no such file" if not file.exists() else "something else")
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise FormatError(path, "file", "a readable file", error.strerror or error) from error
    if len(data) > limit:
        raise FormatError(path, "file", f"at most {limit} bytes", f"{file.stat().st_size} bytes")
    return data


def parse_json(data: bytes, file: str | os.PathLike[str], *, same_duplicates: bool = False) -> Any:
    """The value in `data`: UTF-8, no key twice, finite numbers, shallow.

    `same_duplicates` lets a key stand twice if both values say the same (a published config.json does that);
    what a null says, an absent key says too.
    """
    _check_depth(data, file)

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    def refuse(text: str) -> NoReturn:
        raise FormatError(file, "number", "a finite number", text)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) == len(items):
            return found
        seen: dict[str, Any] = {}
        for key, value in items:
            if key in seen and not (same_duplicates and _without_nulls(seen[key]) == _without_nulls(value)):
                raise FormatError(file, f"key {key!r}", "to stand once", "two values of it")
            seen[key] = value
        return seen

    try:
        text = data.decode("utf-8")
        return json.loads(text, object_pairs_hook=pairs, parse_float=number, parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise FormatError(file, "text", "UTF-8", f"byte {data[error.start]:#04x}", offset=error.start) from error
    except json.JSONDecodeError as error:
        got = text[error.pos : error.pos + 20] or "the end of the file"
        raise FormatError(file, "JSON", _expectation(error.msg), got, offset=error.pos) from error
    except ValueError as error:
        if isinstance(error, FormatError):
            raise
        # Python refuses to make integers of more than 4300 digits, which would take quadratic time.
        raise FormatError(file, "number", "an integer of at most 4300 digits", "a longer one") from error


def _expectation(message: str) -> str:
    text = message[0].lower() + message[1:]
    return text.removeprefix("expecting ") if text.startswith("expecting ") else f"well-formed text ({text})"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _check_depth(data: bytes, file: str | os.PathLike[str]) -> None:
    # Brackets at most as deep as the limit need no walk; the parser itself would recurse.
    if data.count(b"[") + data.count(b"{") <= _DEPTH_LIMIT:
        return
    depth, inside, rest = 0, 0, b""  # inside a string or not; a backslash whose character is yet to come
    for start in range(0, len(data), _CHUNK):
        # Without what a backslash hides, every quote begins or ends a string.
        text = _ESCAPES.sub(b"", rest + data[start : start + _CHUNK])
        rest = text[-1:] if text.endswith(b"\\") else b""
        parts = text.split(b'"')
        brackets = b"".join(parts[inside::2]).translate(_STEPS, _NO_BRACKETS)
        inside ^= (len(parts) - 1) & 1
        if brackets:
            depths = depth + np.frombuffer(brackets, np.int8).cumsum(dtype=np.int32)
            if depths.max() > _DEPTH_LIMIT:
                at = _too_deep(data)
                raise FormatError(file, "JSON", f"at most {_DEPTH_LIMIT} levels", "deeper nesting", offset=at)
            depth = int(depths[-1])


def _too_deep(data: bytes) -> int:
    """Where the first bracket stands that opens one level too many."""
    depth = 0
    for match in _BRACKETS.finditer(data):
        mark = match[0][0]
        depth += (mark in b"[{") - (mark in b"]}")
        if depth > _DEPTH_LIMIT:
            return match.start()
    return len(data)
