"""`bitnet batch`: many prompts of a file, resumed where it stopped."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import lists, models
from ..amounts import Count
from ..console import FLAGS, Flags
from ..failures import FAILED, Refused
from ..lists import Job
from ..writers import RUNNING, WISHES, Running, Wishes, record_of

if TYPE_CHECKING:
    from bitnet_inference.llm import LLM
    from bitnet_inference.writing import Writing

_SOURCE = 'A line of JSON for each text, with prompt or messages; "-" for stdin.'


def batch(
    source: Annotated[str, Parameter(help=_SOURCE)],
    target: Annotated[Path, Parameter(help="A line for each answer; those that are there are not asked again.")],
    *,
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None,
    parallel: Count = 32,
    wishes: Wishes = WISHES,
    running: Running = RUNNING,
    flags: Flags = FLAGS,
) -> int:
    """Many prompts of a file, several at once; run again, it goes on where it stopped.

    Exit code 1 if a prompt failed; its line has the error.

    Parameters
    ----------
    model
        A folder, a GGUF file or a name on the hub; a small one by default.
    parallel
        Texts that are written at once.
    """
    if parallel > 1024:
        raise Refused(f"--parallel: expected at most 1024, got {parallel}")
    if source != models.STDIN and target.exists() and Path(source).exists() and target.samefile(source):
        raise Refused(f"{target}: is the input; name another file")
    if not target.absolute().parent.is_dir():
        raise Refused(f"{target}: there is no folder {target.absolute().parent}")
    options = wishes.options(running)
    asked = lists.read(source)
    done = lists.answered(target)
    left = [job for job in asked if job.id not in done]
    if done:
        flags.remark(f"{len(asked) - len(left)} of {len(asked)} are answered already")
    begun, failures, tokens = time.monotonic(), 0, 0
    if left:
        with running.opened(model, flags) as llm, flags.progress("writing") as tell:
            waiting: deque[tuple[Job, Writing | Exception]] = deque()
            for place, job in enumerate(left):
                waiting.append((job, _begin(llm, job, options)))
                while waiting and (len(waiting) >= parallel or place == len(left) - 1):
                    record = _end(*waiting.popleft())
                    lists.append(target, record)
                    failures += "error" in record
                    tokens += 0 if "error" in record else record["usage"].completion_tokens
                    tell(place + 1 - len(waiting), len(left), "")
    seconds = time.monotonic() - begun
    found = {"asked": len(asked), "before": len(asked) - len(left), "failed": failures, "tokens": tokens}
    said = f"{len(left)} answered, {failures} failed, {tokens} tokens in {seconds:.1f} s"
    flags.answer(found | {"seconds": seconds, "output": target}, said)
    return FAILED if failures else 0


def _begin(llm: LLM, job: Job, options: dict[str, Any]) -> Writing | Exception:
    """A text that has been begun, or why it could not be."""
    from bitnet_core import BitNetError  # noqa: PLC0415

    try:
        if job.messages is not None:
            return llm.stream(job.messages, **options | dict(job.options))
        return llm.write(job.prompt or "", **options | dict(job.options))
    except (BitNetError, ValueError, TypeError) as error:
        return error


def _end(job: Job, writing: Writing | Exception) -> dict[str, Any]:
    """The line of a job."""
    from bitnet_core import BitNetError  # noqa: PLC0415

    if isinstance(writing, Exception):
        return {"id": job.id, "error": str(writing)}
    try:
        found = record_of(writing.reply)
    except (BitNetError, ValueError) as error:
        return {"id": job.id, "error": str(error)}
    del found["tokens"]
    return {"id": job.id, **found}
