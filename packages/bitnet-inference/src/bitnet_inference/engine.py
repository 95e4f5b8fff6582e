"""The engine: many requests over one runner, in one thread, called from any."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from bitnet_core import memory as system
from bitnet_core.errors import OutOfMemory, printable
from bitnet_core.memory import Pool, Pressure
from bitnet_core.model import Adapter, Cache, Model, Runner, Tokens

from . import energy
from .loop import Clock, Loop
from .observer import Observation, Observer
from .prefix import Prefixes, Scope
from .request import EngineClosed, Overloaded, Request
from .room import Room
from .sampling import Sampler
from .scheduler import Scheduler
from .sequence import Sequence
from .speculation import Speculation
from .ticket import Job, Ticket

T = TypeVar("T")
_EXIT_S = 10.0  # that a program waits at its end for a step that does not come to one


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine at one moment."""

    running: int  # sequences
    waiting: int
    prefixes: int  # texts that are kept for those who begin alike
    used_pages: int
    free_pages: int
    page_bytes: int
    preempted: int  # sequences, ever
    drafted: int  # tokens, ever
    accepted: int


class Engine:
    """Runs requests on a runner that it does not own; nobody else may use the runner meanwhile.

    `memory`: the pool that the runner takes its pages from. `cache_bytes`: what all keys and values may take, by
    default what the pool's limit leaves, or half of the memory that is available. `model`: what the runner runs;
    only sessions on disk need it. `draft`: a runner of a smaller model with the same vocabulary.
    """

    def __init__(  # noqa: PLR0913  # each is a setting of its own, given by name
        self,
        runner: Runner,
        *,
        memory: Pool | None = None,
        cache_bytes: int | None = None,
        context: int | None = None,
        max_sequences: int = 32,
        step_tokens: int = 512,
        queue: int = 1024,
        prefix_cache: bool = True,
        model: Model | None = None,
        draft: Runner | None = None,
        observer: Observer | None = None,
        clock: Clock = time.monotonic,
        pressure: Callable[[], Pressure] = system.pressure,
    ) -> None:
        spec = runner.spec
        if draft is not None and draft.spec.vocab_size != spec.vocab_size:
            expected = f"a model of {spec.vocab_size} tokens as the other"
            raise ValueError(f"draft: expected {expected}, got {draft.spec.vocab_size}")
        self.context = _whole("context", spec.context if context is None else context, 2)
        self.queue = _whole("queue", queue, 1)
        self.prefix_cache = prefix_cache
        limit = cache_bytes
        if limit is None:
            limit = memory.limit if memory is not None and memory.limit is not None else system.available() // 2
        self._runner, self._model = runner, model
        self._fingerprint: str | None = None
        self._clock = clock
        self._room = Room(runner, memory, _whole("cache_bytes", limit, 1))
        self._numbers = count()
        self._lock = threading.Lock()
        self._closed = False
        self._loop = Loop(
            runner,
            Scheduler(runner, self._room, Prefixes(), _whole("max_sequences", max_sequences, 1)),
            Speculation(draft, clock),
            Observation(observer, energy.meter(), clock),
            step_tokens=_whole("step_tokens", step_tokens, 1),
            clock=clock,
            pressure=pressure,
        )
        self._thread = threading.Thread(target=self._loop.run, name="bitnet-engine", daemon=True)
        self._start()
        # The thread holds the loop and not the engine: of one that nobody holds, the work is finished, and it goes.
        self._leave = weakref.finalize(self, self._loop.inbox.put, partial(self._loop.leave, math.inf))
        self._leave.atexit = False

    def submit(self, request: Request) -> Ticket:
        """Queue a request, from any thread; what is wrong with it is raised here and harms nobody else."""
        self._check(request)
        session = request.session
        prompt = np.asarray(request.prompt, np.int32) if session is None else session.begin(request.prompt)
        try:
            job, sequences = self._prepare(request, prompt)
            self._enter(job, sequences)
        except BaseException:
            if session is not None:
                session.end(None)
            raise
        self._loop.inbox.put(partial(self._loop.add, job, sequences))
        return Ticket(job, partial(_cancel, self._loop, job))

    @contextmanager
    def together(self) -> Iterator[Callable[[Request], Ticket]]:
        """`submit` for the many requests of one call: where the queue is full, it waits for the first of them.

        Those that have not ended when the call is left are cancelled.
        """
        begun: deque[Ticket] = deque()

        def submit(request: Request) -> Ticket:
            while True:
                try:
                    begun.append(self.submit(request))
                except Overloaded:
                    if not begun:
                        raise
                    begun.popleft().join()
                else:
                    return begun[-1]

        try:
            yield submit
        finally:
            for ticket in begun:
                ticket.cancel()

    def stats(self) -> EngineStats:
        """The engine at this moment."""
        scheduler, speculation, pages = self._loop.scheduler, self._loop.speculation, self._room.stats()
        return EngineStats(
            running=scheduler.running,
            waiting=len(scheduler.waiting),
            prefixes=len(scheduler.prefixes),
            used_pages=pages.used,
            free_pages=pages.free,
            page_bytes=pages.page_bytes,
            preempted=scheduler.preempted,
            drafted=speculation.drafted,
            accepted=speculation.accepted,
        )

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell one more of each step and each end; call what is returned to tell it no more."""
        return self._loop.observation.add(observer)

    def forget(self, adapter: Adapter) -> None:
        """Let go of what was computed with an adapter that is not used any more."""
        self._call(lambda: self._loop.scheduler.prefixes.forget(adapter))

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, give those at work `drain_s` seconds, cancel the rest, and end the thread."""
        with self._lock:
            self._closed = True
        self._loop.inbox.put(partial(self._loop.leave, self._clock() + drain_s))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._thread.start()
        # A program must not end in the midst of a step: the thread would wake up in a Python that is gone.
        weakref.finalize(self._thread, _end_at_exit, self._loop, weakref.ref(self._thread))

    # What sessions need.

    @property
    def layout(self) -> str:
        """How the runner's pages hold keys and values."""
        return self._runner.layout

    @property
    def positions(self) -> int:
        """Tokens that a page holds."""
        return self._room.stats().positions

    def fingerprint(self) -> str:
        """The model's hash, which a file of a session carries."""
        if self._model is None:
            raise ValueError("model: the engine was made without one, which sessions on disk are checked against")
        if self._fingerprint is None:
            self._fingerprint = self._model.fingerprint()
        return self._fingerprint

    def content(self, key: bytes, adapter: Adapter | None, tokens: Tokens) -> npt.NDArray[Any]:
        """Copies of the full pages that are kept for a text."""

        def fork() -> Cache | None:
            match = self._loop.scheduler.prefixes.find(Scope(key, adapter), tokens)
            return None if match.entry is None else match.entry.cache.fork(match.ready)

        cache = self._call(fork)
        if cache is None:
            return np.empty(0, np.uint8)
        try:
            return cache.content()
        finally:
            cache.close()

    def restore(self, key: bytes, adapter: Adapter | None, tokens: Tokens, content: npt.NDArray[Any]) -> None:
        """Keep pages from a file for a text, if there is room; ValueError where they do not fit the runner."""

        def keep() -> None:
            if self._room.left() >= len(content):
                cache = self._runner.restore(content)
                self._loop.scheduler.prefixes.keep(Scope(key, adapter), tokens, cache)

        if len(content):
            self._call(keep)

    def check_tokens(self, name: str, tokens: Tokens) -> Tokens:
        """Token ids of the model's vocabulary, as int32; ValueError for anything else."""
        ids, vocab = np.asarray(tokens), self._runner.spec.vocab_size
        if ids.ndim != 1 or not (np.issubdtype(ids.dtype, np.integer) or not ids.size):
            raise ValueError(f"{name}: expected token ids, got {ids.dtype} of shape {ids.shape}")
        if ids.size and (ids.min() < 0 or ids.max() >= vocab):
            bad = int(ids[(ids < 0) | (ids >= vocab)][0])
            raise ValueError(f"{name}: expected token ids of 0..{vocab - 1}, got {bad}")
        return ids.astype(np.int32)

    def _check(self, request: Request) -> None:
        """What is asked for can be done."""
        self.check_tokens("prompt", request.prompt)
        _choice("want", request.want, ("tokens", "state", "scores"))
        _choice("drafts", request.drafts, ("auto", "on", "off"))
        seconds = request.deadline_s
        if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds < math.inf):
            raise ValueError(f"deadline_s: expected a number of seconds from 0, got {printable(repr(seconds))}")
        if type(request.priority) is not int or abs(request.priority) > 1000:
            raise ValueError(
                f"priority: expected a whole number of -1000..1000, got {printable(repr(request.priority))}"
            )
        session = request.session
        if session is not None and (session.engine is not self or request.sampling.n != 1 or request.want != "tokens"):
            raise ValueError("session: expected one of this engine, for one sequence (n) of tokens (want)")
        if session is not None and (session.tenant, session.adapter) != (request.tenant, request.adapter):
            raise ValueError("session: its tenant and its adapter must be those of the request")

    def _check_open(self) -> None:
        if self._closed or self._loop.failure is not None:
            raise EngineClosed("the engine is closed") from self._loop.failure
        if not self._thread.is_alive():  # threads do not come along into a fork
            raise EngineClosed("the engine works in the process that made it; make one in this process")

    def _enter(self, job: Job, sequences: list[Sequence]) -> None:
        with self._lock:
            self._check_open()
            if len(self._loop.jobs) >= self.queue:
                raise Overloaded(
                    f"{self.queue} requests are waiting or running, as many as queue allows; "
                    "try again when some have ended"
                )
            self._loop.jobs[job.number] = (job, sequences)

    def _prepare(self, request: Request, prompt: Tokens) -> tuple[Job, list[Sequence]]:
        size = len(prompt)
        room = self.context - (request.want == "tokens")
        if not 1 <= size <= room:
            raise ValueError(f"prompt: expected 1..{room} tokens in a context of {self.context}, got {size}")
        limit = self._limit(request, size)
        job = Job(request, prompt, next(self._numbers), self._clock())
        return job, [self._sequence(job, index, limit) for index in range(request.sampling.n)]

    def _limit(self, request: Request, size: int) -> int:
        """Tokens that each sequence may come to; refuses what memory could never hold."""
        capacity = self._room.capacity()
        wanted = request.sampling.max_tokens if request.want == "tokens" else 0
        most = min(self.context, size + (self.context if wanted is None else wanted))
        # The last token that is chosen is not run.
        least = size if not wanted else most - 1
        if least > capacity:
            stats = self._room.stats()
            raise OutOfMemory(
                f"{least} tokens need {stats.pages(least) * stats.page_bytes} bytes of keys and values; there is room "
                f"for {capacity} tokens, {stats.pages(capacity) * stats.page_bytes} bytes; ask for fewer, or give more"
            )
        return min(most, capacity + 1)

    def _sequence(self, job: Job, index: int, limit: int) -> Sequence:
        request, session = job.request, job.request.session
        constraint = None if request.constraint is None else request.constraint()
        sampler = Sampler(
            request.sampling, job.prompt, self._runner.spec.vocab_size, request.eos, index=index, constraint=constraint
        )
        stopper = None if request.stopper is None else request.stopper()
        scope = None
        if session is not None:
            scope = Scope(session.key, request.adapter)
        elif self.prefix_cache:
            scope = Scope(request.tenant, request.adapter)
        return Sequence(job, index, sampler, stopper, limit=limit, scope=scope)

    def _call(self, work: Callable[[], T]) -> T:
        """Have the engine's thread do something between two steps, and wait for what it gives."""
        found: Future[T] = Future()

        def message() -> None:
            try:
                found.set_result(work())
            except Exception as error:  # noqa: BLE001  # it is the caller's
                found.set_exception(error)

        with self._lock:
            self._check_open()
            self._loop.inbox.put(message)
        while True:
            try:
                return found.result(timeout=0.1)
            except TimeoutError:
                if not found.done():
                    self._check_open()


def _cancel(loop: Loop, job: Job) -> None:
    if not job.done:
        loop.inbox.put(partial(loop.cancel, job.number))


def _end_at_exit(loop: Loop, thread: weakref.ref[threading.Thread]) -> None:
    """Cancel all that is at work, and wait for the thread; nothing, where it has ended before."""
    running = thread()
    if running is not None and running.is_alive():
        loop.inbox.put(partial(loop.leave, -math.inf))
        running.join(_EXIT_S)


def _whole(name: str, value: int, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number from {least}, got {printable(repr(value))}")
    return value


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {printable(repr(value))}")
