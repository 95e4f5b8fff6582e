"""OpenAI's embeddings: texts as vectors of length 1."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from ..llm import LLM
from ..request import Request as EngineRequest
from ..ticket import Ticket
from .bodies import read
from .completions import Tokens
from .errors import Refusal
from .fields import Name, Token
from .gate import answer
from .works import Watch, Work, usage_of, works_of

INPUTS_LIMIT = 2048

Vectors = npt.NDArray[np.float32]


class Embeddings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Texts whose meaning is asked for."""

    LABELS: ClassVar[tuple[str, ...]] = ("user",)

    model: Name
    input: str | Annotated[list[str | Token | Tokens], Meta(min_length=1, max_length=1 << 20)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None

    def texts(self) -> list[str | list[int]]:
        """Each text."""
        return texts_of(self.input)


def texts_of(given: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    """Texts that came as one, as several, or as token ids."""
    if isinstance(given, str):
        several: list[str | list[int]] = [given]
    elif all(isinstance(one, int) for one in given):
        several = [[one for one in given if isinstance(one, int)]]
    else:
        several = [one for one in given if not isinstance(one, int)]
        if len(several) != len(given) or len(several) > INPUTS_LIMIT:
            raise Refusal(400, f"input: expected 1..{INPUTS_LIMIT} texts or lists of token ids", param="input")
    if not all(several):
        raise Refusal(400, "input: expected texts that are not empty", param="input")
    return several


async def embed(request: Request) -> Response:
    """Texts as vectors."""
    body = await read(request, Embeddings)
    rows, work = await vectors(request, body.model, body.texts(), body.dimensions)
    usage = usage_of([ticket.usage for ticket in work.tickets])
    data = [
        {"object": "embedding", "index": index, "embedding": _written(row, body.encoding_format)}
        for index, row in enumerate(rows)
    ]
    told = {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}
    return answer({"object": "list", "data": data, "model": body.model, "usage": told})


async def vectors(
    request: Request, model: str, texts: Sequence[str | list[int]], dimensions: int | None = None
) -> tuple[Vectors, Work]:
    """The vectors of texts, a row each, and the work that made them."""
    works = works_of(request)
    work = await works.open(request, model)
    try:
        work.tickets = await works.run(lambda: submit(work, texts, dimensions))
        async with Watch(request.receive, work.cancel):
            states = [(await ticket.aresult()).state for ticket in work.tickets]
        work.check()
        if any(state is None for state in states):
            raise Refusal(499, "the client has left")
        return _unit(np.array(states, np.float32)[:, :dimensions]), work
    finally:
        work.end()


def submit(work: Work, texts: Sequence[str | list[int]], dimensions: int | None) -> tuple[Ticket, ...]:
    """Ask the engine for the state of each text's last token."""
    llm, size = work.llm, work.llm.model.spec.hidden_size
    if dimensions is not None and dimensions > size:
        raise Refusal(400, f"dimensions: expected 1..{size}, got {dimensions}", param="dimensions")
    adapter, several = work.adapter, [_tokens(llm, text) for text in texts]
    work.set_aside(sum(map(len, several)))
    return tuple(
        llm.engine.submit(EngineRequest(prompt=tokens, want="state", adapter=adapter, tenant=work.tenant.secret))
        for tokens in several
    )


def _tokens(llm: LLM, text: str | list[int]) -> npt.NDArray[np.int32]:
    return llm.tokenizer.encode(text) if isinstance(text, str) else llm.engine.check_tokens("input", np.array(text))


def _unit(rows: Vectors) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.maximum(lengths, np.finfo(np.float32).tiny)
    return rows


def _written(row: Vectors, encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    return row.tolist()
