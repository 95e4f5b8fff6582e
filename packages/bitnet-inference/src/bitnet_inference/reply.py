"""What a caller gets: text that knows how it came about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bitnet_core.errors import FormatError
from bitnet_core.tokenizer import Tokenizer

from .request import PromptLogprob, Reason, Timings, Usage
from .tools import Call


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, how probable the model held it, and what it held most probable in its place."""

    token: int
    text: str  # "" for a token that steers, U+FFFD for bytes that are no whole character
    bytes: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What is known of a text beside the text."""

    finish_reason: Reason  # "stop", "length", "tool_calls", "cancelled" or "deadline"
    tokens: tuple[int, ...] = ()  # with the one that ended it
    usage: Usage = field(default_factory=Usage)  # of all choices together
    timings: Timings = field(default_factory=Timings)
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens, where they were asked for
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # of the prompt, from its second token on
    stop: str | None = None  # the stop string that ended it, which may be the name of a special token
    parsed: Any = None  # the value that the text is, where a form was asked for
    unread: FormatError | None = None  # why it has no such value, though it came to its end
    tool_calls: tuple[Call, ...] = ()


class Reply(str):
    """A text that a model wrote: a str, with all that is known of it as attributes."""

    __slots__ = ("choices", "details")

    details: Details
    choices: tuple[Reply, ...]  # all n texts, the first one this

    def __new__(cls, text: str, details: Details) -> Reply:
        reply = super().__new__(cls, text)
        reply.details = details
        reply.choices = (reply,)
        return reply

    def __getnewargs__(self) -> tuple[str, Details]:  # type: ignore[override]  # pickle passes both to __new__
        return str(self), self.details

    @property
    def finish_reason(self) -> Reason:
        """Why it ended: "stop", "length", "tool_calls", "cancelled" or "deadline"."""
        return self.details.finish_reason

    @property
    def tokens(self) -> tuple[int, ...]:
        """Its tokens, with the one that ended it."""
        return self.details.tokens

    @property
    def usage(self) -> Usage:
        """Tokens of the prompt and of all choices."""
        return self.details.usage

    @property
    def timings(self) -> Timings:
        """Seconds of the request."""
        return self.details.timings

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """How probable its tokens were, where that was asked for."""
        return self.details.logprobs

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """How probable the prompt's tokens were, from the second on, where that was asked for."""
        return self.details.prompt_logprobs

    @property
    def stop(self) -> str | None:
        """The stop string that ended it, where one did."""
        return self.details.stop

    @property
    def parsed(self) -> Any:
        """The value that the text is, where a form was asked for; None where the text was cut by its length.

        FormatError where it cannot be read, as where a stop string cut it, or a type has rules that no grammar knows.
        """
        if self.details.unread is not None:
            raise self.details.unread
        return self.details.parsed

    @property
    def tool_calls(self) -> tuple[Call, ...]:
        """The tools that the model wants to have called."""
        return self.details.tool_calls


class Piece(str):
    """Some characters of a text that is being written."""

    __slots__ = ("choice", "logprobs")

    choice: int  # which text it belongs to, where several are written at once
    logprobs: tuple[TokenLogprob, ...]  # of the tokens since the last piece, where they were asked for

    def __new__(cls, text: str, choice: int = 0, logprobs: tuple[TokenLogprob, ...] = ()) -> Piece:
        piece = super().__new__(cls, text)
        piece.choice = choice
        piece.logprobs = logprobs
        return piece


def token_logprob(
    tokenizer: Tokenizer | None, token: int, logprob: float, top: Sequence[tuple[int, float]] = ()
) -> TokenLogprob:
    """A token's log-probability with the token's text."""
    data = tokenizer.token_bytes(token) if tokenizer and token < tokenizer.vocab_size else b""
    others = tuple(token_logprob(tokenizer, other, value) for other, value in top)
    return TokenLogprob(token, data.decode("utf-8", "replace"), data, logprob, others)


def prompt_logprobs_of(tokenizer: Tokenizer | None, found: Sequence[PromptLogprob]) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of a prompt's tokens."""
    return tuple(token_logprob(tokenizer, one.token, one.logprob, one.top) for one in found)
