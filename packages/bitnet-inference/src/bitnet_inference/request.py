"""What is asked of the engine, and what comes back: ids in, ids out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from bitnet_core.errors import BitNetError
from bitnet_core.model import Adapter, Array, Tokens

from .sampling import Constraint
from .settings import Sampling

if TYPE_CHECKING:
    from .session import Session

Reason = str  # "stop", "length", "cancelled", "deadline"; a stopper may name others
Stopper = Callable[[int], Reason | None]  # is given each token, and says when it was the last


class Overloaded(BitNetError):
    """The queue is full; the message says how long it is. Try again when something has finished."""


class EngineClosed(BitNetError):
    """The engine takes no more requests: it was closed, or its thread has failed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """A prompt and how it is continued; engines share nothing between tenants or adapters."""

    prompt: Tokens
    sampling: Sampling = field(default_factory=Sampling)
    eos: frozenset[int] = frozenset()  # tokens that the model ends with
    priority: int = 0  # lower goes first; ten seconds of waiting make up for one
    deadline_s: float | None = None  # from submission; what was made by then is the result
    adapter: Adapter | None = None
    constraint: Callable[[], Constraint] | None = None  # makes one for each sequence
    stopper: Callable[[], Stopper] | None = None  # likewise
    tenant: bytes = b""  # whose prefixes may be used, and who may use this one's
    # Tokens; or the last token's state after the final norm; or the log-probability of each token of the prompt.
    want: Literal["tokens", "state", "scores"] = "tokens"
    drafts: Literal["auto", "on", "off"] = "auto"  # speculation: the tokens are the same, only sooner
    session: Session | None = None  # prompt follows what it holds; it holds prompt and output at the end


class Emission(NamedTuple):
    """A token of one sequence of a request."""

    index: int  # type: ignore[assignment]  # of the sequence, 0..n-1; nobody looks for a value in a token
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: Reason | None = None  # of the last token, where a token was the reason


class PromptLogprob(NamedTuple):
    """How probable a token of the prompt was after those before it."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """One continuation."""

    tokens: tuple[int, ...]  # with the one that ended it
    finish_reason: Reason
    logprobs: tuple[float, ...] = ()  # one a token where they were asked for
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request, and the energy of its share of each step."""

    prompt_tokens: int = 0
    completion_tokens: int = 0  # of all its sequences
    cached_tokens: int = 0  # of the prompt, that were not computed anew
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of those drafted
    joules: float | None = None  # None where the machine does not tell

    @property
    def total_tokens(self) -> int:
        """Of prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of a request; what did not happen is 0, and first_token_s is None."""

    queue_s: float = 0.0  # until its first sequence had a place
    prompt_s: float = 0.0  # from then to the first token
    decode_s: float = 0.0  # from the first token to the last
    first_token_s: float | None = None  # from submission
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """All that a request gave."""

    outputs: tuple[Output, ...]
    usage: Usage
    timings: Timings
    prompt_logprobs: tuple[PromptLogprob, ...] = ()  # from the second token on, where they were asked for
    state: Array | None = None

    @property
    def tokens_per_second(self) -> float:
        """Of the completion, from the first token on, all sequences together; 0 where there were fewer than two."""
        later = self.usage.completion_tokens - len(self.outputs)
        return later / self.timings.decode_s if later > 0 and self.timings.decode_s > 0 else 0.0
