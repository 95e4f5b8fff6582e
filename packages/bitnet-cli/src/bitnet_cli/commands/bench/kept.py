"""What all of `bitnet bench` does with a run: keep it, answer with it, write pages of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from ...amounts import Count
from ...console import Flags, table
from ...failures import Refused

if TYPE_CHECKING:
    from bitnet_benchmarks.record import History, Record

_KEEPING = Group("Records", sort_key=50)
Base = Annotated[
    Path | None,
    Parameter(name="--history", group=_KEEPING, env_var="BITNET_BENCH_HISTORY", help="The file that records are in."),
]
Prompt = Annotated[Count, Parameter(name=["--prompt", "-p"], help="Tokens that are read at once.")]
Tokens = Annotated[Count, Parameter(name=["--tokens", "-n"], help="Tokens that are decoded behind them.")]
Backend = Annotated[str, Parameter(help="What runs the model; bitnet backends lists them.")]
Output = Annotated[
    Path | None,
    Parameter(name=["--output", "-o"], group=_KEEPING, help="Write records as .json, .md, .csv or .html."),
]


@Parameter(name="*", group=_KEEPING)
@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What becomes of a run."""

    save: Annotated[bool, Parameter(negative="--no-save", help="Keep the record in the history.")] = True
    base: Base = None
    output: Output = None

    def check(self) -> None:
        """Refuse what cannot be written before anything is measured."""
        check_output(self.output)

    def keep(self, record: Record, flags: Flags) -> None:
        """Put a record into the history and into a file; a history that cannot be written is worth a remark alone."""
        from bitnet_core import BitNetError  # noqa: PLC0415

        if self.save:
            try:
                history(self.base).add(record)
                flags.remark(f"record {record.id}; bitnet bench compare last-1 last")
            except BitNetError as error:
                if self.base is not None:
                    raise
                flags.remark(f"not kept: {error}")
        write([record], self.output)


KEEPING = Keeping()


def history(path: Path | None) -> History:
    """The history in that file, or in the usual one."""
    from bitnet_benchmarks.record import History, default_path  # noqa: PLC0415

    return History(path or default_path())


def check_output(path: Path | None) -> None:
    """Refuse a file that cannot be written."""
    if path is None:
        return
    if path.suffix not in (".json", ".md", ".csv", ".html"):
        raise Refused(f"--output: expected a name that ends in .json, .md, .csv or .html, got {path}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise Refused(f"--output: {path}: expected a file in a folder that is there")


def write(records: Sequence[Record], output: Path | None) -> None:
    """Records as a file, in the form that its name asks for."""
    if output is None:
        return
    from bitnet_benchmarks import report  # noqa: PLC0415
    from bitnet_core.durable import replacing  # noqa: PLC0415

    forms: dict[str, Any] = {
        ".json": records[-1].json,
        ".md": lambda: report.markdown(records),
        ".csv": lambda: report.comma_separated(records),
        ".html": lambda: report.html(records),
    }
    with replacing(output) as stream:
        stream.write(forms[output.suffix]().encode())


def speeds(figures: Sequence[Any]) -> Any:
    """Figures of generation as a table: medians, extremes, and shares of the ceilings."""
    from ...amounts import size  # noqa: PLC0415

    # What is the same for all is not worth a column.
    extra = [name for name, usual in (("depth", 0), ("batch", 1)) if any(getattr(f, name) != usual for f in figures)]
    names = ["engine", "threads", *extra, "prompt/s", "spread", "", "decode/s", "spread", "", "load", "peak"]
    shown = table(*names, numbers=tuple(range(1, len(names))))
    for one in figures:
        shown.add_row(
            one.engine,
            str(one.threads),
            *(str(getattr(one, name)) for name in extra),
            _short(one.prompt_tokens_per_s),
            *_spread(one.prompt, one.prompt_runs, one.throughput_share),
            _short(one.decode_tokens_per_s),
            *_spread(one.tokens * one.batch, one.decode_runs, one.bandwidth_share),
            f"{one.load_s:.2f} s",
            size(one.peak_bytes) if one.peak_bytes else "",
        )
    shown.caption = "tokens a second, medians; shares of multiplying without pause, and of the bandwidth of memory"
    shown.caption_justify = "left"
    return shown


def _spread(count: int, runs: Sequence[float], share: float | None) -> tuple[Any, Any]:
    from rich.text import Text  # noqa: PLC0415

    spread = f"{_short(count / max(runs))}-{_short(count / min(runs))}"
    return Text(spread, style="dim"), Text("" if share is None else f"{share:.0%}", style="cyan")


def _short(speed: float) -> str:
    return f"{speed / 1000:.1f}k" if speed >= 10_000 else f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"
