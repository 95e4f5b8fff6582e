"""The memory that training takes at its peak: all masters, or an adapter on a packed base.

    python memory.py                                   # a model of random numbers
    python memory.py --model FOLDER --rows 1 --window 256

Each way runs in a process of its own. What counts are bytes of live tensors, seen at every operation, and beside them
the resident set of the whole process less what it was before the model was loaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import weakref
from dataclasses import replace
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import bitnet_core
from bitnet_core.testing import random_model, tiny_spec
from bitnet_training.linear import BitLinear
from bitnet_training.lora import add_adapter
from bitnet_training.models import from_core
from bitnet_training.packed import PackedLinear


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


def train(way: str, asked: argparse.Namespace, sent: Any) -> None:
    """Three steps of AdamW one way; sends what they took."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if asked.model:
        base = bitnet_core.load(asked.model)
    else:
        spec = tiny_spec(hidden_size=asked.width, ffn_size=3 * asked.width, layers=asked.layers, vocab_size=1024)
        base = random_model(replace(spec, head_size=asked.width // 4, rope=replace(spec.rope, size=asked.width // 4)))
    before = psutil.Process().memory_info().rss
    with Peak() as peak:
        model: Any = from_core(base, "masters" if way == "full" else "packed")
        for tensor in [*model.parameters(), *model.buffers()]:
            peak.count(tensor)
        if asked.recompute:
            model.activation_checkpointing_enable()
        if way == "qlora":
            model = add_adapter(model, rank=asked.rank, alpha=2 * asked.rank)
        model.train()
        trained = [value for value in model.parameters() if value.requires_grad]
        adam = torch.optim.AdamW(trained, lr=1e-4)
        tokens = torch.randint(0, base.spec.vocab_size, (asked.rows, asked.window))
        for _ in range(3):
            model(input_ids=tokens, labels=tokens).loss.backward()
            adam.step()
            adam.zero_grad()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    kinds = (BitLinear, PackedLinear)
    packed = sum(m.weight.numel() * m.weight.element_size() for m in model.modules() if isinstance(m, kinds))
    sent.put(
        {"tensors": peak.most, "resident": most, "projections": packed, "trained": sum(p.numel() for p in trained)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of full fine-tuning and of an adapter on a packed base.")
    parser.add_argument("--model", help="a model's folder or file; else one of random numbers")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--recompute", action="store_true", help="compute layers again in the backward pass")
    parser.add_argument("--rank", type=int, default=8)
    asked = parser.parse_args()
    found: dict[str, dict[str, int]] = {}
    context = multiprocessing.get_context("spawn")
    for way in ("full", "qlora"):
        sent = context.Queue()
        process = context.Process(target=train, args=(way, asked, sent))
        process.start()
        found[way] = sent.get()
        process.join()
    print(f"{'MiB':24}{'full':>12}{'qlora':>12}{'share':>9}")
    for what in ("tensors", "resident", "projections"):
        full, small = (found[way][what] / 2**20 for way in ("full", "qlora"))
        print(f"{what:24}{full:12.1f}{small:12.1f}{small / full:9.1%}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
