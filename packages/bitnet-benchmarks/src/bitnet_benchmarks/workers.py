"""The processes that engines run in, and how they are asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from bitnet_core import BitNetError

Kind = Literal["runner", "engine", "llama", "transformer", "llama-bench", "server", "client"]
_START = "import sys; sys.path.append(sys.argv.pop(1)); from bitnet_benchmarks.engines.{kind} import main; main()"
_ROOT = Path(__file__).parents[1]


class EngineFailed(BitNetError):
    """An engine's process ended, or says what went wrong."""


@dataclass(frozen=True, slots=True)
class Setting:
    """An engine, and how it runs a model."""

    kind: Kind
    path: str
    threads: int
    options: tuple[tuple[str, Any], ...] = ()
    program: str = sys.executable  # an interpreter, or for "llama-bench" that program
    label: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.label or self.kind


class Worker:
    """One engine with a model, from its start to its end."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        # An engine's own threads are those that it was asked for; its libraries' would come on top.
        environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [setting.program, "-c", _START.format(kind=setting.kind), str(_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self.load: dict[str, Any] = {}

    def start(self) -> None:
        """Load the model."""
        setting = self.setting
        options = {"threads": setting.threads, **dict(setting.options)}
        self.load = self.ask("load", path=setting.path, options=options)

    def ask(self, what: str, **values: Any) -> dict[str, Any]:
        """One request and its answer."""
        sink, source = self._process.stdin, self._process.stdout
        if sink is None or source is None:
            raise EngineFailed(f"{self.setting.name}: has no pipes")
        try:
            sink.write(json.dumps({"do": what, **values}).encode() + b"\n")
            sink.flush()
            line = source.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise EngineFailed(f"{self.setting.name}: its process ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineFailed(f"{self.setting.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=10)
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _last_words(self) -> str:
        self._process.wait(timeout=10)
        words = self._process.stderr.read().decode("utf-8", "replace") if self._process.stderr else ""
        lines = [line for line in words.splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"status {self._process.returncode}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Program:
    """llama.cpp's or bitnet.cpp's llama-bench, which starts anew for every question."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.load: dict[str, Any] = {"load_s": 0.0}

    def start(self) -> None:
        """See that it runs, and how long it takes to."""
        self.load = {"load_s": self.ask("prompt", count=1)["seconds"]}

    def ask(self, what: str, **values: Any) -> dict[str, Any]:
        """A prompt or a decode of one sequence."""
        if what == "peak":
            return {"peak_bytes": 0}
        if values.get("batch", 1) != 1 or values.get("depth", 8) > 8:
            raise EngineFailed(f"{self.setting.name}: is asked for one sequence without depth")
        count = values["count"]
        sizes = ["-p", str(count), "-n", "0"] if what == "prompt" else ["-p", "0", "-n", str(count)]
        flags = ["-m", self.setting.path, "-t", str(self.setting.threads), "-r", "1", "-o", "json", *sizes]
        try:
            done = subprocess.run([self.setting.program, *flags], capture_output=True, timeout=3600, check=True)
            (found,) = json.loads(done.stdout)
            return {"seconds": count / float(found["avg_ts"])}
        except subprocess.CalledProcessError as error:
            words = error.stderr.decode("utf-8", "replace").strip().splitlines()
            raise EngineFailed(f"{self.setting.name}: status {error.returncode}: {words[-1:]}") from error
        except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
            raise EngineFailed(f"{self.setting.name}: {self.setting.program}: {error}") from error

    def close(self) -> None:
        """Nothing is left running."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def opened(setting: Setting) -> Worker | Program:
    """What answers for a setting."""
    return Program(setting) if setting.kind == "llama-bench" else Worker(setting)
