"""Requests at work: a model held, tokens set aside, texts being written; all of it given back when they end."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from starlette.requests import HTTPConnection, Request
from starlette.types import Receive

from bitnet_core.errors import BitNetError
from bitnet_core.model import Adapter

from ..llm import LLM
from ..reply import Piece, Reply
from ..request import Request as Asked
from ..request import Usage
from ..ticket import Ticket
from ..writing import Writing
from .errors import Refusal
from .gate import Lease, Tenant
from .models import Held, missing

T = TypeVar("T")
Start = Callable[[LLM, dict[str, Any]], "Writing | Sequence[Writing]"]

_THREADS = 8  # for what must not hold the loop up: tokenizing, templates, grammars
_SETTLE_S = 5.0  # what was cancelled may be in a step until then
_USUAL_TOKENS = 256  # what an answer is taken to have, where its request does not say


class Work:
    """One request at work."""

    def __init__(self, works: Works, tenant: Tenant, held: Held, lease: Lease | None) -> None:
        self.id = uuid.uuid4().hex
        self.created = int(time.time())
        self.model = held.name
        self.tenant = tenant
        self.llm = held.llm
        self.writings: tuple[Writing, ...] = ()
        self.tickets: tuple[Ticket, ...] = ()
        self.refusal: Refusal | None = None  # why it was cut
        self.streamed = False
        self._works = works
        self._held = held
        self._lease = lease

    @property
    def writing(self) -> Writing:
        """The text, where there is one."""
        return self.writings[0]

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that its model is used with."""
        if self._held.adapter is None:
            return None
        try:
            return self.llm.adapter(self._held.adapter)
        except ValueError:  # it was unloaded since it was found
            raise missing(self.model) from None

    async def replies(self, receive: Receive) -> list[Reply]:
        """The texts, when they are finished; whoever does not wait for them need not be kept working for."""
        async with Watch(receive, self.cancel):
            for ticket in self.tickets:
                await ticket.aresult()
        self.check()
        return await self.written()

    async def written(self) -> list[Reply]:
        """The texts of those that are finished, made beside the loop: with log-probabilities they take time."""
        return await self._works.run(lambda: [writing.reply for writing in self.writings])

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """What is written, piece by piece, with the place of the prompt."""
        for place, writing in enumerate(self.writings):
            async for piece in writing:
                yield place, piece
        self.check()

    def facts(self) -> dict[str, Any]:
        """What is written down of it: the tokens that it took, and how long it waited for the first."""
        usage, timings = usage_of(ticket.usage for ticket in self.tickets), [one.timings for one in self.tickets]
        firsts = [one.first_token_s for one in timings if one.first_token_s is not None]
        return {
            "model": self.model,
            "streamed": self.streamed,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "queue_s": round(max((one.queue_s for one in timings), default=0.0), 4),
            "first_token_s": round(min(firsts), 4) if firsts else None,
            "finish": [reason or "cancelled" for ticket in self.tickets for reason in ticket.reasons],
        }

    def tell(self, error: BitNetError) -> Refusal:
        """What its client is told of an error."""
        return self._held.tell(error)

    def check(self) -> None:
        """Raise what it was cut for, if it was."""
        if self.refusal is not None:
            raise self.refusal

    def cut(self, refusal: Refusal) -> None:
        """End it, and say why."""
        self.refusal = refusal
        self.cancel()

    def cancel(self) -> None:
        """End what is being written."""
        for ticket in self.tickets:
            ticket.cancel()

    def end(self) -> None:
        """Give back what it held; the tokens that it took are told."""
        self.cancel()
        self._works.leave(self)
        self._held.release()
        lease, self._lease = self._lease, None
        if lease is not None and not self.tickets:
            lease.release()
        elif lease is not None:
            self._works.aside(partial(_settle, lease, self.tickets))

    def admit(self, asked: Asked) -> None:
        """Set aside what a request of the engine may take, now that its prompt is counted; in a thread."""
        size, sampling, context = len(asked.prompt), asked.sampling, self.llm.engine.context
        if size > context:
            return  # the engine refuses it, and says why
        most = 0
        if asked.want == "tokens":
            most = min(_USUAL_TOKENS, context - size) if sampling.max_tokens is None else sampling.max_tokens
        self.set_aside(size + sampling.n * most)

    def set_aside(self, tokens: int) -> None:
        """Set so many tokens aside."""
        lease = self._lease
        if lease is not None:
            lease.extend(tokens)


class Works:
    """All requests at work."""

    def __init__(self) -> None:
        self.draining = False  # no more are taken
        self._works: set[Work] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="bitnet-server")

    def __len__(self) -> int:
        return len(self._works)

    async def begin(
        self,
        connection: HTTPConnection,
        model: str,
        start: Start,
        wishes: dict[str, Any] | None = None,
        *,
        names: Mapping[str, str] | None = None,
    ) -> Work:
        """Start to write. `names`: what options are called by the client."""
        work = await self.open(connection, model)
        try:
            await self.run(partial(self._start, work, start, dict(wishes or {})))
        except BaseException as error:
            work.end()
            if type(error) is ValueError and names:
                raise _renamed(error, names) from error
            if isinstance(error, BitNetError):
                raise work.tell(error) from error
            raise
        return work

    async def open(self, connection: HTTPConnection, model: str) -> Work:
        """Hold a model for a tenant who may ask; `end` gives it back."""
        if self.draining:
            raise Refusal(503, "the server is stopping; ask another", code="stopping")
        state, tenant = connection.app.state, connection.state.tenant
        held = await state.models.hold(model, tenant.models)
        try:
            lease = None
            if state.tenants is not None:
                lease = state.tenants.admit(tenant, model, 0)
        except BaseException:
            held.release()
            raise
        work = Work(self, tenant, held, lease)
        self._works.add(work)
        connection.state.work = work
        return work

    async def run(self, call: Callable[[], T]) -> T:
        """Do what takes time beside the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def aside(self, call: Callable[[], object]) -> None:
        """The same, which nobody waits for."""
        self._threads.submit(call)

    def leave(self, work: Work) -> None:
        """A request has ended."""
        self._works.discard(work)

    def cut(self, refusal: Refusal, which: Callable[[Work], bool] = lambda _: True) -> int:
        """End requests with an error that says why."""
        found = [work for work in self._works if which(work)]
        for work in found:
            work.cut(refusal)
        return len(found)

    async def drain(self, seconds: float) -> None:
        """Take no more, wait for those at work, and cut those that take too long."""
        self.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self._works and loop.time() < end:
            await asyncio.sleep(0.05)
        self.cut(Refusal(503, "the server is stopping, and this took too long", code="stopping"))

    def close(self) -> None:
        """End the threads, when their work is done."""
        self._threads.shutdown()

    def _start(self, work: Work, start: Start, wishes: dict[str, Any]) -> None:
        if (adapter := work.adapter) is not None:
            wishes["adapter"] = adapter
        wishes["tenant"], wishes["admit"] = work.tenant.secret, work.admit
        limit = wishes.get("max_tokens")
        if limit is not None and limit > work.llm.engine.context:
            raise ValueError(f"max_tokens: expected 1..{work.llm.engine.context}, got {limit}")
        found = start(work.llm, wishes)
        work.writings = (found,) if isinstance(found, Writing) else tuple(found)
        work.tickets = tuple(writing.ticket for writing in work.writings)


class Watch:
    """Notices when a client leaves; `beat` is called now and then while it stays."""

    def __init__(
        self,
        receive: Receive,
        gone: Callable[[], None],
        beat: Callable[[], Any] | None = None,
        every_s: float | None = None,
    ) -> None:
        self._receive = receive
        self._gone = gone
        self._beat = beat
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._every_s):
                    message = await self._receive()
            except TimeoutError:
                if self._beat is not None:
                    await self._beat()
                continue
            if message["type"] in ("http.disconnect", "websocket.disconnect"):
                self._gone()
                return


def works_of(request: Request) -> Works:
    """The requests at work of a server."""
    works: Works = request.app.state.works
    return works


def usage_of(usages: Iterable[Usage]) -> Usage:
    """What several requests took together."""
    each = list(usages)
    joules = [one.joules for one in each if one.joules is not None]
    return Usage(
        prompt_tokens=sum(one.prompt_tokens for one in each),
        completion_tokens=sum(one.completion_tokens for one in each),
        cached_tokens=sum(one.cached_tokens for one in each),
        drafted_tokens=sum(one.drafted_tokens for one in each),
        accepted_tokens=sum(one.accepted_tokens for one in each),
        joules=sum(joules) if joules else None,
    )


def _settle(lease: Lease, tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        with suppress(Exception):  # what it failed with, others were told
            ticket.result(timeout=_SETTLE_S)
    lease.settle(usage_of([ticket.usage for ticket in tickets]))


def _renamed(error: ValueError, names: Mapping[str, str]) -> ValueError:
    """The same refusal with the name that the client knows."""
    name = next((one for one in names if re.match(rf"{one}\b", str(error))), None)
    return error if name is None else ValueError(names[name] + str(error)[len(name) :])
