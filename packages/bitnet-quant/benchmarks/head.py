"""What an output head of 2B-4T's shape costs for one token: all of it as int8, and only what a sampler can reach.

    python benchmarks/head.py --threads 1 2

Two kinds of states: `random`, about which all rows say much the same, so that the highest logit stands hardly above
the others, which is the worst there is; and `peaked`, where some rows stand out as they do in a model that was trained.
Calls of all settings are interleaved, because the speed of a machine's memory drifts, and each comes twice, because a
head learns from its last call how to begin: the second counts. Medians, with the least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bitnet_core.memory import Pool
from bitnet_core.testing import SHAPES
from bitnet_quant.cpu import _native, isas

_ROWS, _COLUMNS = SHAPES["2b4t"].vocab_size, SHAPES["2b4t"].hidden_size
_STATES = 16  # different ones a call after the other, as in decoding
_REACHES = {"all": (0, 0.0), "greedy": (1, 0.0), "top-k 40": (40, 0.0), "min-p 0.05": (1, 3.0)}


@dataclass
class Setting:
    """One way of calling the head, with what was measured of it."""

    name: str
    call: Callable[[int], _native.Engine]  # with the number of the call
    bytes_read: Callable[[_native.Engine], float]
    milliseconds: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)


def main() -> None:
    options = _parse()
    head, states = _head(), {}
    states["random"] = _spread(np.random.default_rng(1).standard_normal((_STATES, _COLUMNS)))
    states["peaked"] = _peaked(head)
    found = []
    for threads in options.threads:
        whole, planes = (_engine(head, options.isa, threads, in_planes) for in_planes in (False, True))
        for kind, kept in states.items():
            settings = [Setting("rows of bytes", _caller(whole, kept, (0, 0.0)), lambda _: _ROWS * _COLUMNS)]
            settings += [Setting(name, _caller(planes, kept, reach), _bytes) for name, reach in _REACHES.items()]
            for number in range(options.calls):
                for setting in settings:
                    _measure(setting, number)
            found += [_report(options.isa, threads, kind, setting) for setting in settings]
    print(json.dumps(found))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--isa", choices=isas(), default=isas()[0])
    parser.add_argument("--calls", type=int, default=100)
    return parser.parse_args()


def _head() -> npt.NDArray[np.float16]:
    head = np.empty((_ROWS, _COLUMNS), np.float16)
    random = np.random.default_rng(0)
    for first in range(0, _ROWS, 4096):
        part = head[first : first + 4096]
        part[...] = random.standard_normal(part.shape, np.float32)
    return head


def _spread(states: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """As they come from a norm."""
    return (states / np.sqrt((states**2).mean(axis=1, keepdims=True))).astype(np.float32)


def _peaked(head: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Each state leans to twenty rows: to the first twelve times as much as chance would have it, then ever less."""
    random = np.random.default_rng(2)
    states = random.standard_normal((_STATES, _COLUMNS))
    for number in range(_STATES):
        rows = head[random.integers(0, _ROWS, 20)].astype(np.float64)
        states[number] += (rows / np.sqrt(_COLUMNS) * np.linspace(12, 5, 20)[:, None]).sum(axis=0)
    return _spread(states)


def _engine(head: npt.NDArray[np.float16], isa: str, threads: int, in_planes: bool) -> _native.Engine:
    """One that has a head, and no layers."""
    shape = _native.Shape(
        hidden=_COLUMNS, ffn=1, layers=0, heads=1, kv_heads=1, head_size=1, gate="relu2", held="f16",
        norm_eps=1e-5, sub_norm_eps=1e-5, query_scale=1.0, embedding_scale=1.0, residual_scale=1.0,
    )  # fmt: skip
    engine = _native.Engine(isa, threads, shape, threads)
    stored, size = head.reshape(-1).view(np.uint8), {"rows": _ROWS, "columns": _COLUMNS}
    data, scale = _huge(_ROWS * _COLUMNS), np.empty(_ROWS, np.float32)
    if in_planes:
        rest = np.empty((_native.RESTS, _ROWS), np.float32)
        engine.pack_planes(stored, "float16", data, scale, rest, **size)
        matrix = _native.Matrix.planes(data, scale, rest, **size)
    else:
        engine.pack_rows(stored, "float16", data, scale, **size)
        matrix = _native.Matrix.bytes(data, scale, **size)
    embedding = _native.Matrix.dense(stored[: 2 * _COLUMNS], kind="float16", rows=1, columns=_COLUMNS)
    engine.set_ends(embedding, matrix, np.ones(_COLUMNS, np.float32))
    engine.use_scratch(_huge(engine.scratch_bytes()))
    return engine


def _huge(nbytes: int) -> npt.NDArray[np.uint8]:
    return Pool(name="benchmark").take(nbytes, np.uint8).array


def _caller(
    engine: _native.Engine, states: npt.NDArray[np.float32], reach: tuple[int, float]
) -> Callable[[int], _native.Engine]:
    logits, wanted = np.empty((1, _ROWS), np.float32), np.array([reach], np.float64)

    def call(number: int) -> _native.Engine:
        engine.head(states[number % _STATES][None], wanted, logits)
        return engine

    return call


def _bytes(engine: _native.Engine) -> float:
    """Those of all planes, or those of the rows that were read of each."""
    nibbles, *bits = engine.rows_read()
    return (nibbles / 2 + sum(bits) / 8) * _COLUMNS if nibbles else _ROWS * _COLUMNS


def _measure(setting: Setting, number: int) -> None:
    setting.call(number)
    begun = time.perf_counter()
    engine = setting.call(number + 1)
    setting.milliseconds.append(1e3 * (time.perf_counter() - begun))
    setting.bytes.append(setting.bytes_read(engine))
    setting.rows.append(engine.rows_read())


def _report(isa: str, threads: int, kind: str, setting: Setting) -> dict[str, object]:
    median, least = statistics.median(setting.milliseconds), min(setting.milliseconds)
    megabytes = statistics.median(setting.bytes) / 1e6
    rows = [round(statistics.median(counts)) for counts in zip(*setting.rows, strict=True)]
    print(
        f"{isa}, {threads} threads, {kind}, {setting.name}: {median:.2f} ms (least {least:.2f}), {megabytes:.0f} MB, "
        f"{megabytes / median:.1f} GB/s" + (f"; rows read a plane: {rows}" if rows[0] else "")
    )
    return {
        "isa": isa,
        "threads": threads,
        "states": kind,
        "reach": setting.name,
        "milliseconds": median,
        "least": least,
        "bytes": 1e6 * megabytes,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
