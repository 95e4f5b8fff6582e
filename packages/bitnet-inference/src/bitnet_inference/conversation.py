"""A conversation that remembers what was said, and calls tools for the model."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_core.durable import replacing
from bitnet_core.errors import FormatError
from bitnet_core.formats.strictjson import read_json
from bitnet_core.messages import check_messages

from .options import Options
from .reply import Piece, Reply
from .tools import Call, Tool, Toolbox

if TYPE_CHECKING:
    from .llm import LLM

_ROUNDS = 8  # answers to one question that ask for tools, before a last one must do without
_FILE_LIMIT = 64 << 20
_KIND = "bitnet conversation"


class Conversation:
    """Messages in turn; what the model has read is not read again, while it is in the cache. One thread at a time."""

    def __init__(
        self,
        llm: LLM,
        *,
        system: str | None = None,
        tools: Toolbox | Iterable[Tool] | None = (),
        options: Options | None = None,
    ) -> None:
        self.llm = llm
        self.toolbox = Toolbox.of(tools)
        self.options: Options = options or {}
        self.messages: list[dict[str, Any]] = []
        self.last: Reply | None = None  # the newest answer
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def say(self, text: str) -> Reply:
        """The model's answer to this; tools that it asks for are called, and their answers given to it."""
        for _ in self.stream(text):
            pass
        if self.last is None:
            raise RuntimeError("a conversation that was spoken to has an answer")
        return self.last

    def stream(self, text: str) -> Iterator[Piece]:
        """The same piece by piece. What was said so far is remembered, also where the reader stops early.

        What fails was never said: it may be tried again.
        """
        before = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            yield from self._answers()
        except Exception:
            del self.messages[before:]
            raise

    def _answers(self) -> Iterator[Piece]:
        """What the model says, and says to what its tools answer."""
        for round_ in range(_ROUNDS + 1):
            choice = "auto" if round_ < _ROUNDS else "none"
            with self.llm.stream(self.messages, tools=self.toolbox, tool_choice=choice, **self.options) as writing:
                try:
                    yield from writing
                finally:
                    writing.close()
                    self.last = writing.reply
                    self.messages.append(_message(self.last))
            calls = self.last.tool_calls
            if not calls or not all(self.toolbox.can_run(call.name) for call in calls):
                return  # what has no function here is for the caller to answer
            for call in calls:
                answer = self.toolbox.run(call)
                self.messages.append({"role": "tool", "name": call.name, "tool_call_id": call.id, "content": answer})

    def fork(self) -> Conversation:
        """A second one that has heard the same, and goes its own way."""
        other = Conversation(self.llm, tools=self.toolbox, options=self.options)
        other.messages = copy.deepcopy(self.messages)
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the messages into a JSON file."""
        with replacing(path) as stream:
            stream.write(json.dumps({"kind": _KIND, "messages": self.messages}, ensure_ascii=False, indent=1).encode())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on with the messages of a file instead of these."""
        content = read_json(path, limit=_FILE_LIMIT)
        if (
            not isinstance(content, dict)
            or content.get("kind") != _KIND
            or not isinstance(content.get("messages"), list)
        ):
            raise FormatError(Path(path), "file", "a conversation that was saved", "something else")
        messages = content["messages"]
        self.messages = check_messages(messages) if messages else []


def _message(reply: Reply) -> dict[str, Any]:
    """What the model said, as it is remembered."""
    message: dict[str, Any] = {"role": "assistant", "content": str(reply)}
    if reply.tool_calls:
        message["content"] = ""
        message["tool_calls"] = [_call(call) for call in reply.tool_calls]
    return message


def _call(call: Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": dict(call.arguments)},
    }
