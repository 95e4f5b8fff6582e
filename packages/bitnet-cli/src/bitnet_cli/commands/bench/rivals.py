"""`bitnet bench rivals`: beside llama.cpp, bitnet.cpp and transformers, in turns."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ... import models
from ...amounts import Count, Counts
from ...console import FLAGS, Flags, table
from ...failures import Refused
from ...models import ModelName
from .kept import KEEPING, Backend, Keeping, Prompt, Tokens, speeds

if TYPE_CHECKING:
    from bitnet_benchmarks.workers import Setting


def rivals(  # noqa: PLR0913  # each is a flag
    model: ModelName,
    *,
    theirs: str | None = None,
    llama_python: str | None = None,
    llama_bench: tuple[str, ...] = (),
    transformers: bool = False,
    prompt: Prompt = 512,
    tokens: Tokens = 128,
    threads: Annotated[Counts, Parameter(name=["--threads", "-t"])] = (1,),
    rounds: Annotated[Count, Parameter(name=["--rounds", "-r"], help="How often each has its turn.")] = 5,
    backend: Backend = "auto",
    keeping: Keeping = KEEPING,
    flags: Flags = FLAGS,
) -> None:
    """The same model and tokens through other people's engines, in turns; ratios with their spread.

    Parameters
    ----------
    theirs
        The model in the form that they read, if not the same file.
    llama_python
        An interpreter that has llama-cpp-python; this one by default, where it has it.
    llama_bench
        A llama-bench of llama.cpp or bitnet.cpp.
    transformers
        transformers as well, if it is installed here; for folders.
    threads
        How many threads, as 1,2,4.
    """
    keeping.check()
    if max(threads) > 1024 or rounds > 1000:
        raise Refused("expected at most 1024 threads and 1000 rounds")
    models.backend(backend)
    path = str(models.find(model, flags))
    other = path if theirs is None else str(models.find(theirs, flags))
    from bitnet_benchmarks import generation, record, rivals as measured  # noqa: PLC0415, I001

    plan = generation.Plan(prompt=prompt, tokens=tokens, rounds=rounds)
    settings: list[Setting] = []
    for count in threads:
        settings += _settings(path, other, count, backend, llama_python, llama_bench, transformers, plan.context())
    if len(settings) == len(threads):
        raise Refused("no rival: name one by --llama-python, --llama-bench or --transformers")
    with flags.progress("racing") as tell:
        figures = generation.measure(settings, plan, progress=tell)
    ratios = measured.ratios(figures, settings[0].name)
    made = record.make("rivals", figures, model=path, plan=plan, ratios=ratios)
    keeping.keep(made, flags)
    flags.answer({"figures": made.figures, "ratios": ratios}, speeds(figures), "", _ratios(ratios))


def _settings(
    path: str,
    other: str,
    count: int,
    backend: str,
    python: str | None,
    programs: tuple[str, ...],
    slow: bool,
    size: int,
) -> list[Setting]:
    from bitnet_benchmarks.rivals import has_module  # noqa: PLC0415
    from bitnet_benchmarks.workers import Setting  # noqa: PLC0415

    found = [Setting("runner", path, count, (("backend", backend),), label="bitnet")]
    chosen = python or sys.executable
    if has_module(chosen, "llama_cpp"):
        found.append(Setting("llama", other, count, (("context", size),), chosen, "llama.cpp"))
    elif python is not None:
        raise Refused(f"--llama-python: expected an interpreter that has llama-cpp-python, got {python}")
    for place, program in enumerate(programs):
        label = "llama-bench" if len(programs) == 1 else f"llama-bench {place + 1}"
        found.append(Setting("llama-bench", other, count, (), program, label))
    if slow:
        if not has_module(sys.executable, "transformers") or not has_module(sys.executable, "torch"):
            raise Refused("--transformers: transformers and torch are not installed here")
        found.append(Setting("transformer", other, count, label="transformers"))
    return found


def _ratios(ratios: list[Any]) -> Any:
    shown = table("", "against", "threads", "times as fast", "spread", numbers=(2, 3, 4))
    for one in ratios:
        spread = f"{one.lowest:.2f} to {one.highest:.2f}"
        shown.add_row(one.what, one.second, str(one.threads), f"{one.median:.2f}", spread)
    return shown
