"""What an engine's process answers: one JSON object a line in, one a line out."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar


class Loaded(Protocol):
    """A model that is ready."""

    vocab: int


class Engine(Loaded, Protocol):
    """Several sequences of tokens that a model continues."""

    def begin(self, sequences: int) -> None:
        """Forget everything, and begin so many sequences."""

    def step(self, tokens: list[list[int]]) -> list[int]:
        """Append to each sequence, and give the likeliest next token of each."""


_L = TypeVar("_L", bound=Loaded)


def serve(load: Callable[..., Engine]) -> None:
    """Answer what engines are asked."""
    answer(load, _DO)


def answer(load: Callable[..., _L], do: Mapping[str, Callable[[_L, dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer until stdin ends; the first request is to load."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    engine: _L | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                begun = time.perf_counter()
                engine = load(request["path"], **request["options"])
                found: dict[str, Any] = {"load_s": time.perf_counter() - begun, "vocab": engine.vocab}
            elif engine is not None:
                found = do[request["do"]](engine, request)
            else:
                found = {"error": "load a model first"}
        except Exception as error:  # noqa: BLE001  # whatever an engine raises is its answer
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _prompt(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Seconds from a prompt to the token behind it."""
    sequences = request.get("batch", 1)
    tokens = [_tokens(engine, request["count"], place) for place in range(sequences)]
    engine.begin(sequences)
    begun = time.perf_counter()
    engine.step(tokens)
    return {"seconds": time.perf_counter() - begun}


def _decode(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Seconds for so many tokens of each sequence, one after another, behind a prompt that is not timed."""
    sequences = request.get("batch", 1)
    engine.begin(sequences)
    last = engine.step([_tokens(engine, request["depth"], place) for place in range(sequences)])
    begun = time.perf_counter()
    for _ in range(request["count"]):
        last = engine.step([[token] for token in last])
    return {"seconds": time.perf_counter() - begun}


def _likeliest(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """The likeliest continuation of given tokens: whether two engines compute the same model."""
    engine.begin(1)
    last = engine.step([request["tokens"]])
    found = [last[0]]
    for _ in range(request["count"] - 1):
        last = engine.step([last])
        found.append(last[0])
    return {"tokens": found}


def peak(_: object, __: dict[str, Any]) -> dict[str, Any]:
    """The most memory that this process has had at once, in bytes; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # the usual call begins with what the parent had
        lines = dict(line.split(":", 1) for line in status.read_text("ascii", "replace").splitlines() if ":" in line)
        return {"peak_bytes": int(lines["VmHWM"].split()[0]) * 1024}
    try:
        import resource  # noqa: PLC0415  # not on Windows
    except ImportError:
        return {"peak_bytes": 0}
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}  # macOS counts bytes


def _tokens(engine: Engine, count: int, place: int) -> list[int]:
    """Ordinary tokens, not the same for any two sequences."""
    ordinary = max(1, engine.vocab * 3 // 4)  # special ones stand at the end
    return [(7 + place * 31 + step * 7919) % ordinary for step in range(count)]


_DO: dict[str, Callable[[Engine, dict[str, Any]], dict[str, Any]]] = {
    "prompt": _prompt,
    "decode": _decode,
    "likeliest": _likeliest,
    "peak": peak,
}
