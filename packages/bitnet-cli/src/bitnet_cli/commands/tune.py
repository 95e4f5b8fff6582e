"""`bitnet tune`: the settings that run a model fastest here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .. import models
from ..amounts import Count, Counts, size
from ..console import FLAGS, Flags, table
from ..failures import Refused
from ..models import ModelName

if TYPE_CHECKING:
    from bitnet_benchmarks.generation import Figure


def tune(
    model: ModelName,
    *,
    aim: Literal["decode", "prompt"] = "decode",
    threads: Annotated[Counts, Parameter(name=["--threads", "-t"])] = (),
    rounds: Count = 3,
    flags: Flags = FLAGS,
) -> None:
    """The settings that run a model fastest here: each is tried in turns, and the best named as lines for a TOML file.

    Parameters
    ----------
    aim
        What shall be fast.
    threads
        How many threads are tried, as 1,2,4; all numbers that may help by default.
    rounds
        How often each is tried.
    """
    from bitnet_benchmarks import generation  # noqa: PLC0415
    from bitnet_benchmarks.workers import Setting  # noqa: PLC0415

    counts = threads or _counts()
    if max(counts) > 1024 or rounds > 100:
        raise Refused("expected at most 1024 threads and 100 rounds")
    path = str(models.find(model, flags))
    context = models.load(path, flags).spec.context
    heads = ("f16", "int8") if models.backend("auto").name == "cpu" else ("",)
    settings = [
        Setting("runner", path, count, (("head", head),) if head else (), label=f"{count} {head}".strip())
        for count in counts
        for head in heads
    ]
    plan = generation.Plan(prompt=min(256, context // 2), tokens=min(64, context // 4), rounds=rounds)
    with flags.progress("trying") as tell:
        figures = generation.measure(settings, plan, progress=tell)
    best = max(figures, key=lambda figure: _speed(figure, aim))
    chosen = {"threads": best.threads} | ({"head": best.engine.split()[1]} if heads != ("",) else {})
    toml = "\n".join(f"{key} = {value!r}".replace("'", '"') for key, value in chosen.items())
    record = {"aim": aim, "best": chosen, "tried": [_row(figure) for figure in figures]}
    flags.answer(record, _shown(figures, best), "", f"[run]\n{toml}\n\n[chat]\n{toml}")


def _counts() -> tuple[int, ...]:
    from bitnet_core import device  # noqa: PLC0415

    most = device.cpu().usable_cores
    return tuple(sorted({1, most, *(count for count in (2, 4, 8, 16, 32, 64) if count < most)}))


def _speed(figure: Figure, aim: str) -> float:
    return figure.decode_tokens_per_s if aim == "decode" else figure.prompt_tokens_per_s


def _row(figure: Figure) -> dict[str, Any]:
    _, _, head = figure.engine.partition(" ")
    return {
        "threads": figure.threads,
        "head": head or None,
        "prompt_tokens_per_s": figure.prompt_tokens_per_s,
        "decode_tokens_per_s": figure.decode_tokens_per_s,
        "peak_bytes": figure.peak_bytes,
    }


def _shown(figures: list[Figure], best: Figure) -> Any:
    shown = table("threads", "head", "prompt tok/s", "decode tok/s", "peak", "", numbers=(0, 2, 3, 4))
    for figure in figures:
        row = _row(figure)
        shown.add_row(
            str(figure.threads),
            row["head"] or "",
            f"{figure.prompt_tokens_per_s:,.1f}",
            f"{figure.decode_tokens_per_s:,.1f}",
            size(figure.peak_bytes),
            "best" if figure is best else "",
        )
    return shown
