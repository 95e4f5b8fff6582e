"""Drafts: tokens that are guessed, and checked together in one step. What is emitted never depends on them.

A sampler's draw for a position is a function of the seed and the position alone. So the engine draws at every draft as
it would have drawn without it, keeps the drafts that were drawn, and forgets the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np

from bitnet_core.model import Cache, Reach, Runner, Step

from .sequence import Sequence

log = logging.getLogger("bitnet_inference")

MOST = 8  # drafts of one sequence in a step
_BITS = 21  # of a token: no vocabulary has more
_PROBE = 64  # steps after which a sequence whose drafts do not pay tries one again
_PIECE = 512  # tokens of a text that the draft model is given at once
_GUESS = 0.25  # what a row more costs, of a step of one row, before that is measured


class Lookup:
    """Drafts from the text itself: what followed when its last three, or two, tokens stood there before."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # Where the text went on, the last time, after three tokens and after two, each set as one number.
        self._after_three: dict[int, int] = {}
        self._after_two: dict[int, int] = {}

    def extend(self, tokens: Items[int]) -> None:
        """The text has gone on with these."""
        text = self._tokens
        for token in tokens:
            end = len(text)
            if end > 2:
                pair = text[-2] << _BITS | text[-1]
                self._after_two[pair] = end
                self._after_three[text[-3] << 2 * _BITS | pair] = end
            text.append(token)

    def propose(self, most: int) -> list[int]:
        """At most so many tokens that may come next; none if the last ones are new."""
        text = self._tokens
        if len(text) < 3:
            return []
        pair = text[-2] << _BITS | text[-1]
        place = self._after_three.get(text[-3] << 2 * _BITS | pair) or self._after_two.get(pair)
        if not place:
            return []
        # A text that repeats itself goes on doing so: past its end it is copied from the copy.
        found = text[place : place + most]
        return [*found, *(found[at % len(found)] for at in range(len(found), most))]

    def __len__(self) -> int:
        return len(self._tokens)


class Drafting:
    """What is known of one sequence's drafts."""

    __slots__ = ("base", "cache", "fed", "idle", "lookup", "rate")

    def __init__(self) -> None:
        self.lookup = Lookup()
        self.rate = 0.6  # the share of drafts that are accepted, of late
        self.idle = 0  # steps without drafts because they did not pay
        self.cache: Cache | None = None  # of the draft model
        self.base = 0  # tokens in it that are the text's own
        self.fed: list[int] = []  # drafts in it after those


class Cost:
    """What a step of so many rows takes: a line through those of late, the newest counting most."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, rows, seconds, rows squared, rows times seconds

    def add(self, rows: int, seconds: float) -> None:
        """A step was measured."""
        self._sums *= 0.98
        self._sums += (1.0, rows, seconds, rows * rows, rows * seconds)

    def share(self, rows: int, extra: float = 0.0) -> float:
        """What one row more takes, with `extra` seconds to make it, as a share of a step of `rows`."""
        weight, x, y, xx, xy = self._sums.tolist()
        if weight < 1 or y <= 0:
            return _GUESS / rows
        spread = xx / weight - (x / weight) ** 2
        mean = y / weight
        slope = (xy / weight - x / weight * mean) / spread if spread > 0.05 else _GUESS * mean / (x / weight)
        slope = max(slope, 0.02 * mean / (x / weight))
        step = max(mean + slope * (rows - x / weight), 0.1 * mean)
        return (slope + extra) / step


class DraftModel:
    """Drafts from a smaller model of the same vocabulary: its likeliest continuations, all sequences at once."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.seconds = 0.0  # that a draft takes

    def propose(self, wanted: list[tuple[Sequence, Drafting, int]]) -> list[list[int]]:
        """Drafts for each sequence, at most as many as it wants; fewer while the model still reads its text."""
        found: list[list[int]] = [[] for _ in wanted]
        steps: list[Step] = []
        for sequence, drafting, _ in wanted:
            cache = self._catch_up(sequence, drafting)
            piece = sequence.ids[cache.length :][:_PIECE]
            whole = cache.length + len(piece) == sequence.count
            steps.append(Step(piece, cache, "last" if whole else "none", Reach()))
        order = list(range(len(wanted)))
        while steps:
            results = self._runner.forward(steps)
            going = []
            for place, logits in zip(order, results, strict=True):
                _, drafting, most = wanted[place]
                if logits is None:
                    drafting.base = drafting.cache.length if drafting.cache is not None else 0
                    continue
                found[place].append(int(logits.argmax()))
                if len(found[place]) < most:
                    going.append(place)
            order = going
            steps = [self._feed(wanted[place][1], found[place][-1]) for place in going]
        return found

    def _catch_up(self, sequence: Sequence, drafting: Drafting) -> Cache:
        """The cache of a sequence with nothing in it but what the text has become."""
        if drafting.cache is None:
            drafting.cache, drafting.base = self._runner.new_cache(), 0
        cache = drafting.cache
        kept = drafting.base
        for draft, token in zip(drafting.fed, sequence.ids[kept:].tolist(), strict=False):
            if draft != token:
                break
            kept += 1
        # The last token is always run again: its logits are wanted.
        cache.truncate(min(kept, sequence.count - 1))
        drafting.base, drafting.fed = sequence.count, []
        return cache

    @staticmethod
    def _feed(drafting: Drafting, draft: int) -> Step:
        assert drafting.cache is not None  # noqa: S101  # made by _catch_up
        drafting.fed.append(draft)
        return Step(np.array([draft], np.int32), drafting.cache, "last", Reach())


class Speculation:
    """Which sequences get drafts, how many, and from where. The engine's thread alone uses it."""

    def __init__(self, draft: Runner | None, clock: Callable[[], float]) -> None:
        self.cost = Cost()
        self.drafted = self.accepted = 0  # ever
        self._model = None if draft is None else DraftModel(draft)
        self._clock = clock

    def draft(self, sequences: list[Sequence]) -> None:
        """Give drafts to those that wait for their next token, where that pays."""
        wanted: list[tuple[Sequence, Drafting, int]] = []
        for sequence in sequences:
            sequence.drafts = None
            most = min(MOST, sequence.limit - sequence.count - 1)
            if most < 1 or sequence.job.request.drafts == "off":
                continue
            drafting = sequence.drafting
            if drafting is None:
                drafting = sequence.drafting = Drafting()
            drafting.lookup.extend(sequence.ids[len(drafting.lookup) :].tolist())
            worth = self._worth(sequence, drafting, len(sequences), most)
            if worth and (found := drafting.lookup.propose(worth)):
                sequence.drafts = np.array(found, np.int32)
            elif self._model is not None:
                worth = self._worth(sequence, drafting, len(sequences), most, self._model.seconds)
                if worth:
                    wanted.append((sequence, drafting, worth))
        if wanted:
            self._ask(wanted)
        for sequence in sequences:
            if sequence.drafts is not None:
                sequence.piece = 1 + len(sequence.drafts)

    def learn(self, sequence: Sequence, accepted: int) -> None:
        """So many of a sequence's drafts were what it would have said itself."""
        drafting, drafts = sequence.drafting, sequence.drafts
        if drafting is None or drafts is None:
            return
        # What follows a wrong draft was not put to the test.
        tried = min(len(drafts), accepted + 1)
        drafting.rate = min(0.99, (8 * drafting.rate + accepted) / (8 + tried))
        drafting.idle = 0
        job = sequence.job
        job.drafted += len(drafts)
        job.accepted += accepted
        self.drafted += len(drafts)
        self.accepted += accepted

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        if sequence.drafting is not None and sequence.drafting.cache is not None:
            sequence.drafting.cache.close()
        sequence.drafting = sequence.drafts = None

    def _worth(self, sequence: Sequence, drafting: Drafting, rows: int, most: int, seconds: float = 0.0) -> int:
        """How many drafts pay: each must bring more tokens a second than the step gives without it."""
        if sequence.job.request.drafts == "on":
            return most
        price = self.cost.share(rows, seconds) * rows
        count, chance = 0, drafting.rate
        while count < most and chance > price:
            count += 1
            chance *= drafting.rate
        if not count:
            drafting.idle += 1
            count = int(drafting.idle % _PROBE == 0)
        return count

    def _ask(self, wanted: list[tuple[Sequence, Drafting, int]]) -> None:
        """Drafts from the model; without memory, or with a model that fails, there are none."""
        if self._model is None:
            return
        begun = self._clock()
        try:
            found = self._model.propose(wanted)
        except Exception as error:  # noqa: BLE001  # drafts are a help: their model's failure harms nobody
            log.warning("the draft model has failed: %s", error)
            if not isinstance(error, MemoryError):
                self._model = None
            for _, drafting, _ in wanted:
                if drafting.cache is not None:
                    drafting.cache.close()
                drafting.cache, drafting.base, drafting.fed = None, 0, []
            return
        made = sum(map(len, found))
        if made:
            self._model.seconds += 0.2 * ((self._clock() - begun) / made - self._model.seconds)
        for (sequence, _, _), drafts in zip(wanted, found, strict=True):
            if drafts:
                sequence.drafts = np.array(drafts, np.int32)
