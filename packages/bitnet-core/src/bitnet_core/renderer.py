"""The program that renders a chat template, in a process of its own that may die of it.

A template can double a string thirty times in one line. So this runs apart, with a limit on memory for its life, and
on processor time for each request; the system ends it where it passes them. Run as a script: the first line of its
input is the template, each line after it the variables of one rendering, each line of its output an answer; all JSON.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import minijinja

MEMORY_LIMIT = 64 << 20  # bytes above what the interpreter and the library take
OUTPUT_LIMIT = 1 << 20  # characters
CPU_LIMIT = 0.2  # seconds
_FUEL = 2_000_000  # instructions; the processor time runs out first on most machines
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


class Raised(Exception):
    """A conversation is refused: by the template's raise_exception, or for its length."""


def main() -> None:
    """Answer requests until the input ends."""
    _limit_memory()
    render: Callable[[dict[str, Any]], str] | None = None
    for line in sys.stdin.buffer:
        _limit_time(CPU_LIMIT)
        try:
            request = json.loads(line)
            if render is None:
                render = _compile(request)
                answer: dict[str, Any] = {}
            else:
                answer = {"text": _bounded(render(request))}
        except Exception as error:  # noqa: BLE001  whatever a template raises is an answer
            answer = {
                "got": _describe(error),
                "line": getattr(error, "line", None),
                "raised": isinstance(error, Raised),
            }
        _limit_time(0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _compile(source: str) -> Callable[[dict[str, Any]], str]:
    environment = minijinja.Environment(
        fuel=_FUEL,
        trim_blocks=True,
        lstrip_blocks=True,
        filters={"tojson": _tojson},
        tests={"iterable": _is_iterable},
        globals={"raise_exception": _raise_exception, "strftime_now": _strftime_now},
        auto_escape_callback=lambda _name: False,
    )
    # What marks the tokens to train on is of no meaning here.
    source = _GENERATION.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", source)
    environment.add_template("chat_template", source)
    return lambda variables: environment.render_template("chat_template", **variables)


def _bounded(text: str) -> str:
    if len(text) > OUTPUT_LIMIT:
        raise Raised(f"the text has {len(text)} characters, at most {OUTPUT_LIMIT} are allowed")
    return text


def _describe(error: Exception) -> str:
    if isinstance(error, minijinja.TemplateError):
        return ": ".join(part for part in (error.kind, error.detail) if part)
    return str(error) if isinstance(error, Raised) else f"{type(error).__name__}: {error}"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Unlike the library's own, it leaves < and > as they are: a model reads this, not a browser.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _is_iterable(value: Any) -> bool:
    return hasattr(value, "__iter__")


def _raise_exception(message: Any) -> None:
    raise Raised(str(message))


def _strftime_now(form: str) -> str:
    return datetime.datetime.now(tz=datetime.UTC).astimezone().strftime(form)


def _limit_memory() -> None:
    try:
        import resource  # noqa: PLC0415  absent on Windows

        with open("/proc/self/statm", encoding="ascii") as status:  # noqa: PTH123  pathlib is not loaded here
            held = int(status.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_LIMIT, held + MEMORY_LIMIT))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass  # where the system has no such limit, the time alone holds


def _limit_time(seconds: float) -> None:
    import signal  # noqa: PLC0415

    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
