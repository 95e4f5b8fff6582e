"""One sequence on its way through the engine: its tokens, its cache, and how it is continued."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bitnet_core.model import Cache, Tokens

from .request import Reason, Stopper
from .sampling import Sampler
from .ticket import Job

if TYPE_CHECKING:
    from .prefix import Entry, Scope
    from .speculation import Drafting


class Sequence:
    """Tokens that are known, of which the first `held` have been run.

    A step runs what is missing: pieces of the prompt, or the last token that was chosen, or both after its pages
    were taken away. They differ in nothing but their number.
    """

    __slots__ = (
        "_ids",
        "awaited",
        "cache",
        "count",
        "decoding",
        "drafting",
        "drafts",
        "entry",
        "index",
        "job",
        "limit",
        "piece",
        "prompt_size",
        "rank",
        "sampler",
        "scope",
        "stopper",
    )

    def __init__(
        self, job: Job, index: int, sampler: Sampler, stopper: Stopper | None, *, limit: int, scope: Scope | None
    ) -> None:
        self.job = job
        self.index = index
        self.sampler = sampler
        self.stopper = stopper
        self.scope = scope  # whose prefixes it shares; None: nobody's
        self.limit = limit  # tokens in all
        self._ids: Tokens = job.prompt
        self.count = self.prompt_size = len(self._ids)
        self.rank = 0.0  # the lowest goes first
        self.cache: Cache | None = None  # where it has a place
        self.entry: Entry | None = None  # how others find its prompt while it runs
        self.awaited: tuple[Entry, int] | None = None  # who computes a prefix of this one, and how much of it
        self.decoding = False  # its last step gave a token
        self.piece = 0  # tokens of this step
        self.drafts: Tokens | None = None  # those of this step
        self.drafting: Drafting | None = None  # where they come from

    @property
    def prompt(self) -> Tokens:
        """What it was given."""
        return self._ids[: self.prompt_size]

    @property
    def ids(self) -> Tokens:
        """All its tokens."""
        return self._ids[: self.count]

    @property
    def held(self) -> int:
        """Tokens that have been run."""
        return 0 if self.cache is None else self.cache.length

    @property
    def missing(self) -> int:
        """Tokens that have not."""
        return self.count - self.held

    @property
    def scored(self) -> bool:
        """Whether the logits of all tokens of the prompt are wanted."""
        request = self.job.request
        return not self.index and (request.want == "scores" or request.sampling.prompt_logprobs is not None)

    def take(self, size: int) -> Tokens:
        """The next tokens to run."""
        first = self.held
        known = self._ids[first : min(first + size, self.count)]
        return known if self.drafts is None else np.concatenate([known, self.drafts])

    def append(self, token: int) -> Reason | None:
        """Go on with a token that was chosen; the reason, if it is the last."""
        if self.count == len(self._ids):
            # Others may look at the old array: it stays as it is.
            grown = np.empty(min(self.limit, max(64, 2 * self.count)), np.int32)
            grown[: self.count] = self._ids
            self._ids = grown
        self._ids[self.count] = token
        self.count += 1
        sampler = self.sampler
        sampler.accept(token)
        if token in sampler.stops or sampler.finished:
            return "stop"
        if self.stopper is not None and (reason := self.stopper(token)) is not None:
            return reason
        return "length" if self.count >= self.limit else None
