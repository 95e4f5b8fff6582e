"""OpenAI's older completions: prompts as text or as token ids, echoed with their log-probabilities where wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from ..llm import LLM
from ..reply import Reply, TokenLogprob
from ..writing import Writing
from . import replies
from .bodies import read
from .errors import Refusal
from .fields import Alternatives, Name, Natural, Sampled, Token
from .gate import answer
from .sse import DONE, Stream, event
from .works import Work, usage_of, works_of

Tokens = Annotated[list[Token], Meta(min_length=1, max_length=1 << 20)]
Prompts = Annotated[list[str | Token | Tokens], Meta(min_length=1, max_length=1 << 20)]

_PROMPTS_LIMIT = 128
_LEAST = -9999.0  # JSON has no infinity


class Completion(Sampled, kw_only=True):
    """A text that is to be continued."""

    model: Name
    prompt: str | Prompts
    max_tokens: Natural | None = None
    echo: bool | None = None
    logprobs: Alternatives | None = None
    best_of: Annotated[int, Meta(ge=1, le=8)] | None = None
    suffix: Annotated[str, Meta(max_length=0)] | None = None

    def wishes(self) -> dict[str, Any]:
        """What is asked for, as the engine's options."""
        found = super().wishes()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise Refusal(400, f"best_of: expected n, {self.n or 1}, got {self.best_of}", param="best_of")
        if self.max_tokens == 0 and not self.echo:
            raise Refusal(400, "max_tokens: expected 1 or more without echo, got 0", param="max_tokens")
        if self.stream and self.echo and self.logprobs is not None:
            raise Refusal(400, "logprobs: expected none of an echo that is streamed", param="logprobs")
        # As OpenAI has it, an answer is short where nothing is said. Of 0, the one token that is made is not shown.
        found["max_tokens"] = 16 if self.max_tokens is None else max(self.max_tokens, 1)
        if self.logprobs is not None:
            found["logprobs"] = self.logprobs
            if self.echo:
                found["prompt_logprobs"] = self.logprobs
        return found

    def prompts(self) -> list[str | list[int]]:
        """Each prompt; of ids alone one, and of lists of ids or texts each."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            if not all(isinstance(one, int) for one in given):
                raise Refusal(
                    400, "prompt: expected texts, token ids, or lists of token ids, got a mixture", param="prompt"
                )
            return [[one for one in given if isinstance(one, int)]]
        several = [one for one in given if not isinstance(one, int)]
        if len(several) != len(given) or len(several) > _PROMPTS_LIMIT:
            raise Refusal(400, f"prompt: expected 1..{_PROMPTS_LIMIT} texts or lists of token ids", param="prompt")
        return several

    def start(self, llm: LLM, wishes: dict[str, Any]) -> list[Writing]:
        """Begin to write."""
        return [llm.write(prompt, **wishes) for prompt in self.prompts()]


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens of a choice, of its prompt or of its text, that are shown with their log-probabilities."""

    texts: list[str]
    sizes: list[int]  # characters of each in the text, where tokens that steer have none
    logprobs: list[float | None]
    tops: list[dict[str, float] | None]


async def complete(request: Request) -> Response:
    """Continue texts, at once or in pieces."""
    body = await read(request, Completion)
    body.prompts()
    works = works_of(request)
    work = await works.begin(request, body.model, body.start, body.wishes())
    if body.stream:
        return Stream(work, _stream(work, body), lambda refusal: event(refusal.to_openai()))
    try:
        found = await work.replies(request.receive)
        return await works.run(lambda: answer(completion(work, body, found)))
    finally:
        work.end()


def completion(work: Work, body: Completion, found: Sequence[Reply]) -> dict[str, Any]:
    """The whole answer."""
    choices = [
        _choice(work, body, prompt, reply)
        for prompt, first in zip(body.prompts(), found, strict=True)
        for reply in first.choices
    ]
    for index, choice in enumerate(choices):
        choice["index"] = index
    return {**_head(work, body), "choices": choices, "usage": _usage(body, found)}


def _usage(body: Completion, found: Sequence[Reply]) -> dict[str, Any]:
    """What the answer took; an echo alone has no tokens of its own, though the engine wrote one to read the prompt."""
    total = usage_of([reply.usage for reply in found])
    return replies.usage(replace(total, completion_tokens=0) if body.max_tokens == 0 else total)


def _head(work: Work, body: Completion) -> dict[str, Any]:
    head = {"id": f"cmpl-{work.id}", "object": "text_completion", "created": work.created, "model": body.model}
    return {**head, "system_fingerprint": replies.fingerprint(work.llm)}


def _choice(work: Work, body: Completion, prompt: str | list[int], reply: Reply) -> dict[str, Any]:
    text = "" if body.max_tokens == 0 else str(reply)
    echoed = _text_of(work.llm, prompt) if body.echo else ""
    told = None
    if body.logprobs is not None:
        parts = [_part(work.llm, reply.logprobs)] if body.max_tokens != 0 else []
        if body.echo:
            parts.insert(0, _prompt_part(work.llm, prompt, reply))
        told = _logprobs(parts, 0)
    reason = "length" if body.max_tokens == 0 else replies.reason_of(reply)
    return {"text": echoed + text, "index": 0, "logprobs": told, "finish_reason": reason}


async def _stream(work: Work, body: Completion) -> AsyncIterator[bytes]:
    head, count = _head(work, body), body.n or 1
    if body.tells_usage:
        head["usage"] = None
    prompts = body.prompts()
    offsets = [0] * (len(prompts) * count)
    chunk = partial(_chunk, head)
    if body.echo:
        for index in range(len(offsets)):
            prompt = prompts[index // count]
            text = _text_of(work.llm, prompt)
            offsets[index] = len(text)
            yield chunk(index, text)
    if body.max_tokens != 0:
        async for place, piece in work.pieces():
            index = place * count + piece.choice
            told = _logprobs([_part(work.llm, piece.logprobs)], offsets[index]) if body.logprobs is not None else None
            offsets[index] += len(piece)
            yield chunk(index, str(piece), told)
    found = await work.written()
    work.check()
    for place, first in enumerate(found):
        for index, reply in enumerate(first.choices):
            yield chunk(place * count + index, "", None, "length" if body.max_tokens == 0 else replies.reason_of(reply))
    if body.tells_usage:
        yield event({**head, "choices": [], "usage": _usage(body, found)})
    yield DONE


def _chunk(
    head: dict[str, Any], index: int, text: str, told: dict[str, Any] | None = None, reason: str | None = None
) -> bytes:
    return event({**head, "choices": [{"text": text, "index": index, "logprobs": told, "finish_reason": reason}]})


def _text_of(llm: LLM, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else llm.tokenizer.decode(prompt)


def _part(llm: LLM, tokens: Iterable[TokenLogprob]) -> _Part:
    texts, sizes, logprobs, tops = [], [], [], []
    for token in tokens:
        texts.append(_shown(token))
        sizes.append(_size(llm, token.token, token.bytes))
        logprobs.append(max(token.logprob, _LEAST))
        top = {_shown(other): max(other.logprob, _LEAST) for other in reversed(token.top)}
        top.setdefault(_shown(token), max(token.logprob, _LEAST))
        tops.append(top)
    return _Part(texts, sizes, list(logprobs), list(tops))


def _prompt_part(llm: LLM, prompt: str | list[int], reply: Reply) -> _Part:
    """The prompt's tokens; nothing stands before the first, so it has no probability."""
    part = _part(llm, reply.prompt_logprobs)
    tokens = llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not len(tokens):  # what stands before every text stands alone here
        return part
    first = int(tokens[0])
    data = llm.tokenizer.token_bytes(first)
    return _Part(
        [_written(data), *part.texts],
        [_size(llm, first, data), *part.sizes],
        [None, *part.logprobs],
        [None, *part.tops],
    )


def _logprobs(parts: Sequence[_Part], offset: int) -> dict[str, Any]:
    offsets = []
    for size in (size for part in parts for size in part.sizes):
        offsets.append(offset)
        offset += size
    return {
        "tokens": [text for part in parts for text in part.texts],
        "token_logprobs": [value for part in parts for value in part.logprobs],
        "top_logprobs": [top for part in parts for top in part.tops],
        "text_offset": offsets,
    }


def _size(llm: LLM, token: int, data: bytes) -> int:
    return 0 if token in llm.tokenizer.special_tokens.values() else len(data.decode("utf-8", "replace"))


def _shown(token: TokenLogprob) -> str:
    return _written(token.bytes)


def _written(data: bytes) -> str:
    """A token's text; bytes that are no whole character as OpenAI writes them, so that no two tokens look alike."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
