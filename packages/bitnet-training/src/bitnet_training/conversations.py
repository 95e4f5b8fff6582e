"""Conversations from records of all the usual forms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_core import FormatError
from bitnet_core.messages import check_messages

Message = Mapping[str, Any]
_LISTS = ("messages", "conversations", "conversation")
_ASKED = ("prompt", "instruction", "question", "query", "input")
_ANSWERED = ("completion", "response", "output", "answer")
_MORE = ("input", "context")  # that belongs to what is asked
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "model": "assistant"}


def conversation(record: Mapping[str, Any], where: str) -> tuple[tuple[Message, ...], tuple[Mapping[str, Any], ...]]:
    """The messages of a record, and the tools that they may call.

    A list of messages may be OpenAI's or ShareGPT's; a question with its answer, Alpaca's, Dolly's or TRL's. Messages
    with a weight of 0 are not learned.
    """
    messages = list(_messages(record, where))
    system = record.get("system") or record.get("system_prompt")
    if isinstance(system, str) and system.strip() and messages and _role(messages[0]) != "system":
        messages.insert(0, {"role": "system", "content": system})
    try:
        checked = check_messages(messages)
    except FormatError as error:
        raise FormatError(where, error.field, error.expected, error.got) from error
    for index, message in enumerate(checked):
        check_letters(message["content"], where, f"messages[{index}].content")
    if not any(is_learned(message) and (message["content"].strip() or "tool_calls" in message) for message in checked):
        raise FormatError(where, "messages", "an answer of the assistant", "none")
    return tuple(checked), tuple(_tools(record, where))


def is_learned(message: Message) -> bool:
    """Whether a message is an answer that a model is to give."""
    return message["role"] == "assistant" and message.get("weight") != 0


def check_letters(text: str, where: str, field: str) -> None:
    """Refuse a text with a letter that is none."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(where, field, "Unicode", "a lone surrogate") from error


def _messages(record: Mapping[str, Any], where: str) -> Iterator[Any]:
    """The messages as a record has them, in OpenAI's words."""
    for key in _LISTS:
        if record.get(key) is not None:
            yield from map(_turn, _list(record[key], where, key))
            return
    asked, answered = (next((key for key in keys if key in record), "") for keys in (_ASKED, _ANSWERED))
    if not asked or not answered:
        expected = f"messages, conversations, or {', '.join(_ASKED)} with {', '.join(_ANSWERED)}"
        raise FormatError(where, "keys", expected, ", ".join(map(str, record)))
    for pair in _list(record.get("history") or [], where, "history"):
        if len(_list(pair, where, "history")) != 2:
            raise FormatError(where, "history", "pairs of a question and its answer", f"{len(pair)} texts")
        yield from ({"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True))
    if isinstance(record[asked], list):  # messages, which an answer follows
        yield from map(_turn, record[asked])
    else:
        more = next((record[key] for key in _MORE if key != asked and record.get(key)), None)
        both = isinstance(record[asked], str) and isinstance(more, str)
        yield {"role": "user", "content": f"{record[asked]}\n\n{more}" if both else record[asked]}
    if isinstance(record[answered], list):
        yield from map(_turn, record[answered])
    else:
        yield {"role": "assistant", "content": record[answered]}


def _turn(turn: Any) -> Any:
    """A message, which may speak ShareGPT's words."""
    if not isinstance(turn, Mapping) or ("role" in turn and "content" in turn):
        return turn
    rest = {key: value for key, value in turn.items() if key not in {"from", "value"}}
    said = turn.get("from", turn.get("role"))
    return {**rest, "role": _SPEAKERS.get(str(said), said), "content": turn.get("value", turn.get("content"))}


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _tools(record: Mapping[str, Any], where: str) -> list[Any]:
    tools = record.get("tools") or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise FormatError(where, "tools", "a list, or one as JSON", repr(tools[:40])) from error
    return _list(tools, where, "tools")


def _list(value: Any, where: str, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(where, key, "a list", type(value).__name__)
    return value
