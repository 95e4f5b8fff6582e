"""The memory that training takes at its peak: all masters, or an adapter on a packed base.

    python memory.py                                   # a model of random numbers
    python memory.py --model FOLDER --rows 1 --window 256

Each way runs as a run does by default, in a process of its own. What counts are bytes of live tensors, seen at every
operation, and beside them, in another process, how much the resident set grows: what was freed and the allocator
keeps, too. glibc keeps little with MALLOC_MMAP_THRESHOLD_=65536, at a third of the speed.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import bitnet_core
from bitnet_core import Model, ModelSpec
from bitnet_core.testing import random_model, tiny_spec
from bitnet_training.linear import BitLinear
from bitnet_training.lora import add_adapter
from bitnet_training.loss import cross_entropy
from bitnet_training.models import from_core
from bitnet_training.packed import PackedLinear
from bitnet_training.recompute import recompute
from bitnet_training.train import adamw
from bitnet_training.windows import Batch


class Peak(TorchDispatchMode):
    """Bytes of all storages that operations made and that are still alive; the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._seen: set[int] = set()

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen or tensor.is_meta:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self.count(value)
        return result


def steps(way: str, base: Model, asked: argparse.Namespace, peak: Peak | None = None) -> Any:
    """The model after three steps of AdamW, as a run takes them."""
    model: Any = from_core(base, "masters" if way == "full" else "packed")
    for tensor in (*model.parameters(), *model.buffers()) if peak else ():
        peak.count(tensor)
    if asked.recompute == "always" or (asked.recompute == "auto" and way == "qlora"):
        recompute(model)
    if way == "qlora":
        model = add_adapter(model, rank=asked.rank, alpha=2 * asked.rank)
    model.train()
    adam = adamw(model)
    tokens = torch.randint(0, base.spec.vocab_size, (asked.rows, asked.window))
    batch = Batch(tokens, tokens, torch.arange(asked.window).expand(asked.rows, -1))
    for _ in range(3):
        cross_entropy(model, batch).backward()
        adam.step()
        adam.zero_grad()
    return model


def shape(width: int, layers: int) -> ModelSpec:
    """A model that wide and deep."""
    spec = tiny_spec(hidden_size=width, ffn_size=3 * width, layers=layers, vocab_size=1024)
    return replace(spec, head_size=width // 4, rope=replace(spec.rope, size=width // 4))


def tensors(way: str, asked: argparse.Namespace) -> dict[str, int]:
    """Bytes of live tensors at the peak, of projections, and how many numbers learn."""
    torch.manual_seed(0)
    base = bitnet_core.load(asked.model) if asked.model else random_model(shape(asked.width, asked.layers))
    with Peak() as peak:
        model = steps(way, base, asked, peak)
    layers = [module.weight for module in model.modules() if isinstance(module, BitLinear | PackedLinear)]
    return {
        "tensors": peak.most,
        "projections": sum(weight.nbytes for weight in layers),
        "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }


def resident(way: str, asked: argparse.Namespace) -> dict[str, int]:
    """Bytes that the process has more at its peak than when it had trained next to nothing."""
    steps(way, random_model(tiny_spec()), argparse.Namespace(**{**vars(asked), "rows": 1, "window": 8}))
    base = bitnet_core.load(asked.model) if asked.model else random_model(shape(asked.width, asked.layers))
    gc.collect()
    before = psutil.Process().memory_info().rss
    steps(way, base, asked)
    return {"resident": _peak() - before}


def _peak() -> int:
    """The most bytes that were resident, as Linux counts them; getrusage would begin with what the parent had."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def measure(look: Callable[..., dict[str, int]], way: str, asked: argparse.Namespace) -> dict[str, int]:
    """What a look finds in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as process:
        return process.submit(look, way, asked).result()


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of full fine-tuning and of an adapter on a packed base.")
    parser.add_argument("--model", help="a model's folder or file; else one of random numbers")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--recompute", choices=("auto", "always", "never"), default="auto", help="as compute.recompute")
    parser.add_argument("--rank", type=int, default=8)
    asked = parser.parse_args()
    found = {way: measure(tensors, way, asked) | measure(resident, way, asked) for way in ("full", "qlora")}
    print(f"{'MiB':24}{'full':>12}{'qlora':>12}{'share':>9}")
    for what in ("tensors", "resident", "projections"):
        full, small = (found[way][what] / 2**20 for way in ("full", "qlora"))
        print(f"{what:24}{full:12.1f}{small:12.1f}{small / full:9.1%}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
