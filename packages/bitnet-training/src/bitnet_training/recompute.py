"""Layers computed again in the backward pass, which takes time and saves memory."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

_SLACK = 24 << 20  # bytes that a process may grow by before what is free in it is given back


def recompute(model: nn.Module) -> None:
    """Keep of each layer its input alone, and give back what layers leave free on the processor."""
    enable: Any = model.activation_checkpointing_enable
    enable({"use_reentrant": False})
    if _trim() is None:
        return
    tidy = _Tidy()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.register_forward_hook(tidy.behind)


class _Tidy:
    """Gives the system pages that nobody uses, behind a layer's forward pass, and in front of its backward one.

    torch asks for aligned memory, and glibc before 2.38 seldom finds that in a hole that such memory left: each layer
    would take new pages, and what a process holds would be many times what is alive.
    """

    def __init__(self) -> None:
        self._held = 0  # bytes that were resident when all was given back last

    def behind(self, _layer: nn.Module, _inputs: object, output: Any) -> None:
        """A hook of layers."""
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        if hidden.device.type != "cpu" or torch.compiler.is_compiling():
            return
        self._give_back()
        if hidden.requires_grad:
            hidden.register_hook(self._before)  # type: ignore[no-untyped-call]

    def _before(self, _grad: Tensor) -> None:
        self._give_back()

    def _give_back(self) -> None:
        process, trim = psutil.Process(), _trim()
        if trim is not None and process.memory_info().rss > self._held + _SLACK:
            trim(0)
            self._held = process.memory_info().rss


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None where another library manages memory."""
    return ctypes.CDLL(None).malloc_trim if platform.libc_ver()[0] == "glibc" else None
