"""What it costs a token to be there already: repetition, presence, frequency, and DRY for whole passages."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bitnet_core.model import Array, Tokens
from bitnet_core.tokenizer import Tokenizer

from .settings import Sampling

DRY_BREAKERS = ("\n", ":", '"', "*")
# A passage this many tokens longer than allowed costs as much as a longer one: it leaves nothing of a probability.
_LONGEST = 64
_LARGEST = 1e30  # a penalty: sums of such stay finite in float32

_Lengths = npt.NDArray[np.intp]


def breaker_tokens(tokenizer: Tokenizer, strings: Iterable[str] = DRY_BREAKERS) -> frozenset[int]:
    """The tokens that no repetition runs across: those with one of the strings in them, and all special ones."""
    wanted = [string.encode() for string in strings]
    found = [id_ for id_, text in enumerate(tokenizer.vocabulary_bytes()) if any(part in text for part in wanted)]
    return frozenset(found) | frozenset(tokenizer.special_tokens.values())


class Penalties:
    """The penalties of one sequence, brought up to date with each of its tokens."""

    def __init__(self, sampling: Sampling, prompt: Tokens) -> None:
        self._sampling = sampling
        self._window = sampling.penalty_window
        self._tokens = _Row(prompt)
        repeats = sampling.repetition_penalty != 1
        counts = bool(sampling.presence_penalty or sampling.frequency_penalty)
        # Repetition looks at the prompt as well, the others at the output alone.
        self._seen = _Counts(self._tokens.last(self._window)) if repeats else None
        self._output = _Counts(prompt[:0]) if counts else None
        self._output_start = len(prompt)
        self._passages = _Passages(sampling, self._tokens.last(self._window)) if sampling.dry_multiplier else None

    def accept(self, token: int) -> None:
        """One more token of the output."""
        if self._passages is not None:
            self._passages.accept(token, self._tokens.last(self._window))
        self._tokens.append(token)
        left = -1 if self._window is None else len(self._tokens) - 1 - self._window
        for counts, start in ((self._seen, 0), (self._output, self._output_start)):
            if counts is not None:
                counts.add(token)
                if left >= start:
                    counts.remove(self._tokens[left])

    def apply(self, logits: Array) -> None:
        """Change the logits of what would be repeated, in place."""
        sampling = self._sampling
        if self._seen is not None:
            ids, _ = self._seen.items()
            here, rate = logits[ids], np.float32(sampling.repetition_penalty)
            logits[ids] = np.where(here > 0, here / rate, here * rate)
        if self._output is not None:
            ids, counts = self._output.items()
            logits[ids] -= np.float32(sampling.presence_penalty) + np.float32(sampling.frequency_penalty) * counts
        if self._passages is not None:
            repeated, cost = self._passages.costs(self._tokens.last(self._window))
            logits[repeated] -= cost

    def lowered(self, ahead: int) -> int | None:
        """How many logits `apply` lowers at most, now and `ahead` tokens later; None where it may raise some."""
        sampling = self._sampling
        if sampling.repetition_penalty < 1 or min(sampling.presence_penalty, sampling.frequency_penalty) < 0:
            return None
        found = sum(len(counts.items()[0]) + ahead for counts in (self._seen, self._output) if counts is not None)
        return found if self._passages is None else found + self._passages.count(ahead)


class _Row:
    """A growing row of tokens."""

    def __init__(self, tokens: Tokens) -> None:
        self._length = len(tokens)
        self._data = np.empty(max(64, 2 * len(tokens)), np.int32)
        self._data[: len(tokens)] = tokens

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return int(self._data[index])

    def append(self, token: int) -> None:
        if self._length == len(self._data):
            self._data = np.concatenate([self._data, np.empty_like(self._data)])
        self._data[self._length] = token
        self._length += 1

    def last(self, count: int | None) -> Tokens:
        """The last so many tokens, None for all; a view."""
        return self._data[0 if count is None else max(0, self._length - count) : self._length]


class _Counts:
    """Which tokens there are, and how often each, as two rows that NumPy can index with."""

    def __init__(self, tokens: Tokens) -> None:
        ids, counts = np.unique(tokens, return_counts=True)
        self._places = {int(token): place for place, token in enumerate(ids)}
        size = max(64, 2 * len(ids))
        self._ids, self._counts = np.zeros(size, np.intp), np.zeros(size, np.float32)
        self._ids[: len(ids)], self._counts[: len(ids)] = ids, counts

    def items(self) -> tuple[npt.NDArray[np.intp], Array]:
        """The tokens, and how often each is there; views."""
        size = len(self._places)
        return self._ids[:size], self._counts[:size]

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        self._counts[place] += 1

    def remove(self, token: int) -> None:
        place = self._places[token]
        self._counts[place] -= 1
        if self._counts[place]:
            return
        # The last one takes the empty place.
        del self._places[token]
        end = len(self._places)
        if place != end:
            self._ids[place], self._counts[place] = self._ids[end], self._counts[end]
            self._places[int(self._ids[place])] = place
        self._counts[end] = 0


class _Passages:
    """For each place of the history, how many tokens in front of it are the same as those at the end."""

    def __init__(self, sampling: Sampling, history: Tokens) -> None:
        self._sampling = sampling
        self._breakers = sampling.dry_breakers or frozenset()
        self._lengths = self._compare(history)

    def accept(self, token: int, history: Tokens) -> None:
        """One more token after the history."""
        found = np.zeros(len(history) + 1, np.intp)
        if token not in self._breakers:
            found[1:] = np.where(history == token, self._lengths + 1, 0)
        window = self._sampling.penalty_window
        if window is not None and len(found) > window:
            found = np.minimum(found[-window:], np.arange(window))  # what has left the window is no part of a passage
        self._lengths = found

    def costs(self, history: Tokens) -> tuple[npt.NDArray[np.int32], Array]:
        """The tokens that would lengthen a repetition, and what each loses."""
        allowed = self._sampling.dry_allowed_length
        places = np.flatnonzero(self._lengths >= allowed)
        ids, which = np.unique(history[places], return_inverse=True)
        longer = np.zeros(len(ids))
        np.maximum.at(longer, which, np.minimum(self._lengths[places] - allowed, _LONGEST))
        cost = self._sampling.dry_multiplier * self._sampling.dry_base**longer
        return ids, np.minimum(cost, _LARGEST).astype(np.float32)

    def count(self, ahead: int) -> int:
        """How many tokens lose something at most: each step lengthens a passage by one, and adds a place."""
        return int(np.count_nonzero(self._lengths >= self._sampling.dry_allowed_length - ahead)) + ahead

    def _compare(self, history: Tokens) -> _Lengths:
        lengths = np.zeros(len(history), np.intp)
        places = np.arange(1, len(history))
        for back in range(1, self._sampling.dry_allowed_length + _LONGEST + 1):
            places = places[places >= back]
            if not len(places) or int(history[-back]) in self._breakers:
                break
            places = places[history[places - back] == history[-back]]
            lengths[places] = back
        return lengths
