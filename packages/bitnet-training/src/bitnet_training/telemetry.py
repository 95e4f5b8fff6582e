"""What a run says of itself: events, the alarms that they give rise to, and those who write them down."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TextIO

from bitnet_core import UnsupportedError
from bitnet_core.durable import replacing

from .watch import Look, overall

_log = logging.getLogger(__name__)
Event = Mapping[str, Any]  # "step", and numbers by their names


class Writer(Protocol):
    """Whoever writes events down."""

    def write(self, event: Event) -> None:
        """One more event."""

    def close(self) -> None:
        """There will be no more."""


class Telemetry:
    """Events go to all writers; what looks like a collapse is called by its name."""

    def __init__(self, writers: Iterable[Writer], *, zeros: float = 0.8, spike: float = 2.0) -> None:
        self.writers = list(writers)
        self._zeros, self._spike = zeros, spike
        self._mean: float | None = None  # of the loss, over some fifty steps
        self._alarms: set[str] = set()

    def write(self, step: int, **values: Any) -> None:
        """One event."""
        for writer in self.writers:
            writer.write({"step": step, **values})

    def watch_loss(self, step: int, loss: float) -> None:
        """Take in the loss of every step."""
        mean = loss if self._mean is None else self._mean
        self._judge(
            step, "spike", loss > self._spike * mean, f"the loss of {loss:.4g} leaps above its mean of {mean:.4g}"
        )
        self._mean = mean + 0.02 * (loss - mean)

    def watch_weights(self, step: int, looks: Mapping[str, Look], *, learning: bool) -> None:
        """Take in a look at the ternary weights."""
        if not looks:
            return
        mean = overall(looks)
        self.write(step, ternary=mean, matrices={name: asdict(look) for name, look in looks.items()})
        for name, look in looks.items():
            said = f"{look.zeros:.0%} of {name} are 0: the matrix collapses"
            self._judge(step, f"zeros {name}", look.zeros > self._zeros, said)
        said = "no ternary weight has flipped since the last look: nothing is learned in them"
        self._judge(step, "flips", learning and mean["flips"] == 0, said)

    def state(self) -> dict[str, Any]:
        """What must be remembered over a stop."""
        return {"mean": self._mean, "alarms": sorted(self._alarms)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Remember it again."""
        self._mean, self._alarms = state["mean"], set(state["alarms"])

    def close(self) -> None:
        """No more events come."""
        for writer in self.writers:
            writer.close()

    def _judge(self, step: int, name: str, is_bad: bool, said: str) -> None:
        """Call an alarm when it begins, not as long as it lasts."""
        if is_bad and name not in self._alarms:
            self._alarms.add(name)
            _log.warning("step %d: %s", step, said)
            self.write(step, alarm=said)
        elif not is_bad:
            self._alarms.discard(name)


class Terminal:
    """A line an event, for people."""

    def __init__(self, steps: int, stream: TextIO | None = None) -> None:
        self._steps, self._stream = steps, stream
        self._begun: tuple[int, float] | None = None  # the first line of a loss: its step, and when

    def write(self, event: Event) -> None:
        parts = [
            f"{name} {shown(value)}" for name, value in event.items() if name not in {"step", "matrices", "ternary"}
        ]
        parts += [f"{name} {shown(value)}" for name, value in event.get("ternary", {}).items()]
        if "loss" in event:
            parts += self._left(event["step"])
        place = f"{event['step']:>{len(str(self._steps))}}/{self._steps}"
        print(place, *parts, sep="  ", file=self._stream or sys.stdout, flush=True)

    def _left(self, step: int) -> Iterator[str]:
        """How long the rest takes at the pace since the first line, looks and checkpoints included."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = step, now
        elif self._begun[0] < step < self._steps:
            pace = (now - self._begun[1]) / (step - self._begun[0])
            yield f"left {timedelta(seconds=round(pace * (self._steps - step)))}"

    def close(self) -> None:
        pass


class Lines:
    """A file of JSON lines; a run that goes on from a step forgets what was written behind it."""

    def __init__(self, path: str | os.PathLike[str], begin: int = 0) -> None:
        kept = [event for event in read_lines(path) if event["step"] <= begin] if begin else []
        with replacing(path) as stream:
            stream.write(b"".join(json.dumps(event).encode() + b"\n" for event in kept))
        self._stream = Path(path).open("a", encoding="utf-8")  # noqa: SIM115  # open as long as the run

    def write(self, event: Event) -> None:
        self._stream.write(json.dumps(_finite(event)) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self._writer = import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def write(self, event: Event) -> None:
        for name, value in numbers(event).items():
            self._writer.add_scalar(name, value, event["step"])

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of MLflow, where its settings (MLFLOW_TRACKING_URI) say."""

    def __init__(self, folder: Path) -> None:
        self._mlflow = import_module("mlflow")
        # Its number is kept with the run, which goes on as the same one.
        kept = folder / "mlflow-run"
        number = kept.read_text(encoding="utf-8") if kept.is_file() else None
        run = self._mlflow.start_run(run_id=number, run_name=folder.name)
        kept.write_text(run.info.run_id, encoding="utf-8")

    def write(self, event: Event) -> None:
        self._mlflow.log_metrics(numbers(event), step=event["step"])

    def close(self) -> None:
        self._mlflow.end_run()


class Trackio:
    """A run of trackio."""

    def __init__(self, folder: Path) -> None:
        self._trackio = import_module("trackio")
        self._trackio.init(project="bitnet", name=folder.name, resume="allow")

    def write(self, event: Event) -> None:
        self._trackio.log(numbers(event), step=event["step"])

    def close(self) -> None:
        self._trackio.finish()


WRITERS: Mapping[str, Callable[[Path], Writer]] = MappingProxyType(
    {"tensorboard": TensorBoard, "mlflow": MLflow, "trackio": Trackio}
)


def check_writers(names: Iterable[str]) -> None:
    """Refuse writers that are not known, or whose libraries are not installed."""
    for name in names:
        if name not in WRITERS:
            raise UnsupportedError(f"writers are {', '.join(WRITERS)}; got {name!r}")
        if find_spec(name) is None:
            raise UnsupportedError(f"the writer {name} is not installed: pip install 'bitnet-training[{name}]'")


def open_writers(names: Sequence[str], folder: Path) -> list[Writer]:
    """The writers of these names, which write into a folder where they need one."""
    check_writers(names)
    return [WRITERS[name](folder) for name in names]


def read_lines(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events in a file; a last line that a kill cut is none."""
    if not Path(path).is_file():
        return []
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            break
        found.append(event)
    return found


def numbers(event: Event) -> dict[str, float]:
    """The numbers of an event by names that any writer takes."""
    flat = {name: value for name, value in event.items() if isinstance(value, int | float) and name != "step"}
    return flat | {f"ternary/{name}": value for name, value in event.get("ternary", {}).items()}


def shown(value: object) -> str:
    """A value in a few letters."""
    if not isinstance(value, float):
        return str(value)
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.2e}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _finite(event: Event) -> dict[str, Any]:
    """JSON has no NaN; a number that is none becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in event.items()
    }
