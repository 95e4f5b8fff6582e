"""The commands by group, a line each, and the pages that list them: nothing is imported to show these."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from . import __version__

EPILOGUE = (
    "Every flag can also come from the environment, as BITNET_RUN_THREADS=4, or from a table of its command in a TOML "
    "file, as [run] threads = 4 in ~/.config/bitnet/config.toml."
)
ABOUT = "Ternary (1.58-bit) language models: run, convert, verify and measure them."

COMMANDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Text": {
            "run": "What a model says to a prompt",
            "chat": "A conversation",
            "batch": "Many prompts of a file, resumed where it stopped",
            "embed": "Texts as vectors",
            "eval": "Questions with answers: how many a model gets right",
            "ppl": "How surprising a model finds a text",
            "tokenize": "Text as a model's tokens, and back",
            "template": "A model's chat template, or a conversation rendered by it",
        },
        "Models": {
            "pull": "Fetch a model from the hub",
            "search": "Find models on the hub",
            "ls": "List the models on this machine",
            "show": "What a model is, what it needs, and whether it fits here",
            "rm": "Remove models from this machine",
            "cp": "Copy a model out of the cache",
            "du": "What the cache takes, and what the disk has left",
            "login": "Log in to the hub",
        },
        "Files": {
            "inspect": "Tensors, types and metadata of a model's files",
            "verify": "Look a model over for damage",
            "diff": "Two models side by side",
            "convert": "Write a model in another form, without loss",
            "quantize": "Make a model ternary by a recipe",
            "report": "What quantization cost, as a table or a page",
        },
        "Training": {
            "train": "Train as a config says",
            "finetune": "Teach a model with texts or conversations",
            "distill": "A model that learns from another's expectations",
            "merge": "An adapter rounded into the trits of its base",
            "export": "The model of a finished run in a form that others read",
            "config": "A config of training to begin with, or a look at one",
            "jobs": "Training runs and where they stand",
        },
        "Server": {
            "serve": "Models over HTTP, and a page to talk to",
            "keys": "Who may use a server, and how much",
            "logs": "What a server's log tells, with advice",
        },
        "Machine": {
            "doctor": "Health of hardware, packages and cache, with advice",
            "fit": "Memory and speed of a model on this machine",
            "tune": "The settings that run a model fastest here",
            "bench": "Measure the machine, kernels, generation, servers, rivals and quality",
            "backends": "What can run models here, and why the rest cannot",
            "env": "Versions, folders and variables",
            "setup": "Settings that suit this machine",
            "new": "A folder to begin with: a program, a suite, a recipe",
            "backup": "Settings, records and models in one file",
            "restore": "What a backup holds, in its place again",
            "update": "Whether packages or models have newer versions",
            "completion": "The completion script of a shell",
        },
    }
)

# The commands that are groups of commands.
GROUPS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "keys": {
            "create": "A new key, shown this once",
            "list": "All keys, without their texts",
            "revoke": "Let a key open nothing any more, at once",
            "rotate": "A new text for a key",
            "usage": "What was used, by key and model",
            "audit": "Whether an audit log is whole",
            "bill": "What customers have used, for Stripe",
        },
        "bench": {
            "machine": "The ceilings: bandwidth of memory, multiplications, caches",
            "kernels": "Conformance cases on every instruction set",
            "generate": "Prompt and decode at depths and batches, load time, memory",
            "serve": "Load on a server: tokens a second, and how long clients wait",
            "rivals": "Beside llama.cpp, bitnet.cpp and transformers, in turns",
            "quality": "Perplexity, agreement and divergence",
            "train": "Steps of training a small model from random numbers",
            "synth": "Write a model of a real shape with random trits",
            "suite": "Run what a TOML file lists",
            "compare": "Two runs: better, worse or within noise",
            "history": "Earlier runs, as a table, as files or as a page",
        },
    }
)

NAMES = tuple(name for commands in COMMANDS.values() for name in commands)
_HELP = ("--help", "-h")
_OWN = MappingProxyType({"--help, -h": "Show this, or what a command is asked", "--version": "Show the version"})


def page(tokens: Sequence[str]) -> str | None:
    """What is shown where commands are to be listed, or the version; None where a command is called."""
    if list(tokens) == ["--version"]:
        return f"{__version__}\n"
    words = [word for word in tokens if word not in _HELP]
    if len(words) == 0:
        listed: Mapping[str, Mapping[str, str]] = {**COMMANDS, "Flags": _OWN}
        return "\n".join(_lines("bitnet", ABOUT, listed)) + "\n"
    if len(words) == 1 and words[0] in GROUPS:
        said = next(commands[words[0]] for commands in COMMANDS.values() if words[0] in commands)
        return "\n".join(_lines(f"bitnet {words[0]}", f"{said}.", {"Commands": GROUPS[words[0]]})) + "\n"
    return None


def _lines(name: str, about: str, listed: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    import textwrap  # noqa: PLC0415  # a command has no use for it

    columns = _columns()
    yield from textwrap.wrap(f"{_bold('Usage:')} {name} COMMAND [ARGUMENTS]", columns)
    yield ""
    yield from textwrap.wrap(about, columns)
    width = max(len(each) for commands in listed.values() for each in commands)
    for title, commands in listed.items():
        yield ""
        yield _bold(title)
        for each, said in commands.items():
            first, later = f"  {each:{width}}  ", " " * (width + 4)
            yield from textwrap.wrap(said, columns, initial_indent=first, subsequent_indent=later)
    yield ""
    yield from textwrap.wrap(f"{name} COMMAND --help says what a command is asked. {EPILOGUE}", columns)


def _columns() -> int:
    """How wide the lines may be: what the terminal says, between what can be read and what is pleasant."""
    said = os.environ.get("COLUMNS", "")
    try:
        columns = int(said) if said.isdecimal() else os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # no terminal, or a number of any length
        columns = 80
    return min(max(columns, 40), 100)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() and os.environ.get("TERM") != "dumb" else text
