"""Our cpu backend beside llama.cpp: one model of the 2B shape, the same prompts, rounds taken in turns.

    python benchmarks/rivals.py --llama-python ENVIRONMENT/bin/python --folder FOLDER

llama.cpp runs as the module llama-cpp-python, of whichever interpreters are named: one that is built natively, and
`avx2=INTERPRETER` where it is built for AVX2 alone, beside `--isas avx2` for ours. It is given its
two ternary types with a head in Q6_K, and an architecture that it knows (SiLU in place of squared ReLU, which costs
the same). Every figure is a process of its own that measures once; what is printed is the median of the rounds,
with the extremes, in tokens a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bitnet_core.formats import gguf
from bitnet_core.testing import SHAPES
from bitnet_quant.cpu import isas

sys.path.insert(0, str(Path(__file__).parent))
from shapes import synthetic

ENGINE = Path(__file__).with_name("engines.py")


def main() -> None:
    options = _parse()
    files = {layout: _file(options.folder, layout) for layout in ("tq1_0", "tq2_0", "i2_s_128")}
    engines = {
        f"llama.cpp {name} {kind.upper()}".replace("  ", " "): (python, "llama", kind)
        for name, python in _pythons(options.llama_python)
        for kind in ("tq1_0", "tq2_0")
    }
    engines |= {
        f"bitnet-quant {isa}, head {head}": (sys.executable, f"ours:{head}:{isa}", "i2_s_128")
        for isa in options.isas
        for head in options.heads
    }
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for threads in options.threads:
            for name, (python, engine, layout) in engines.items():
                command = [python, str(ENGINE), engine, str(files[layout]), str(threads)]
                answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found.setdefault((name, threads), []).append(json.loads(answer.splitlines()[-1]))
    for line in _table(found, options.threads):
        print(line)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", nargs="+", required=True, help="[NAME=]INTERPRETER that has llama-cpp-python")
    parser.add_argument("--isas", nargs="+", choices=isas(), default=isas()[:1], help="of ours")
    parser.add_argument("--folder", type=Path, required=True, help="where the models are made, and kept: 3 GB")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--heads", nargs="+", default=["f16", "int8"])
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _pythons(options: list[str]) -> Iterator[tuple[str, str]]:
    """Interpreters by the names that tell them apart; several are builds for different processors."""
    for option in options:
        name, equals, python = option.rpartition("=")
        yield (name, python) if equals else ("", option)


def _table(found: dict[tuple[str, int], list[dict[str, float]]], threads: list[int]) -> Iterator[str]:
    for count in threads:
        yield f"{count} thread{'s' if count > 1 else ''}"
        rows = {name: runs for (name, number), runs in found.items() if number == count}
        for use in ("prompt", "decode"):
            medians = {name: statistics.median(run[use] for run in runs) for name, runs in rows.items()}
            best = max(value for name, value in medians.items() if name.startswith("llama"))
            for name, runs in rows.items():
                values = [run[use] for run in runs]
                yield (
                    f"  {use:7}{name:36}{medians[name]:8.1f} ({min(values):.1f} to {max(values):.1f})"
                    f"{medians[name] / best:7.2f} times llama.cpp's better"
                )


def _file(folder: Path, layout: str) -> Path:
    """The model in one layout; made the first time."""
    path = folder / f"2b-{layout}.gguf"
    if path.exists():
        return path
    spec = SHAPES["2b4t"]
    if layout == "i2_s_128":
        gguf.save(synthetic(spec), path, layout=layout)
        return path
    draft = folder / "draft.gguf"
    gguf.save(synthetic(replace(spec, activation="silu")), draft, layout=layout)
    with gguf.File(draft) as file:
        # llama.cpp then takes tokens as they come, and needs no vocabulary.
        metadata = dict(file.metadata) | {"tokenizer.ggml.model": "no_vocab"}
        gguf.write(path, metadata, [_blob(file, name) for name in file.tensors])
    draft.unlink()
    return path


def _blob(file: gguf.File, name: str) -> gguf.Blob:
    tensor = file.tensors[name]
    if name != "token_embd.weight":
        return gguf.Blob(name, tensor.shape, tensor.kind, lambda: file.raw(name))
    return gguf.Blob(name, tensor.shape, gguf.KINDS["Q6_K"], lambda: _random_q6_k(tensor.shape))


def _random_q6_k(shape: tuple[int, ...]) -> np.ndarray:
    """Any bytes are a Q6_K block, but its last two: they are the scale, here 1/64."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (shape[0] * shape[1] // 256, 210), np.uint8)
    blocks[:, 208:] = np.frombuffer(np.float16(1 / 64).tobytes(), np.uint8)
    return blocks.ravel()


if __name__ == "__main__":
    main()
