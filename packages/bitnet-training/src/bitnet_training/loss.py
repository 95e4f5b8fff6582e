"""The loss of a step, over the largest tensor that there is in it, of which there is but one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as all of torch's users call it
from torch import Tensor, nn

from .windows import NOTHING, Batch


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """The usual loss: how unlikely the tokens that follow are to the model, summed, in nats."""
    logits = model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False).logits
    apply: Any = _CrossEntropy.apply
    nats: Tensor = apply(logits.flatten(0, 1), batch.targets.flatten())
    return nats


class _CrossEntropy(torch.autograd.Function):
    """Logits (tokens, vocabulary) become their own gradient, some rows at a time in float32."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        nats = logits.new_zeros((), dtype=torch.float32)
        part = max(1, (1 << 18 if logits.device.type == "cpu" else 1 << 24) // logits.shape[-1])
        for rows, wanted in zip(torch.split(logits, part), torch.split(targets, part), strict=True):
            chances = rows.float().log_softmax(-1)
            nats += F.nll_loss(chances, wanted, ignore_index=NOTHING, reduction="sum")
            if ctx.needs_input_grad[0]:
                chances.exp_().scatter_add_(1, wanted.clamp(min=0)[:, None], chances.new_full((len(wanted), 1), -1))
                rows.copy_(chances.masked_fill_((wanted == NOTHING)[:, None], 0))
        ctx.save_for_backward(logits)
        return nats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (gradient,) = grads, ctx.saved_tensors
        return gradient.mul_(grad), None
