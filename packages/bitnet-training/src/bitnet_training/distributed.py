"""Several processes as one: started by torchrun or accelerate, their gradients meet, weights are copies or shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from bitnet_core import UnsupportedError


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run, as one of them sees them."""

    device: torch.device
    process: int = 0
    processes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.process == 0

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over the processes."""
        if self.processes == 1:
            return list(numbers)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        held = torch.tensor(numbers, dtype=kind, device=self.device)
        dist.all_reduce(held)
        return held.tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.processes > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes ahead; the others follow when it is done."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def check_shards(self) -> None:
        """Refuse shards where one process is alone."""
        if self.processes == 1:
            raise UnsupportedError("shards need several processes: start with torchrun --nproc-per-node=N")

    def shard(self, model: nn.Module) -> None:
        """Leave every process its part of each weight; whoever remembers weights, as an optimizer, comes later."""
        self.check_shards()
        # Without one, torch takes the machine's GPUs even for processes that compute without them.
        mesh = init_device_mesh(self.device.type, (self.processes,))
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as all processes compute it together: gradients come out as the mean over them."""
        alone = self.processes == 1 or isinstance(model, FSDPModule)
        return model if alone else DistributedDataParallel(model)

    def settle(self, wrapped: nn.Module) -> None:
        """After forward passes that no backward one follows: shards of the whole are shards again."""
        if isinstance(wrapped, FSDPModule):
            wrapped.reshard()

    @contextmanager
    def gathering(self, wrapped: nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients of all but the last part of a step add up here, and meet the others' with the last."""
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(last)
        silent = isinstance(wrapped, DistributedDataParallel) and not last
        with wrapped.no_sync() if silent else nullcontext():  # type: ignore[operator]
            yield


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that the launcher's environment describes: alone without one."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    place = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose(device, place)
    if processes == 1:
        yield World(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(chosen, dist.get_rank(), processes)
    finally:
        dist.destroy_process_group()


def choose(device: str, place: int = 0) -> torch.device:
    """The device of that name; auto: the first that is there of cuda, mps and cpu."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(kind for kind, is_there in there.items() if is_there) if device == "auto" else device
    kind = name.partition(":")[0]
    if not there.get(kind, False):
        found = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise UnsupportedError(f"this machine has no device {name!r}; it has {found}")
    if name == "cuda" and place >= (most := torch.cuda.device_count()):
        raise UnsupportedError(
            f"process {place + 1} of this machine has no GPU, which has {most}: start as many, or say cpu"
        )
    return torch.device(f"cuda:{place}" if name == "cuda" else name)


def _layers(model: nn.Module) -> list[Any]:
    """The decoder layers: the longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
