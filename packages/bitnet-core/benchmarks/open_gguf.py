"""How long it takes to open a GGUF file of 1.2 GB, and how much memory.

    python benchmarks/open_gguf.py [--repeats 15]

The file has the shape of bitnet-b1.58-2B-4T: 332 tensors, 128,256 tokens and 280,147 merges. Its data is a hole
that takes no room on the disk. Each figure comes from a process of its own, whose imports are done before it begins.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from bitnet_core.formats import gguf
from bitnet_core.formats.gguf import names
from bitnet_core.formats.gguf.writer import header
from bitnet_core.testing import SHAPES

_MERGES = 280_147
SPEC = SHAPES["2b4t"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(_measure(options.child)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        _make(path)
        command = [sys.executable, __file__, "--child", str(path)]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(options.repeats)]
        size = path.stat().st_size
    seconds, memory = [run["seconds"] for run in runs], [run["memory"] / 2**20 for run in runs]
    sys.stdout.write(
        f"{size / 1e9:.3f} GB, {runs[0]['tensors']} tensors, {options.repeats} runs: median (lowest..highest)\n"
        f"open:   {statistics.median(seconds):.4f} s ({min(seconds):.4f}..{max(seconds):.4f})\n"
        f"memory: {statistics.median(memory):.1f} MB above the interpreter ({min(memory):.1f}..{max(memory):.1f})\n"
    )


def _measure(path: str) -> dict[str, float]:
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    file = gguf.File(path, strict=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "memory": process.memory_info().rss - before, "tensors": len(file.tensors)}


def _make(path: Path) -> None:
    """The header as the writer makes it; the rest is never written."""
    blobs = [
        gguf.Blob(*_described(name, shape), make=lambda: np.empty(0, np.uint8)) for name, shape in SPEC.shapes().items()
    ]
    metadata = {
        "general.architecture": "bitnet-b1.58",
        "tokenizer.ggml.tokens": list(_words(SPEC.vocab_size)),
        "tokenizer.ggml.scores": np.zeros(SPEC.vocab_size, np.float32),
        "tokenizer.ggml.token_type": np.ones(SPEC.vocab_size, np.int32),
        "tokenizer.ggml.merges": list(_words(_MERGES)),
    }
    start, sizes = header(metadata, blobs)
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(len(start) + sum(sizes))


def _described(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], gguf.Kind]:
    kind = "F16" if name == "embedding" else "F32" if len(shape) == 1 else "I2_S"
    return names.file_name(name), shape, gguf.KINDS[kind]


def _words(count: int) -> Iterator[str]:
    """Words as long as those of the Llama 3 tokenizer, some of them not ASCII, one of 256 bytes."""
    random = np.random.default_rng(0)
    lengths = random.integers(2, 19, count)
    lengths[count // 2] = 128
    letters = "aeinrstlo\u0120\u010a"
    for length in lengths:
        yield "".join(letters[i] for i in random.integers(0, len(letters), length)) if length < 128 else "\u0120" * 128


if __name__ == "__main__":
    main()
