"""The engine's thread: takes messages, runs steps, and hands out what they give."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from queue import Empty, SimpleQueue

from bitnet_core.memory import Pressure
from bitnet_core.model import Array, Runner, Step

from .observer import Observation, StepEvent
from .request import Emission, EngineClosed, PromptLogprob, Reason
from .sampling import score
from .scheduler import Scheduler
from .sequence import Sequence
from .speculation import Speculation
from .ticket import Bell, Job

log = logging.getLogger("bitnet_inference")

Clock = Callable[[], float]
_STALL = 0.25  # seconds that pieces of prompts may add to a step in which others wait for their next token
_LEAST = 32  # tokens of prompts in a step, however slow they are
_CHECK = 1.0  # seconds between looks at the machine's memory
_IDLE = 5.0  # the same while nothing else happens


class _Later(Exception):
    """Not run in this step; it will be in another."""


class Loop:
    """Steps while there is work. Other threads put messages into `inbox`; all else is this thread's alone."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        speculation: Speculation,
        observation: Observation,
        *,
        step_tokens: int,
        clock: Clock,
        pressure: Callable[[], Pressure],
    ) -> None:
        self.inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()  # a finalizer may put, even in the midst of a put
        self.jobs: dict[int, tuple[Job, list[Sequence]]] = {}  # that have not ended
        self.runner = runner
        self.scheduler = scheduler
        self.speculation = speculation
        self.observation = observation
        self.clock = clock
        self.step_tokens = step_tokens
        self.failure: BaseException | None = None
        self.bell = Bell()
        self._leaving: float | None = None  # when those who have not ended are cancelled
        self._deadlines: list[tuple[float, int]] = []
        self._pace = 0.0  # seconds that a token of a prompt takes
        self._pressure = pressure
        self._checked = clock()

    def run(self) -> None:
        """Until it is told to leave, and everybody has what they waited for."""
        try:
            while self.turn():
                pass
        except BaseException as error:
            log.exception("the engine's thread has failed")
            self.failure = error
        finally:
            self._leave()

    def turn(self) -> bool:
        """Messages, then a step; waits for messages where there is nothing else to do. False when it is time to go."""
        if not self._receive():
            return False
        self._expire()
        self.bell.ring()
        self._look()
        self.scheduler.admit(self.clock())
        self._step()
        self.bell.ring()
        return True

    def add(self, job: Job, sequences: list[Sequence]) -> None:
        """A request comes in."""
        if job.request.deadline_s is not None:
            if len(self._deadlines) > 2 * len(self.jobs) + 64:  # most of them have ended in time
                self._deadlines = [deadline for deadline in self._deadlines if deadline[1] in self.jobs]
                heapify(self._deadlines)
            heappush(self._deadlines, (job.submitted + job.request.deadline_s, job.number))
        for sequence in sequences:
            self.scheduler.enqueue(sequence)

    def cancel(self, number: int, reason: Reason = "cancelled") -> None:
        """A request is not wanted any more."""
        if number in self.jobs:
            job, sequences = self.jobs[number]
            for sequence in _open(job, sequences):
                self._end(sequence, reason, keep=reason == "deadline" or job.request.session is not None)

    def leave(self, at: float) -> None:
        """Go when nothing is left to do, or at this time."""
        self._leaving = at

    def _receive(self) -> bool:
        """Take what came in, and wait for it where there is nothing else to do; False if it is time to go."""
        wait = not self.jobs and self._leaving is None
        while True:
            try:
                message = self.inbox.get(wait, _IDLE if wait and len(self.scheduler.prefixes) else None)
            except Empty:
                break
            message()
            wait = False
        if self._leaving is None:
            return True
        if self.clock() >= self._leaving:
            for number in list(self.jobs):
                self.cancel(number)
        return bool(self.jobs)

    def _leave(self) -> None:
        """Nobody waits for a thread that is gone."""
        error = self.failure or EngineClosed("the engine was closed before this request had ended")
        for job, _ in list(self.jobs.values()):
            self._fail(job, error)
        self.bell.ring()
        self.scheduler.prefixes.clear()

    def _expire(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self.clock():
            _, number = heappop(self._deadlines)
            self.cancel(number, "deadline")

    def _look(self) -> None:
        """Where the machine is short of memory, first go prefixes that nobody uses, then nobody starts for a while."""
        if self.clock() - self._checked < _CHECK:
            return
        self._checked = self.clock()
        level = self._pressure().level
        self.scheduler.lean = level == "critical"
        if level != "none" and self.scheduler.prefixes:
            prefixes = self.scheduler.prefixes
            for _ in range(len(prefixes) if level == "critical" else -(-len(prefixes) // 2)):
                prefixes.evict()
            self.runner.trim()
            log.info("memory is short (%s): %d prefixes are left", level, len(prefixes))

    def _step(self) -> None:
        batch = self.scheduler.plan(self._budget())
        if not batch:
            return
        self.speculation.draft(self.scheduler.decoding)
        begun = self.clock()
        batch, results = self._forward(batch)
        now = self.clock()
        self._measure(batch, now - begun)
        jobs: dict[int, Job] = {}
        for sequence, result in zip(batch, results, strict=True):
            job = sequence.job
            if job.done:
                continue  # another of its sequences has failed in this step
            if isinstance(result, Exception):
                if not isinstance(result, _Later):
                    self._fail(job, result)
                continue
            try:
                self._settle(sequence, result, now)
            except BaseException as error:  # noqa: BLE001  # a processor's, which may exit: not the engine's own
                self._fail(job, error)
            else:
                jobs[job.number] = job
        for job in jobs.values():
            job.notify(self.bell)
        self.bell.ring()
        self.observation.settle()

    def _budget(self) -> int:
        """Tokens of a step: fewer where they are slow, so that nobody waits for long."""
        if not self._pace:
            return self.step_tokens
        seconds = _STALL if self.scheduler.decoding else 4 * _STALL
        return min(self.step_tokens, max(_LEAST, int(seconds / self._pace)) + len(self.scheduler.decoding))

    def _measure(self, batch: list[Sequence], seconds: float) -> None:
        """Learn from a step what tokens cost."""
        rows = sum(sequence.piece for sequence in batch)
        prompts = sum(sequence.piece for sequence in batch if not sequence.decoding)
        if not prompts:
            self.speculation.cost.add(rows, seconds)
        elif prompts >= max(16, rows // 2):
            self._pace += (0.3 if self._pace else 1.0) * (seconds / rows - self._pace)
        if self.observation.watched:
            scheduler = self.scheduler
            self.observation.tell(
                StepEvent(seconds, prompts, rows - prompts, scheduler.running, len(scheduler.waiting))
            )

    def _forward(self, batch: list[Sequence]) -> tuple[list[Sequence], list[Array | Exception | None]]:
        """Run a step, with fewer sequences if memory does not suffice; each gives what it wants, or why it failed."""
        while self.scheduler.lacks_room(batch) and (_without_drafts(batch) or self.scheduler.relieve()):
            batch = [sequence for sequence in batch if sequence.cache is not None]
        while True:
            try:
                return batch, self._divide(batch)
            except MemoryError as error:
                if not _without_drafts(batch) and not self.scheduler.relieve():
                    return batch, [error] * len(batch)
            batch = [sequence for sequence in batch if sequence.cache is not None]

    def _divide(self, batch: list[Sequence], *, part: bool = False) -> list[Array | Exception | None]:
        """Run all at once; if that raises, halves of them, until it is clear who is to blame."""
        try:
            return list(self.runner.forward([self._ask(sequence) for sequence in batch]))
        except MemoryError:
            if part:  # others have been run already: these wait for the next step
                return [_Later()] * len(batch)
            raise
        except Exception as error:  # noqa: BLE001  # whatever a runner raises, the others go on
            if len(batch) == 1:
                log.warning("request %d: its step has failed: %s", batch[0].job.number, error)
                return [error]
        half = len(batch) // 2
        return self._divide(batch[:half], part=True) + self._divide(batch[half:], part=True)

    def _ask(self, sequence: Sequence) -> Step:
        request, piece = sequence.job.request, sequence.piece
        tokens, cache = sequence.take(piece), sequence.cache
        assert cache is not None  # noqa: S101  # a sequence in a batch has a place
        if sequence.drafts is not None:
            return Step(tokens, cache, "all", sequence.sampler.reach(len(sequence.drafts)), request.adapter)
        if sequence.scored and cache.length < sequence.prompt_size:
            return Step(tokens, cache, "all", None, request.adapter)
        if piece < sequence.missing:
            return Step(tokens, cache, "none", None, request.adapter)
        if request.want == "state":
            return Step(tokens, cache, "state", None, request.adapter)
        return Step(tokens, cache, "last", sequence.sampler.reach(), request.adapter)

    def _settle(self, sequence: Sequence, result: Array | None, now: float) -> None:
        """Use what a step gave to one sequence."""
        job, piece = sequence.job, sequence.piece
        self.observation.charge(job, piece)
        job.last = now
        first = sequence.held - piece
        if result is not None and sequence.scored and first < sequence.prompt_size:
            self._score(sequence, first, result)
            result = result[-1]
        if sequence.missing > 0:
            return
        if job.request.want != "tokens":
            job.state = result if job.request.want == "state" else None
            self._end(sequence, "stop", keep=True)
        elif result is not None:
            self._emit(sequence, result if result.ndim == 2 else result[None], now)

    def _score(self, sequence: Sequence, first: int, logits: Array) -> None:
        job = sequence.job
        done = len(job.prompt_logprobs)  # some of it was scored before its pages were taken away
        top = job.request.sampling.prompt_logprobs or 0
        following = sequence.prompt[first + 1 : first + 1 + len(logits)].tolist()
        for position, (row, token) in enumerate(zip(logits, following, strict=False), first):
            if position >= done:
                _, logprob, best = score(row, token, top)
                job.prompt_logprobs.append(PromptLogprob(token, logprob or 0.0, best))

    def _emit(self, sequence: Sequence, logits: Array, now: float) -> None:
        """Choose a token after what was there, and one more after each draft that it had chosen itself."""
        job, accepted = sequence.job, 0
        drafts = () if sequence.drafts is None else sequence.drafts.tolist()
        if job.first is None:
            job.first = now
        if not sequence.decoding:
            self.scheduler.advance(sequence)
        for row in logits:
            token, logprob, top = sequence.sampler.choose(row)
            reason = sequence.append(token)
            job.emissions.append(Emission(sequence.index, token, logprob, top, reason))
            if reason is not None or accepted == len(drafts) or token != drafts[accepted]:
                break
            accepted += 1
        if drafts and sequence.cache is not None:
            sequence.cache.truncate(sequence.count - 1)
            self.speculation.learn(sequence, accepted)
            sequence.drafts = None
        if reason is not None:
            self._end(sequence, reason, keep=True)

    def _end(self, sequence: Sequence, reason: Reason, *, keep: bool) -> None:
        job = sequence.job
        job.reasons[sequence.index] = reason
        self.scheduler.retire(sequence, keep=keep)
        self.speculation.forget(sequence)
        if job.request.session is not None:
            job.request.session.end(None if reason == "error" else sequence.ids)
        job.open -= 1
        if not job.open:
            self._finish(job)

    def _fail(self, job: Job, error: BaseException) -> None:
        """One sequence cannot go on: the request has failed."""
        if job.number in self.jobs:
            job.error = error
            for sequence in _open(job, self.jobs[job.number][1]):
                self._end(sequence, "error", keep=False)

    def _finish(self, job: Job) -> None:
        self.jobs.pop(job.number, None)
        job.ended = self.clock()
        self.observation.finish(job)
        job.finish(self.bell)


def _open(job: Job, sequences: Iterable[Sequence]) -> list[Sequence]:
    return [sequence for sequence in sequences if job.reasons[sequence.index] is None]


def _without_drafts(batch: list[Sequence]) -> bool:
    """Take the drafts out of a step, so that it needs fewer pages; False if there are none."""
    found = [sequence for sequence in batch if sequence.drafts is not None]
    for sequence in found:
        sequence.piece, sequence.drafts = 1, None
    return bool(found)
