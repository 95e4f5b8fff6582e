"""What can be seen of an engine at work: a hook for metrics, and the energy that requests are charged with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Protocol

from .energy import Meter
from .request import Reason, Timings, Usage
from .ticket import Job

log = logging.getLogger("bitnet_inference")

_PERIOD = 0.1  # seconds between two readings of the meter


@dataclass(frozen=True, slots=True)
class StepEvent:
    """A step has been run."""

    seconds: float
    prompt_tokens: int  # run in it
    output_tokens: int  # run in it, drafts included
    running: int  # sequences
    waiting: int


@dataclass(frozen=True, slots=True)
class FinishEvent:
    """A request has ended."""

    reasons: tuple[Reason, ...]  # one a sequence
    usage: Usage
    timings: Timings
    error: BaseException | None


class Observer(Protocol):
    """Is told what happens, in the engine's thread: it must be quick."""

    def __call__(self, event: StepEvent | FinishEvent, /) -> None: ...


class Observation:
    """Tells the observer, and charges jobs with energy by their tokens."""

    def __init__(self, observer: Observer | None, meter: Meter, clock: Callable[[], float]) -> None:
        self._observers: tuple[Observer, ...] = () if observer is None else (observer,)
        self._lock = Lock()
        self._meter = meter
        self._clock = clock
        self._tokens: dict[Job, int] = {}  # run since the last reading
        self._read_at = clock()

    @property
    def watched(self) -> bool:
        """Whether anybody wants events."""
        return bool(self._observers)

    def add(self, observer: Observer) -> Callable[[], None]:
        """Tell one more, from any thread; call what is returned to tell it no more."""
        with self._lock:
            self._observers = (*self._observers, observer)
        return partial(self._remove, observer)

    def _remove(self, observer: Observer) -> None:
        with self._lock:
            self._observers = tuple(one for one in self._observers if one is not observer)

    def tell(self, event: StepEvent | FinishEvent) -> None:
        """An event, for observers that must not harm the engine."""
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                log.exception("an observer has failed, and is told nothing more")
                self._remove(observer)

    def charge(self, job: Job, tokens: int) -> None:
        """A job had so many tokens in a step."""
        if self._meter:
            self._tokens[job] = self._tokens.get(job, 0) + tokens

    def settle(self, *, now: bool = False) -> None:
        """Read the meter, if it is time, and share out what was used."""
        if not self._meter or not self._tokens or not (now or self._clock() - self._read_at >= _PERIOD):
            return
        self._read_at = self._clock()
        each = self._meter.read() / sum(self._tokens.values())
        for job, tokens in self._tokens.items():
            job.joules = (job.joules or 0.0) + each * tokens
        self._tokens.clear()

    def finish(self, job: Job) -> None:
        """A job has ended."""
        if job in self._tokens:
            self.settle(now=True)
        if job.error is not None:
            log.info("request %d has failed: %s", job.number, job.error)
        if self._observers:
            reasons = tuple(reason or "error" for reason in job.reasons)
            self.tell(FinishEvent(reasons, job.usage(), job.timings(), job.error))
