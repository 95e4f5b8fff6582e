"""What stands around the arithmetic of a step: batches, the loop, looks at weights, and checkpoints.

python loop.py [--hidden 256] [--layers 4] [--steps 20]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bitnet_core import ModelSpec, Rope
from bitnet_training import models, state
from bitnet_training.checkpoint import Checkpoint, Checkpoints
from bitnet_training.corpus import Corpus, Counts
from bitnet_training.distributed import World
from bitnet_training.loss import cross_entropy
from bitnet_training.schedule import Rates
from bitnet_training.telemetry import Telemetry
from bitnet_training.train import Plan, Task, adamw, train
from bitnet_training.watch import Watch
from bitnet_training.windows import Batches, Stream, Whole

TOKENS, WINDOW, BATCH = 2_000_000, 256, 8


def best(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of several."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()

    model = models.build(shape(asked.hidden, asked.layers))
    batches = measure_batches()
    optimizer = measure_steps(model, batches, asked.steps)
    measure_checkpoints(model, optimizer)


def shape(hidden: int, layers: int) -> ModelSpec:
    """A small BitNet."""
    return ModelSpec(
        family="bitnet", vocab_size=1000, hidden_size=hidden, ffn_size=3 * hidden, layers=layers, heads=4, kv_heads=2,
        head_size=hidden // 4, context=WINDOW, rope=Rope(theta=1e4, size=hidden // 4), norm_eps=1e-5,
        activation="relu2", sub_norms="block", tied=True,
    )  # fmt: skip


def measure_batches() -> Batches:
    """How long it takes to lay tokens out."""
    tokens = np.random.default_rng(0).integers(0, 1000, TOKENS).astype(np.uint16)
    starts = np.unique(np.concatenate(([0, TOKENS], np.random.default_rng(1).integers(0, TOKENS, 10_000))))
    corpus = Corpus("noise", tokens, starts, None, Counts("uint16", TOKENS, len(starts) - 1, TOKENS, False, 0, 0))
    batches = Batches(Stream(corpus, WINDOW, apart=True), BATCH, BATCH, 0)
    seconds = best(lambda: batches(3))
    speed = BATCH * WINDOW / seconds / 1e6
    print(f"batch of {BATCH * WINDOW} tokens        {seconds * 1e3:9.3f} ms  {speed:.1f} M tokens/s")
    seconds = best(lambda: Whole.of(corpus, WINDOW, True), 2)
    print(f"packing {len(starts) - 1} documents     {seconds * 1e3:9.1f} ms")
    return batches


def measure_steps(model: nn.Module, batches: Batches, steps: int) -> torch.optim.Optimizer:
    """A step written out, and the same in the loop."""
    optimizer = adamw(model)
    size = sum(weight.numel() for weight in model.parameters())

    def bare() -> None:
        for step in range(steps):
            (part,) = batches(step)
            (cross_entropy(model, part) / part.learned).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def looped() -> None:
        task = Task(model=model, batches=batches, loss=cross_entropy, optimizer=optimizer,
                    rates=Rates(steps=steps, peak=1e-3))  # fmt: skip
        train(task, Plan(report=10, watch=10**9), World(torch.device("cpu")), Telemetry([]))

    bare()
    pairs = [(best(bare, 1), best(looped, 1)) for _ in range(3)]
    plain, whole = (min(times) / steps for times in zip(*pairs, strict=True))
    print(f"step of {size / 1e6:.1f} M weights, bare {plain * 1e3:9.1f} ms")
    print(f"the same in the loop       {whole * 1e3:9.1f} ms  (with one look at the weights in {steps} steps)")
    return optimizer


def measure_checkpoints(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """What is done now and then."""
    watch = Watch(model)
    print(f"look at all matrices       {best(watch.look) * 1e3:9.1f} ms")
    with tempfile.TemporaryDirectory() as name, Checkpoints(Path(name)) as checkpoints:
        tensors = {"model": state.weights(model), "optimizer": state.optimizer_state(model, optimizer)}
        held = sum(tensor.nbytes for some in tensors.values() for tensor in some.values())
        seconds = best(lambda: checkpoints.save(Checkpoint(1, tensors, {})), 3)
        print(
            f"checkpoint of {held / 1e6:.0f} MB        {seconds * 1e3:9.1f} ms  {held / seconds / 1e9:.2f} GB/s, proven"
        )
        print(f"reading it back            {best(checkpoints.newest, 3) * 1e3:9.1f} ms")


if __name__ == "__main__":
    main()
