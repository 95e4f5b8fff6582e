"""`bitnet fit`: memory and speed of a model on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import models
from ..amounts import Count, Threads, amount, size
from ..console import FLAGS, Flags, mark, pairs, table
from ..failures import FAILED, Refused
from ..models import ModelName

if TYPE_CHECKING:
    from bitnet_benchmarks.need import Forecast


def fit(
    model: ModelName,
    *,
    context: Annotated[Count | None, Parameter(name=["--context", "-c"])] = None,
    parallel: Count = 1,
    threads: Annotated[Threads | None, Parameter(name=["--threads", "-t"])] = None,
    measure: bool = False,
    flags: Flags = FLAGS,
) -> int:
    """Memory and speed of a model on this machine: predicted from its ceilings, and measured on demand.

    Exit code 1 if it does not fit.

    Parameters
    ----------
    context
        Tokens of each sequence; the model's own context by default, 4,096 at most.
    parallel
        Sequences at once.
    threads
        How many threads; all that may be used by default.
    measure
        Run the model as well, for a few seconds.
    """
    if parallel > 4096:
        raise Refused(f"--parallel: expected at most 4096, got {parallel}")
    from bitnet_benchmarks import need  # noqa: PLC0415
    from bitnet_core import device  # noqa: PLC0415

    path = models.find(model, flags)
    found = models.load(str(path), flags)
    if context is not None and context > found.spec.context:
        raise Refused(f"--context: expected at most {found.spec.context}, the model's own, got {context}")
    count = threads or device.cpu().usable_cores
    flags.remark("measuring the ceilings of this machine")
    forecast = need.forecast(found, context or min(found.spec.context, 4096), parallel, count)
    achieved = _achieved(str(path), count, found.spec.context) if measure and forecast.fits else None
    record = {"path": path, "threads": count, "parallel": parallel, "forecast": forecast, "achieved": achieved}
    shown = [_memory(forecast, parallel), "", _speed(forecast, achieved, count)]
    flags.answer(record, *shown, *_advice(forecast, achieved))
    return 0 if forecast.fits else FAILED


def _achieved(path: str, threads: int, context: int) -> dict[str, float]:
    from bitnet_benchmarks import generation  # noqa: PLC0415
    from bitnet_benchmarks.workers import Setting  # noqa: PLC0415

    plan = generation.Plan(prompt=min(256, context // 2), tokens=min(64, context // 4), rounds=3)
    (figure,) = generation.measure([Setting("runner", path, threads)], plan)
    return {
        "prompt_tokens_per_s": figure.prompt_tokens_per_s,
        "decode_tokens_per_s": figure.decode_tokens_per_s,
        "peak_bytes": figure.peak_bytes,
        "load_s": figure.load_s,
    }


def _memory(forecast: Forecast, parallel: int) -> Any:
    need = forecast.need
    many = f"{parallel} x " if parallel > 1 else ""
    return pairs(
        {
            "weights": size(need.weights),
            "keys and values": f"{size(need.keys_and_values)} for {many}{need.context:,} tokens",
            "all": mark(forecast.fits, f"{size(need.total)} of {size(need.available)} that are free"),
            "longest context": f"{forecast.longest:,} tokens would fit" if forecast.longest else "none fits",
        }
    )


def _speed(forecast: Forecast, achieved: dict[str, float] | None, threads: int) -> Any:
    columns = ("measured", "") if achieved else ()
    shown = table(f"{threads} thread{'s' if threads > 1 else ''}", "at most", *columns, numbers=(1, 2, 3))
    rows = (("prompt", forecast.prompt_tokens_per_s), ("decode", forecast.decode_tokens_per_s))
    for name, most in rows:
        got = achieved[f"{name}_tokens_per_s"] if achieved else 0.0
        shown.add_row(f"{name} tokens/s", amount(most), *((amount(got), f"{got / most:.0%}") if achieved else ()))
    return shown


def _advice(forecast: Forecast, achieved: dict[str, float] | None) -> list[str]:
    said = []
    if not forecast.fits:
        said.append("it does not fit: shorten --context, lower --parallel, or choose a smaller model")
    if achieved and achieved["decode_tokens_per_s"] < 0.3 * forecast.decode_tokens_per_s:
        said.append("far below what memory allows: see bitnet doctor, and whether other programs are busy")
    return said
