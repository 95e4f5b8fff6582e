"""How a model and its texts end: with the program, with an interrupt, in a fork, in the midst of work."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bitnet_inference import LLM, EngineClosed, Writing

BEGIN = """
from bitnet_inference import LLM
llm = LLM(threads=1)
"""
LONG: Any = {"max_tokens": 400, "ignore_eos": True}


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM(threads=1) as made:
        yield made


def slowly(_: list[int], logits: Any) -> Any:
    time.sleep(0.01)
    return logits


def is_idle(llm: LLM) -> bool:
    """Whether nothing is at work, soon."""
    end = time.monotonic() + 10
    while llm.engine.stats().running or llm.engine.stats().waiting:
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize(
    "program",
    [
        "llm.generate('Once', max_tokens=3)",
        "pieces = iter(llm.write('Once', max_tokens=400, ignore_eos=True)); next(pieces)",
        "writings = [llm.write('Once', max_tokens=400, ignore_eos=True) for _ in range(40)]",
        "llm.generate('Once', processors=[lambda tokens, logits: 1 / 0])",
    ],
    ids=["idle", "half read", "many at work", "failed"],
)
def test_a_program_may_end_at_any_moment(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stderr.strip()
    assert done.returncode == ("1 / 0" in program)
    assert said == "" or said.endswith("ZeroDivisionError: division by zero")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_is_told_to_make_its_own(llm: LLM) -> None:
    program = """
import os
llm.generate("Once", max_tokens=2)
child = os.fork()
if not child:
    try:
        llm.generate("Once")
    except Exception as error:
        print(type(error).__name__, error)
    LLM(threads=1).generate("Once", max_tokens=2)
    raise SystemExit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "EngineClosed the engine works in the process that made it; make one in this process" in done.stdout
    assert done.stdout.endswith("7\n")
    assert "terminate" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize(
    "work",
    [
        lambda llm: llm.generate("Once", **LONG, processors=[slowly]),
        lambda llm: llm.generate(["Once"] * 40, **LONG, processors=[slowly]),
        lambda llm: llm.chat("Once", **LONG, processors=[slowly]),
        lambda llm: list(llm.write("Once", **LONG, processors=[slowly])),
    ],
    ids=["generate", "several", "chat", "pieces"],
)
def test_an_interrupt_leaves_nothing_at_work(llm: LLM, work: Callable[[LLM], Any]) -> None:
    def interrupt() -> None:
        while not llm.engine.stats().running:
            time.sleep(0.001)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt) as caught:  # which holds the frames, as a notebook does
        work(llm)
    assert is_idle(llm)
    assert caught.tb is not None
    assert llm.generate("Once", max_tokens=2)


def test_a_task_that_is_cancelled_leaves_nothing_at_work(llm: LLM) -> None:
    async def cancelled() -> asyncio.CancelledError | None:
        task = asyncio.create_task(llm.agenerate("Once", **LONG, processors=[slowly]))
        while not llm.engine.stats().running:
            await asyncio.sleep(0.001)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            return error
        return None

    kept = asyncio.run(cancelled())
    assert kept is not None
    assert is_idle(llm)


def test_a_text_may_be_written_within_a_block_in_asyncio(llm: LLM) -> None:
    async def begun() -> Writing:
        async with llm.write("Once", **LONG, processors=[slowly]) as writing:
            async for piece in writing:
                assert piece
                break
        return writing

    writing = asyncio.run(begun())
    assert writing.reply.finish_reason == "cancelled"
    assert is_idle(llm)


def test_a_processor_that_exits_ends_its_own_request_alone(llm: LLM) -> None:
    with pytest.raises(SystemExit):
        llm.generate("Once", processors=[lambda *_: sys.exit(3)])
    assert llm.generate("Once", max_tokens=2)


def test_one_call_may_ask_for_more_than_the_queue_holds() -> None:
    with LLM(threads=1, queue=4, max_sequences=2) as llm:
        alone = llm.generate("Once", max_tokens=3, temperature=0)
        assert llm.generate(["Once"] * 30, max_tokens=3, temperature=0) == [alone] * 30
        assert llm.embed(["Once"] * 30).shape == (30, llm.model.spec.hidden_size)
        assert len({score.total for score in llm.scores([("Once", " upon")] * 30)}) <= 2
        # One text of more windows than the queue holds.
        assert llm.perplexity("word " * 3000, stride=100).tokens > 3000


def test_a_call_that_fails_takes_its_other_requests_with_it(llm: LLM) -> None:
    with pytest.raises(ValueError, match="prompt: expected"):
        llm.generate(["Once", "word " * 1000], **LONG, processors=[slowly])
    assert is_idle(llm)


def test_a_closed_model_says_so() -> None:
    llm = LLM(threads=1)
    writing = llm.write("Once", **LONG)
    next(iter(writing))
    llm.close()
    llm.close()
    assert writing.reply.finish_reason == "cancelled"
    for work in (llm.generate, llm.embed, llm.score):
        with pytest.raises(EngineClosed, match="the engine is closed"):
            work("Once upon")
