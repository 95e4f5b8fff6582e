"""From logits to the next token of a sequence.

Every draw is a function of the seed, the index among the n continuations of a prompt, and the position in the output:
who else is in a batch does not matter, and a token drawn for a draft is the one that would have been drawn without it.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bitnet_core.errors import BitNetError, printable
from bitnet_core.model import Array, Reach, Tokens

from . import truncation
from .penalties import Penalties
from .settings import BAN, Sampling


class SamplingError(BitNetError):
    """No token can be chosen: logits are no numbers, or every token is forbidden."""


class Choice(NamedTuple):
    """A token; log-probabilities are the model's own, before biases, penalties, temperature and truncation."""

    token: int
    logprob: float | None = None  # None where none were asked for
    top: tuple[tuple[int, float], ...] = ()  # the best tokens, the most probable first


class Constraint(Protocol):
    """What a text must be, as the tokens that may come next."""

    def mask(self) -> npt.NDArray[np.int32]:
        """One bit a token, the first in the lowest bit: set where it may come; tokens beyond it may not."""

    def accept(self, token: int) -> None:
        """Go on with this token."""

    @property
    def finished(self) -> bool:
        """Whether the text is whole, and nothing but its end may come."""


class Sampler:
    """Chooses the tokens of one sequence: `choose` one from logits, then `accept` it."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: Tokens,
        vocab_size: int,
        eos: frozenset[int],
        *,
        index: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        self.sampling = sampling
        self.constraint = constraint
        self.seed = int.from_bytes(os.urandom(8), "little") if sampling.seed is None else sampling.seed
        # The tokens that end the sequence, once it has min_tokens.
        self.stops = sampling.stop_tokens if sampling.ignore_eos else sampling.stop_tokens | eos
        self._index = index
        self._vocab_size = vocab_size
        self._position = 0
        self._bias_ids, self._biases = _biases(sampling, vocab_size)
        self._early = _ids("stop_tokens", self.stops, vocab_size) if sampling.min_tokens else None
        self._penalties = Penalties(sampling, prompt) if _penalizes(sampling) else None
        self._tokens: list[int] = prompt.tolist() if sampling.processors else []

    @property
    def finished(self) -> bool:
        """Whether the constraint has all that it asks for: the sequence ends here."""
        return self.constraint is not None and self.constraint.finished

    def reach(self, ahead: int = 0) -> Reach | None:
        """The logits that the next choice, and the `ahead` after it, can look at; None: all of them.

        From logits in which all others are -inf, `choose` gives the same token as from all.
        """
        sampling = self.sampling
        if self.constraint is not None or sampling.processors or sampling.logprobs is not None:
            return None
        lowered = self._lowered(ahead)
        if lowered is None:
            return None
        if sampling.greedy or sampling.top_k:
            # Who is among the best k after n of them were lowered was among the best k + n before.
            best = lowered + (1 if sampling.greedy else sampling.top_k)
            return Reach(best=best) if best < self._vocab_size else None
        if sampling.min_p and not lowered and sampling.top_p == sampling.typical_p == 1:
            return Reach(margin=truncation.margin(sampling))
        return None

    def choose(self, logits: Array) -> Choice:
        """The next token; of equal best ones greedy takes the lowest id."""
        if logits.shape != (self._vocab_size,):
            raise ValueError(f"logits: expected {self._vocab_size} of them, got an array of shape {logits.shape}")
        changed = self._changed(logits)
        best = int(changed.argmax())  # of NaN, the first
        if not np.isfinite(changed[best]):
            raise SamplingError(_why_none(float(changed[best]), logits))
        if self.sampling.greedy:
            token = best
        else:
            point = truncation.uniform(self.seed, self._index, self._position)
            token = truncation.pool(changed, self.sampling).draw(point)
        return Choice(token) if self.sampling.logprobs is None else score(logits, token, self.sampling.logprobs)

    def accept(self, token: int) -> None:
        """Go on with this token, which `choose` gave."""
        self._position += 1
        if self._penalties is not None:
            self._penalties.accept(token)
        if self.sampling.processors:
            self._tokens.append(token)
        if self.constraint is not None:
            self.constraint.accept(token)

    def _lowered(self, ahead: int) -> int | None:
        """How many logits are lowered at most; None where any is raised."""
        if (self._biases > 0).any():
            return None
        early = len(self._early) if self._early is not None and self._is_early else 0
        lowered = self._penalties.lowered(ahead) if self._penalties is not None else 0
        return None if lowered is None else lowered + early + len(self._biases)

    @property
    def _is_early(self) -> bool:
        return self._position < self.sampling.min_tokens

    def _changed(self, logits: Array) -> Array:
        """The logits with everything that comes before the temperature; the very same array where that is nothing."""
        early = self._early if self._is_early else None
        masked, processors = self.constraint is not None, self.sampling.processors
        if early is None and self._penalties is None and not (masked or processors or len(self._biases)):
            return logits
        changed = logits.astype(np.float32)
        changed[self._bias_ids] += self._biases
        if self._penalties is not None:
            self._penalties.apply(changed)
        if early is not None:
            changed[early] = -np.inf
        if self.constraint is not None:
            _forbid(changed, self.constraint.mask())
        for processor in processors:
            changed = _processed(processor(list(self._tokens), changed), processor, logits.shape)
        return changed


def score(logits: Array, token: int, top: int = 0) -> Choice:
    """A token with its log-probability, and as many of the best tokens with theirs."""
    peak = logits.max()
    total = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    ids = truncation.best(logits, top) if top else np.arange(0)
    order = np.lexsort((ids, -logits[ids]))[:top]
    best = tuple((int(id_), float(logits[id_]) - total) for id_ in ids[order])
    return Choice(token, float(logits[token]) - total, best)


def _penalizes(sampling: Sampling) -> bool:
    return bool(
        sampling.repetition_penalty != 1
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.dry_multiplier
    )


def _biases(sampling: Sampling, vocab_size: int) -> tuple[npt.NDArray[np.intp], Array]:
    ids = _ids("logit_bias", frozenset(sampling.logit_bias), vocab_size)
    values = [sampling.logit_bias[int(id_)] for id_ in ids]
    return ids, np.array([-np.inf if value == BAN else value for value in values], np.float32)


def _ids(name: str, tokens: frozenset[int], vocab_size: int) -> npt.NDArray[np.intp]:
    if tokens and max(tokens) >= vocab_size:
        raise ValueError(f"{name}: expected token ids of 0..{vocab_size - 1}, got {max(tokens)}")
    return np.array(sorted(tokens), np.intp)


def _forbid(logits: Array, mask: npt.NDArray[np.int32]) -> None:
    allowed = np.unpackbits(mask.view(np.uint8), count=min(len(logits), 32 * len(mask)), bitorder="little")
    logits[: len(allowed)][allowed == 0] = -np.inf
    logits[len(allowed) :] = -np.inf


def _processed(result: object, processor: object, shape: tuple[int, ...]) -> Array:
    name = printable(getattr(processor, "__name__", type(processor).__name__))
    if not isinstance(result, np.ndarray) or result.shape != shape or result.dtype.kind != "f":
        got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
        raise ValueError(f"processors: expected {name} to give {shape[0]} float32 logits, got {got}")
    return result.astype(np.float32, copy=False)


def _why_none(best: float, logits: Array) -> str:
    if best == -np.inf and np.isfinite(logits.max()):
        return "no token can be chosen: biases, min_tokens, the constraint and processors together forbid every one"
    bad = np.flatnonzero(~(logits < np.inf))  # NaN and +inf
    where = f"the logit of token {bad[0]} is {logits[bad[0]]}" if len(bad) else f"the best changed logit is {best}"
    return f"no token can be chosen: {where}; the model's weights or a processor may be damaged"
