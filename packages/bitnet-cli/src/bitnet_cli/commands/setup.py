"""`bitnet setup`: settings that suit this machine, asked for one by one."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from .. import models, settings
from ..console import FLAGS, Flags, mark, table
from ..failures import Failed, Refused
from ..health import checks

_COMMANDS = ("run", "chat", "batch", "embed", "eval", "ppl")


def setup(
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"])] = False,
    model: str | None = None,
    force: Annotated[bool, Parameter(name=["--force", "-f"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """Look at this machine, ask what is to be usual, and write the file of settings.

    Parameters
    ----------
    yes
        Ask nothing: what suits the machine.
    model
        The model that run and chat take when none is named.
    force
        Write over a file of settings that is there.
    """
    path = settings.default_file()
    if path is None:
        raise Failed("setup: there is no home to keep settings in: set XDG_CONFIG_HOME")
    if path.exists() and not force:
        raise Refused(f"{path}: is there already; --force writes over it")
    if not yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Refused("setup: there is no terminal to ask on: --yes takes what suits the machine")
    if model is not None and not models.is_local(model):
        models.check_name(model)
    wrong = [check for check in checks(measure=False) if check.fine is False]
    chosen = _usual(model)
    if not yes:
        chosen = _ask(chosen)
    text = _toml(chosen)
    from bitnet_core.durable import replacing  # noqa: PLC0415

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as stream:
        stream.write(text.encode())
    listed = table("setting", "")
    for name, value in chosen.items():
        listed.add_row(name, str(value))
    record = {"file": path, "settings": chosen, "problems": wrong}
    flags.answer(record, listed, mark(not wrong, f"{path}" + (f"; see to: {wrong[0].said}" if wrong else "")))


def _usual(model: str | None) -> dict[str, Any]:
    from bitnet_core import backends, device  # noqa: PLC0415

    cpu = device.cpu()
    threads = min(cpu.usable_cores, cpu.physical_cores or cpu.usable_cores)
    found: dict[str, Any] = {"backend": backends.get().name, "threads": threads}
    return found if model is None else found | {"model": model}


def _ask(usual: dict[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name in ("backend", "threads", "model"):
        offered = usual.get(name)
        said = input(f"{name} [{offered if offered is not None else 'the small built-in one'}]: ").strip()
        value: Any = said or offered
        if name == "threads" and said:
            if not said.isdecimal() or not 1 <= int(said) <= 1024:
                raise Refused(f"threads: expected a number of 1..1024, got '{said}'")
            value = int(said)
        if name == "backend":
            models.backend(str(value))
        if value is not None:
            chosen[name] = value
    return chosen


def _toml(chosen: dict[str, Any]) -> str:
    import json  # noqa: PLC0415  # a text of JSON is one of TOML

    tables = []
    for command in _COMMANDS:
        names = [name for name in chosen if name != "model" or command in ("run", "chat")]
        tables.append("\n".join([f"[{command}]", *(f"{name} = {json.dumps(chosen[name])}" for name in names)]))
    return "\n\n".join(tables) + "\n"
