"""A model, texts and a task so small that a step takes milliseconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bitnet_core import ModelSpec, Rope
from bitnet_training import models, state
from bitnet_training.corpus import Corpus, Counts
from bitnet_training.distributed import World
from bitnet_training.loss import cross_entropy
from bitnet_training.schedule import Rates
from bitnet_training.train import Task, adamw
from bitnet_training.watch import Look
from bitnet_training.windows import Batches, Stream, in_order

LOOK = Look(zeros=0.3, flips=0.1, dead=0.0, border=0.05, clipped=0.2, scale=0.01, drift=1.1, gradient=0.4)
CPU = World(torch.device("cpu"))
SPEC = ModelSpec(
    family="bitnet",
    vocab_size=40,
    hidden_size=16,
    ffn_size=32,
    layers=2,
    heads=2,
    kv_heads=1,
    head_size=8,
    context=32,
    rope=Rope(theta=1e4, size=8),
    norm_eps=1e-5,
    activation="relu2",
    sub_norms="block",
    tied=True,
)


def corpus(tokens: int = 2000) -> Corpus:
    """Numbers in which there is something to find, as three documents."""
    numbers = (np.arange(tokens) ** 2 % 37).astype(np.uint16)
    starts = np.array([0, tokens // 3, tokens // 2, tokens])
    return Corpus("tiny", numbers, starts, None, Counts("uint16", tokens, 3, 2 * tokens, False, 0, 0))


def task(
    *,
    steps: int = 12,
    batch: int = 4,
    rows: int = 4,
    seed: int = 0,
    world: World = CPU,
    sharded: bool = False,
    **changes: Any,
) -> Task:
    """A task as it is before its first step."""
    state.seed(seed)
    model = models.build(SPEC)
    if sharded:
        world.shard(model)
    windows = Stream(corpus(), 16, apart=True)
    asked: dict[str, Any] = {
        "model": model,
        "batches": Batches(windows, batch, rows, seed, world.process, world.processes),
        "loss": cross_entropy,
        "optimizer": adamw(model),
        "rates": Rates(steps=steps, peak=3e-3, warmup=0.1),
        "held_out": lambda: in_order(windows, 4, 9, world.process, world.processes),
        "bytes_a_token": 2.0,
        **changes,
    }
    return Task(**asked)


class Memory:
    """A writer that remembers."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, event: Any) -> None:
        self.events.append(dict(event))

    def close(self) -> None:
        pass

    def of(self, name: str) -> list[Any]:
        """All values of one name."""
        return [event[name] for event in self.events if name in event]
