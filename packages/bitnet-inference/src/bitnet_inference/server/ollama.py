"""Ollama's routes: the same models, for programs that speak with Ollama."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..llm import LLM
from ..reply import Reply
from . import replies
from .bodies import read
from .embeddings import texts_of, vectors
from .errors import Refusal
from .gate import answer
from .health import models_of
from .models import ModelState
from .ollama_requests import Chat, Embed, Generate, Show
from .replies import Withheld
from .sse import Stream, line
from .works import Work, usage_of, works_of

_NAMES = {"max_tokens": "options.num_predict", "schema": "format", "form": "format", "stop": "options.stop"}
_SPANS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


async def chat(request: Request) -> Response:
    """Answer a conversation, in pieces or at once."""
    body = await read(request, Chat, any_type=True)
    return await _answer(request, body, "message", bool(body.messages), bool(body.tools))


async def generate(request: Request) -> Response:
    """Answer a text, in pieces or at once."""
    body = await read(request, Generate, any_type=True)
    return await _answer(request, body, "response", bool(body.prompt), tools=False)


async def embed(request: Request) -> Response:
    """Texts as vectors."""
    body = await read(request, Embed, any_type=True)
    began, name = time.perf_counter_ns(), _name(request, body.model)
    rows, work = await vectors(request, name, texts_of(body.input), body.dimensions)
    count = usage_of([ticket.usage for ticket in work.tickets]).prompt_tokens
    spent = time.perf_counter_ns() - began
    told = {"total_duration": spent, "load_duration": 0, "prompt_eval_count": count}
    return answer({"model": body.model, "embeddings": rows.tolist(), **told})


async def tags(request: Request) -> Response:
    """The models there are."""
    allowed = request.state.tenant.models
    states = [state for state in models_of(request).states() if allowed is None or state.name in allowed]
    return answer({"models": [_listed(state) for state in states]})


async def running(request: Request) -> Response:
    """The models that are loaded."""
    allowed = request.state.tenant.models
    states = [state for state in models_of(request).states() if allowed is None or state.name in allowed]
    return answer(
        {
            "models": [
                {**_listed(state), "size_vram": 0, "context_length": state.llm.engine.context}
                for state in states
                if state.llm is not None
            ]
        }
    )


async def show(request: Request) -> Response:
    """What a model is."""
    body = await read(request, Show, any_type=True)
    held = await models_of(request).hold(_name(request, body.model or body.name or ""), request.state.tenant.models)
    try:
        return answer(_shown(held.llm))
    finally:
        held.release()


async def version(_: Request) -> Response:
    """The server's version."""
    return answer({"version": __version__})


async def _answer(request: Request, body: Chat | Generate, key: str, asked: bool, tools: bool) -> Response:
    name = _name(request, body.model)
    if body.options is not None:
        request.state.ignored = (*request.state.ignored, *body.options.ignored())
    if not asked:
        return await _load(request, body, name, key)
    work = await works_of(request).begin(request, name, body.start, body.wishes(), names=_NAMES)
    if body.keep_alive is not None:
        await models_of(request).keep(name, _seconds(body.keep_alive))
    if body.stream is not False:
        pieces = _stream(work, body, key, tools)
        return Stream(work, pieces, lambda refusal: line(refusal.to_ollama()), media_type="application/x-ndjson")
    try:
        [reply] = await work.replies(request.receive)
        return answer({**_piece(body, key, replies.content_of(reply) or "", reply), **_end(reply)})
    finally:
        work.end()


async def _load(request: Request, body: Chat | Generate, name: str, key: str) -> Response:
    """Nothing is asked: the model is loaded, or unloaded where it is to stay for no time at all."""
    models = models_of(request)
    models.find(name, request.state.tenant.models)
    seconds = None if body.keep_alive is None else _seconds(body.keep_alive)
    if seconds != 0:
        (await models.hold(name, request.state.tenant.models)).release()
    if seconds is not None:
        await models.keep(name, seconds)
    reason = "unload" if seconds == 0 else "load"
    return answer({**_piece(body, key, ""), "done": True, "done_reason": reason})


async def _stream(work: Work, body: Chat | Generate, key: str, tools: bool) -> AsyncIterator[bytes]:
    held = Withheld() if tools else None
    made = partial(_piece, body, key)
    async for _, piece in work.pieces():
        text = held.feed(piece) if held else str(piece)
        if text:
            told = {"logprobs": replies.logprobs(piece.logprobs)} if body.logprobs else {}
            yield line({**made(text), **told})
    [reply] = await work.written()
    if held and (rest := held.finish(bool(reply.tool_calls))):
        yield line(made(rest))
    if reply.tool_calls:
        yield line(made("", reply))
    yield line({**made(""), **_end(reply)})


def _piece(body: Chat | Generate, key: str, text: str, reply: Reply | None = None) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    found: dict[str, Any] = {"model": body.model, "created_at": now, "done": False}
    if key == "response":
        found["response"] = text
    else:
        found["message"] = {"role": "assistant", "content": text}
        if reply is not None and reply.tool_calls:
            calls = [{"function": {"name": call.name, "arguments": dict(call.arguments)}} for call in reply.tool_calls]
            found["message"]["tool_calls"] = calls
    if reply is not None and body.logprobs:
        found["logprobs"] = replies.logprobs(reply.logprobs)
    return found


def _end(reply: Reply) -> dict[str, Any]:
    times, usage = reply.timings, reply.usage
    return {
        "done": True,
        "done_reason": "length" if replies.reason_of(reply) == "length" else "stop",
        "total_duration": _nanoseconds(times.total_s),
        "load_duration": _nanoseconds(times.queue_s),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(times.prompt_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(times.decode_s),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _seconds(keep: float | str) -> float:
    """A span as Ollama writes it: seconds, or as 5m and 1h30m; below zero is for ever."""
    if not isinstance(keep, str):
        return keep
    text = keep.removeprefix("-")
    parts = _SPAN.findall(text)
    if text.replace(".", "", 1).isdigit():
        seconds = float(text)
    elif parts and "".join(number + unit for number, unit in parts) == text:
        seconds = sum(float(number) * _SPANS[unit] for number, unit in parts)
    else:
        raise Refusal(400, f"keep_alive: expected seconds, or a span as 5m, got {keep!r}", param="keep_alive")
    return -seconds if keep.startswith("-") else seconds


def _name(request: Request, name: str) -> str:
    """Ollama's clients add a tag where none is said."""
    return name.removesuffix(":latest") if name not in models_of(request).names else name


def _listed(state: ModelState) -> dict[str, Any]:
    made = datetime.fromtimestamp(state.created, UTC).isoformat().replace("+00:00", "Z")
    details = _details(state.llm) if state.llm else {}
    return {"name": state.name, "model": state.name, "modified_at": made, "size": state.memory, "details": details}


def _details(llm: LLM) -> dict[str, Any]:
    spec = llm.model.spec
    return {"family": spec.family, "families": [spec.family], "format": "bitnet", "quantization_level": "ternary"}


def _shown(llm: LLM) -> dict[str, Any]:
    spec, template = llm.model.spec, llm.model.template
    capable = ["completion", "embedding"]
    if template is not None and "tools" in template.source:
        capable.append("tools")
    return {
        "details": _details(llm),
        "template": template.source if template else "{{ .Prompt }}",
        "parameters": "\n".join(f"{name} {value:g}" for name, value in llm.model.sampling.items()),
        "model_info": {
            "general.architecture": spec.family,
            f"{spec.family}.context_length": llm.engine.context,
            f"{spec.family}.embedding_length": spec.hidden_size,
            f"{spec.family}.block_count": spec.layers,
            f"{spec.family}.attention.head_count": spec.heads,
            f"{spec.family}.attention.head_count_kv": spec.kv_heads,
            f"{spec.family}.feed_forward_length": spec.ffn_size,
            f"{spec.family}.vocab_size": spec.vocab_size,
        },
        "capabilities": capable,
    }
