"""OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from ..llm import LLM
from ..reply import Piece, Reply
from ..writing import Writing
from . import replies
from .bodies import read
from .errors import Refusal
from .fields import Alternatives, Count, Messages, Name, Sampled, Tools, chosen_of, descriptions
from .gate import answer
from .replies import Withheld
from .sse import DONE, Stream, event
from .works import Work, works_of


class JSONSchema(Struct, forbid_unknown_fields=True):
    """A schema that an answer must fit."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None  # answers always fit, strict or not


class TextFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Any text."""


class ObjectFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Some JSON object, of a schema where one is given, as llama-server has it."""

    schema: dict[str, Any] | None = None


class SchemaFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """JSON of a schema, OpenAI's way or llama-server's."""

    json_schema: JSONSchema | None = None
    schema: dict[str, Any] | None = None

    def wanted(self) -> dict[str, Any]:
        """The schema."""
        if (self.json_schema is None) == (self.schema is None):
            got = "neither" if self.schema is None else "both"
            name = "response_format.json_schema"
            raise Refusal(400, f"{name}: expected it, or a schema in its place, got {got}", param=name)
        found = self.schema if self.json_schema is None else self.json_schema.schema
        return found or {"type": "object"}


class NamedFunction(Struct, forbid_unknown_fields=True):
    """The name of a function."""

    name: Name


class NamedTool(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A tool that must be called."""

    function: NamedFunction


class AllowedNames(Struct, forbid_unknown_fields=True):
    """Those of the tools that may be called, and whether one must."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=128)]


class AllowedTools(Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Tools that may be called; of the others the model does not hear."""

    allowed_tools: AllowedNames


class Chat(Sampled, kw_only=True):
    """A conversation that is to be continued."""

    LABELS: ClassVar[tuple[str, ...]] = ("user", "safety_identifier", "prompt_cache_key")
    HINTS: ClassVar[tuple[str, ...]] = ("reasoning_effort", "verbosity", "service_tier", "store")

    model: Name
    messages: Messages
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None  # the same, by its older name
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    # Accepted where they ask for what is done anyway.
    modalities: Annotated[list[Literal["text"]], Meta(min_length=1, max_length=1)] | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[str, str], Meta(max_length=16)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=512)] | None = None

    def wishes(self) -> dict[str, Any]:
        """What is asked for, as the engine's options."""
        found = super().wishes()
        limit = self.max_completion_tokens or self.max_tokens
        if self.max_tokens not in (None, limit):
            name = "max_tokens"
            raise Refusal(400, f"{name}: expected none with max_completion_tokens, got {self.max_tokens}", param=name)
        if limit is not None:
            found["max_tokens"] = limit
        if self.top_logprobs is not None and not self.logprobs:
            raise Refusal(400, "top_logprobs: expected logprobs to be true with it", param="top_logprobs")
        if self.logprobs:
            found["logprobs"] = self.top_logprobs or 0
        if isinstance(self.response_format, ObjectFormat):
            found["form"] = self.response_format.schema or "json"
        elif isinstance(self.response_format, SchemaFormat):
            found["form"] = self.response_format.wanted()
        return found

    def names(self) -> dict[str, str]:
        """What is called otherwise here."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        nested = isinstance(self.response_format, SchemaFormat) and self.response_format.json_schema is not None
        schema = "response_format.json_schema.schema" if nested else "response_format.schema"
        return {"max_tokens": limit, "schema": schema, "form": "response_format"}

    def start(self, llm: LLM, wishes: dict[str, Any]) -> Writing:
        """Begin to answer."""
        tools, wanted = descriptions(self.tools), self.tool_choice or "auto"
        if isinstance(wanted, AllowedTools):
            allowed = wanted.allowed_tools
            tools, chosen = chosen_of(tools, allowed.mode, [tool.function.name for tool in allowed.tools])
        elif isinstance(wanted, NamedTool):
            _, chosen = chosen_of(tools, wanted.function.name, [wanted.function.name])
        else:
            _, chosen = chosen_of(tools, wanted, [])
        return llm.stream([message.plain() for message in self.messages], tools=tools, tool_choice=chosen, **wishes)

    @property
    def calls(self) -> bool:
        """Whether tools may be called."""
        return bool(self.tools) and self.tool_choice != "none"


async def complete(request: Request) -> Response:
    """Answer a conversation, at once or in pieces."""
    body = await read(request, Chat)
    works = works_of(request)
    work = await works.begin(request, body.model, body.start, body.wishes(), names=body.names())
    if body.stream:
        return Stream(work, _stream(work, body), lambda refusal: event(refusal.to_openai()))
    try:
        [reply] = await work.replies(request.receive)
        return await works.run(lambda: answer(completion(work, body, reply)))
    finally:
        work.end()


def completion(work: Work, body: Chat, reply: Reply) -> dict[str, Any]:
    """The whole answer."""
    choices = [_choice(body, index, one) for index, one in enumerate(reply.choices)]
    return {**_head(work, body, "chat.completion"), "choices": choices, "usage": replies.usage(reply.usage)}


def _head(work: Work, body: Chat, kind: str) -> dict[str, Any]:
    head: dict[str, Any] = {"id": f"chatcmpl-{work.id}", "object": kind, "created": work.created, "model": body.model}
    head["system_fingerprint"] = replies.fingerprint(work.llm)
    if body.service_tier:
        head["service_tier"] = "default"
    return head if body.metadata is None else {**head, "metadata": body.metadata}


def _choice(body: Chat, index: int, reply: Reply) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": replies.content_of(reply), "refusal": None}
    if calls := _calls(body, reply):
        message["tool_calls"] = calls
    told = {"content": replies.logprobs(reply.logprobs), "refusal": None} if body.logprobs else None
    return {"index": index, "message": message, "logprobs": told, "finish_reason": replies.reason_of(reply)}


def _calls(body: Chat, reply: Reply) -> list[dict[str, Any]]:
    found = reply.tool_calls[:1] if body.parallel_tool_calls is False else reply.tool_calls
    return replies.calls(found)


async def chunks(work: Work, body: Chat) -> AsyncIterator[dict[str, Any]]:
    """The answer in pieces."""
    head = _head(work, body, "chat.completion.chunk")
    if body.tells_usage:
        head["usage"] = None
    chunk = partial(_chunk, head)
    count = body.n or 1
    held = [Withheld() for _ in range(count)] if body.calls else []
    for index in range(count):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    async for _, piece in work.pieces():
        text = held[piece.choice].feed(piece) if held else str(piece)
        if text or piece.logprobs:
            yield chunk(piece.choice, {"content": text}, told=_told(body, piece))
    [reply] = await work.written()
    for index, one in enumerate(reply.choices):
        if held and (rest := held[index].finish(bool(one.tool_calls))):
            yield chunk(index, {"content": rest})
        for place, call in enumerate(_calls(body, one)):
            yield chunk(index, {"tool_calls": [{"index": place, **call}]})
        yield chunk(index, {}, replies.reason_of(one))
    if body.tells_usage:
        yield {**head, "choices": [], "usage": replies.usage(reply.usage)}


async def _stream(work: Work, body: Chat) -> AsyncIterator[bytes]:
    async for chunk in chunks(work, body):
        yield event(chunk)
    yield DONE


def _told(body: Chat, piece: Piece) -> dict[str, Any] | None:
    return {"content": replies.logprobs(piece.logprobs), "refusal": None} if body.logprobs else None


def _chunk(
    head: dict[str, Any],
    index: int,
    delta: dict[str, Any],
    reason: str | None = None,
    told: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {**head, "choices": [{"index": index, "delta": delta, "logprobs": told, "finish_reason": reason}]}
