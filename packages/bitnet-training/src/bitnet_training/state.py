"""What a run must remember to go on as if it had never stopped: weights, optimizer and every generator of numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from bitnet_core import FormatError

Tensors = dict[str, Tensor]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by their names in the model as it was built."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def weights(model: nn.Module) -> Tensors:
    """What has been learned; what is frozen lies in the base."""
    return {name: whole(weight) for name, weight in trained(model).items()}


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put learned weights into the model that they were taken from."""
    mine = trained(model)
    if odd := sorted(mine.keys() ^ tensors.keys()):
        raise FormatError("checkpoint", "model", "the weights of this model", f"a difference at {odd[0]}")
    with torch.no_grad():
        for name, weight in mine.items():
            if weight.shape != tensors[name].shape:
                raise FormatError("checkpoint", name, tuple(weight.shape), tuple(tensors[name].shape))
            weight.copy_(_placed(tensors[name], weight))


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """What the optimizer remembers of each weight."""
    return {
        f"{name}.{key}": whole(value)
        for name, weight in trained(model).items()
        for key, value in optimizer.state[weight].items()
    }


def load_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer its memory back."""
    names = {weight: name for name, weight in trained(model).items()}
    held: dict[str, Tensors] = {}
    for path, tensor in tensors.items():
        name, _, key = path.rpartition(".")
        held.setdefault(name, {})[key] = tensor
    described = optimizer.state_dict()
    order = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, weight in enumerate(order):
        found = held.get(names[weight])
        if found is None:
            raise FormatError("checkpoint", "optimizer", f"what is remembered of {names[weight]}", "nothing")
        # A file holds no tensor without dimensions: counters come back as they were.
        described["state"][number] = {
            key: _placed(value, weight) if value.shape == weight.shape and key != "step" else value.reshape(())
            for key, value in found.items()
        }
    optimizer.load_state_dict(described)


def generators(device: torch.device) -> dict[str, Any]:
    """The state of every generator of random numbers, as JSON has it."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002  # the one that libraries draw from
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {**legacy, "state": {"key": legacy["state"]["key"].tolist(), "pos": legacy["state"]["pos"]}},
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "device": _of_device(device).get_rng_state().numpy().tobytes().hex() if device.type != "cpu" else None,
    }


def load_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Set every generator of random numbers."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    legacy = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        {**legacy, "state": {"key": np.array(legacy["state"]["key"], np.uint32), "pos": legacy["state"]["pos"]}}
    )
    torch.set_rng_state(_bytes(state["torch"]))
    if state["device"] is not None and device.type != "cpu":
        _of_device(device).set_rng_state(_bytes(state["device"]))


def seed(number: int) -> None:
    """Start every generator of random numbers from one seed."""
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
    torch.manual_seed(number)


def seed_draws(number: int, device: torch.device) -> None:
    """Start what models draw from, and nothing else: torch's own word for it queues calls for devices never used."""
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        _of_device(device).manual_seed(number)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which every process may hold a part; all must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor laid out over the processes as another is."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.to(like.device)


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _of_device(device: torch.device) -> Any:
    return torch.cuda if device.type == "cuda" else torch.mps
