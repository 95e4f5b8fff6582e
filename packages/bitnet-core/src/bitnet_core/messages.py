"""The messages of a conversation: what they may be, and how templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import FormatError

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGES_LIMIT = 2048


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages of a conversation as templates take them: known roles, and contents that are text."""
    if isinstance(messages, str | bytes | Mapping) or not 1 <= len(messages) <= _MESSAGES_LIMIT:
        raise FormatError("messages", "messages", f"a list of 1..{_MESSAGES_LIMIT} messages", _shape(messages))
    return [_check_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _check_message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise FormatError("messages", where, "an object with role and content", type(message).__name__)
    checked = dict(message)
    role = checked.get("role")
    if role not in ROLES:
        raise FormatError("messages", f"{where}.role", f"one of {', '.join(ROLES)}", f"{role!r}")
    calls = checked.get("tool_calls")
    if calls is None:
        checked.pop("tool_calls", None)
    else:
        checked["tool_calls"] = _check_calls(calls, role, f"{where}.tool_calls")
    if checked.get("content") is None and calls:
        checked["content"] = ""
    checked["content"] = _check_content(checked.get("content"), f"{where}.content")
    return checked


def _check_content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise FormatError("messages", where, "a string, or a list of text parts", type(content).__name__)
    parts = []
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise FormatError("messages", f"{where}[{index}]", "a part of type text, with a text", f"{part!r}")
        parts.append(part["text"])
    return "".join(parts)


def _check_calls(calls: Any, role: str, where: str) -> list[dict[str, Any]]:
    if role != "assistant" or not isinstance(calls, list | tuple):
        raise FormatError(
            "messages", where, "a list, in a message of the assistant", f"{type(calls).__name__} of {role}"
        )
    checked = []
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise FormatError("messages", f"{where}[{index}]", "an object with a function that has a name", f"{call!r}")
        arguments = _arguments(function.get("arguments", {}), f"{where}[{index}].function.arguments")
        checked.append({"type": "function", **call, "function": {**function, "arguments": arguments}})
    return checked


def _arguments(arguments: Any, where: str) -> Any:
    """Arguments as an object: templates write them as JSON themselves; servers' clients send them written."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments else {}
        except (ValueError, RecursionError) as error:
            raise FormatError("messages", where, "an object, or one as JSON", f"{arguments!r}") from error
    if not isinstance(arguments, Mapping):
        raise FormatError("messages", where, "an object, or one as JSON", type(arguments).__name__)
    return arguments


def _shape(value: Any) -> str:
    return f"{len(value)} of them" if isinstance(value, list | tuple) else type(value).__name__
