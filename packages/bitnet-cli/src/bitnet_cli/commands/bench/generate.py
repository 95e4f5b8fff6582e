"""`bitnet bench generate`: how fast text is made."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from ... import models
from ...amounts import Count, Counts
from ...console import FLAGS, Flags
from ...failures import Refused
from ...models import ModelName
from .kept import KEEPING, Backend, Keeping, Prompt, Tokens, speeds


def generate(  # noqa: PLR0913  # each is a flag
    model: ModelName,
    *,
    prompt: Prompt = 512,
    tokens: Tokens = 128,
    threads: Annotated[Counts, Parameter(name=["--threads", "-t"])] = (),
    depths: Annotated[str, Parameter(name=["--depths", "-d"], metavar="N,N...")] = "0",
    batches: Annotated[Counts, Parameter(name=["--batches", "-b"])] = (1,),
    rounds: Annotated[Count, Parameter(name=["--rounds", "-r"])] = 5,
    backend: Backend = "auto",
    head: Literal["f16", "int8"] | None = None,
    through: Literal["runner", "engine", "both"] = "runner",
    keeping: Keeping = KEEPING,
    flags: Flags = FLAGS,
) -> None:
    """How fast text is made: prompt and tokens behind it apart, each in a process of its own, in turns.

    Parameters
    ----------
    threads
        How many threads, as 1,2,4; what the backend takes by default is all that may be used.
    depths
        Tokens in front of those that are decoded, as 0,2k.
    batches
        Sequences decoded at once.
    rounds
        How often everything is repeated; 5 and more can be compared.
    head
        How the cpu backend holds the output head.
    through
        The bare runner, the engine with its scheduler and sampling, or both in turns.
    """
    keeping.check()
    counts = threads or _all()
    _check(counts, batches, rounds, backend)
    path = str(models.find(model, flags))
    from bitnet_benchmarks import generation, record  # noqa: PLC0415
    from bitnet_benchmarks.workers import Setting  # noqa: PLC0415

    options = (("backend", backend), *((("head", head),) if head else ()))
    kinds = ("runner", "engine") if through == "both" else (through,)
    settings = [Setting(kind, path, count, options) for count in counts for kind in kinds]  # type: ignore[arg-type]
    plan = generation.Plan(prompt=prompt, tokens=tokens, depths=_depths(depths), batches=tuple(batches), rounds=rounds)
    with flags.progress("generating") as tell:
        figures = generation.measure(settings, plan, progress=tell)
    made = record.make("generate", figures, model=path, backend=backend, head=head, plan=plan)
    keeping.keep(made, flags)
    flags.answer(made.figures, speeds(figures))


def _check(threads: tuple[int, ...], batches: tuple[int, ...], rounds: int, backend: str) -> None:
    if max(threads) > 1024 or max(batches) > 1024 or rounds > 1000:
        raise Refused("expected at most 1024 threads, batches of 1024 and 1000 rounds")
    models.backend(backend)


def _all() -> tuple[int, ...]:
    from bitnet_core import device  # noqa: PLC0415

    return tuple(sorted({1, device.cpu().usable_cores}))


def _depths(text: str) -> tuple[int, ...]:
    from ...amounts import parse_count  # noqa: PLC0415

    found = tuple(parse_count(part) for part in text.split(",") if part)
    if not found or max(found) > 1 << 24:
        raise Refused(f"--depths: expected numbers such as 0,2k, got '{text}'")
    return found
