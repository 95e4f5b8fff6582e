"""What OpenAI's responses are asked with: items, tools and the form of the answer."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from ..llm import LLM
from ..writing import Writing
from .chat import ObjectFormat, TextFormat
from .errors import Refusal
from .fields import Count, Name, Share, chosen_of, described

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
_Id = Annotated[str, Meta(max_length=256)]


class Part(Struct, forbid_unknown_fields=True):
    """A part of a message, written by either side."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Meta(max_length=1 << 17)] | None = None  # clients send back what they got


class Item(Struct, forbid_unknown_fields=True):
    """A message, a call, or its answer."""

    type: Literal["message", "function_call", "function_call_output"] | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Annotated[list[Part], Meta(max_length=2048)] | None = None
    call_id: _Id | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | Annotated[list[Part], Meta(max_length=2048)] | None = None
    id: _Id | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def plain(self, place: int) -> dict[str, Any]:
        """As a message of a chat."""
        if self.type == "function_call":
            if self.name is None or self.call_id is None:
                raise Refusal(400, f"input[{place}]: expected a call_id and a name", param=f"input[{place}]")
            function = {"name": self.name, "arguments": self.arguments or "{}"}
            call = {"id": self.call_id, "type": "function", "function": function}
            return {"role": "assistant", "content": None, "tool_calls": [call]}
        if self.type == "function_call_output":
            return {"role": "tool", "tool_call_id": self.call_id, "content": _text(self.output)}
        if self.role is None or self.content is None:
            raise Refusal(400, f"input[{place}]: expected a role and a content", param=f"input[{place}]")
        return {"role": self.role, "content": _text(self.content)}

    def shown(self) -> dict[str, Any]:
        """As an item that was taken in."""
        kind = self.type or "message"
        given = self.id or f"{_PREFIXES[kind]}_{uuid.uuid4().hex}"
        found: dict[str, Any] = {"id": given, "type": kind, "status": self.status or "completed"}
        if kind == "function_call":
            return {**found, "call_id": self.call_id, "name": self.name, "arguments": self.arguments or "{}"}
        if kind == "function_call_output":
            return {**found, "call_id": self.call_id, "output": _text(self.output)}
        part: dict[str, Any] = {"type": "input_text", "text": _text(self.content)}
        if self.role == "assistant":
            part = {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}
        return {**found, "role": self.role, "content": [part]}


class Function(Struct, forbid_unknown_fields=True):
    """A function that the model may ask to have called."""

    type: Literal["function"]
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A function that must be called."""

    name: Name


class AllowedTools(Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Tools that may be called, and whether one must; of the others the model does not hear."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedFunction], Meta(min_length=1, max_length=128)]


class Reasoning(Struct, forbid_unknown_fields=True):
    """These models do not think before they speak."""

    effort: Literal["none"] | None = None
    summary: None = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    """How a stream is sent."""

    include_obfuscation: Literal[False] | None = None


class SchemaFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON of a schema."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, forbid_unknown_fields=True):
    """The form of the answer."""

    format: TextFormat | ObjectFormat | SchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class Respond(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is to be answered."""

    LABELS: ClassVar[tuple[str, ...]] = ("user", "safety_identifier", "prompt_cache_key")
    HINTS: ClassVar[tuple[str, ...]] = ("reasoning", "service_tier", "stream_options", "truncation")

    model: Name
    input: str | Annotated[list[Item], Meta(min_length=1, max_length=2048)]
    instructions: str | None = None
    previous_response_id: _Id | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=100.0)] | None = None
    top_p: Share | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Meta(max_length=1)] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[Function], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    # Accepted where they ask for what is done anyway.
    reasoning: Reasoning | None = None
    stream_options: StreamOptions | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Annotated[str, Meta(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=512)] | None = None

    def items(self) -> list[dict[str, Any]]:
        """What is new, as messages of a chat."""
        return [item.plain(place) for place, item in enumerate(self._items())]

    def shown(self) -> list[dict[str, Any]]:
        """The same as items with names of their own."""
        return [item.shown() for item in self._items()]

    def _items(self) -> list[Item]:
        return [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def wishes(self) -> dict[str, Any]:
        """What is asked for, as the engine's options."""
        found: dict[str, Any] = {"max_tokens": self.max_output_tokens, "temperature": self.temperature}
        found |= {"top_p": self.top_p}
        if self.include or self.top_logprobs is not None:
            found["logprobs"] = self.top_logprobs or 0
        form = self.text.format if self.text else None
        if isinstance(form, ObjectFormat):
            found["form"] = "json"
        elif isinstance(form, SchemaFormat):
            found["form"] = form.schema
        return {name: value for name, value in found.items() if value is not None}

    def start(self, messages: list[dict[str, Any]], llm: LLM, wishes: dict[str, Any]) -> Writing:
        """Begin to answer."""
        tools = [described(tool.name, tool.description, tool.parameters) for tool in self.tools or ()]
        wanted = self.tool_choice or "auto"
        if isinstance(wanted, AllowedTools):
            tools, chosen = chosen_of(tools, wanted.mode, [tool.name for tool in wanted.tools])
        elif isinstance(wanted, NamedFunction):
            _, chosen = chosen_of(tools, wanted.name, [wanted.name])
        else:
            _, chosen = chosen_of(tools, wanted, [])
        return llm.stream(messages, tools=tools, tool_choice=chosen, **wishes)


def _text(content: str | list[Part] | None) -> str:
    return "".join(part.text for part in content) if isinstance(content, list) else content or ""
