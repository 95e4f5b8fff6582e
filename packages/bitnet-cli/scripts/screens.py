"""Pictures of the command as users see it, made by running it on a terminal: `python screens.py FOLDER [NAME...]`.

Each is an SVG that fetches nothing; pages are photographed where Chromium is installed. It needs pyte and rich.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[3]
COLUMNS, ROWS = 100, 90
_QUIET = 0.6  # seconds without output after which a program waits for its user
_THEME = TerminalTheme(
    (250, 250, 248),
    (40, 40, 38),
    [(60, 60, 58), (190, 60, 50), (60, 130, 70), (170, 120, 30), (47, 111, 208), (130, 90, 180), (40, 130, 140),
     (140, 140, 136)],
    [(110, 110, 106), (210, 90, 70), (80, 150, 90), (190, 140, 50), (80, 130, 220), (150, 110, 200), (60, 150, 160),
     (60, 60, 58)],
)  # fmt: skip
_OUTSIDE = re.compile(r"@font-face\s*{.*?}\s*|<!--.*?-->\s*", re.DOTALL)  # what would be fetched, or is said of others


@dataclass(frozen=True)
class Scene:
    """A command, and what is typed while it runs."""

    command: str
    typed: Sequence[str] = ()


SCENES: Mapping[str, Scene] = MappingProxyType(
    {
        "help": Scene("bitnet --help"),
        "doctor": Scene("bitnet doctor"),
        "show": Scene("bitnet show stories"),
        "run": Scene('bitnet run --prompt "Once upon a time" -n 60 --seed 3 --stats'),
        "chat": Scene(
            "bitnet chat -n 40 --seed 5",
            ("Once upon a time there was a cat.", "/fork", "The cat saw a big dog.", "/stats", "/back", "/exit"),
        ),
        "convert": Scene("bitnet convert stories stories.gguf --to tq2_0"),
        "verify": Scene("bitnet verify stories.gguf --against stories --backend cpu"),
        "inspect": Scene("bitnet inspect stories.gguf"),
        "fit": Scene("bitnet fit stories --measure --threads 1"),
        "bench-machine": Scene("bitnet bench machine"),
        "bench-generate": Scene("bitnet bench generate stories --prompt 256 --tokens 64 --threads 1 --batches 1,4,16"),
        "bench-compare": Scene("bitnet bench compare last-1 last"),
        "logs": Scene("bitnet logs serve.log"),
        "refused": Scene("bitnet run stories --thraeds 2; bitnet run stories --threads many; bitnet verify noise.gguf"),
    }
)


def main() -> None:
    """Make all pictures, or those that are named."""
    folder, wanted = Path(sys.argv[1]).resolve(), sys.argv[2:]
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(ROOT / "models" / "stories", Path(place) / "stories")
        (Path(place) / "noise.gguf").write_bytes(b"<!doctype html>" * 9)
        (Path(place) / "serve.log").write_text("".join(json.dumps(line) + "\n" for line in _log()))
        environment = _environment(Path(place))
        for name, scene in SCENES.items():
            if name == "bench-compare":  # two runs to compare
                _play(SCENES["bench-generate"], environment, place)
            screen = _play(scene, environment, place)
            if not wanted or name in wanted:
                (folder / f"{name}.svg").write_text(_picture(scene.command, screen))
        _photograph(folder, Path(place), environment)


def _log() -> Iterator[dict[str, Any]]:
    """An afternoon of a server that has more to do than it can."""
    draw, logger = random.Random(7), "bitnet_inference.server.requests"  # noqa: S311  # a picture's
    second = 0.0
    while (second := second + draw.expovariate(0.2 if 3600 < second < 5400 else 0.07)) < 3 * 3600:
        when = datetime(2026, 11, 20, 14, tzinfo=UTC) + timedelta(seconds=second)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": "info",
            "logger": logger,
            "message": "request",
        }
        line |= {"id": f"req_{draw.getrandbits(96):024x}", "tenant": draw.choice(("shop", "shop", "search")),
                 "method": "POST", "path": "/v1/chat/completions", "route": "/v1/chat/completions",
                 "address": f"10.0.0.{draw.randrange(3, 6)}"}  # fmt: skip
        busy = 3600 < second < 5400
        if draw.random() < (0.25 if busy else 0.01):
            yield line | {"status": 503, "seconds": 0.001, "code": "overloaded"}
            continue
        if draw.random() < 0.03:
            yield line | {"tenant": None, "address": "10.9.9.9", "status": 401, "seconds": 0.0004,
                          "code": "invalid_api_key"}  # fmt: skip
            continue
        prompt, written = int(draw.lognormvariate(5, 0.8)), min(256, int(draw.expovariate(1 / 90)) + 8)
        waited = draw.expovariate(0.5) if busy else 0.001
        first = round(waited + 0.02 + prompt * 0.0005, 4)
        yield line | {"status": 200, "seconds": round(first + written / draw.uniform(30, 55), 4), "code": None,
                      "model": "stories", "streamed": True, "prompt_tokens": prompt, "cached_tokens": prompt // 3,
                      "completion_tokens": written, "queue_s": round(waited, 4), "first_token_s": first,
                      "finish": ["stop"]}  # fmt: skip


def _environment(place: Path) -> dict[str, str]:
    """A home of its own, and the command by its usual name."""
    program = place / "bin" / "bitnet"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom bitnet_cli.main import command_line\n\ncommand_line()\n")
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BITNET_", "XDG_", "HF_"))}
    return kept | {
        "HOME": str(place / "home"),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "TERM": "xterm-256color",
        "BITNET_OFFLINE": "1",
    }


def _play(scene: Scene, environment: dict[str, str], place: str) -> pyte.Screen:
    """The terminal after the command."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        ["sh", "-c", scene.command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=place,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    rest, last = list(scene.typed), time.monotonic()
    while True:
        ready, _, _ = select.select([master], [], [], 0.1)
        if ready:
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            stream.feed(data.replace(b"\x1b[2m", b"\x1b[90m"))  # it knows no pale text, but grey
            if b"\x1b[6n" in data:  # an editor asks where the cursor is
                os.write(master, f"\x1b[{screen.cursor.y + 1};{screen.cursor.x + 1}R".encode())
            last = time.monotonic()
        elif rest and time.monotonic() - last > _QUIET and ">>>" in screen.display[screen.cursor.y]:
            os.write(master, rest.pop(0).encode() + b"\r")
            last = time.monotonic()
    os.close(master)
    process.wait()
    return screen


def _picture(command: str, screen: pyte.Screen) -> str:
    """The lines of a terminal, behind the command that was typed, as an SVG."""
    last = max((row for row, line in enumerate(screen.display) if line.strip()), default=0)
    lines = [Text.assemble(("$ ", "dim"), (command, "bold"))]
    for row in range(last + 1):
        cells = [screen.buffer[row][column] for column in range(COLUMNS)]
        line = Text()
        for (colour, bold), run in groupby(cells, key=lambda cell: (cell.fg, cell.bold)):
            line.append("".join(cell.data for cell in run), Style(color=_colour(colour), bold=bold))
        line.rstrip()
        lines.append(line)
    lines.append(Text())  # room for what hangs below the last line
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), legacy_windows=False)  # noqa: SIM115, PTH123
    for line in lines:
        console.print(line, soft_wrap=True)
    svg = console.export_svg(title="bitnet", theme=_THEME)
    return _OUTSIDE.sub("", svg).replace("Fira Code", "ui-monospace, monospace")


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return {"brown": "yellow"}.get(name, name.replace("bright", "bright_"))


def _photograph(folder: Path, place: Path, environment: dict[str, str]) -> None:
    """The pages that commands write."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return
    pages = {
        "page-bench": "bitnet bench history --output page-bench.html --quiet",
        "page-report": "bitnet report stories.gguf stories --output page-report.html --quiet",
    }
    for name, command in pages.items():
        subprocess.run(["sh", "-c", command], cwd=place, env=environment, check=True, capture_output=True)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1300"]
        picture, page = folder / f"{name}.png", (place / f"{name}.html").as_uri()
        subprocess.run([browser, *flags, f"--screenshot={picture}", page], check=True, capture_output=True)


if __name__ == "__main__":
    main()
