"""Whatever callers do, in whatever order: every page has exactly the owners that it counts, and every text is right."""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from bitnet_core import reference
from bitnet_core.errors import FormatError, OutOfMemory
from bitnet_core.memory import Pool, Pressure
from bitnet_core.model import Adapter, Array, Runner, Step
from bitnet_core.testing import random_model, some_tokens, tiny_spec
from bitnet_inference.engine import Engine
from bitnet_inference.request import Overloaded, Request
from bitnet_inference.sampling import Sampler
from bitnet_inference.session import Session
from bitnet_inference.settings import Sampling
from bitnet_inference.ticket import Ticket

SPEC = tiny_spec(hidden_size=32, ffn_size=32, heads=2, kv_heads=1, head_size=16, layers=1, vocab_size=24, context=96)
MODEL = random_model(SPEC)
DRAFT = random_model(SPEC, seed=1)
EOS = frozenset({7})
PAGES = 24  # that the engine may have

_random = np.random.default_rng(0)
ADAPTERS = (
    None,
    Adapter(
        "low",
        {"layers.0.attn.q": (_random.normal(0, 2, (2, 32)).astype("f"), _random.normal(0, 2, (32, 2)).astype("f"))},
    ),
)
TEXTS = [some_tokens(SPEC, 60, seed=seed) for seed in range(3)]
FRIENDLY = reference.load(MODEL)  # computes what is expected, each text alone


@cache
def expected(
    prompt: tuple[int, ...], count: int, seed: int | None, index: int, adapter: Adapter | None, eos: bool
) -> tuple[int, ...]:
    """What a sequence says that has the runner for itself."""
    sampler = Sampler(
        sampling(count, seed), np.array(prompt, np.int32), SPEC.vocab_size, EOS if eos else frozenset(), index=index
    )
    cache_, tokens, found = FRIENDLY.new_cache(), np.array(prompt, np.int32), []
    for _ in range(min(count, SPEC.context - len(prompt))):
        (logits,) = FRIENDLY.forward([Step(tokens, cache_, "last", None, adapter)])
        assert logits is not None
        token = sampler.choose(logits).token
        sampler.accept(token)
        found.append(token)
        if token in sampler.stops:
            break
        tokens = np.array([token], np.int32)
    cache_.close()
    return tuple(found)


def sampling(count: int, seed: int | None, n: int = 1, **options: Any) -> Sampling:
    heat = 0.0 if seed is None else 20.0
    return Sampling(temperature=heat, seed=seed, max_tokens=count, n=n, **options)


class Troubled:
    """A runner that raises when it is told to."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.trouble: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, steps: list[Step]) -> list[Array | None]:
        if self.trouble:
            raise self.trouble.pop()
        return self._runner.forward(steps)


class Inline(Engine):
    """An engine whose steps are taken by the test, one at a time."""

    def _start(self) -> None:
        self.turns = 0

    def _check_open(self) -> None:
        pass

    def _call(self, work: Any) -> Any:
        return work()

    def turn(self) -> None:
        self._loop.inbox.put(lambda: None)  # never wait
        assert self._loop.turn()
        self.turns += 1

    def close(self, _: float = 0.0) -> None:
        self._loop.leave(0.0)
        assert not self._loop.turn()
        self._loop._leave()


class MineError(Exception):
    """What a callback raises."""


@dataclass
class Asked:
    """A request, and what it should come to."""

    ticket: Ticket | None
    job: Any
    expected: list[tuple[int, ...]]
    may_fail: bool = False
    session: Session | None = None


class Machine(RuleBasedStateMachine):
    """Callers of one engine."""

    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.level = "none"
        self.pool = Pool(name="test")
        self.runner = Troubled(reference.load(MODEL, memory=self.pool))
        self.draft = Troubled(reference.load(DRAFT))
        self.asked: list[Asked] = []
        self.sessions: list[Session] = []
        self.folder = tempfile.TemporaryDirectory()
        self.engine = self._open()

    def _open(self) -> Inline:
        return Inline(
            self.runner,
            cache_bytes=PAGES * self.runner.cache_stats().page_bytes,
            max_sequences=4,
            step_tokens=24,
            queue=12,
            prefix_cache=True,
            model=MODEL,
            draft=self.draft,
            clock=lambda: self.now,
            pressure=lambda: Pressure(100, 0, 100, 0, self.level),
        )

    # Rules.

    @rule(
        text=st.sampled_from(TEXTS),
        cut=st.integers(1, 60),
        tail=st.lists(st.integers(0, SPEC.vocab_size - 1), max_size=3),
        count=st.integers(1, 40),
        seed=st.sampled_from([None, None, 1, 2]),
        n=st.sampled_from([1, 1, 1, 3]),
        drafts=st.sampled_from(["auto", "on", "off"]),
        adapter=st.sampled_from(ADAPTERS),
        priority=st.integers(-1, 1),
        deadline=st.sampled_from([None, None, None, 5.0]),
        eos=st.booleans(),
        tenant=st.sampled_from([b"", b"other"]),
    )
    def submit(
        self, text: Any, cut: int, tail: list[int], eos: bool, count: int, seed: Any, n: int, **options: Any
    ) -> None:
        prompt = np.concatenate([text[:cut], np.array(tail, np.int32)])
        options["deadline_s"] = options.pop("deadline")
        wanted = [expected(tuple(prompt.tolist()), count, seed, index, options["adapter"], eos) for index in range(n)]
        request = Request(prompt=prompt, sampling=sampling(count, seed, n), eos=EOS if eos else frozenset(), **options)
        self._ask("submitted", request, wanted)

    @rule(text=st.sampled_from(TEXTS), cut=st.integers(2, 60), want=st.sampled_from(["scores", "state"]))
    def submit_for_scores(self, text: Any, cut: int, want: Any) -> None:
        options: Any = {"prompt_logprobs": 1} if want == "scores" else {}
        self._ask("scored", Request(prompt=text[:cut], want=want, sampling=Sampling(**options)), [()])

    @rule(text=st.sampled_from(TEXTS), cut=st.integers(1, 60), at=st.integers(0, 4), where=st.booleans())
    def submit_what_raises(self, text: Any, cut: int, at: int, where: bool) -> None:
        calls: list[int] = []

        def fail(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) > at:
                raise MineError
            return arguments[-1] if where else None

        options: Any = {"processors": (fail,)} if where else {}
        request = Request(
            prompt=text[:cut], sampling=sampling(9, None, **options), stopper=None if where else lambda: fail
        )
        wanted = expected(tuple(text[:cut].tolist()), 9, None, 0, None, False)
        self._ask("raised in a callback", request, [wanted], may_fail=True)

    def _ask(self, what: str, request: Request, wanted: list[tuple[int, ...]], **options: Any) -> None:
        try:
            ticket = self.engine.submit(request)
        except Overloaded:
            self.seen["refused: queue full"] += 1
        except OutOfMemory:
            self.seen["refused: too big"] += 1
        else:
            self.seen[what] += 1
            self.asked.append(Asked(ticket, ticket._job, wanted, **options))
            self.asked[-1].may_fail |= bool(self.runner.trouble)

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.engine.turn()
        self.seen["steps"] += times

    @rule()
    def go_on(self) -> None:
        self.step(30)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def read(self, data: Any) -> None:
        self._check(data.draw(st.sampled_from(self.asked)))
        self.seen["read"] += 1

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), how=st.sampled_from(["cancel", "drop"]))
    def give_up(self, data: Any, how: str) -> None:
        asked = data.draw(st.sampled_from(self.asked))
        if asked.ticket is None:
            return
        if how == "drop":
            asked.ticket = None
        else:
            asked.ticket.cancel()
        self.seen[how] += 1
        before = asked.job.done
        self.engine.turn()
        assert asked.job.done or asked.job.number not in self.engine._loop.jobs, "a step later it still has pages"
        if not before:
            assert asked.job.error is not None or set(asked.job.reasons) & {"cancelled", "stop", "length", "deadline"}

    @rule(seconds=st.sampled_from([0.1, 1.5, 6.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin_session(self) -> None:
        if len(self.sessions) < 4:
            self.sessions.append(Session(self.engine))

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), tail=st.lists(st.integers(0, SPEC.vocab_size - 1), min_size=1, max_size=9))
    def continue_session(self, data: Any, tail: list[int]) -> None:
        session = data.draw(st.sampled_from(self.sessions))
        if session._busy or len(session) + len(tail) + 7 > SPEC.context:
            return
        prompt = (*session.tokens.tolist(), *tail)
        wanted = expected(prompt, 6, None, 0, None, True)
        request = Request(prompt=np.array(tail, np.int32), sampling=sampling(6, None), eos=EOS, session=session)
        self._ask("continued a session", request, [wanted], session=session)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), what=st.sampled_from(["fork", "truncate", "save", "close"]))
    def use_session(self, data: Any, what: str) -> None:
        session = data.draw(st.sampled_from(self.sessions))
        if session._busy:
            return
        if what == "fork":
            self.sessions.append(session.fork())
        elif what == "truncate":
            session.truncate(len(session) // 2)
        elif what == "close":
            self.sessions.remove(session)
        else:
            path = Path(self.folder.name) / "session"
            session.save(path)
            again = Session.load(path, self.engine)
            assert again.tokens.tolist() == session.tokens.tolist()
            self.sessions.append(again)
        self.seen[f"{what} of a session"] += 1

    @rule(kind=st.sampled_from([OutOfMemory, RuntimeError, FormatError]), times=st.integers(1, 3), draft=st.booleans())
    def trouble(self, kind: Any, times: int, draft: bool) -> None:
        runner = self.draft if draft else self.runner
        error = kind("file", "field", 1, 2) if kind is FormatError else kind("trouble")
        runner.trouble = [error] * times
        self.seen[f"{kind.__name__} in the {'draft ' if draft else ''}runner"] += 1
        if not draft:
            for asked in self.asked:
                asked.may_fail = True

    @rule(level=st.sampled_from(["none", "some", "critical"]))
    def press(self, level: str) -> None:
        self.level = level
        self.now += 1.1

    @rule(pages=st.integers(6, PAGES))
    def change_limit(self, pages: int) -> None:
        self.engine._room.limit = pages * self.runner.cache_stats().page_bytes

    @rule()
    def forget_adapter(self) -> None:
        assert ADAPTERS[1] is not None
        self.engine.forget(ADAPTERS[1])

    @rule(often=st.integers(0, 19))
    def reopen(self, often: int) -> None:
        if often:
            return
        self._close()
        self.engine = self._open()
        self.seen["unloaded"] += 1

    # What must be so.

    def _check(self, asked: Asked) -> None:
        job = asked.job
        if job.error is not None:
            assert asked.may_fail or isinstance(job.error, OutOfMemory), job.error
        for index, (wanted, reason) in enumerate(zip(asked.expected, job.reasons, strict=True)):
            found = tuple(emission.token for emission in job.emissions if emission.index == index)
            assert found == wanted[: len(found)]
            if reason in ("stop", "length") and job.request.want == "tokens":
                assert found == wanted
        if job.request.want == "scores" and job.done and job.error is None and job.reasons == ["stop"]:
            assert len(job.prompt_logprobs) == len(job.prompt) - 1

    @invariant()
    def every_page_has_the_owners_that_it_counts(self) -> None:
        self.seen["operations"] += 1
        pages = self.runner._operations.caches.pages
        loop = self.engine._loop
        scheduler = loop.scheduler
        tables = [entry.cache.table for entry in scheduler.prefixes._idle]
        running = [*scheduler.prompting, *scheduler.decoding]
        tables += [sequence.cache.table for sequence in running]
        owners = Counter(page for table in tables for page in table)
        self.runner.cache_stats()  # sweeps what was left to the garbage collector
        counted = {page: refs for page, refs in enumerate(pages._refs) if refs}
        assert counted == owners
        total = sum(slab is not None for slab in pages.slabs) * pages.pages_per_slab
        assert pages.used + pages.free == total
        assert pages.used == len(owners)
        assert all(sequence.cache is None for sequence in scheduler.waiting)
        assert {id(entry) for table in scheduler.prefixes._blocks.values() for entry in table} <= {
            id(entry) for entry in [*scheduler.prefixes._idle, *(s.entry for s in running)]
        }
        if not loop.jobs:
            assert not running
            assert not scheduler.waiting
            assert self.draft.cache_stats().used == 0
            assert not any(session._busy for session in self.sessions)

    def _close(self) -> None:
        self.runner.trouble.clear()
        self.engine.close()
        for asked in self.asked:
            assert asked.job.done
            self._check(asked)
        for sessions in (self.sessions,):
            assert not any(session._busy for session in sessions)
        self.asked.clear()
        self.sessions.clear()
        assert not self.engine._loop.jobs
        assert self.runner.cache_stats().used == 0
        assert self.draft.cache_stats().used == 0

    def teardown(self) -> None:
        self.level = "none"
        self.now += 2
        self.runner.trouble.clear()
        for _ in range(300):
            if not self.engine._loop.jobs:
                break
            self.engine.turn()
        assert not self.engine._loop.jobs, "somebody waits for ever"
        self._close()
        self.runner.close()
        assert self.pool.stats().in_use == 0
        self.draft.close()
        self.folder.cleanup()


def run(examples: int, steps: int) -> Counter[str]:
    """So many lives of an engine, each of so many operations at most; what was seen."""
    Machine.seen.clear()
    checks = list(HealthCheck)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, database=None, suppress_health_check=checks
        ),
    )
    gc.collect()
    return Machine.seen


def test_no_page_is_lost_and_no_text_is_wrong_whatever_happens() -> None:
    seen = run(30, 50)
    assert seen["steps"] > 100
