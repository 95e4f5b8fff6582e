"""`bitnet logs`: what a server's log tells."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..amounts import Span, ago, amount, duration
from ..console import FLAGS, Flags, drawn, pairs, screen, table
from ..failures import Refused, shown
from ..models import STDIN

if TYPE_CHECKING:
    from ..advice import Advice
    from ..loglines import Damage, Line
    from ..traffic import Course, Groups, Tally, Traffic

_ROWS = 8  # of a table; --json has more
_COLUMNS = 24  # of the course over time
_BAR = 24


def logs(
    *file: Annotated[str, Parameter(help="Logs that bitnet serve --log writes, the oldest first; stdin by default.")],
    since: Span | None = None,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """What a server's log tells of requests, speed, refusals and errors, with advice; .gz files are read, too.

    Parameters
    ----------
    since
        Only what is younger, as 2h or 7d.
    follow
        Show lines for people as they are written, until Ctrl-C; a file may be moved away meanwhile.
    """
    begin = None if since is None else time.time() - since
    if follow:
        if flags.json:
            raise Refused("logs: --follow shows lines without an end, and --json is one document; leave one out")
        if len(file) > 1:
            raise Refused("logs: --follow looks at one file")
        _show_lines(file[0] if file else STDIN, begin)
    else:
        _analyse(file or (STDIN,), begin, flags)


def _analyse(files: tuple[str, ...], begin: float | None, flags: Flags) -> None:
    from ..advice import advise  # noqa: PLC0415
    from ..loglines import Damage, read  # noqa: PLC0415
    from ..traffic import Traffic  # noqa: PLC0415

    traffic, damage, older, latest = Traffic(), Damage(), 0, 0.0
    for name in files:
        place = "line" if len(files) == 1 else f"{name}:"
        for number, line in read(name, damage):
            if begin is not None and line.when < begin:
                older, latest = older + 1, max(latest, line.when)
            else:
                traffic.add(line, f"{place} {number}" if len(files) == 1 else f"{place}{number}")
    if damage.count and not traffic.lines and not older:
        name, number, why = damage.named[0]
        raise Refused(f"{name}:{number}: expected lines of bitnet serve's log, got none in {damage.count}: {why}")
    _tell_damage(damage, flags)
    if older and not traffic.lines:
        flags.remark(f"all lines are older; the last one was written {ago(latest)}")
    found = advise(traffic)
    flags.answer(_record(traffic, damage, found), *_pages(traffic, found))


def _tell_damage(damage: Damage, flags: Flags) -> None:
    """Damaged lines by their numbers."""
    if damage.count:
        named = ", ".join(f"{name}:{number}" for name, number, _ in damage.named[:_ROWS])
        more = f" and {damage.count - _ROWS:,} more" if damage.count > _ROWS else ""
        whole = "1 damaged line is" if damage.count == 1 else f"{damage.count:,} damaged lines are"
        flags.remark(f"{whole} left out: {shown(named, 400)}{more} ({shown(damage.named[0][2], 120)})")


def _record(traffic: Traffic, damage: Damage, found: list[Advice]) -> dict[str, Any]:
    return {
        "lines": traffic.lines,
        "damaged": {
            "count": damage.count,
            "named": [{"file": name, "line": number, "why": why} for name, number, why in damage.named],
        },
        "from": _stamp(traffic.first),
        "to": _stamp(traffic.last),
        "all": traffic.all.record(),
        "by": {name: groups.record() for name, groups in traffic.by.items()},
        "over_time": [
            {"from": _stamp(begin), "seconds": width, "requests": one.requests, "failed": one.failed,
             "completion_tokens": one.completion_tokens}
            for begin, width, one in traffic.course.columns(_COLUMNS)
        ],
        "finish": dict(traffic.finishes.most_common()),
        "slowest": [_request(line) for line in traffic.slowest],
        "refused_without_a_line": dict(traffic.turned_away.most_common()),
        "errors": traffic.faults,
        "server": {"starts": traffic.starts, "crashes": traffic.crashes, "unloads": dict(traffic.unloads),
                   "lines_lost": traffic.lost},
        "advice": found,
    }  # fmt: skip


def _request(line: Line) -> dict[str, Any]:
    names = ("id", "status", "code", "model", "tenant", "method", "path", "seconds", "queue_s", "first_token_s",
             "prompt_tokens", "cached_tokens", "completion_tokens")  # fmt: skip
    return {"time": _stamp(line.when)} | {name: getattr(line, name) for name in names}


def _pages(traffic: Traffic, found: list[Advice]) -> list[Any]:
    """All that is to be seen, with a line between."""
    parts = [_summary(traffic)]
    if traffic.all.requests:
        parts += [_spreads(traffic), _course(traffic.course)]
        # One row says what the summary has said.
        parts += [_groups(name, groups) for name, groups in traffic.by.items() if len(groups.items()) > 1]
        parts += [_refusals(traffic)] if traffic.all.failed or traffic.turned_away else []
        parts += [_slowest(traffic)]
    parts += [_faults(traffic)] if traffic.faults else []
    parts += [_advice(found)] if traffic.lines else []
    return [line for part in parts for line in (part, "")][:-1]


def _summary(traffic: Traffic) -> Any:
    tally, span = traffic.all, traffic.span
    if not traffic.lines:
        return "no lines"
    busy = tally.seconds.total / span
    said = {
        "lines": f"{traffic.lines:,}, {_local(traffic.first)} to {_local(traffic.last)} ({duration(span)})",
        "requests": f"{tally.requests:,}, {_rate(tally.requests, span)}; {busy:.2g} at once on average",
        "failed": f"{tally.failed:,} ({tally.failed / tally.requests:.1%})" if tally.failed else "none",
        "tokens": f"{amount(tally.prompt_tokens)} read, {_part(tally.cached_tokens, tally.prompt_tokens)} of them from "
        f"the cache; {amount(tally.completion_tokens)} written, {tally.completion_tokens / span:,.1f} a second",
        "server": f"started {traffic.starts} times" if traffic.starts > 1 else None,
    }
    if not tally.requests:
        said |= {"requests": "none", "failed": None, "tokens": None}
    return pairs(said)


def _rate(count: int, span: float) -> str:
    for seconds, name in ((1, "second"), (60, "minute"), (3600, "hour")):
        if count * seconds / span >= 1:
            return f"{count * seconds / span:,.1f} a {name}"
    return f"{count * 86400 / span:,.1f} a day"


def _spreads(traffic: Traffic) -> Any:
    made = table("seconds", "p50", "p90", "p95", "p99", "max", numbers=(1, 2, 3, 4, 5))
    for name, spread, unit in (
        ("answer", traffic.all.seconds, duration),
        ("in the queue", traffic.all.queue_s, duration),
        ("first token", traffic.all.first_token_s, duration),
        ("tokens/s of one", traffic.all.tokens_per_s, lambda value: f"{value:,.1f}"),
    ):
        if spread.count:
            made.add_row(name, *(unit(spread.at(share) or 0.0) for share in (0.5, 0.9, 0.95, 0.99, 1)))
    made.columns[0].header = ""
    return made


def _course(course: Course) -> Any:
    from rich.text import Text  # noqa: PLC0415

    columns = list(course.columns(_COLUMNS))
    width = columns[0][1]
    made = table(
        f"each {width} s" if width < 60 else f"each {duration(width)}",
        "requests",
        "",
        "failed",
        "tokens/s",
        numbers=(1, 3, 4),
    )
    most = max(one.requests for _, _, one in columns)
    form = "%H:%M:%S" if width < 60 else "%Y-%m-%d %H:%M" if width < 86400 else "%Y-%m-%d"
    for begin, seconds, one in columns:
        length = round(_BAR * one.requests / most)
        bad = min(length, round(_BAR * one.failed / most)) or min(1, one.failed)
        bar = Text(drawn("━", "#") * max(0, length - bad), style="cyan")
        bar.append(drawn("━", "!") * bad, style="red")
        failed = f"{one.failed:,}" if one.failed else ""
        tokens = f"{one.completion_tokens / seconds:,.1f}" if one.completion_tokens else ""
        made.add_row(_local(begin, form), f"{one.requests:,}", bar, failed, tokens)
    return made


def _groups(name: str, groups: Groups) -> Any:
    """The names with most requests; a column that would be empty for all of them is left out."""
    rows = groups.items()
    said = [_told(one) for _, one in rows[:_ROWS]]
    columns = [column for column in said[0] if any(row[column] for row in said)]
    made = table(name, *columns, numbers=tuple(range(1, len(columns) + 1)))
    for (group, _), row in zip(rows, said, strict=False):
        made.add_row(shown(group.removeprefix("POST "), 48), *(row[column] for column in columns))
    return _counted(made, len(rows))


def _told(one: Tally) -> dict[str, str]:
    """A tally by the columns of a table."""
    first = one.first_token_s
    return {
        "requests": f"{one.requests:,}",
        "failed": f"{one.failed:,}" if one.failed else "",
        **{f"p{share}": duration(one.seconds.at(share / 100) or 0.0) for share in (50, 99)},
        **{f"first p{share}": duration(first.at(share / 100) or 0.0) if first.count else "" for share in (50, 99)},
        "read": amount(one.prompt_tokens, 0) if one.prompt_tokens else "",
        "written": amount(one.completion_tokens, 0) if one.completion_tokens else "",
        "tokens/s": f"{one.tokens_per_s.at(0.5):,.1f}" if one.tokens_per_s.count else "",
    }


def _refusals(traffic: Traffic) -> Any:
    made = table("refused or failed", "requests", "most of them by", numbers=(1,))
    for code, count in traffic.all.codes.most_common(_ROWS):
        by = "key" if code not in ("invalid_api_key", "forbidden") else "address"
        who, most = max(((name, tally.codes[code]) for name, tally in traffic.by[by].items()), key=lambda row: row[1])
        made.add_row(shown(code, 48), f"{count:,}", f"{by} {shown(who, 48)}: {most:,}")
    for reason, count in traffic.turned_away.most_common(_ROWS):
        made.add_row(shown(reason, 48), f"{count:,}", "not written down one by one")
    return made


def _slowest(traffic: Traffic) -> Any:
    made = table("slowest", "took", "first token", "read", "written", "status", "model", "", numbers=(1, 2, 3, 4, 5))
    form = "%H:%M:%S" if traffic.span < 86400 else "%Y-%m-%d %H:%M:%S"
    for line in traffic.slowest[:_ROWS]:
        first = "" if line.first_token_s is None else duration(line.first_token_s)
        counts = ("" if count is None else f"{count:,}" for count in (line.prompt_tokens, line.completion_tokens))
        model = shown(line.model or line.path or "", 32)
        made.add_row(
            _local(line.when, form),
            duration(line.seconds or 0),
            first,
            *counts,
            str(line.status),
            model,
            shown(line.id or "", 48),
        )
    return made


def _faults(traffic: Traffic) -> Any:
    made = table("level", "count", "last", "first at", "what", numbers=(1,))
    for fault in traffic.faults[:_ROWS]:
        what = shown(": ".join(filter(None, (fault.error, fault.message))), 160)
        place = f" at {shown(fault.at, 80)}" if fault.at else ""
        made.add_row(fault.level, f"{fault.count:,}", _local(fault.last), fault.line, f"{what}{place}")
    return _counted(made, len(traffic.faults))


def _counted(made: Any, rows: int) -> Any:
    if rows > _ROWS:
        made.caption, made.caption_justify = f"{rows - _ROWS} more; --json has them", "left"
    return made


def _advice(found: list[Advice]) -> Any:
    from rich.text import Text  # noqa: PLC0415

    if not found:
        return Text.assemble((drawn("✓", "ok"), "green"), " nothing to advise")
    made = table("", "", title="Advice")
    made.show_header = False
    for one in found:
        made.add_row(Text(one.about, style="yellow"), Text.assemble(one.seen, "\n", (one.advice, "green")))
    return made


def _show_lines(source: str, begin: float | None) -> None:
    from rich.text import Text  # noqa: PLC0415

    from ..loglines import follow  # noqa: PLC0415

    console = screen(sys.stdout)
    for line in follow(source, whole=begin is not None):
        if isinstance(line, str):
            console.print(Text(shown(line, 400), style="dim"))
        elif begin is None or line.when >= begin:
            console.print(_for_people(line))
        sys.stdout.flush()


def _for_people(line: Line) -> Any:
    """A line of the log, as a line for people."""
    from rich.text import Text  # noqa: PLC0415

    made = Text(_local(line.when, "%H:%M:%S "), style="dim", no_wrap=True)
    if not line.is_request:
        style = {"warning": "yellow", "error": "red", "critical": "red bold"}.get(line.level, "")
        rest = [line.error, line.at[-1] if line.at else None, line.reason, line.count and f"{line.count:,}"]
        rest += [", ".join(line.models or ())]
        said = "  ".join(str(part) for part in rest if part)
        return made.append(f"{line.level:8}", style).append(shown(f"{line.message}  {said}".strip(), 400), "")
    status = line.status or 0
    style = "red" if status >= 500 or (line.code and status < 400) else "yellow" if status >= 400 else "green"
    made.append(f"{status} ", style)
    made.append(shown(f"{line.method} {line.path}", 120), "")
    made.append(f"  {duration(line.seconds or 0)}", "bold")
    if line.first_token_s is not None:
        made.append(f"  first token {duration(line.first_token_s)}", "")
    if line.model is not None:
        cached = f" ({line.cached_tokens:,} cached)" if line.cached_tokens else ""
        made.append(f"  {line.prompt_tokens or 0:,}{cached} + {line.completion_tokens or 0:,} tokens", "")
    for part in (line.model, line.code):
        made.append(f"  {shown(part, 60)}" if part else "", "cyan" if part is line.model else style)
    who = "  ".join(shown(part, 60) for part in (line.tenant, line.address) if part)
    return made.append(f"  {who}", "dim")


def _part(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _stamp(when: float | None) -> str | None:
    from datetime import UTC  # noqa: PLC0415

    return None if when is None else datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")


def _local(when: float | None, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time as clocks here show it."""
    return "" if when is None else datetime.fromtimestamp(when).astimezone().strftime(form)
