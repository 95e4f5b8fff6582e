"""Anthropic's messages."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from bitnet_core.errors import printable

from ..llm import LLM
from ..reply import Reply
from ..writing import Writing
from . import replies
from .bodies import read
from .errors import Refusal
from .fields import Count, Name, Share, described
from .gate import answer
from .replies import Withheld
from .sse import Stream, event
from .text import begun_tokens, chat_tokens, is_begun, talk, with_model
from .works import Work, works_of

_NAMES = {"stop": "stop_sequences", "schema": "output_config.format.schema"}
_OLDEST = "2023-06-01"  # of the versions whose events have names
_Id = Annotated[str, Meta(max_length=256)]


T = TypeVar("T", bound=Struct)


class CacheControl(Struct, forbid_unknown_fields=True):
    """Where a prefix should be kept; all are, so nothing is done."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Text(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Text."""

    text: str
    cache_control: CacheControl | None = None
    citations: None = None


class ToolUse(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    """A call that the model made."""

    id: _Id
    name: Name
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: dict[str, Any] | None = None


class ToolResult(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    """What a tool answered."""

    tool_use_id: _Id
    content: str | Annotated[list[Text], Meta(max_length=2048)] = ""
    is_error: bool | None = None
    cache_control: CacheControl | None = None

    def plain(self) -> dict[str, Any]:
        """As a message of a chat; templates know of no failures, so its words tell."""
        text = _joined(self.content)
        return {
            "role": "tool",
            "tool_call_id": self.tool_use_id,
            "content": f"Error: {text}" if self.is_error else text,
        }


Blocks = Annotated[list[Text | ToolUse | ToolResult], Meta(max_length=2048)]


class Turn(Struct, forbid_unknown_fields=True):
    """What one side said."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks

    def plain(self) -> list[dict[str, Any]]:
        """As messages of a chat: answers of tools are messages of their own."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        found: list[dict[str, Any]] = [block.plain() for block in self.content if isinstance(block, ToolResult)]
        texts = [block for block in self.content if isinstance(block, Text)]
        uses = [block for block in self.content if isinstance(block, ToolUse)]
        if texts or uses or not found:
            message: dict[str, Any] = {"role": self.role, "content": _joined(texts)}
            if uses:
                message["tool_calls"] = [
                    {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": use.input}}
                    for use in uses
                ]
            found.append(message)
        return found


class Tool(Struct, forbid_unknown_fields=True):
    """A tool that the model may use."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None


class Choice(Struct, forbid_unknown_fields=True):
    """Whether a tool must be used, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Metadata(Struct, forbid_unknown_fields=True):
    """Whom the request is made for."""

    user_id: Annotated[str, Meta(max_length=512)] | None = None


class Thinking(Struct, forbid_unknown_fields=True):
    """These models do not think before they speak."""

    type: Literal["disabled"]


class Format(Struct, forbid_unknown_fields=True):
    """JSON of a schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, forbid_unknown_fields=True):
    """The form of the answer."""

    format: Format | None = None


class CountTokens(Struct, forbid_unknown_fields=True, kw_only=True):
    """A conversation whose tokens are counted."""

    HINTS: ClassVar[tuple[str, ...]] = ("thinking", "service_tier", "speed")

    model: Name
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=2048)]
    system: str | Annotated[list[Text], Meta(max_length=2048)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    cache_control: CacheControl | None = None

    def said(self) -> list[dict[str, Any]]:
        """As messages of a chat."""
        found = [message for turn in self.messages for message in turn.plain()]
        return [{"role": "system", "content": _joined(self.system)}, *found] if self.system else found

    def described(self) -> list[dict[str, Any]]:
        """The tools as the engine takes them."""
        return [described(tool.name, tool.description, tool.input_schema) for tool in self.tools or ()]


class Messages(CountTokens, kw_only=True):
    """A conversation that is to be continued."""

    LABELS: ClassVar[tuple[str, ...]] = ("metadata",)

    max_tokens: Count
    stop_sequences: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=16)] | None = (
        None
    )
    stream: bool | None = None
    temperature: Share | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    output_config: OutputConfig | None = None

    def wishes(self) -> dict[str, Any]:
        """What is asked for, as the engine's options."""
        names = ("max_tokens", "temperature", "top_p", "top_k")
        found = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.stop_sequences:
            found["stop"] = self.stop_sequences
        if self.output_config and self.output_config.format:
            found["form"] = self.output_config.format.schema
        return found

    def start(self, llm: LLM, wishes: dict[str, Any]) -> Writing:
        """Begin to answer."""
        return talk(llm, self.said(), self.described(), self._chosen(), wishes)

    def _chosen(self) -> str:
        wanted = self.tool_choice
        if wanted is None or wanted.type in ("auto", "none"):
            return "auto" if wanted is None else wanted.type
        names = [tool.name for tool in self.tools or ()]
        if (wanted.type == "tool") != (wanted.name is not None):
            expected = "a name" if wanted.name is None else "none"
            raise Refusal(400, f"tool_choice.name: expected {expected} with type {wanted.type!r}, got {wanted.name!r}")
        if not names:
            raise Refusal(400, f"tool_choice: expected tools with type {wanted.type!r}, got none")
        if wanted.name is not None and wanted.name not in names:
            raise Refusal(400, f"tool_choice.name: expected one of tools, {', '.join(names)}, got {wanted.name!r}")
        return "required" if wanted.name is None else wanted.name

    @property
    def calls(self) -> bool:
        """Whether tools may be called."""
        return bool(self.tools) and (self.tool_choice is None or self.tool_choice.type != "none")


async def create(request: Request) -> Response:
    """Answer a conversation, at once or in pieces."""
    body = await _read(request, Messages)
    work = await works_of(request).begin(request, body.model, body.start, body.wishes(), names=_NAMES)
    if body.stream:
        return Stream(work, _stream(work, body), lambda refusal: event(refusal.to_anthropic(), "error"))
    try:
        [reply] = await work.replies(request.receive)
        return answer(_message(work, body, reply))
    finally:
        work.end()


async def count(request: Request) -> Response:
    """How many tokens the model would read."""
    body = await _read(request, CountTokens)
    said, tools = body.said(), body.described()
    tokens = begun_tokens if is_begun(said) else chat_tokens
    return answer(await with_model(request, body.model, lambda llm: {"input_tokens": len(tokens(llm, said, tools))}))


async def _read(request: Request, kind: type[T]) -> T:
    """The body of a request of a version that streams as we do; betas are not known, and named."""
    version = request.headers.get("anthropic-version", _OLDEST)
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", version) or version < _OLDEST:
        raise Refusal(400, f"anthropic-version: expected {_OLDEST} or later, got {printable(version, 40)!r}")
    body = await read(request, kind)
    if "anthropic-beta" in request.headers:
        request.state.ignored = (*request.state.ignored, "anthropic-beta")
    return body


def _head(work: Work, body: Messages) -> dict[str, Any]:
    empty = {"stop_reason": None, "stop_sequence": None}
    return {"id": f"msg_{work.id}", "type": "message", "role": "assistant", "model": body.model, "content": [], **empty}


def _message(work: Work, body: Messages, reply: Reply) -> dict[str, Any]:
    return {**_head(work, body), "content": _blocks(body, reply), **_end(body, reply), "usage": _usage(reply)}


def _blocks(body: Messages, reply: Reply) -> list[dict[str, Any]]:
    content = replies.content_of(reply)
    texts: list[dict[str, Any]] = [] if content is None else [{"type": "text", "text": content}]
    calls = reply.tool_calls
    if body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use:
        calls = calls[:1]
    return [
        *texts,
        *({"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)} for call in calls),
    ]


def _end(body: Messages, reply: Reply) -> dict[str, Any]:
    stopped = "end_turn" if reply.stop is None else "stop_sequence"
    # What is cut short of what was allowed has filled the context.
    cut = "max_tokens" if len(reply.tokens) >= body.max_tokens else "model_context_window_exceeded"
    reasons = {"length": cut, "tool_calls": "tool_use", "stop": stopped}
    return {"stop_reason": reasons[replies.reason_of(reply)], "stop_sequence": reply.stop}


async def _stream(work: Work, body: Messages) -> AsyncIterator[bytes]:
    begun = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
    read = {"input_tokens": work.writing.ticket.usage.prompt_tokens, **begun}
    yield _event("message_start", message={**_head(work, body), "usage": read})
    yield _event("ping")
    held = Withheld() if body.calls else None
    index = -1  # of the block that is open
    async for _, piece in work.pieces():
        text = held.feed(piece) if held else str(piece)
        if text and index < 0:
            index = 0
            yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        if text:
            yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    [reply] = await work.written()
    rest = held.finish(bool(reply.tool_calls)) if held else ""
    if (rest and index < 0) or (index < 0 and not reply.tool_calls):
        index = 0
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    if rest:
        yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": rest})
    if index == 0:
        yield _event("content_block_stop", index=0)
    for block in _blocks(body, reply):
        if block["type"] == "tool_use":
            index += 1
            written = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            yield _event("content_block_start", index=index, content_block={**block, "input": {}})
            yield _event("content_block_delta", index=index, delta=written)
            yield _event("content_block_stop", index=index)
    yield _event("message_delta", delta=_end(body, reply), usage=_usage(reply))
    yield _event("message_stop")


def _event(kind: str, **data: Any) -> bytes:
    return event({"type": kind, **data}, kind)


def _usage(reply: Reply) -> dict[str, Any]:
    found = reply.usage
    return {
        "input_tokens": found.prompt_tokens - found.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": found.cached_tokens,
        "output_tokens": found.completion_tokens,
    }


def _joined(content: str | Sequence[Text] | None) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content or ())
