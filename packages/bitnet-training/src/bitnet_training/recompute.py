"""Layers computed again in the backward pass, which takes time and saves memory."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute(model: nn.Module) -> None:
    """Keep of each layer its input alone, and give back what it leaves free on the processor."""
    enable: Any = model.activation_checkpointing_enable
    enable({"use_reentrant": False})
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.register_forward_hook(_tidy)


def _tidy(_layer: nn.Module, _inputs: object, output: Any) -> None:
    """Give memory back behind a layer's forward pass, and in front of its backward one, behind that of the next."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    if hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return
    _give_back()
    if hidden.requires_grad:
        hidden.register_hook(_tidy_before)  # type: ignore[no-untyped-call]


def _tidy_before(_grad: Tensor) -> None:
    _give_back()


def _give_back() -> None:
    """Give the system the pages that nobody uses.

    torch asks for aligned memory, and glibc before 2.38 seldom finds that in a hole that such memory left: each layer
    would take new pages, and what a process holds would be many times what is alive.
    """
    if trim := _trim():
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None where another library manages memory."""
    return ctypes.CDLL(None).malloc_trim if platform.libc_ver()[0] == "glibc" else None
