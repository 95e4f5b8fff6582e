"""The engine gives every request what it would have had alone, whatever happens to the others."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from bitnet_core import reference
from bitnet_core.decoder import generate
from bitnet_core.errors import OutOfMemory
from bitnet_core.memory import Pool, Pressure
from bitnet_core.model import Adapter, Array, Runner, Step
from bitnet_core.testing import logits_of, random_model, some_tokens, tiny_spec
from bitnet_inference.engine import Engine
from bitnet_inference.observer import FinishEvent, StepEvent
from bitnet_inference.request import EngineClosed, Overloaded, Request
from bitnet_inference.settings import Sampling

SPEC = tiny_spec(hidden_size=64, ffn_size=64, head_size=16)
MODEL = random_model(SPEC)
CALM = Pressure(100, 0, 100, 0, "none")


def load(limit: int | None = None) -> tuple[Runner, Pool]:
    pool = Pool(limit, name="test")
    return reference.load(MODEL, memory=pool), pool


class Watched:
    """A runner whose steps are seen, held up, or made to fail."""

    def __init__(self, runner: Runner, before: Callable[[list[Step]], None]) -> None:
        self._runner = runner
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def forward(self, steps: list[Step]) -> list[Array | None]:
        self._before(steps)
        return self._runner.forward(steps)


@contextmanager
def running(runner: Any | None = None, **options: Any) -> Iterator[Engine]:
    """An engine that leaves nothing behind."""
    runner = load()[0] if runner is None else runner
    engine = Engine(runner, **{"pressure": lambda: CALM, **options})
    try:
        yield engine
    finally:
        engine.close()
    assert runner.cache_stats().used == 0


def greedy(prompt: np.ndarray, count: int = 20, **options: Any) -> Request:
    sampling = {"temperature": 0.0, "max_tokens": count, **options.pop("sampling", {})}
    return Request(prompt=prompt, sampling=Sampling(**sampling), **options)


def alone(prompt: np.ndarray, count: int = 20) -> tuple[int, ...]:
    """What the shortest engine there is would say."""
    return tuple(generate(load()[0], prompt, count=count))


def tokens_of(ticket: Any) -> tuple[int, ...]:
    return ticket.result(60).outputs[0].tokens


PROMPTS = [some_tokens(SPEC, size, seed=size) for size in (5, 40, 60, 17, 1, 33)]
ALONE = [alone(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("options", [{}, {"prefix_cache": False}, {"step_tokens": 7}, {"max_sequences": 2}])
def test_requests_together_say_what_each_says_alone(options: dict[str, Any]) -> None:
    with running(**options) as engine:
        tickets = [engine.submit(greedy(prompt)) for prompt in PROMPTS * 2]
        assert [tokens_of(ticket) for ticket in tickets] == ALONE * 2


def test_sixty_four_prompts_at_once_do_not_hear_each_other() -> None:
    prompts = [some_tokens(SPEC, 5 + seed % 30, seed=100 + seed) for seed in range(64)]
    with running(max_sequences=64) as engine:
        tickets = [engine.submit(greedy(prompt, 8)) for prompt in prompts]
        assert [tokens_of(ticket) for ticket in tickets] == [alone(prompt, 8) for prompt in prompts]


def test_what_freed_pages_held_never_reaches_an_output() -> None:
    runner, _ = load()
    with running(runner) as engine:
        assert tokens_of(engine.submit(greedy(PROMPTS[1]))) == ALONE[1]
    for slab in runner._operations.caches.pages.slabs:
        slab[...] = np.nan
    with running(runner) as engine:
        assert [tokens_of(engine.submit(greedy(prompt))) for prompt in PROMPTS] == ALONE


@pytest.mark.parametrize("sharing", [True, False])
def test_samples_depend_on_their_seed_and_on_nobody_else(sharing: bool) -> None:
    def ask(seed: int) -> Request:
        return Request(prompt=PROMPTS[2], sampling=Sampling(temperature=20.0, seed=seed, max_tokens=12))

    with running(prefix_cache=sharing) as engine:
        singly = [tokens_of(engine.submit(ask(seed))) for seed in range(6)]
        tickets = [engine.submit(ask(seed)) for seed in range(6)]
        assert [tokens_of(ticket) for ticket in tickets] == singly
        assert len(set(singly)) > 1


def test_n_continuations_share_the_pages_of_their_prompt() -> None:
    steps: list[int] = []
    runner = Watched(load()[0], lambda batch: steps.extend(len(step.tokens) for step in batch))
    with running(runner) as engine:
        request = Request(
            prompt=PROMPTS[2], sampling=Sampling(temperature=20.0, seed=1, n=4, max_tokens=3), drafts="off"
        )
        result = engine.submit(request).result(60)
        assert len({output.tokens for output in result.outputs}) > 1
        assert result.usage.completion_tokens == 12
    assert sorted(steps)[-2:] == [1, 60]


def test_tokens_come_one_by_one_in_threads_and_in_asyncio() -> None:
    async def collect(ticket: Any) -> list[int]:
        return [emission.token async for emission in ticket]

    async def main(engine: Engine) -> list[list[int]]:
        tickets = [engine.submit(greedy(prompt)) for prompt in PROMPTS]
        found = await asyncio.gather(*map(collect, tickets))
        assert (await tickets[0].aresult()).outputs[0].finish_reason == "length"
        return found

    with running() as engine:
        ticket = engine.submit(greedy(PROMPTS[0]))
        emissions = list(ticket)
        assert tuple(emission.token for emission in emissions) == ALONE[0]
        assert [emission.finish_reason for emission in emissions] == [None] * 19 + ["length"]
        assert list(ticket) == emissions
        assert [tuple(found) for found in asyncio.run(main(engine))] == ALONE


def test_a_model_s_last_token_ends_the_text_unless_it_is_ignored() -> None:
    last = ALONE[1][7]
    first = ALONE[1].index(last)
    with running() as engine:
        result = engine.submit(greedy(PROMPTS[1], eos=frozenset({last}))).result(60)
        assert result.outputs[0].tokens == ALONE[1][: first + 1]
        assert result.outputs[0].finish_reason == "stop"
        ignored = greedy(PROMPTS[1], eos=frozenset({last}), sampling={"ignore_eos": True})
        assert tokens_of(engine.submit(ignored)) == ALONE[1]


def test_a_stopper_names_the_reason() -> None:
    def make() -> Callable[[int], str | None]:
        seen: list[int] = []

        def stop(token: int) -> str | None:
            seen.append(token)
            return "enough" if len(seen) == 3 else None

        return stop

    with running() as engine:
        output = engine.submit(greedy(PROMPTS[0], stopper=make)).result(60).outputs[0]
    assert (output.tokens, output.finish_reason) == (ALONE[0][:3], "enough")


def test_a_text_ends_where_the_context_does() -> None:
    with running(context=50) as engine:
        output = engine.submit(greedy(PROMPTS[1], count=None)).result(60).outputs[0]
        assert (len(output.tokens), output.finish_reason) == (10, "length")
        with pytest.raises(ValueError, match=r"prompt: expected 1\.\.49 tokens in a context of 50, got 60"):
            engine.submit(greedy(PROMPTS[2]))


def test_scores_are_the_probabilities_of_the_prompt_s_tokens() -> None:
    runner, _ = load()
    logits = logits_of(runner, Step(PROMPTS[2], runner.new_cache(), "all")).astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    expected -= logits.max(axis=1, keepdims=True)
    with running(step_tokens=9) as engine:
        engine.submit(greedy(PROMPTS[2])).result(60)
        sampling = Sampling(prompt_logprobs=2)
        result = engine.submit(Request(prompt=PROMPTS[2], sampling=sampling, want="scores")).result(60)
    assert [found.token for found in result.prompt_logprobs] == PROMPTS[2][1:].tolist()
    for row, found in zip(expected, result.prompt_logprobs, strict=False):
        assert found.logprob == pytest.approx(row[found.token], abs=1e-4)
        assert [token for token, _ in found.top] == np.argsort(-row, kind="stable")[:2].tolist()
    assert result.outputs[0].tokens == ()


def test_a_state_is_the_runner_s() -> None:
    runner, _ = load()
    (expected,) = runner.forward([Step(PROMPTS[1], runner.new_cache(), "state")])
    with running() as engine:
        result = engine.submit(Request(prompt=PROMPTS[1], want="state")).result(60)
        assert result.state is not None
        np.testing.assert_array_equal(result.state, expected)


def test_adapters_run_side_by_side_and_share_no_prefixes() -> None:
    random = np.random.default_rng(0)
    rows, columns = SPEC.projections()["attn.q"]
    weights = {"layers.0.attn.q": (random.normal(0, 1, (2, columns)), random.normal(0, 1, (rows, 2)))}
    low = {name: (down.astype(np.float32), up.astype(np.float32)) for name, (down, up) in weights.items()}
    adapter = Adapter("low", low)
    with running() as engine:
        tickets = [engine.submit(greedy(PROMPTS[2], adapter=which)) for which in (None, adapter, None, adapter)]
        plain, changed, plain_again, changed_again = map(tokens_of, tickets)
        assert plain == plain_again == ALONE[2]
        assert changed == changed_again != plain
        before = engine.stats().prefixes
        engine.forget(adapter)
        assert engine.stats().prefixes == before - 1


# What ends a request before its time.


class Gate:
    """Holds an engine's steps until it is opened."""

    def __init__(self) -> None:
        self.entered, self._open = threading.Semaphore(0), threading.Semaphore(0)
        self.free = False

    def __call__(self, _: list[Step]) -> None:
        self.entered.release()
        if not self.free:
            assert self._open.acquire(timeout=60)

    def step(self) -> None:
        self._open.release()

    def open(self) -> None:
        self.free = True
        self._open.release(1000)


@pytest.mark.parametrize("how", ["cancel", "close", "forget", "with"])
def test_a_cancelled_request_has_given_its_pages_back_before_the_next_step(how: str) -> None:
    gate, runner = Gate(), load()[0]
    seen: list[tuple[int, int]] = []

    def before(steps: list[Step]) -> None:
        seen.append((len(steps), runner.cache_stats().used))
        gate(steps)

    with running(Watched(runner, before), prefix_cache=False) as engine:
        stays = engine.submit(greedy(PROMPTS[0], 50, drafts="off"))
        goes = engine.submit(greedy(PROMPTS[2], 50, drafts="off"))
        for _ in range(4):
            assert gate.entered.acquire(timeout=60)
            gate.step()
        assert gate.entered.acquire(timeout=60)
        if how == "forget":
            del goes
            gc.collect()
        elif how == "with":
            with goes:
                pass
        else:
            getattr(goes, how)()
        gate.step()
        assert gate.entered.acquire(timeout=60)
        assert seen[-2][0] == 2
        assert seen[-1][0] == 1
        assert seen[-1][1] == 1
        gate.open()
        assert tokens_of(stays) == alone(PROMPTS[0], 50)


def test_a_cancelled_request_has_the_tokens_that_there_were() -> None:
    gate = Gate()
    with running(Watched(load()[0], gate)) as engine:
        ticket = engine.submit(greedy(PROMPTS[0], drafts="off"))
        for _ in range(3):
            gate.step()
            assert gate.entered.acquire(timeout=60)
        assert gate.entered.acquire(timeout=60)
        ticket.cancel()
        gate.open()
        output = ticket.result(60).outputs[0]
        assert output.finish_reason == "cancelled"
        assert output.tokens == ALONE[0][:4] or output.tokens == ALONE[0][:3]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_deadlines_end_what_runs_and_what_waits() -> None:
    clock, gate = Clock(), Gate()
    with running(Watched(load()[0], gate), clock=clock, max_sequences=1) as engine:
        runs = engine.submit(greedy(PROMPTS[0], deadline_s=5.0, drafts="off"))
        waits = engine.submit(greedy(PROMPTS[1], deadline_s=3.0))
        later = engine.submit(greedy(PROMPTS[2], deadline_s=500.0))
        assert gate.entered.acquire(timeout=60)
        clock.now += 4
        gate.step()
        result = waits.result(60)
        assert (result.outputs[0].tokens, result.outputs[0].finish_reason) == ((), "deadline")
        assert gate.entered.acquire(timeout=60)
        assert not runs.done
        clock.now += 4
        gate.open()
        result = runs.result(60)
        assert result.outputs[0].finish_reason == "deadline"
        assert result.outputs[0].tokens == ALONE[0][: len(result.outputs[0].tokens)]
        assert 0 < len(result.outputs[0].tokens) < 20
        assert tokens_of(later) == ALONE[2]


def test_a_wait_for_a_result_can_end_before_the_result() -> None:
    gate = Gate()
    with running(Watched(load()[0], gate)) as engine:
        ticket = engine.submit(greedy(PROMPTS[0]))
        with pytest.raises(TimeoutError, match=r"has not finished within 0\.01 s"):
            ticket.result(0.01)
        gate.open()
        assert tokens_of(ticket) == ALONE[0]


# Who goes first.


def test_a_lower_priority_number_goes_first() -> None:
    gate = Gate()
    order: list[int] = []
    with running(Watched(load()[0], gate), max_sequences=1, observer=Finishes(order)) as engine:
        first = engine.submit(greedy(PROMPTS[4], 2, drafts="off"))
        assert gate.entered.acquire(timeout=60)
        tickets = [engine.submit(greedy(PROMPTS[0], 2 + p, priority=p)) for p in (3, 1, 2)]
        gate.open()
        for ticket in [first, *tickets]:
            ticket.result(60)
    assert order == [2, 3, 4, 5]


class Finishes:
    """Writes down how many tokens each request had, as they end."""

    def __init__(self, order: list[int]) -> None:
        self._order = order

    def __call__(self, event: Any) -> None:
        if isinstance(event, FinishEvent):
            self._order.append(event.usage.completion_tokens)


def test_who_matters_more_takes_the_place_of_who_matters_less() -> None:
    gate = Gate()
    with running(Watched(load()[0], gate), max_sequences=1) as engine:
        low = engine.submit(greedy(PROMPTS[1], priority=5))
        for _ in range(5):
            gate.step()
            assert gate.entered.acquire(timeout=60)
        high = engine.submit(greedy(PROMPTS[2], priority=0))
        gate.open()
        assert tokens_of(high) == ALONE[2]
        assert not low.done or low.timings.total_s > high.timings.total_s
        assert tokens_of(low) == ALONE[1]
        assert engine.stats().preempted == 1


def test_waiting_makes_up_for_priority() -> None:
    clock, gate = Clock(), Gate()
    order: list[int] = []
    with running(Watched(load()[0], gate), clock=clock, max_sequences=1, observer=Finishes(order)) as engine:
        running_one = engine.submit(greedy(PROMPTS[4], 2, priority=-100))
        assert gate.entered.acquire(timeout=60)
        old = engine.submit(greedy(PROMPTS[0], 3, priority=2))
        clock.now += 25
        young = engine.submit(greedy(PROMPTS[0], 4, priority=0))
        gate.open()
        for ticket in (running_one, old, young):
            ticket.result(60)
    assert order == [2, 3, 4]


def test_a_long_prompt_neither_starves_nor_holds_up_short_ones() -> None:
    long = some_tokens(SPEC, 120, seed=77)
    pieces: list[dict[int, int]] = []
    runner = Watched(load()[0], lambda steps: pieces.append({id(step.cache): len(step.tokens) for step in steps}))
    gate = Gate()
    runner = Watched(runner, gate)
    with running(runner, step_tokens=16, max_sequences=4) as engine:
        first = engine.submit(greedy(long, 1))
        assert gate.entered.acquire(timeout=60)
        short = [engine.submit(greedy(some_tokens(SPEC, 10, seed=seed), 1)) for seed in range(12)]
        gate.open()
        done = [ticket.result(60).timings.total_s for ticket in [first, *short]]
    # The long one goes on in every step, and the short ones need not wait for its end.
    assert all(max(sizes.values()) >= 3 for sizes in pieces)
    assert min(done[1:]) < done[0]


# What goes wrong.


def test_a_runner_that_raises_fails_only_who_is_to_blame() -> None:
    def before(steps: list[Step]) -> None:
        if any(step.tokens[0] == 90 and len(step.tokens) == 7 for step in steps):
            raise RuntimeError("no sevens")

    bad = np.array([90] * 7, np.int32)
    with running(Watched(load()[0], before)) as engine:
        tickets = [engine.submit(greedy(prompt)) for prompt in [*PROMPTS[:3], bad, *PROMPTS[3:]]]
        with pytest.raises(RuntimeError, match="no sevens"):
            tickets[3].result(60)
        with pytest.raises(RuntimeError, match="no sevens"):
            list(tickets[3])
        assert [tokens_of(ticket) for ticket in tickets[:3] + tickets[4:]] == ALONE


def test_a_fault_that_goes_away_fails_nobody() -> None:
    times = iter(range(100))

    def before(steps: list[Step]) -> None:
        if next(times) % 3 == 2:
            raise OSError("a bad moment")

    with running(Watched(load()[0], before)) as engine:
        tickets = [engine.submit(greedy(prompt, 5)) for prompt in PROMPTS]
        found = []
        for ticket in tickets:
            try:
                found.append(tokens_of(ticket))
            except OSError:
                found.append(None)
    assert sum(tokens is not None for tokens in found) >= 4
    assert all(tokens in (None, expected[:5]) for tokens, expected in zip(found, ALONE, strict=True))


@pytest.mark.parametrize("where", ["processor", "stopper"])
def test_a_callback_that_raises_fails_only_its_request(where: str) -> None:
    def fail(*_: object) -> Any:
        raise KeyError("mine")

    with running() as engine:
        if where == "processor":
            bad = greedy(PROMPTS[1], sampling={"processors": (fail,)})
        else:
            bad = greedy(PROMPTS[1], stopper=lambda: fail)
        failed, good = engine.submit(bad), engine.submit(greedy(PROMPTS[2]))
        with pytest.raises(KeyError, match="mine"):
            failed.result(60)
        assert tokens_of(good) == ALONE[2]


def test_memory_that_does_not_suffice_makes_requests_wait_for_each_other() -> None:
    runner, pool = load()
    limit = pool.stats().mapped + 2 * 4 * runner.cache_stats().page_bytes
    runner, pool = load(limit)
    with running(runner, memory=pool) as engine:
        tickets = [engine.submit(greedy(prompt, 25)) for prompt in PROMPTS * 2]
        expected = [alone(prompt, 25) for prompt in PROMPTS]
        assert [tokens_of(ticket) for ticket in tickets] == expected * 2


def test_who_outgrows_memory_gives_way_and_goes_on_later() -> None:
    runner, _ = load()
    with running(runner, cache_bytes=8 * runner.cache_stats().page_bytes) as engine:
        tickets = [engine.submit(greedy(PROMPTS[0], 70)) for _ in range(3)]
        tickets += [engine.submit(greedy(PROMPTS[3], 70))]
        assert [tokens_of(ticket) for ticket in tickets] == [alone(PROMPTS[0], 70)] * 3 + [alone(PROMPTS[3], 70)]
        assert engine.stats().preempted > 0


def test_what_can_never_fit_is_refused_with_numbers() -> None:
    runner, _ = load()
    with running(runner, cache_bytes=4 * runner.cache_stats().page_bytes) as engine:
        with pytest.raises(OutOfMemory, match=r"99 tokens need \d+ bytes .* room for 64 tokens"):
            engine.submit(greedy(PROMPTS[2], 40))
        with pytest.raises(OutOfMemory, match="80 tokens"):
            engine.submit(greedy(some_tokens(SPEC, 80), count=None))
        output = engine.submit(greedy(PROMPTS[2], count=None)).result(60).outputs[0]
        assert (len(output.tokens), output.finish_reason) == (5, "length")


def test_memory_that_somebody_else_has_taken_fails_one_request_and_not_the_engine() -> None:
    runner, pool = load()
    limit = pool.stats().mapped + 4 * 4 * runner.cache_stats().page_bytes
    runner, pool = load(limit)
    mine = runner.new_cache()
    runner.forward([Step(PROMPTS[1], mine, "none")])
    with running(runner, memory=pool, cache_bytes=1 << 30) as engine:
        assert tokens_of(engine.submit(greedy(PROMPTS[4]))) == ALONE[4]
        taken: list[Any] = []

        def steal(_: int) -> None:
            if not taken:
                taken.append(pool.take(limit - pool.stats().mapped, np.uint8))

        ticket = engine.submit(greedy(PROMPTS[1], 80, stopper=lambda: steal))
        with pytest.raises(OutOfMemory):
            ticket.result(60)
        taken.pop().close()
        mine.close()
        assert tokens_of(engine.submit(greedy(PROMPTS[1]))) == ALONE[1]


def test_a_machine_short_of_memory_takes_the_prefixes_first() -> None:
    clock, level = Clock(), ["none"]
    with running(clock=clock, pressure=lambda: Pressure(100, 0, 100, 0, level[0])) as engine:
        for prompt in PROMPTS:
            engine.submit(greedy(prompt)).result(60)
        before = engine.stats()
        assert before.prefixes > 4
        level[0], clock.now = "some", clock.now + 2
        assert tokens_of(engine.submit(greedy(PROMPTS[4]))) == ALONE[4]
        assert engine.stats().prefixes <= before.prefixes // 2 + 1
        level[0], clock.now = "critical", clock.now + 2
        assert tokens_of(engine.submit(greedy(PROMPTS[4]))) == ALONE[4]
        assert engine.stats().prefixes <= 1


def test_a_thread_that_fails_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    def before(steps: list[Step]) -> None:
        raise SystemExit("gone")

    with running(Watched(load()[0], before)) as engine:
        ticket = engine.submit(greedy(PROMPTS[0]))
        with pytest.raises(SystemExit):
            ticket.result(60)
        engine._thread.join(60)
        with pytest.raises(EngineClosed):
            engine.submit(greedy(PROMPTS[0]))
    assert "the engine's thread has failed" in caplog.text


def test_a_full_queue_says_so() -> None:
    gate = Gate()
    with running(Watched(load()[0], gate), queue=2) as engine:
        tickets = [engine.submit(greedy(PROMPTS[0])) for _ in range(2)]
        with pytest.raises(Overloaded, match="2 requests are waiting or running"):
            engine.submit(greedy(PROMPTS[0]))
        gate.open()
        assert [tokens_of(ticket) for ticket in tickets] == [ALONE[0]] * 2
        assert tokens_of(engine.submit(greedy(PROMPTS[1]))) == ALONE[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": np.empty(0, np.int32)}, r"prompt: expected 1\.\.127 tokens in a context of 128, got 0"),
        ({"prompt": np.zeros((2, 2), np.int32)}, "prompt: expected token ids, got int32 of shape"),
        ({"prompt": np.zeros(3)}, "prompt: expected token ids, got float64"),
        ({"prompt": np.array([1, 96])}, r"prompt: expected token ids of 0\.\.95, got 96"),
        ({"prompt": np.array([-1, 2])}, r"prompt: expected token ids of 0\.\.95, got -1"),
        ({"prompt": np.array([1 << 40])}, r"prompt: expected token ids of 0\.\.95, got 1099511627776"),
        ({"prompt": np.zeros(128, np.int32)}, r"prompt: expected 1\.\.127 tokens in a context of 128, got 128"),
        ({"deadline_s": float("nan")}, "deadline_s: expected a number of seconds from 0, got nan"),
        ({"deadline_s": -1}, "deadline_s"),
        ({"priority": 1 << 40}, r"priority: expected a whole number of -1000\.\.1000"),
        ({"want": "poems"}, "want: expected one of tokens, state, scores, got 'poems'"),
        ({"drafts": "maybe"}, "drafts: expected one of auto, on, off, got 'maybe'"),
    ],
)
def test_a_wrong_request_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with running() as engine:
        with pytest.raises(ValueError, match=message):
            engine.submit(Request(**{"prompt": PROMPTS[0], **changes}))
        assert tokens_of(engine.submit(greedy(PROMPTS[0]))) == ALONE[0]


@pytest.mark.parametrize("name", ["context", "max_sequences", "step_tokens", "queue", "cache_bytes"])
def test_a_wrong_setting_of_the_engine_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a whole number from"):
        Engine(load()[0], **{name: 0})


# The end.


def test_a_closed_engine_finishes_what_it_can_in_the_time_it_is_given() -> None:
    runner, _ = load()
    engine = Engine(runner)
    tickets = [engine.submit(greedy(prompt)) for prompt in PROMPTS]
    engine.close(drain_s=60)
    assert [tokens_of(ticket) for ticket in tickets] == ALONE
    with pytest.raises(EngineClosed):
        engine.submit(greedy(PROMPTS[0]))
    engine.close()

    engine = Engine(runner)
    ticket = engine.submit(greedy(PROMPTS[0], 100))
    engine.close()
    assert ticket.result(60).outputs[0].finish_reason in ("cancelled", "length")
    assert runner.cache_stats().used == 0


def test_an_engine_that_nobody_holds_finishes_its_work_and_goes() -> None:
    runner, _ = load()
    engine = Engine(runner)
    thread, ticket = engine._thread, engine.submit(greedy(PROMPTS[1]))
    del engine
    gc.collect()
    assert tokens_of(ticket) == ALONE[1]
    thread.join(60)
    assert not thread.is_alive()
    assert runner.cache_stats().used == 0


def test_many_threads_may_ask_at_once() -> None:
    found: dict[int, bool] = {}

    def ask(engine: Engine, number: int) -> None:
        place = number % len(PROMPTS)
        tokens = [emission.token for emission in engine.submit(greedy(PROMPTS[place], 6))]
        found[number] = tuple(tokens) == ALONE[place][:6]

    with running() as engine:
        threads = [threading.Thread(target=ask, args=(engine, number)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert list(found.values()) == [True] * 24


def test_an_observer_sees_every_step_and_every_end_and_cannot_harm() -> None:
    events: list[Any] = []
    with running(observer=events.append) as engine:
        engine.submit(greedy(PROMPTS[1], drafts="off")).result(60)
    steps = [event for event in events if isinstance(event, StepEvent)]
    assert sum(event.prompt_tokens for event in steps) == 40
    assert sum(event.output_tokens for event in steps) == 19
    (end,) = [event for event in events if isinstance(event, FinishEvent)]
    assert (end.reasons, end.usage.completion_tokens, end.error) == (("length",), 20, None)

    def fail(event: object) -> None:
        raise ValueError("not now")

    with running(observer=fail) as engine:
        assert tokens_of(engine.submit(greedy(PROMPTS[1]))) == ALONE[1]


def test_times_add_up() -> None:
    with running() as engine:
        result = engine.submit(greedy(PROMPTS[1])).result(60)
        again = engine.submit(greedy(PROMPTS[1])).result(60)
    times = result.timings
    assert times.first_token_s == pytest.approx(times.queue_s + times.prompt_s)
    assert times.total_s >= times.first_token_s + times.decode_s > times.decode_s > 0
    assert result.tokens_per_second > 0
    assert (result.usage.prompt_tokens, result.usage.cached_tokens, result.usage.total_tokens) == (40, 0, 60)
    assert again.usage.cached_tokens == 39


def test_a_thousand_requests_leave_nothing_behind() -> None:
    runner, pool = load()
    placed, page = pool.stats().mapped, runner.cache_stats().page_bytes
    with running(runner, memory=pool, cache_bytes=64 * page) as engine:

        def ask(count: int, first: int) -> int:
            tickets = [engine.submit(greedy(some_tokens(SPEC, 20, seed=first + n), 2)) for n in range(count)]
            for ticket in tickets:
                ticket.result(60)
            del tickets
            gc.collect()
            return len(gc.get_objects())

        ask(200, 0)
        before = ask(200, 1000)
        assert ask(600, 2000) <= before + 500
        assert pool.stats().mapped <= placed + 64 * page
