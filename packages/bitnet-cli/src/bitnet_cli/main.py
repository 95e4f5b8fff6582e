"""The `bitnet` command: its table of commands, each imported when it is called, and how it ends."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence

from cyclopts import App, Group, Parameter

from . import __version__
from .failures import INTERRUPTED, exit_code, one_line
from .models import STDIN
from .settings import sources

_OFFLINE = "BITNET_OFFLINE"
_EPILOGUE = (
    "Every flag can also come from the environment, as BITNET_RUN_THREADS=4, or from a table of its command in a TOML "
    "file, as [run] threads = 4 in ~/.config/bitnet/config.toml."
)

# Help is kept here, so that the list of commands imports none of them.
_COMMANDS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Text",
        (
            ("run", "What a model says to a prompt"),
            ("chat", "A conversation"),
            ("batch", "Many prompts of a file, resumed where it stopped"),
            ("embed", "Texts as vectors"),
            ("eval", "Questions with answers: how many a model gets right"),
            ("ppl", "How surprising a model finds a text"),
            ("tokenize", "Text as a model's tokens, and back"),
            ("template", "A model's chat template, or a conversation rendered by it"),
        ),
    ),
    (
        "Models",
        (
            ("pull", "Fetch a model from the hub"),
            ("search", "Find models on the hub"),
            ("ls", "List the models on this machine"),
            ("show", "What a model is, what it needs, and whether it fits here"),
            ("rm", "Remove models from this machine"),
            ("cp", "Copy a model out of the cache"),
            ("du", "What the cache takes, and what the disk has left"),
            ("login", "Log in to the hub"),
        ),
    ),
    (
        "Files",
        (
            ("inspect", "Tensors, types and metadata of a model's files"),
            ("verify", "Look a model over for damage"),
            ("diff", "Two models side by side"),
            ("convert", "Write a model in another form, without loss"),
            ("quantize", "Make a model ternary by a recipe"),
            ("report", "What quantization cost, as a table or a page"),
        ),
    ),
    (
        "Training",
        (
            ("train", "Train as a config says"),
            ("finetune", "Teach a model with texts or conversations"),
            ("distill", "A model that learns from another's expectations"),
            ("merge", "An adapter rounded into the trits of its base"),
            ("export", "The model of a finished run in a form that others read"),
            ("config", "A config of training to begin with, or a look at one"),
            ("jobs", "Training runs and where they stand"),
        ),
    ),
    (
        "Machine",
        (
            ("doctor", "Health of hardware, packages and cache, with advice"),
            ("fit", "Memory and speed of a model on this machine"),
            ("tune", "The settings that run a model fastest here"),
            ("bench", "Measure the machine, kernels, generation, rivals and quality"),
            ("backends", "What can run models here, and why the rest cannot"),
            ("env", "Versions, folders and variables"),
            ("setup", "Settings that suit this machine"),
            ("new", "A folder to begin with: a program, a suite, a recipe"),
            ("backup", "Settings, records and models in one file"),
            ("restore", "What a backup holds, in its place again"),
            ("update", "Whether packages or models have newer versions"),
            ("completion", "The completion script of a shell"),
        ),
    ),
)


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
    names = [name for _, commands in _COMMANDS for name, _ in commands]
    app = App(
        name="bitnet",
        help="Ternary (1.58-bit) language models: run, convert, verify and measure them.",
        version=__version__,
        help_format="plaintext",
        help_epilogue=_EPILOGUE,
        default_parameter=Parameter(negative=(), show_default=_worth_showing),
        config=sources(tokens, names),
        suppress_keyboard_interrupt=False,
    )
    for place, (title, commands) in enumerate(_COMMANDS):
        group = Group(title, sort_key=place)
        for order, (name, said) in enumerate(commands):
            app.command(f"bitnet_cli.commands.{name}:{name}", name=name, help=said, group=group, sort_key=order)
    return app


def _worth_showing(value: object) -> str | None:
    return None if value in (False, None, ()) else str(value)


def _run(tokens: list[str]) -> int:
    tokens = [STDIN if word == "-" else word for word in tokens]
    command, bound, _ = build(tokens).parse_args(tokens, exit_on_error=False, print_error=False)
    flags = bound.arguments.get("flags")
    if command.__module__.startswith("bitnet_cli."):  # and not help
        _open_log()
    with _network(getattr(flags, "offline", False)):
        found = command(*bound.args, **bound.kwargs)
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
