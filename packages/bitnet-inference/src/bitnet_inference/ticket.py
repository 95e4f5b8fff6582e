"""The two ends of a request: a ticket for the caller, and the job that the engine fills."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Self, TypeVar

from bitnet_core.model import Array, Tokens

from .request import Emission, Output, PromptLogprob, Reason, Request, Result, Timings, Usage

T = TypeVar("T")
_Listeners = deque[tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]]


class Bell:
    """Wakes tasks that wait for tokens; those of one event loop by one call, for a call wakes its thread."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}

    def add(self, listeners: _Listeners) -> None:
        """These are woken when it rings, and wait no more."""
        while listeners:
            loop, future = listeners.popleft()
            self._waiting.setdefault(loop, []).append(future)

    def ring(self) -> None:
        """Wake them."""
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for loop, futures in waiting.items():
                with suppress(RuntimeError):  # the loop was closed: nobody listens any more
                    loop.call_soon_threadsafe(_wake, futures)


class Job:
    """A request on its way: the engine's thread writes, readers look.

    What was emitted stays here until the ticket goes, so a slow reader keeps nobody waiting; it is bounded by n
    times max_tokens.
    """

    def __init__(self, request: Request, prompt: Tokens, number: int, submitted: float) -> None:
        self.request = request
        self.prompt = prompt  # checked, and with what the session held before it
        self.number = number
        self.submitted = submitted
        self.started: float | None = None
        self.first: float | None = None
        self.ended: float | None = None
        self.last = submitted  # when something last happened
        self.emissions: list[Emission] = []
        self.reasons: list[Reason | None] = [None] * request.sampling.n
        self.prompt_logprobs: list[PromptLogprob] = []
        self.state: Array | None = None
        self.error: BaseException | None = None
        self.cached = self.drafted = self.accepted = 0
        self.joules: float | None = None
        self.open = request.sampling.n  # sequences that have not ended
        self.done = False
        self._condition = threading.Condition()
        self._readers = 0  # threads that wait for the next token
        self._listeners: _Listeners = deque()  # tasks that do
        self._heirs: _Listeners = deque()  # tasks that wait for the end

    def notify(self, bell: Bell) -> None:
        """Wake whoever waits for the next token: threads now, tasks when the bell rings."""
        # A reader says that it waits, then looks; here something was written, then we look: one sees the other.
        if self._readers:
            with self._condition:
                self._condition.notify_all()
        bell.add(self._listeners)

    def finish(self, bell: Bell) -> None:
        """Nothing comes after this."""
        self.done = True
        with self._condition:
            self._condition.notify_all()
        bell.add(self._listeners)
        bell.add(self._heirs)

    def wait(self, seen: int) -> None:
        """Block until there are more than `seen` emissions, or the end."""
        with self._condition:
            self._readers += 1
            try:
                self._condition.wait_for(lambda: self.done or len(self.emissions) > seen)
            finally:
                self._readers -= 1

    def join(self, timeout: float | None) -> bool:
        """Block until the end; False if that takes longer."""
        with self._condition:
            return self._condition.wait_for(lambda: self.done, timeout)

    async def listen(self, seen: int | None) -> None:
        """Until there are more than `seen` emissions, or the end; None: until the end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        (self._heirs if seen is None else self._listeners).append((loop, future))
        if not self.done and (seen is None or len(self.emissions) <= seen):
            await future

    def result(self) -> Result:
        """All that there is by now."""
        found: list[list[Emission]] = [[] for _ in self.reasons]
        for emission in list(self.emissions):
            found[emission.index].append(emission)
        outputs = tuple(_output(part, reason) for part, reason in zip(found, self.reasons, strict=True))
        return Result(outputs, self.usage(), self.timings(), tuple(self.prompt_logprobs), self.state)

    def usage(self) -> Usage:
        """Tokens by now."""
        return Usage(
            len(self.prompt), len(self.emissions), self.cached, self.drafted, self.accepted, joules=self.joules
        )

    def timings(self) -> Timings:
        """Seconds by now."""
        end = self.last if self.ended is None else self.ended
        started = end if self.started is None else self.started
        first = end if self.first is None else self.first
        return Timings(
            queue_s=started - self.submitted,
            prompt_s=first - started,
            decode_s=end - first,
            first_token_s=None if self.first is None else self.first - self.submitted,
            total_s=end - self.submitted,
        )


def _output(part: list[Emission], reason: Reason | None) -> Output:
    logprobs = tuple(emission.logprob for emission in part if emission.logprob is not None)
    tops = tuple(emission.top for emission in part) if logprobs else ()
    return Output(tuple(emission.token for emission in part), reason or "cancelled", logprobs, tops)


def _wake(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class Ticket:
    """What a caller holds of a request: iterate it, in a thread or in asyncio, or wait for the result.

    Every iteration begins with the first token. A ticket that is closed, or that nobody holds any more, cancels
    its request. Several threads may use one.
    """

    def __init__(self, job: Job, cancel: Callable[[], None]) -> None:
        self._job = job
        self._cancel = weakref.finalize(self, cancel)
        self._cancel.atexit = False

    def __iter__(self) -> Iterator[Emission]:
        job, seen = self._job, 0
        while True:
            while seen < len(job.emissions):
                yield job.emissions[seen]
                seen += 1
            if job.done and seen >= len(job.emissions):
                self._raise()
                return
            self._wait(partial(job.wait, seen))

    async def __aiter__(self) -> AsyncIterator[Emission]:
        job, seen = self._job, 0
        while True:
            while seen < len(job.emissions):
                yield job.emissions[seen]
                seen += 1
            if job.done and seen >= len(job.emissions):
                self._raise()
                return
            await job.listen(seen)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end; raises what the request failed with, or TimeoutError, after which it still goes on."""
        if not self._wait(lambda: self._job.join(timeout)):
            raise TimeoutError(f"the request has not finished within {timeout} s")
        self._raise()
        return self._job.result()

    def join(self) -> None:
        """Wait for the end, whatever it is."""
        self._wait(lambda: self._job.join(None))

    async def aresult(self) -> Result:
        """The same in asyncio."""
        while not self._job.done:
            await self._job.listen(None)
        self._raise()
        return self._job.result()

    def _wait(self, wait: Callable[[], T]) -> T:
        """What is waited for; who interrupts that wants no more of it, though a traceback may hold it for long."""
        try:
            return wait()
        except KeyboardInterrupt:
            self.cancel()
            raise

    def _raise(self) -> None:
        if self._job.error is not None:
            raise self._job.error

    def cancel(self) -> None:
        """End it now, with the tokens that there are; nothing happens if it has ended."""
        self._cancel()

    close = cancel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._job.done

    @property
    def reasons(self) -> tuple[Reason | None, ...]:
        """Why each text ended; None for those that have not."""
        return tuple(self._job.reasons)

    @property
    def usage(self) -> Usage:
        """Tokens by now."""
        return self._job.usage()

    @property
    def timings(self) -> Timings:
        """Seconds by now."""
        return self._job.timings()
