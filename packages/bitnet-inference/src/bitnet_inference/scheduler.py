"""Who runs in the next step: waiting and running sequences, their places, and their share of memory."""

from __future__ import annotations

from bisect import insort

from bitnet_core.errors import OutOfMemory
from bitnet_core.model import Cache, Runner

from .prefix import Match, Prefixes
from .room import Room
from .sequence import Sequence

AGING = 10.0  # seconds of waiting that make up for one step of priority
_AWAIT = 32  # tokens that are worth waiting for, where another sequence is about to compute them
_LOOKS = 64  # waiting sequences that are looked at in a step
_AHEAD = 16  # positions beyond its tokens that a sequence must find room for when it starts
_SCORED = 1 << 25  # logits that a step may hold of one prompt, where those of all its tokens are wanted


class Scheduler:
    """Places for sequences. The engine's thread alone uses it."""

    def __init__(self, runner: Runner, room: Room, prefixes: Prefixes, max_sequences: int) -> None:
        self._runner = runner
        self.room = room
        self.prefixes = prefixes
        self.max_sequences = max_sequences
        self.waiting: list[Sequence] = []  # by rank
        self.prompting: list[Sequence] = []  # that have tokens to run before they can choose one; by rank
        self.decoding: list[Sequence] = []
        self.preempted = 0
        self.lean = False  # memory is short: nobody starts while others run
        self._scored = max(1, _SCORED // runner.spec.vocab_size)

    @property
    def running(self) -> int:
        """Sequences that have a place."""
        return len(self.prompting) + len(self.decoding)

    def enqueue(self, sequence: Sequence) -> None:
        """Wait for a place."""
        sequence.rank = sequence.job.submitted + AGING * sequence.job.request.priority
        insort(self.waiting, sequence, key=_rank)

    def admit(self, now: float) -> None:
        """Give places to those who wait, while there are places and memory."""
        passed = 0
        while passed < min(len(self.waiting), _LOOKS):
            sequence = self.waiting[passed]
            if self.running >= self.max_sequences and not self._displace(sequence):
                return
            match = self._match(sequence)
            if match is None:
                passed += 1  # somebody else computes what it needs
            elif (cache := self._begin(sequence, match)) is None:
                return
            else:
                del self.waiting[passed]
                self._place(sequence, cache, now)

    def plan(self, budget: int) -> list[Sequence]:
        """The sequences of the next step, each with the size of its piece; prompts share what is left of `budget`."""
        batch = self.decoding.copy()
        for sequence in batch:
            sequence.piece, sequence.drafts = 1, None
        if self.prompting:
            left = max(1, budget - len(batch))
            # The first in rank has a quarter for sure, so that nobody starves; then the shortest go first.
            first = self.prompting[0]
            first.piece = self._most(first, max(1, left // 4))
            left -= first.piece
            for sequence in sorted(self.prompting, key=_urgency):
                had = sequence.piece if sequence is first else 0
                sequence.piece = self._most(sequence, had + left)
                left -= sequence.piece - had
                if sequence.piece:
                    batch.append(sequence)
        return batch

    def advance(self, sequence: Sequence) -> None:
        """From its prompt to its output: from now on every step gives it a token."""
        self.prompting.remove(sequence)
        self.decoding.append(sequence)
        sequence.decoding = True

    def lacks_room(self, batch: list[Sequence]) -> bool:
        """Whether a step needs more pages than there are."""
        stats, growth = None, 0
        for sequence in batch:
            stats = stats or self.room.stats()
            held = sequence.held
            growth += stats.pages(held + sequence.piece) - stats.pages(held)
            # The last page of a fork may be another's too, and is then copied.
            growth += not sequence.decoding and held % stats.positions > 0
        return growth > 0 and self.room.left() < growth

    def relieve(self) -> bool:
        """Free some pages: of what nobody uses, else of the last in rank; False if only one is left."""
        if self.prefixes.evict():
            return True
        if self.running < 2:
            return False
        self.preempt(max((*self.prompting, *self.decoding), key=_rank))
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's place away; what it has computed stays as long as there is room."""
        self.retire(sequence, keep=True)
        self.preempted += 1
        insort(self.waiting, sequence, key=_rank)

    def retire(self, sequence: Sequence, *, keep: bool) -> None:
        """Forget a sequence, wherever it is; its cache becomes a prefix for others, or is closed."""
        for place in (self.decoding, self.prompting, self.waiting):
            if sequence in place:
                place.remove(sequence)
                break
        if sequence.entry is not None:
            self.prefixes.drop(sequence.entry)
            sequence.entry = None
        sequence.awaited = sequence.drafts = None
        cache, sequence.cache = sequence.cache, None
        if cache is None:
            return
        if keep and sequence.scope is not None:
            self.prefixes.keep(sequence.scope, sequence.ids, cache)
        else:
            cache.close()

    def _displace(self, sequence: Sequence) -> bool:
        """Make a place for one that matters more by taking it from one that matters less."""
        worst = max((*self.prompting, *self.decoding), key=_rank)
        if worst.rank <= sequence.rank or worst.job.request.priority <= sequence.job.request.priority:
            return False
        self.preempt(worst)
        return True

    def _match(self, sequence: Sequence) -> Match | None:
        """What it can begin with; None if more is on its way."""
        if sequence.scope is None or sequence.scored:
            return Match()
        if sequence.awaited is not None:
            entry, length = sequence.awaited
            if entry.live and entry.ready < length:
                return None
        match = self.prefixes.find(sequence.scope, sequence.ids[:-1])  # the last token's logits are wanted
        if match.ahead is not None and match.ahead.live and match.coming - match.ready >= _AWAIT:
            sequence.awaited = (match.ahead, match.coming)
            return None
        sequence.awaited = None
        return match

    def _begin(self, sequence: Sequence, match: Match) -> Cache | None:
        """A cache for it, if there is room for its tokens; with nobody to wait for it tries, and will be told."""
        alone = not self.running
        if self.lean and not alone:
            return None
        try:
            cache = match.entry.cache.fork(match.ready) if match.entry is not None else self._runner.new_cache()
        except OutOfMemory:
            return self._begin(sequence, match) if self.prefixes.evict() else None
        stats = self.room.stats()
        # A page for each that decodes, lest this one is sent away again as soon as one of them grows.
        need = stats.pages(sequence.count + _AHEAD) - match.ready // stats.positions + len(self.decoding)
        need += sum(stats.pages(other.count + _AHEAD) - stats.pages(other.held) for other in self.prompting)
        while self.room.left() < need:
            if not self.prefixes.evict():
                if alone:
                    break
                cache.close()
                return None
        return cache

    def _place(self, sequence: Sequence, cache: Cache, now: float) -> None:
        job = sequence.job
        sequence.cache = cache
        if job.started is None:
            job.started = now
            job.cached = cache.length
        if sequence.scope is not None:
            sequence.entry = self.prefixes.begin(sequence.scope, sequence.ids, cache)
        sequence.decoding = False
        insort(self.prompting, sequence, key=_rank)

    def _most(self, sequence: Sequence, size: int) -> int:
        if sequence.scored:
            size = min(size, self._scored)
        return min(size, sequence.missing)


def _rank(sequence: Sequence) -> float:
    return sequence.rank


def _urgency(sequence: Sequence) -> tuple[int, int]:
    return sequence.job.request.priority, sequence.missing
