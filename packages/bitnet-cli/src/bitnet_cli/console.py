"""What every command is asked, and how it answers: one document on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

from cyclopts import Group, Parameter

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_NARROW = 40  # columns below which nothing can be told apart
_WIDE = 500  # columns where nobody looks: lines in pipes are not cut
_EVERYWHERE = Group("Every command", sort_key=99)


@Parameter(name="*", group=_EVERYWHERE)
@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every command is asked."""

    json: bool = False
    """Answer with one JSON document on stdout."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"])] = False
    """No progress and no remarks on stderr."""
    offline: Annotated[bool, Parameter(env_var="BITNET_OFFLINE")] = False
    """Never use the network."""
    config: Annotated[Path | None, Parameter(env_var="BITNET_CONFIG")] = None
    """A TOML file of flags, a table for each command."""
    debug: Annotated[bool, Parameter(env_var="BITNET_DEBUG")] = False
    """Show the traceback of a failure."""

    def answer(self, record: object, *shown: RenderableType) -> None:
        """The answer: the record as JSON, or what is to be seen."""
        if self.json:
            write_json(record)
            return
        console = screen(sys.stdout)
        with console.capture() as caught:
            for renderable in shown:
                console.print(renderable)
        # Tables fill their last column with spaces, which nobody sees and every file would keep.
        sys.stdout.write("\n".join(line.rstrip(" ") for line in caught.get().split("\n")))

    def remark(self, text: str) -> None:
        """A line for whoever watches."""
        if not self.quiet:
            screen(sys.stderr).print(text, style="dim", markup=False)

    @contextmanager
    def progress(self, what: str, *, nbytes: bool = False) -> Iterator[Callable[[float, float, str], None]]:
        """A bar on stderr, if that is a terminal; takes what is done, the whole, and a word for it."""
        if self.quiet or not sys.stderr.isatty():
            yield _tell_nobody
            return
        from rich import progress as bars  # noqa: PLC0415  # 30 ms

        amount = bars.DownloadColumn(binary_units=True) if nbytes else bars.MofNCompleteColumn()
        rest = [bars.TransferSpeedColumn()] if nbytes else []
        columns = [
            bars.TextColumn("{task.description}"),
            bars.BarColumn(None),
            amount,
            *rest,
            bars.TimeRemainingColumn(),
        ]
        with bars.Progress(*columns, console=screen(sys.stderr), transient=True) as bar:
            task = bar.add_task(what, total=None)

            def tell(done: float, total: float, word: str) -> None:
                bar.update(task, completed=done, total=total, description=word or what)

            yield tell


def _tell_nobody(*_: object) -> None:
    """What hears of progress where nobody watches."""


FLAGS = Flags()


def screen(stream: TextIO) -> Console:
    """A console that never wraps or cuts what goes into a file or a pipe."""
    from rich.console import Console  # noqa: PLC0415  # 20 ms, which help does not need twice

    said = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() or said.isdecimal() else _WIDE
    console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=width is not None)
    console.width = max(console.width, _NARROW)
    console.on_broken_pipe = _gone  # type: ignore[method-assign]  # it would end the process with a failure
    return console


def _gone() -> NoReturn:
    """Whoever read has left, which is no failure."""
    raise BrokenPipeError


def table(*columns: str, numbers: tuple[int, ...] = (), title: str | None = None) -> Table:
    """A table without lines; the columns in `numbers` stand right."""
    from rich.table import Table  # noqa: PLC0415

    made = Table(box=None, title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False)
    for place, name in enumerate(columns):
        made.add_column(name, justify="right" if place in numbers else "left", no_wrap=place == 0)
    return made


def pairs(values: Mapping[str, object], title: str | None = None) -> Table:
    """Names and what they stand for; what is None is left out."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    made = Table(box=None, title=title, title_justify="left", title_style="bold", show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column()
    for name, value in values.items():
        if value is not None:
            made.add_row(name, value if isinstance(value, Text) else Text(str(value)))
    return made


def mark(fine: bool | None, text: str = "") -> Any:
    """A tick, a cross, or a dot for what is neither, before a text."""
    from rich.text import Text  # noqa: PLC0415

    sign, style = {
        True: (drawn("✓", "ok"), "green"),
        False: (drawn("✗", "NO"), "red"),
        None: (drawn("·", "-"), "yellow"),
    }[fine]
    return Text.assemble((sign, style), f" {text}" if text else "")


def drawn(sign: str, plain: str) -> str:
    """A sign, or what stands for it where the output knows ASCII alone."""
    return sign if "utf" in (getattr(sys.stdout, "encoding", "") or "").lower() else plain


def write_json(record: object) -> None:
    """One document on stdout; what is no number to JSON is null."""
    from bitnet_benchmarks.record import as_plain  # noqa: PLC0415  # help is quicker without

    plain, indent = as_plain(record), 2 if sys.stdout.isatty() else None
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a name that is no Unicode, or a terminal that shows little of it
        text = json.dumps(plain, indent=indent, allow_nan=False)
    sys.stdout.write(text + "\n")
