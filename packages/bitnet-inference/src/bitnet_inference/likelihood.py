"""How probable a model holds a text: scores of its tokens, in windows where the text is longer than the context."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bitnet_core.model import Adapter, Tokens

from .request import Request
from .settings import Sampling
from .ticket import Ticket

Submit = Callable[[Request], Ticket]


@dataclass(frozen=True, slots=True)
class Score:
    """The tokens of a text that were scored, with their log-probabilities after all that stands before them."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool  # whether each was the most probable one

    @property
    def total(self) -> float:
        """The log-probability of the whole text, in nats."""
        return math.fsum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How surprising a text was."""

    nats: float  # of all tokens that were scored
    tokens: int
    bytes: int  # of the text in UTF-8

    @property
    def perplexity(self) -> float:
        """Of a token: e to the mean surprise."""
        return math.exp(self.nats / self.tokens) if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """What does not depend on the tokenizer."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are run together, of which the last are scored."""

    tokens: Tokens
    scored: int


def windows(tokens: Tokens, first: int, context: int, stride: int) -> Iterator[Window]:
    """Windows of at most `context` tokens that together score `tokens[first:]` once each.

    After the first window, each scores `stride` more, so every token has at least `context - stride` before it.
    """
    if not 1 <= stride < context:
        raise ValueError(f"stride: expected 1..{context - 1} in a context of {context}, got {stride}")
    first = max(first, 1)  # nothing stands before the first token
    while first < len(tokens):
        reach = context if first <= context - stride else first + stride
        end = min(len(tokens), max(reach, first + 1))
        yield Window(tokens[max(0, end - context) : end], end - first)
        first = end


def score(
    submit: Submit, tokens: Tokens, first: int, *, context: int, stride: int, adapter: Adapter | None = None
) -> Callable[[], Score]:
    """Begin to score `tokens[first:]`; what is given back waits for the result."""
    parts = list(windows(tokens, first, context, stride))
    tickets = [submit(_request(part, adapter)) for part in parts]

    def wait() -> Score:
        logprobs: list[float] = []
        greedy = True
        for part, ticket in zip(parts, tickets, strict=True):
            found = ticket.result().prompt_logprobs[len(part.tokens) - 1 - part.scored :]
            logprobs += [one.logprob for one in found]
            greedy = greedy and all(one.token == one.top[0][0] for one in found)
        scored = tokens[max(first, 1) :]
        return Score(tuple(scored.tolist()), tuple(logprobs), greedy)

    return wait


def perplexity(scores: Sequence[Score], texts: Sequence[str]) -> Perplexity:
    """The surprise of several texts together."""
    nats = -math.fsum(value.total for value in scores)
    return Perplexity(nats, sum(len(value.tokens) for value in scores), sum(len(text.encode()) for text in texts))


def _request(window: Window, adapter: Adapter | None) -> Request:
    return Request(
        prompt=np.ascontiguousarray(window.tokens, np.int32),
        sampling=Sampling(prompt_logprobs=1),
        want="scores",
        adapter=adapter,
    )
