"""Pipes that close, terminals that are not there, homes that cannot be written: as a process, as users run it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import Bitnet

from bitnet_cli import overview

HEAVY = {"numpy", "huggingface_hub", "prompt_toolkit", "torch", "transformers", "tokenizers", "llguidance", "psutil",
         "starlette", "uvicorn"}  # fmt: skip
COMMAND = [sys.executable, "-c", "from bitnet_cli.main import command_line; command_line()"]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    settings: dict[str, Any] = {"capture_output": True, "timeout": 60, "stdin": subprocess.DEVNULL}
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **settings | options)


def test_a_reader_that_leaves_early_is_no_failure(stories: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("word " * 50_000)
    process = subprocess.Popen(
        [*COMMAND, "tokenize", str(stories), "--file", str(text)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert said == b""


@pytest.mark.parametrize("asked", ["--help", "run --help", "env", "logs - --follow"])
def test_a_reader_that_is_gone_already_is_no_failure(asked: str) -> None:
    line = '{"time": "2026-11-20T12:00:00Z", "level": "info", "logger": "x", "message": "y"}\n'
    reader, writer = os.pipe()
    os.close(reader)
    done = run(
        *asked.split(), stdout=writer, capture_output=False, stderr=subprocess.PIPE, stdin=None, input=line.encode()
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_pipe_that_says_nothing_is_told_of() -> None:
    command = [*COMMAND, "run", "Once upon a time", "-n", "2", "--offline"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"waiting for a prompt from stdin; </dev/null is none\n"
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith(b"Once upon a time")


def test_a_command_of_the_shell_is_read_like_a_file(stories: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"Once upon a time")
    os.close(writer)
    done = run("tokenize", stories, "--file", f"/dev/fd/{reader}", "--count", pass_fds=[reader])
    os.close(reader)
    assert (done.returncode, done.stdout) == (0, b"5\n"), done.stderr


def test_a_full_disk_behind_stdout_is_said(stories: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    with Path("/dev/full").open("wb") as full:
        done = run("tokenize", stories, "x", stdout=full, capture_output=False, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"no space left" in done.stderr.lower()


def test_closed_streams_are_survived(stories: Path) -> None:
    line = f"{sys.executable} -c 'from bitnet_cli.main import command_line; command_line()' "
    for closed in ("<&- >&- 2>&-", "<&-", ">&-"):
        done = subprocess.run(
            ["sh", "-c", f"{line} tokenize {stories} hello --count {closed}"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("locale", ["C", "POSIX", "de_DE.ISO-8859-1", "no_such"])
def test_any_locale_will_do(locale: str, stories: Path) -> None:
    environment = os.environ | {"LC_ALL": locale, "LANG": locale}
    done = run("tokenize", stories, "Zoë 🐈", env=environment)
    assert done.returncode == 0, done
    done = run("show", stories, env=environment | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done
    assert done.stdout.isascii()


def test_a_home_that_cannot_be_written_is_enough(stories: Path, tmp_path: Path) -> None:
    home = tmp_path / "locked"
    home.write_text("no folder at all")  # not even the administrator makes folders in a file
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "HF_"))}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for arguments in (
        ("ls",),
        ("show", stories),
        ("run", "--prompt", "Once", "-n", "2"),
        ("bench", "generate", stories, "-p", "8", "-n", "2", "-r", "1", "-t", "1"),
    ):
        done = run(*arguments, env=environment)
        assert done.returncode == 0, (arguments, done)
        assert b"Traceback" not in done.stderr
    del environment["HOME"]
    assert run("ls", "--json", env=environment | {"HF_HOME": str(tmp_path / "hub")}).returncode == 0


def test_an_interrupt_ends_it_with_130() -> None:
    process = subprocess.Popen(
        [*COMMAND, "tokenize", str(Path(__file__).parents[3] / "models" / "stories")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 30
    while "read" not in _state(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


def _state(pid: int) -> str:
    """What a process waits in, where the system tells."""
    try:
        return "read" if "pipe" in Path(f"/proc/{pid}/wchan").read_text() else _slept(pid)
    except OSError:
        return "read"


def _slept(pid: int) -> str:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # It sleeps and has used processor time enough to have loaded everything.
    return "read" if fields[0] == "S" and int(fields[11]) > 40 else ""


@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"], ["--version"], ["bench"], ["bench", "--help"], ["keys"]])
def test_help_is_quick_and_imports_little(asked: list[str]) -> None:
    script = f"import sys; from bitnet_cli.main import main; main({asked}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    loaded = set(done.stderr.decode().split())
    assert not loaded & HEAVY
    assert not loaded & {"cyclopts", "rich", "msgspec", "bitnet_core", "bitnet_quant"}
    assert done.stdout.endswith(b"\n")


@pytest.mark.parametrize(
    "command", ["run", "convert", "train", "serve", "logs", "doctor", "bench generate", "keys create"]
)
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    asked = [*command.split(), "--help"]
    script = f"import sys; from bitnet_cli.main import main; main({asked}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert not set(done.stderr.decode().split()) & HEAVY
    assert f"bitnet {command} ".encode() in done.stdout


def test_every_command_is_listed_and_can_be_called(bitnet: Bitnet) -> None:
    listed = bitnet(online=True).out
    for commands in overview.COMMANDS.values():
        for name, said in commands.items():
            assert f"\n  {name}" in listed
            assert said in listed
            assert bitnet(name, "--help", online=True).code == 0
    for group, commands in overview.GROUPS.items():
        below = bitnet(group, "-h", online=True).out
        for name, said in commands.items():
            assert said in below
            assert bitnet(group, name, "--help", online=True).code == 0


def test_every_flag_says_what_it_is_for(bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    commands = [name for listed in overview.COMMANDS.values() for name in listed if name not in overview.GROUPS]
    below = [f"{group} {name}" for group, listed in overview.GROUPS.items() for name in listed]
    for command in (*commands, *below):
        shown = bitnet(*command.split(), "--help", online=True).out
        rows = [line.strip("│* ") for line in shown.splitlines() if line.startswith("│")]
        assert rows
        for row in rows:
            flag, _, said = row.partition("  ")
            assert said.strip()[:1] not in ("", "["), f"bitnet {command}: {flag}"


def on_terminal(arguments: list[str], typed: bytes = b"", **environment: str) -> tuple[int, bytes]:
    """Runs the command on a terminal of its own; gives the exit code and what was shown."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
        | {"TERM": "xterm", **environment},
        start_new_session=True,
    )
    os.close(slave)
    shown = b""
    sent = not typed
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not part:
            break
        shown += part
        if not sent and b">>>" in shown:
            os.write(master, typed)
            sent = True
    os.close(master)
    return process.wait(timeout=60), shown


def test_colours_are_for_terminals_and_can_be_refused(stories: Path) -> None:
    code, shown = on_terminal(["backends"])
    assert code == 0
    assert b"\x1b[" in shown
    assert b"\x1b[3" not in on_terminal(["backends"], NO_COLOR="1")[1]
    assert b"\x1b[" not in run("backends").stdout


def test_a_chat_on_a_terminal() -> None:
    code, shown = on_terminal(["chat", "-n", "5", "--offline"], typed=b"Hello\r/stats\r/nonsense\r/exit\r")
    assert code == 0, shown
    assert b"tokens read" in shown
    assert b"there is no such command" in shown


@pytest.mark.parametrize("columns", ["1", "20", "0", "-5", "many", "100000"])
def test_any_width_will_do(columns: str, stories: Path) -> None:
    for arguments in (("show", stories), ("--help",), ("inspect", stories, "--tensors")):
        done = run(*arguments, env=os.environ | {"COLUMNS": columns, "LINES": "1"})
        assert done.returncode == 0, done
        assert b"Traceback" not in done.stderr


def test_a_temporary_folder_that_is_not_there_is_no_obstacle(stories: Path, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path / "nowhere"), "TMP": "/nowhere", "TEMP": "/nowhere"}
    for arguments in (("show", stories), ("run", "--prompt", "Once", "-n", "2"), ("doctor", "--no-measure")):
        done = run(*arguments, env=environment)
        assert done.returncode in (0, 1), (arguments, done)
        assert b"Traceback" not in done.stderr


def test_commands_flags_and_choices_are_completed() -> None:
    def offered(*words: str) -> set[str]:
        done = run("__complete", *words)
        assert done.returncode == 0, done
        lines = done.stdout.decode().partition("\x1fbegin\n")[2].splitlines()
        return {line.partition("\t")[0] for line in lines}

    assert run("completion", "bash").stdout.startswith(b"#")
    assert offered("convert", "--to", "") >= {"i2_s", "tq2_0"} or b"tq2_0" in run("completion", "bash").stdout
