"""OpenAI's responses: conversations whose past the server remembers for a while, and answers as items."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec import to_builtins
from starlette.requests import Request
from starlette.responses import Response

from bitnet_core.errors import printable

from ..llm import LLM
from ..reply import Reply
from . import replies
from .bodies import read
from .errors import Refusal
from .fields import described
from .gate import answer, page
from .items import Function, Respond
from .replies import Withheld
from .sse import Stream, encode, event
from .text import chat_tokens, with_model
from .works import Work, works_of

KEPT = 1024  # answers that are remembered, of all tenants together
KEPT_BYTES = 64 << 20
_NAMES = {"max_tokens": "max_output_tokens", "schema": "text.format.schema", "form": "text.format"}


@dataclass(frozen=True, slots=True)
class _Kept:
    owner: str
    messages: list[dict[str, Any]]  # of the conversation, the answer included; without instructions
    items: list[dict[str, Any]]  # the same up to the answer, as it was given
    body: dict[str, Any]

    def size(self) -> int:
        """Bytes, about."""
        return len(encode(self.messages)) + len(encode(self.items)) + len(encode(self.body))


class Memory:
    """The last answers, each for the tenant that it was given to."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[_Kept, int]] = OrderedDict()
        self._bytes = 0

    def keep(self, found: _Kept) -> None:
        """Remember an answer, and forget the oldest."""
        size = found.size()
        self._kept[found.body["id"]] = (found, size)
        self._bytes += size
        while len(self._kept) > KEPT or self._bytes > KEPT_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1][1]

    def find(self, wanted: str, owner: str) -> _Kept:
        """An answer by its id; others' are not there."""
        found, _ = self._kept.get(wanted, (None, 0))
        if found is None or found.owner != owner:
            raise Refusal(404, "response: there is none of this id; only the last ones are kept", param="response_id")
        return found

    def forget(self, wanted: str, owner: str) -> None:
        """Let go of an answer."""
        self.find(wanted, owner)
        self._bytes -= self._kept.pop(wanted)[1]


async def respond(request: Request) -> Response:
    """Answer, at once or in pieces."""
    body = await read(request, Respond)
    memory: Memory = request.app.state.memory
    past: list[dict[str, Any]] = []
    items = body.shown()
    if body.previous_response_id is not None:
        found = memory.find(body.previous_response_id, request.state.tenant.id)
        past, items = found.messages, [*found.items, *found.body["output"], *items]
    said = [*past, *body.items()]
    spoken = [{"role": "system", "content": body.instructions}, *said] if body.instructions else said
    works = works_of(request)
    work = await works.begin(request, body.model, partial(body.start, spoken), body.wishes(), names=_NAMES)
    answered = _Answer(work, body, said, items, memory)
    if body.stream:
        return Stream(work, answered.stream(), answered.failed)
    try:
        [reply] = await work.replies(request.receive)
        return answer(answered.finish(reply))
    finally:
        work.end()


async def get(request: Request) -> Response:
    """An answer that was given."""
    memory: Memory = request.app.state.memory
    return answer(memory.find(request.path_params["id"], request.state.tenant.id).body)


async def input_items(request: Request) -> Response:
    """What an answer was given to, the latest first; what went before it in its conversation included."""
    memory: Memory = request.app.state.memory
    found = memory.find(request.path_params["id"], request.state.tenant.id).items
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise Refusal(400, f"order: expected 'asc' or 'desc', got {printable(order, 40)!r}", param="order")
    return answer(page(request, found if order == "asc" else found[::-1]))


async def delete(request: Request) -> Response:
    """Forget an answer."""
    memory: Memory = request.app.state.memory
    wanted = request.path_params["id"]
    memory.forget(wanted, request.state.tenant.id)
    return answer({"id": wanted, "object": "response.deleted", "deleted": True})


async def input_tokens(request: Request) -> Response:
    """How many tokens the model would read."""
    body = await read(request, Respond)
    said = body.items()
    if body.instructions:
        said.insert(0, {"role": "system", "content": body.instructions})
    tools = [described(tool.name, tool.description, tool.parameters) for tool in body.tools or ()]

    def count(llm: LLM) -> dict[str, Any]:
        return {"object": "response.input_tokens", "input_tokens": len(chat_tokens(llm, said, tools))}

    return answer(await with_model(request, body.model, count))


class _Answer:
    """The answer to one request, whole or in events."""

    def __init__(
        self, work: Work, body: Respond, said: list[dict[str, Any]], items: list[dict[str, Any]], memory: Memory
    ) -> None:
        self.id = f"resp_{work.id}"
        self._message = f"msg_{uuid.uuid4().hex}"
        self._work = work
        self._body = body
        self._said = said
        self._items = items
        self._memory = memory
        self._number = 0

    def finish(self, reply: Reply) -> dict[str, Any]:
        """The whole answer, which is remembered where that is wanted."""
        output = self._output(reply)
        cut = replies.reason_of(reply) == "length"
        whole = self._whole("incomplete" if cut else "completed", output, reply)
        if cut:
            whole["incomplete_details"] = {"reason": "max_output_tokens"}
        if self._body.store is not False:
            message: dict[str, Any] = {"role": "assistant", "content": replies.content_of(reply) or ""}
            if reply.tool_calls:
                calls = [item for item in output if item["type"] == "function_call"]
                message["tool_calls"] = [
                    {"id": one["call_id"], "function": {"name": one["name"], "arguments": one["arguments"]}}
                    for one in calls
                ]
            self._memory.keep(_Kept(self._work.tenant.id, [*self._said, message], self._items, whole))
        return whole

    async def stream(self) -> AsyncIterator[bytes]:
        """The events of the answer."""
        begun = self._whole("in_progress", [], None)
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        held = Withheld() if self._body.tools and self._body.tool_choice != "none" else None
        started = False
        told: list[dict[str, Any]] = []  # of what is withheld
        async for _, piece in self._work.pieces():
            text = held.feed(piece) if held else str(piece)
            told += replies.logprobs(piece.logprobs)
            if not text and (held or not told):
                continue
            if not started:
                for each in self._begin():
                    yield each
                started = True
            yield self._delta(text, told)
            told = []
        [reply] = await self._work.written()
        if held and (rest := held.finish(bool(reply.tool_calls))):
            if not started:
                for each in self._begin():
                    yield each
                started = True
            yield self._delta(rest, told)
        whole = self.finish(reply)
        for place, item in enumerate(whole["output"]):
            for each in self._ended(place, item, started=started):
                yield each
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, refusal: Refusal) -> bytes:
        """The event of one that went wrong."""
        whole = self._whole("failed", [], None)
        whole["error"] = {"code": refusal.code or "server_error", "message": refusal.message}
        return self._event("response.failed", response=whole)

    def _begin(self) -> list[bytes]:
        item = {"id": self._message, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        place = {"item_id": self._message, "output_index": 0, "content_index": 0}
        return [
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **place, part=part),
        ]

    def _delta(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        place = {"item_id": self._message, "output_index": 0, "content_index": 0}
        return self._event("response.output_text.delta", **place, delta=text, logprobs=logprobs)

    def _ended(self, place: int, item: dict[str, Any], *, started: bool) -> list[bytes]:
        """The last events of an item; the first ones, too, where it comes as a whole."""
        found: list[bytes] = []
        if item["type"] == "message":
            found += [] if started else self._begin()
            where = {"item_id": item["id"], "output_index": place, "content_index": 0}
            part = item["content"][0]
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            found.append(self._event("response.output_text.done", **where, **done))
            found.append(self._event("response.content_part.done", **where, part=part))
        else:
            begun = {**item, "arguments": "", "status": "in_progress"}
            where = {"item_id": item["id"], "output_index": place}
            found.append(self._event("response.output_item.added", output_index=place, item=begun))
            said = item["arguments"]
            found.append(self._event("response.function_call_arguments.delta", **where, delta=said))
            done = {"name": item["name"], "arguments": said}
            found.append(self._event("response.function_call_arguments.done", **where, **done))
        return [*found, self._event("response.output_item.done", output_index=place, item=item)]

    def _event(self, name: str, /, **data: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": name, "sequence_number": number, **data}, name)

    def _output(self, reply: Reply) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = []
        status = "incomplete" if replies.reason_of(reply) == "length" else "completed"
        content = replies.content_of(reply)
        if content is not None:
            told = replies.logprobs(reply.logprobs)
            part = {"type": "output_text", "text": content, "annotations": [], "logprobs": told}
            message = {"id": self._message, "type": "message", "role": "assistant", "status": status}
            output.append({**message, "content": [part]})
        found = reply.tool_calls[:1] if self._body.parallel_tool_calls is False else reply.tool_calls
        for call in replies.calls(found):
            item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": status, "call_id": call["id"]}
            output.append({**item, **call["function"]})
        return output

    def _whole(self, status: str, output: list[dict[str, Any]], reply: Reply | None) -> dict[str, Any]:
        body = self._body
        whole = {
            "id": self.id,
            "object": "response",
            "created_at": self._work.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": body.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tool_choice": to_builtins(body.tool_choice or "auto"),
            "tools": [_tool(tool) for tool in body.tools or ()],
            "text": {"format": to_builtins(body.text.format) if body.text and body.text.format else {"type": "text"}},
            "truncation": "disabled",
            "reasoning": {"effort": None, "summary": None},
            "store": body.store is not False,
            "background": False,
            "metadata": body.metadata or {},
            "service_tier": "default",
            "top_logprobs": body.top_logprobs or 0,
            "usage": None if reply is None else _usage(reply),
        }
        same = ("instructions", "max_output_tokens", "previous_response_id", "temperature", "top_p", "user")
        return whole | {name: getattr(body, name) for name in same}


def _tool(tool: Function) -> dict[str, Any]:
    found: dict[str, Any] = to_builtins(tool)
    return {**found, "strict": bool(tool.strict)}


def _usage(reply: Reply) -> dict[str, Any]:
    found = reply.usage
    return {
        "input_tokens": found.prompt_tokens,
        "input_tokens_details": {"cached_tokens": found.cached_tokens},
        "output_tokens": found.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": found.total_tokens,
    }
