"""Ollama's routes: the same models, for programs that speak with Ollama."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..llm import LLM
from ..reply import Reply, TokenLogprob
from ..tools import Call
from . import replies
from .bodies import read
from .catalog import amount, digest_of, parameters, size_of
from .embeddings import texts_of, vectors
from .errors import Refusal
from .gate import answer
from .health import models_of, timestamp
from .models import ModelState
from .ollama_requests import Chat, Embed, Embedding, Generate, Options, Show
from .replies import Withheld
from .sse import Stream, line
from .works import Work, usage_of, works_of

_NAMES = {"max_tokens": "options.num_predict", "schema": "format", "form": "format", "stop": "options.stop"}
_NEVER = "9999-12-31T23:59:59Z"  # when a model that stays is unloaded
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
    _note(request, body.options)
    rows, work = await vectors(request, name, texts_of(body.input), body.dimensions)
    await _keep(request, name, body.keep_alive)
    count = usage_of([ticket.usage for ticket in work.tickets]).prompt_tokens
    spent = time.perf_counter_ns() - began
    told = {"total_duration": spent, "load_duration": 0, "prompt_eval_count": count}
    return answer({"model": body.model, "embeddings": rows.tolist(), **told})


async def embeddings(request: Request) -> Response:
    """One text as a vector, as older clients ask for it; of no text there is none, and the model is loaded."""
    body = await read(request, Embedding, any_type=True)
    name = _name(request, body.model)
    _note(request, body.options)
    if not body.prompt:
        await _load(request, name, body.keep_alive)
        return answer({"embedding": []})
    rows, _ = await vectors(request, name, [body.prompt])
    await _keep(request, name, body.keep_alive)
    return answer({"embedding": rows[0].tolist()})


async def tags(request: Request) -> Response:
    """The models there are."""
    allowed = request.state.tenant.models
    states = [state for state in models_of(request).states() if allowed is None or state.name in allowed]
    return answer({"models": await works_of(request).run(lambda: [_listed(state) for state in states])})


async def running(request: Request) -> Response:
    """The models that are loaded."""
    allowed = request.state.tenant.models
    states = [state for state in models_of(request).states() if allowed is None or state.name in allowed]
    return answer({"models": await works_of(request).run(lambda: [_running(one) for one in states if one.loaded])})


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
    _note(request, body.options)
    if not asked:
        gone = await _load(request, name, body.keep_alive)
        return answer({**_piece(body, key, ""), "done": True, "done_reason": "unload" if gone else "load"})
    work = await works_of(request).begin(request, name, body.start, body.wishes(), names=_NAMES)
    await _keep(request, name, body.keep_alive)
    if body.stream is not False:
        pieces = _stream(work, body, key, tools)
        return Stream(work, pieces, lambda refusal: line(refusal.to_ollama()), media_type="application/x-ndjson")
    try:
        [reply] = await work.replies(request.receive)
        told = _piece(body, key, replies.content_of(reply) or "", reply.tool_calls, reply.logprobs)
        return answer({**told, **_end(reply)})
    finally:
        work.end()


async def _load(request: Request, name: str, keep_alive: float | str | None) -> bool:
    """Nothing is asked: the model is loaded, or unloaded where it is to stay for no time at all, and that is True."""
    models = models_of(request)
    models.find(name, request.state.tenant.models)
    gone = keep_alive is not None and _seconds(keep_alive) == 0
    if not gone:
        (await models.hold(name, request.state.tenant.models)).release()
    await _keep(request, name, keep_alive)
    return gone


async def _keep(request: Request, name: str, keep_alive: float | str | None) -> None:
    """How long the model stays after this, where the request says so."""
    if keep_alive is not None:
        await models_of(request).keep(name, _seconds(keep_alive))


def _note(request: Request, options: Options | None) -> None:
    """Have the answer name the options that change nothing."""
    if options is not None:
        request.state.ignored = (*request.state.ignored, *options.ignored())


async def _stream(work: Work, body: Chat | Generate, key: str, tools: bool) -> AsyncIterator[bytes]:
    held = Withheld() if tools else None
    made = partial(_piece, body, key)
    async for _, piece in work.pieces():
        text = held.feed(piece) if held else str(piece)
        if text or piece.logprobs:
            yield line(made(text, logprobs=piece.logprobs))
    [reply] = await work.written()
    if held and (rest := held.finish(bool(reply.tool_calls))):
        yield line(made(rest))
    if reply.tool_calls:
        yield line(made("", reply.tool_calls))
    yield line({**made(""), **_end(reply)})


def _piece(
    body: Chat | Generate,
    key: str,
    text: str,
    calls: Sequence[Call] = (),
    logprobs: Sequence[TokenLogprob] = (),
) -> dict[str, Any]:
    found: dict[str, Any] = {"model": body.model, "created_at": timestamp(time.time()), "done": False}
    if key == "response":
        found["response"] = text
    else:
        found["message"] = {"role": "assistant", "content": text}
        if calls:
            found["message"]["tool_calls"] = [
                {"id": call.id, "function": {"index": place, "name": call.name, "arguments": dict(call.arguments)}}
                for place, call in enumerate(calls)
            ]
    if body.logprobs:
        found["logprobs"] = replies.logprobs(logprobs)
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
    return {
        "name": state.name,
        "model": state.name,
        "modified_at": timestamp(state.created),
        "size": size_of(state),
        "digest": digest_of(state),
        "details": _details(state.llm) if state.llm else {"format": "bitnet", "quantization_level": "ternary"},
    }


def _running(state: ModelState) -> dict[str, Any]:
    told = {"size_vram": 0} if state.llm is None else {"size_vram": 0, "context_length": state.llm.engine.context}
    expires = _NEVER if state.expires_s is None else timestamp(time.time() + state.expires_s)
    return {**_listed(state), **told, "expires_at": expires}


def _details(llm: LLM) -> dict[str, Any]:
    spec = llm.model.spec
    return {
        "parent_model": "",
        "format": "bitnet",
        "family": spec.family,
        "families": [spec.family],
        "parameter_size": amount(parameters(spec)),
        "quantization_level": "ternary",
    }


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
            "general.parameter_count": parameters(spec),
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
