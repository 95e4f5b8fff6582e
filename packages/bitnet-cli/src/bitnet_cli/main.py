"""The `bitnet` command: its table of commands, each imported when it is called, and how it ends."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from . import __version__, overview
from .failures import INTERRUPTED, exit_code, one_line

if TYPE_CHECKING:
    from cyclopts import App

_OFFLINE = "BITNET_OFFLINE"


def command_line() -> None:
    """The entry point."""
    sys.exit(main(sys.argv[1:]))


def main(tokens: Sequence[str]) -> int:
    """Run a command and return its exit code: 0, 1 failed, 2 bad input or usage, 130 broken off."""
    _open_streams()
    try:
        code = _run(list(tokens))
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()  # whoever read the output has had enough of it
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("\n" if sys.stderr.isatty() else "")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the last place where anything can be caught
        if "--debug" in tokens or os.environ.get("BITNET_DEBUG", "") not in ("", "0"):
            import traceback  # noqa: PLC0415  # help is quicker without

            traceback.print_exc()
        with contextlib.suppress(OSError):
            sys.stderr.write(one_line(error) + "\n")
        _drop_output()
        return exit_code(error)
    return code


def build(tokens: Sequence[str]) -> App:
    """The command line, with the sources of flags that these tokens name."""
    from cyclopts import App, Group, Parameter  # noqa: PLC0415  # 80 ms, which the list of commands does not need

    from .settings import sources  # noqa: PLC0415

    app = App(
        name="bitnet",
        help=overview.ABOUT,
        version=__version__,
        help_format="plaintext",
        help_epilogue=overview.EPILOGUE,
        default_parameter=Parameter(negative=(), show_default=_worth_showing),
        config=sources(tokens, overview.NAMES),
        suppress_keyboard_interrupt=False,
    )
    for place, (title, commands) in enumerate(overview.COMMANDS.items()):
        group = Group(title, sort_key=place)
        for name, said in commands.items():
            if name in overview.GROUPS:
                below = App(name=name, help=said, group=group, help_format="plaintext")
                for each in overview.GROUPS[name]:
                    below.command(f"bitnet_cli.commands.{name}.{each}:{each}", name=each)
                app.command(below)
            else:
                app.command(f"bitnet_cli.commands.{name}:{name}", name=name, group=group)
    return app


def _worth_showing(value: object) -> str | None:
    if value in (False, None, ()):
        return None
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _run(tokens: list[str]) -> int:
    if tokens[:1] == ["help"]:
        tokens = [*tokens[1:], "--help"]
    if (page := overview.page(tokens)) is not None:
        sys.stdout.write(page)
        return 0
    from .models import STDIN  # noqa: PLC0415  # with all that parses flags

    tokens = [STDIN if word == "-" else word for word in tokens]
    command, bound, _ = build(tokens).parse_args(tokens, exit_on_error=False, print_error=False)
    flags = bound.arguments.get("flags")
    ours = command.__module__.startswith("bitnet_cli.")
    if ours:
        _open_log()
    try:
        with _network(getattr(flags, "offline", False)):
            found = command(*bound.args, **bound.kwargs)
    except SystemExit:
        if ours:
            raise
        return 0  # help ends the process where its reader has left
    return found if isinstance(found, int) else 0


def _open_log() -> None:
    """What libraries have to say goes to stderr, a line each."""
    import logging  # noqa: PLC0415  # help is quicker without

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="bitnet: %(levelname)s: %(message)s")


@contextlib.contextmanager
def _network(offline: bool) -> Iterator[None]:
    """Whatever a command calls learns of --offline by the variable that all of them know."""
    before = os.environ.get(_OFFLINE)
    if offline:
        os.environ[_OFFLINE] = "1"
    try:
        yield
    finally:
        if offline:
            os.environ.pop(_OFFLINE)
            os.environ.update({} if before is None else {_OFFLINE: before})


def _open_streams() -> None:
    """Streams that always exist and never fail over a character, and a terminal that is not 0 columns wide."""
    if not os.environ.get("COLUMNS", "1").strip("0"):
        del os.environ["COLUMNS"]
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123  # kept open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Nothing more is written to an output that failed: Python would try once more at its end, and complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            empty = os.open(os.devnull, os.O_WRONLY)
            os.dup2(empty, sys.stdout.fileno())
            os.close(empty)
