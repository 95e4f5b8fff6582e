"""Texts as tokens, tokens as text, and conversations as the text that a model reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from bitnet_core.errors import BitNetError

from ..llm import LLM
from ..writing import Writing
from .bodies import read
from .errors import Refusal
from .fields import Messages, Name, Token, Tools, descriptions
from .gate import answer
from .health import models_of
from .works import works_of

Ids = Annotated[list[Token], Meta(max_length=1 << 20)]


class Tokenize(Struct, forbid_unknown_fields=True, kw_only=True):
    """A text, or a conversation, that is wanted as tokens."""

    model: Name | None = None  # the first one, where nothing is said
    prompt: str | None = None
    content: str | None = None  # the same, as llama-server calls it
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None

    @property
    def text(self) -> str | None:
        """The text."""
        return self.content if self.prompt is None else self.prompt


class Detokenize(Struct, forbid_unknown_fields=True, kw_only=True):
    """Tokens that are wanted as text."""

    tokens: Ids
    model: Name | None = None


class Template(Struct, forbid_unknown_fields=True, kw_only=True):
    """A conversation that is wanted as the model reads it."""

    messages: Messages
    model: Name | None = None
    tools: Tools | None = None


async def tokenize(request: Request) -> Response:
    """A text as tokens."""
    body = await read(request, Tokenize)
    if (body.text is None) == (body.messages is None):
        raise Refusal(400, "prompt: expected a text, or messages, and not both", param="prompt")
    return answer(await with_model(request, body.model, partial(_tokens, body)))


async def detokenize(request: Request) -> Response:
    """Tokens as text."""
    body = await read(request, Detokenize)

    def decode(llm: LLM) -> dict[str, Any]:
        text = llm.tokenizer.decode(llm.engine.check_tokens("tokens", np.array(body.tokens, np.int32)), special=True)
        return {"content": text, "prompt": text}

    return answer(await with_model(request, body.model, decode))


async def apply_template(request: Request) -> Response:
    """A conversation as the model reads it."""
    body = await read(request, Template)

    def render(llm: LLM) -> dict[str, Any]:
        tools = descriptions(body.tools)
        return {"prompt": rendered(llm, [message.plain() for message in body.messages], tools)}

    return answer(await with_model(request, body.model, render))


async def tokenizer_info(request: Request) -> Response:
    """What clients that count tokens themselves ask of the tokenizer."""

    def tell(llm: LLM) -> dict[str, Any]:
        tokenizer, special = llm.tokenizer, {id_: token for token, id_ in llm.tokenizer.special_tokens.items()}
        template = llm.model.template
        return {
            "tokenizer_class": "bitnet",
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": llm.engine.context,
            "bos_token": None if tokenizer.bos is None else special.get(tokenizer.bos),
            "eos_token": next((special.get(token) for token in sorted(tokenizer.eos)), None),
            "pad_token": None if tokenizer.pad is None else special.get(tokenizer.pad),
            "chat_template": None if template is None else template.source,
        }

    return answer(await with_model(request, request.query_params.get("model"), tell))


def rendered(llm: LLM, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
    """A conversation as its model's template has it; the words alone, where it has none."""
    if llm.model.template is None:
        return "\n".join(message["content"] or "" for message in messages)
    return llm.model.template.render(messages, tools=tools or None).text


def chat_tokens(llm: LLM, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
    """The same as the tokens that the model reads."""
    template, tokenizer = llm.model.template, llm.tokenizer
    if template is None:
        return list(map(int, tokenizer.encode(rendered(llm, messages, tools))))
    made = template.render(messages, tools=tools or None)
    return list(map(int, made.encode(tokenizer)))


def is_begun(messages: list[dict[str, Any]]) -> bool:
    """Whether a conversation ends with an answer that is to go on."""
    last = messages[-1]
    return last["role"] == "assistant" and bool(last["content"]) and not last.get("tool_calls")


def begun_tokens(llm: LLM, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
    """A conversation whose last message is the beginning of the answer."""
    if llm.model.template is None or len(messages) == 1:
        return chat_tokens(llm, messages, tools)
    begun = llm.tokenizer.encode(messages[-1]["content"], bos=False)
    return [*chat_tokens(llm, messages[:-1], tools), *map(int, begun)]


def talk(
    llm: LLM, messages: list[dict[str, Any]], tools: list[dict[str, Any]], choice: str, wishes: dict[str, Any]
) -> Writing:
    """Answer a conversation, or go on with the answer that it ends with."""
    if not is_begun(messages):
        return llm.stream(messages, tools=tools, tool_choice=choice, **wishes)
    if tools and choice != "none":
        message = "expected the last one to be another's, got an answer that is begun, which cannot become a call"
        raise Refusal(400, f"messages: {message}; leave tools out, or the answer", param="messages")
    return llm.write(begun_tokens(llm, messages, []), **wishes)


async def with_model(request: Request, model: str | None, call: Callable[[LLM], dict[str, Any]]) -> dict[str, Any]:
    """Do something with a model beside the loop; the first one, where none is named."""
    models, allowed = models_of(request), request.state.tenant.models
    held = await models.hold(model or models.states()[0].name, allowed)
    try:
        return await works_of(request).run(partial(call, held.llm))
    except BitNetError as error:
        raise held.tell(error) from error
    finally:
        held.release()


def _tokens(body: Tokenize, llm: LLM) -> dict[str, Any]:
    special = body.add_special_tokens if body.add_special is None else body.add_special
    if body.messages is not None:
        ids = chat_tokens(llm, [message.plain() for message in body.messages], [])
    else:
        ids = llm.tokenizer.encode(body.text or "", bos=None if special is not False else False).tolist()
    found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": llm.engine.context}
    if body.return_token_strs:
        found["token_strs"] = [llm.tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]
    if body.with_pieces:
        found["tokens"] = [{"id": token, "piece": _piece(llm.tokenizer.token_bytes(token))} for token in ids]
    return found


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
