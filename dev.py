"""Set-up and commands in one: `python3 dev.py run "Once upon a time"` writes text, `python3 dev.py test` tests.

The commands are the scripts of `[tool.hatch.envs]` in pyproject.toml, so hatch runs the same ones (`hatch run test`).
This file only spares a bare machine hatch: it needs Python 3.11 or later with pip, and puts each environment
into .venv/ the first time, and again when what it is made from has changed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
BIN = "Scripts" if os.name == "nt" else "bin"
OLDEST = (3, 11)


class Failure(Exception):
    """What ends a command in one line: the code is 2 for a wrong call, 1 for a step that failed."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Environment:
    """A row of `[tool.hatch.envs]`, and the folder that it is installed in."""

    def __init__(self, name: str, table: dict) -> None:  # type: ignore[type-arg]  # as TOML has it
        self.name = name
        self.table = table
        self.folder = ROOT / ".venv" / name
        self.python = self.folder / BIN / ("python.exe" if os.name == "nt" else "python")
        patterns = table.get("workspace", {}).get("members", [])
        self.members = sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_dir())

    def fingerprint(self) -> str:
        """Changes when the environment must be made again."""
        table = {key: value for key, value in self.table.items() if key != "scripts"}
        state = hashlib.sha256(json.dumps([table, sys.version, sys.base_prefix], sort_keys=True).encode())
        made_from = ("pyproject.toml", "hatch_build.py", "CMakeLists.txt", "cpp/*")  # what is compiled is made once
        found = (path for member in self.members for name in made_from for path in sorted(member.glob(name)))
        for path in [ROOT / "constraints.txt", *filter(Path.is_file, found)]:
            state.update(path.read_bytes())
        return state.hexdigest()

    def prepare(self) -> None:
        """Install what is missing; nothing at all the second time."""
        stamp = self.folder / "made-from"
        wanted = self.fingerprint()
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        say(f"making .venv/{self.name} with pip; this happens once, until what it is made from changes")
        start = time.monotonic()
        pip = self.create()
        arguments = list(self.table.get("dependencies", []))
        if "PIP_CONSTRAINT" in self.table.get("env-vars", {}):
            arguments += ["-c", str(ROOT / "constraints.txt")]
        for member in self.members:
            arguments += ["-e", str(member)]
        # -qq keeps pip's warnings about sources that lack a package out of sight, and its errors are shown below.
        command = [*pip, "install", "-qq", "--no-input", "--disable-pip-version-check", *arguments]
        plain = {name: value for name, value in self.table.get("env-vars", {}).items() if "{" not in value}
        done = subprocess.run(command, env=os.environ | plain, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(done.stderr.strip(), file=sys.stderr)
            raise Failure(f"pip could not install what .venv/{self.name} needs; its own words are above")
        stamp.write_text(wanted)
        say(f"made .venv/{self.name} in {time.monotonic() - start:.0f} s")

    def create(self) -> list[str]:
        """An empty environment, and the pip command that installs into it."""
        own_pip = pip_version() >= (22, 3)  # the first that installs for another interpreter
        if not own_pip and importlib.util.find_spec("ensurepip") is None:
            raise Failure(
                "this Python has no pip 22.3 or later and no ensurepip; on Debian and Ubuntu: apt install python3-venv",
                2,
            )
        venv.EnvBuilder(clear=True, symlinks=os.name != "nt", with_pip=not own_pip).create(self.folder)
        return (
            [sys.executable, "-m", "pip", "--python", str(self.python)] if own_pip else [str(self.python), "-m", "pip"]
        )

    def run(self, command: list[str]) -> int:
        """Run one command of this environment; the exit code, 128 and more for a signal."""
        variables = dict(os.environ, VIRTUAL_ENV=str(self.folder), PYTHONUTF8="1")
        variables["PATH"] = str(self.folder / BIN) + os.pathsep + os.environ.get("PATH", "")
        variables.pop("PYTHONHOME", None)
        program = shutil.which(command[0], path=str(self.folder / BIN))
        if program is None:
            raise Failure(f".venv/{self.name} has no {command[0]}; remove the folder to have it made again")
        process = subprocess.Popen([program, *command[1:]], cwd=ROOT, env=variables)
        while True:
            try:
                code = process.wait()
                return 128 - code if code < 0 else code
            except KeyboardInterrupt:
                pass  # the child was sent it too, and ends in its own way


def say(text: str) -> None:
    """One line for the person; standard output belongs to the command."""
    print(f"dev.py: {text}", file=sys.stderr, flush=True)


def pip_version() -> tuple[int, ...]:
    """Of the pip of the Python that runs this; (0,) where there is none."""
    try:
        return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("pip"))[:2])
    except importlib.metadata.PackageNotFoundError:
        return (0,)


def commands() -> dict[str, tuple[Environment, list[str]]]:
    """Every command by name: where it runs, and its lines."""
    import tomllib  # noqa: PLC0415  # Pythons that lack it are told so by name first

    with (ROOT / "pyproject.toml").open("rb") as file:
        tables = tomllib.load(file)["tool"]["hatch"]["envs"]
    found = {}
    for name, table in tables.items():
        environment = Environment(name, table)
        for script, lines in table.get("scripts", {}).items():
            found[script] = (environment, [lines] if isinstance(lines, str) else lines)
    return found


def main(arguments: list[str]) -> int:
    """Make the environment of the command that is asked for, and run it."""
    if sys.version_info < OLDEST:
        raise Failure(f"Python {OLDEST[0]}.{OLDEST[1]} or later is needed, this is {sys.version.split()[0]}", 2)
    known = commands()
    if not arguments or arguments[0] not in known:
        asked = f"no command {arguments[0]!r}" if arguments else "no command given"
        raise Failure(f"{asked}; there are: {', '.join(known)}", 2)
    environment, lines = known[arguments[0]]
    environment.prepare()
    for line in lines:
        given = arguments[1:] if "{args}" in line else []
        code = environment.run([*shlex.split(line.replace("{args}", "")), *given])
        if code:
            return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(failure.code)
    except KeyboardInterrupt:
        sys.exit(130)
