"""Training runs: the package that trains, which is optional, and the folders that it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .amounts import Count
from .console import Flags, pairs
from .failures import INTERRUPTED, Failed, Refused
from .models import check_name, is_local

if TYPE_CHECKING:
    from bitnet_training.config import Config

_LEASE = re.compile(r"(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{16}")
_TAIL = 1 << 16  # bytes of a log that are looked at


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What finetune and distill are both asked."""

    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("run")
    """The run's folder."""
    steps: Count = 1000
    """Updates of the weights."""
    batch: Count = 8
    """Windows a step."""
    window: Count = 512
    """Tokens of a window."""
    change: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE", n_tokens=1)] = ()
    """Any other setting, as optimizer.weight_decay=0; bitnet config lists all."""
    resume: bool = False
    """Go on from the newest whole checkpoint."""

    def settings(self, data: tuple[str, ...]) -> list[str]:
        """The settings that follow, with these records."""
        rows = next(rows for rows in range(min(self.batch, 8), 0, -1) if self.batch % rows == 0)
        return [
            f"out={self.out}",
            f"data.train={json.dumps(data)}",
            f"data.batch={self.batch}",
            f"data.rows={rows}",
            f"data.window={self.window}",
            f"schedule.steps={self.steps}",
        ]

    def check(self, data: tuple[str, ...], *names: str) -> None:
        """Refuse records that are not there, and names that no model has; then see that there is what trains."""
        if lost := [name for name in data if ":" not in name and not Path(name).is_file()]:
            raise Refused(f"{lost[0]}: expected a file of records, got no such file")
        _check_names(*names)
        require()


LESSON = Lesson()


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder."""

    path: Path
    method: str | None
    step: int
    steps: int | None
    loss: float | None
    checkpoints: int
    state: str  # running, finished, stopped or new
    host: str | None
    pid: int | None
    changed: float  # seconds since 1970


def require() -> None:
    """Raise where the package that trains is not installed."""
    try:
        import torch  # noqa: F401, PLC0415  # seconds

        import bitnet_training  # noqa: F401, PLC0415
    except ImportError as error:
        raise Failed(f"training needs bitnet-training and torch ({error}): pip install bitnet-training") from error


def do(config: Config, flags: Flags, *, resume: bool = False) -> int:
    """A whole run; its lines are for whoever watches."""
    from bitnet_training import run as running  # noqa: PLC0415

    _check_names(config.model.base, *config.teacher.base)
    with aside(flags):
        outcome = running.run(config, resume=resume)
    out = Path(config.out)
    made = [place for name in ("model", "adapter", "report.html") if (place := out / name).exists()]
    record = {"out": out, "step": outcome.step, "loss": outcome.loss, "held_out": outcome.held_out,
              "finished": outcome.is_finished, "made": made}  # fmt: skip
    said = {
        "step": outcome.step,
        "loss": f"{outcome.loss:.4f} nats a token",
        "held out": None if outcome.held_out is None else f"{outcome.held_out:.4f} nats a token",
        "made": ", ".join(map(str, made)),
    }
    flags.answer(record, pairs(said))
    if not outcome.is_finished:
        flags.remark(f"stopped; bitnet train {out / 'config.toml'} --resume goes on")
    return 0 if outcome.is_finished else INTERRUPTED


def _check_names(*names: str) -> None:
    """Refuse what can be no model's name."""
    for name in names:
        if name and not is_local(name):
            check_name(name)


@contextlib.contextmanager
def aside(flags: Flags) -> Iterator[None]:
    """The lines of a run go to stderr, or nowhere: stdout is for the answer."""
    nothing = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # closed below
    with contextlib.closing(nothing), contextlib.redirect_stdout(nothing if flags.quiet else sys.stderr):
        yield


def find(folder: Path) -> list[Run]:
    """The runs in a folder, itself among them, the last changed first."""
    configs = [folder / "config.toml", *sorted(folder.glob("*/config.toml")), *sorted(folder.glob("*/*/config.toml"))]
    runs = [look(path.parent) for path in configs if path.is_file() and (path.parent / "checkpoints").is_dir()]
    return sorted(runs, key=lambda run: -run.changed)


def look(path: Path) -> Run:
    """What a run's folder tells, without any of what trains."""
    import tomllib  # noqa: PLC0415

    try:
        config = tomllib.loads((path / "config.toml").read_text("utf-8"))
    except (OSError, ValueError):
        config = {}
    log = path / "log.jsonl"
    events = _events(log)
    steps = config.get("schedule", {}).get("steps")
    step = max((event["step"] for event in events if isinstance(event.get("step"), int)), default=0)
    losses = [event["loss"] for event in events if isinstance(event.get("loss"), float)]
    host, pid = _holder(path / "checkpoints" / "lease")
    running = _is_locked(path / "checkpoints" / "lock")
    finished = (path / "model").is_dir() or (path / "adapter").is_dir()
    state = "running" if running else "finished" if finished else "stopped" if events else "new"
    changed = log.stat().st_mtime if log.exists() else (path / "config.toml").stat().st_mtime
    saved = len(list((path / "checkpoints").glob("step-*")))
    last = losses[-1] if losses else None
    return Run(path, config.get("method"), step, steps, last, saved, state, host, pid if running else None, changed)


def _events(log: Path) -> list[dict[str, Any]]:
    """The last lines of a log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL))
            lines = stream.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the first may be cut, and the last be being written
            event = json.loads(line)
            if isinstance(event, dict):
                found.append(event)
    return found


def _holder(lease: Path) -> tuple[str | None, int | None]:
    """The machine and the process that wrote here last."""
    try:
        match = _LEASE.fullmatch(lease.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None, None
    return (match["host"], int(match["pid"])) if match else (None, None)


def _is_locked(lock: Path) -> bool:
    from filelock import FileLock, Timeout  # noqa: PLC0415

    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError, NotImplementedError):
        return True


def made(settings: list[str]) -> Config:
    """A config of nothing but changes to what is usual."""
    import tempfile  # noqa: PLC0415

    from bitnet_training import config  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usual.toml"
        path.write_text("", encoding="utf-8")
        return config.load(path, settings)
