"""What each instruction set's kernels reach from the nearest caches, beside what its dot products could.

    python benchmarks/kernels.py

For every number of tokens in a tile: nanoseconds for a block of columns, bytes of weights a second, multiplications a
second. The best of many calls, with the cost of a call taken off by measuring two lengths.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_quant.cpu import _native, isas

_SHORT, _LONG = 192, 3072  # columns; a group of the longer one is 40 or 48 KiB
_CALLS = 1000


def main() -> None:
    found = [figure for isa in isas() for figure in _ternary(isa) + _int8(isa)]
    for figure in found:
        print(
            "{isa:11}{kernel:8}{tokens} tokens  {gigabytes:6.1f} GB/s  {billions:6.1f} G multiplications/s".format(
                **figure
            )
        )
    print(json.dumps(found))


def _ternary(isa: str) -> list[dict[str, Any]]:
    kernels = _native.Kernels(isa)
    nbytes = 256 if kernels.columns == 16 else 160
    return [
        _figure(isa, "ternary", kernels.ternary, tokens, nbytes / kernels.columns)
        for tokens in range(1, kernels.few + 1)
    ]


def _int8(isa: str) -> list[dict[str, Any]]:
    kernels = _native.Kernels(isa)
    return [_figure(isa, "int8", kernels.bytes, tokens, 64) for tokens in (1, 2, 4, 6)]


def _figure(isa: str, name: str, kernel: Callable[..., None], tokens: int, bytes_a_column: float) -> dict[str, Any]:
    short, long = (_best(kernel, columns, tokens, round(columns * bytes_a_column)) for columns in (_SHORT, _LONG))
    seconds = (long - short) / (_LONG - _SHORT)  # a column of 64 rows
    return {
        "isa": isa,
        "kernel": name,
        "tokens": tokens,
        "gigabytes": bytes_a_column / seconds / 1e9,
        "billions": 64 * tokens / seconds / 1e9,
    }


def _best(kernel: Callable[..., None], columns: int, tokens: int, nbytes: int) -> float:
    data = np.zeros(nbytes, np.uint8)
    x, starts, out = np.zeros((tokens, columns), np.int8), np.zeros(tokens, np.int32), np.zeros((tokens, 64), np.int32)
    times = []
    for _ in range(_CALLS):
        begun = time.perf_counter()
        kernel(data, x, starts, out)
        times.append(time.perf_counter() - begun)
    return min(times)


if __name__ == "__main__":
    main()
