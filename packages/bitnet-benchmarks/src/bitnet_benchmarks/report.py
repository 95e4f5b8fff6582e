"""Records as Markdown, as CSV, and as one HTML page with plots that fetches nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from . import panels
from .plots import Bar, Series, bars, lines
from .record import Record

_STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #1c1c1a; --soft: #6b6a65; --line: #e2e1dc;
  --one: #2f6fd0; --two: #d9622b; --three: #4b8f5a; --four: #8a63b8; --rest: #dcdbd5; }
@media (prefers-color-scheme: dark) { :root { --paper: #191918; --ink: #eeede8; --soft: #9c9b95; --line: #353431;
  --one: #6aa2f2; --two: #ef8a55; --three: #7cc08c; --four: #b294dd; --rest: #3a3936; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1080px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .2rem; }
p.note { margin: 0 0 1rem; color: var(--soft); max-width: 75ch; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem 1.6rem;
  margin: 1rem 0; }
.figures b { display: block; font-size: 1.5rem; font-weight: 600; }
.figures span { color: var(--soft); font-size: .85rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 1.2rem 2rem; }
figure { margin: 0; } figcaption { font-size: .85rem; font-weight: 600; margin-bottom: .3rem; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
svg text.value { fill: var(--ink); } .grid { stroke: var(--line); stroke-width: 1; }
.rest { fill: var(--rest); } .c0 { fill: var(--one); } .c1 { fill: var(--two); } .c2 { fill: var(--three); }
.c3 { fill: var(--four); } .s0 { stroke: var(--one); } .s1 { stroke: var(--two); } .s2 { stroke: var(--three); }
.s3 { stroke: var(--four); } .path { fill: none; stroke-width: 1.8; } .spread { stroke: var(--ink); stroke-width: 1.2; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
caption { text-align: left; color: var(--soft); padding: .4rem 0 .1rem; }
@media (max-width: 600px) { svg text { font-size: 14px; } }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--soft); font-weight: 500; white-space: normal; vertical-align: bottom; }
""".strip()
_TITLES = {
    "machine": "The machine",
    "kernels": "Kernels",
    "generate": "Generation",
    "rivals": "Rivals",
    "serve": "Serving",
    "quality": "Quality",
    "train": "Training",
}
_HEADLINES = (
    ("generate", "decode_tokens_per_s", max, "tokens a second decoded, at best"),
    ("generate", "prompt_tokens_per_s", max, "tokens a second of a prompt"),
    ("generate", "peak_bytes", max, "of memory at most"),
    ("serve", "output_tokens_per_s", max, "tokens a second served, at best"),
    ("serve", "first_p50_s", min, "to the first token, at best"),
    ("quality", "perplexity", min, "perplexity"),
    ("train", "tokens_per_s", max, "tokens a second in training"),
)
# What a table is looked at for stands before what it was made with.
_FIRST = ("figure", "engine", "threads", "depth", "batch", "decode_tokens_per_s", "prompt_tokens_per_s")
_SAID = {
    "bandwidth": "bandwidth, bytes a second",
    "throughput": "int8 by trits, multiplications a second",
    "caches": "caches, bytes a second",
}
_HIDDEN = ("prompt_runs", "decode_runs", "step_runs", "machine")
_HIDDEN_INSIDE = ("nbytes", "threads", "line")  # of what stands in another figure
_MANY = 24  # rows of a table beyond which a page is no longer read


def markdown(records: Sequence[Record]) -> str:
    """Tables, a heading for each record."""
    parts = []
    for record in records:
        parts += [f"## {_title(record)}", "", _said(record), "", *_markdown_table(rows(record)), ""]
    return "\n".join(parts)


def comma_separated(records: Sequence[Record]) -> str:
    """All figures of all records in one table: a line a figure."""
    every = [{"record": r.id, "kind": r.kind, "time": r.time, **row} for r in records for row in rows(r)]
    names = list(dict.fromkeys(name for row in every for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(every)
    return stream.getvalue()


def html(records: Sequence[Record], title: str = "Benchmarks") -> str:
    """One page that needs nothing else."""
    body = [f"<h1>{escape(title)}</h1>", *_headline(records)]
    for record in records:
        body += [f"<h2>{escape(_title(record))}</h2>", f'<p class="note">{escape(_said(record))}</p>']
        body += [*_plots(record), *_html_table(rows(record))]
    body += _history(records)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def rows(record: Record) -> list[dict[str, Any]]:
    """A record's figures as flat rows of what can be read."""
    found = []
    for figure in record.figures:
        lists = {name: value for name, value in figure.items() if _is_table(value)}
        plain = {
            n: v for n, v in figure.items() if n not in lists and n not in _HIDDEN and not isinstance(v, dict | list)
        }
        plain |= {f"failed {status}": count for status, count in figure.get("failures", {}).items()}
        if plain and len(plain) > 1:
            found.append(plain)
        for name, items in lists.items():
            found += [{"figure": name, **row} for row in (_by_case(items) if name == "cases" else map(_flat, items))]
    return found


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _by_case(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each conformance case, a column for each instruction set: microseconds for a decoded token."""
    found: dict[str, dict[str, Any]] = {}
    for item in items:
        row = found.setdefault(item["case"], {"case": item["case"]})
        row[f"{item['isa']} us"] = item["decode_us"]
        row["difference"] = max(row.get("difference", 0.0), item["difference"])
    return list(found.values())


def _flat(item: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in item.items():
        if isinstance(value, dict):
            flat |= {f"{name} {inner}": found for inner, found in value.items() if inner not in _HIDDEN_INSIDE}
        elif not isinstance(value, list):
            flat[name] = value
    return flat


def _title(record: Record) -> str:
    model = f" of {record.model['name']}" if record.model else ""
    return f"{_TITLES.get(record.kind, record.kind)}{model}"


def _said(record: Record) -> str:
    cpu = record.machine.get("cpu", {})
    cores = f"{cpu.get('usable_cores')} usable cores"
    ours = {name: version for name, version in record.versions.items() if name.startswith("bitnet")}
    alike = len(set(ours.values())) == 1
    versions = f"bitnet {next(iter(ours.values()))}" if alike else ", ".join(f"{name} {ours[name]}" for name in ours)
    when = record.time[:16].replace("T", " ") + (" UTC" if record.time.endswith("+00:00") else "")
    return f"{when}, {cpu.get('name') or cpu.get('architecture')}, {cores}; {versions}. Record {record.id}."


def number(value: Any, name: str = "") -> str:
    """A figure as it is read: four digits, and no more; its name tells its unit."""
    if value is None:
        return ""
    if isinstance(value, int | float) and name.endswith(("share", "agreement")):
        return f"{value:.1%}"
    if isinstance(value, int | float) and name.endswith(("bytes", "size")):
        return size(value)
    if isinstance(value, int | float) and _is_seconds(name):
        return f"{value:.4g} s" if abs(value) >= 1 else f"{value * 1e3:.4g} ms"
    if name == "difference":
        return f"{value:.1e}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) and abs(value) < 10**7:
        return f"{value:,}"
    if abs(value) >= 10**7:
        return f"{value / 1e9:,.2f} G"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def size(nbytes: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:,.2f} GiB"


def _is_seconds(name: str) -> bool:
    return name.endswith("_s") and not name.endswith("_per_s")


def _heading(name: str) -> str:
    """A figure's name over a column, without the unit that stands behind its values."""
    return (name.removesuffix("_s") if _is_seconds(name) else name).replace("_", " ")


def _place(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _names(table: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in table for name in row)
    return [name for name in names if any(row.get(name) is not None for row in table)]


def _markdown_table(table: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = _names(table)
    yield "| " + " | ".join(map(_heading, names)) + " |"
    yield "| " + " | ".join("---" for _ in names) + " |"
    for row in table:
        yield "| " + " | ".join(number(row.get(name), name).replace("|", "\\|") for name in names) + " |"


def _headline(records: Sequence[Record]) -> Iterator[str]:
    """The best figures of the newest run of each kind, large."""
    newest = {record.kind: record for record in records}
    boxes = []
    for kind, name, best, said in _HEADLINES:
        values = [f[name] for f in newest[kind].figures if f.get(name) is not None] if kind in newest else []
        if values:
            boxes.append(f"<div><b>{number(best(values), name)}</b><span>{said}</span></div>")
    if boxes:
        yield f'<div class="figures">{"".join(boxes)}</div>'


def _html_table(table: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in table:
        groups.setdefault(row.get("figure"), []).append(row)
    for group in groups.values():
        names = sorted(_names(group), key=_place)
        alike = [name for name in names if len(group) > 1 and len({str(row.get(name)) for row in group}) == 1]
        names = [name for name in names if name not in alike]
        said = [_SAID.get(group[0].get("figure", ""), "")]
        said += [
            f"{_heading(name)} {number(group[0][name], name)}" for name in alike if name not in ("figure", "nbytes")
        ]
        caption = f"<caption>{escape(', '.join(filter(None, said)))}</caption>" if any(said) else ""
        head = "".join(f"<th>{escape(_heading(name))}</th>" for name in names)
        cells = "".join(
            f"<tr>{''.join(f'<td>{escape(number(row.get(name), name))}</td>' for name in names)}</tr>\n"
            for row in group[:_MANY]
        )
        inside = f"{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{cells}</tbody>"
        yield f'<div class="scroll"><table>{inside}</table></div>'
        if len(group) > _MANY:
            yield f'<p class="note">and {len(group) - _MANY} rows more, which the record has</p>'


def _plots(record: Record) -> Iterator[str]:
    make = {
        "generate": _generation_plots,
        "rivals": _generation_plots,
        "machine": _machine_plots,
        "kernels": _kernel_plots,
        "serve": _serving_plots,
    }.get(record.kind)
    made = list(make(record)) if make else []
    if made:
        yield '<div class="panels">' + "".join(made) + "</div>"


def _generation_plots(record: Record) -> Iterator[str]:
    timed = [figure for figure in record.figures if figure.get("decode_runs")]
    for what, share, unit in (
        ("decode", "bandwidth_share", "tokens a second; the pale rest is what the bandwidth of memory would allow"),
        ("prompt", "throughput_share", "tokens a second; the pale rest is what multiplying without pause would allow"),
    ):
        seen: dict[str, Bar] = {}
        for figure in timed:
            label = _label(figure, what)
            seen.setdefault(label, _bar(figure, what, share, label))
        yield bars(f"{what.capitalize()}: {unit}", list(seen.values()))


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _label(figure: Mapping[str, Any], what: str) -> str:
    threads = _threads(figure["threads"])
    extra = f", depth {figure['depth']}" if what == "decode" and figure["depth"] else ""
    extra += f", batch {figure['batch']}" if what == "decode" and figure["batch"] > 1 else ""
    return f"{figure['engine']}, {threads}{extra}"


def _bar(figure: Mapping[str, Any], what: str, share: str, label: str) -> Bar:
    count = figure["prompt"] if what == "prompt" else figure["tokens"] * figure["batch"]
    speeds = [count / seconds for seconds in figure[f"{what}_runs"]]
    value, part = figure[f"{what}_tokens_per_s"], figure.get(share)
    return Bar(label, value, min(speeds), max(speeds), value / part if part else None)


def _machine_plots(record: Record) -> Iterator[str]:
    for figure in record.figures:
        read = [
            Bar(_threads(m["threads"]), m["median"] / 1e9, m["lowest"] / 1e9, m["highest"] / 1e9)
            for m in figure.get("bandwidth", [])
        ]
        kept = [
            Bar(
                f"level {c['cache']['level']} cache, 1 thread", b["median"] / 1e9, b["lowest"] / 1e9, b["highest"] / 1e9
            )
            for c in figure.get("caches", [])
            if (b := c.get("bandwidth"))
        ]
        yield bars("Reading memory: GB a second", [*read, *kept])
        yield bars(
            "Multiplying int8 by trits: G multiplications a second",
            [
                Bar(
                    f"{t['backend']}, {_threads(t['threads'])}",
                    t["median"] / 1e9,
                    t["lowest"] / 1e9,
                    t["highest"] / 1e9,
                )
                for t in figure.get("throughput", [])
            ],
        )


def _kernel_plots(record: Record) -> Iterator[str]:
    for figure in record.figures:
        wide = figure.get("wide", [])
        yield bars(
            "A wide layer: G multiplications a second, one thread",
            [Bar(w["isa"] or "any", w["multiplications_per_s"] / 1e9) for w in wide],
        )
        yield bars(
            "Its weights read for single tokens: GB a second", [Bar(w["isa"], w["bytes_per_s"] / 1e9) for w in wide]
        )


def _serving_plots(record: Record) -> Iterator[str]:
    return panels.served(record.figures)


def _history(records: Sequence[Record]) -> Iterator[str]:
    """How the same figure went over time, where there are several records of it."""
    series: dict[str, list[tuple[str, float]]] = {}
    for record in records:
        for figure in record.figures:
            if figure.get("decode_runs") and record.model:
                name = f"{record.model['name']}: {_label(figure, 'decode')}, decode tokens a second"
                series.setdefault(name, []).append((record.time, figure["decode_tokens_per_s"]))
            if figure.get("output_runs") and record.model:
                name = f"{record.model['name']}: {panels.label(figure)}, tokens a second"
                series.setdefault(name, []).append((record.time, figure["output_tokens_per_s"]))
    long = [Series(name, points) for name, points in series.items() if len(points) > 1]
    if long:
        yield "<h2>Over time</h2>"
        yield '<div class="panels">'
        yield from (lines(one.name, [one]) for one in long)
        yield "</div>"
