"""The loss, beside torch's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from bitnet_training.loss import cross_entropy
from bitnet_training.windows import NOTHING, Batch


class Says(nn.Module):
    """A model that says what it is told to."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, **_: Any) -> Any:
        self.said = self.logits * 1
        return SimpleNamespace(logits=self.said)


def drawn(rows: int, tokens: int, vocabulary: int, kind: torch.dtype) -> tuple[Says, Batch]:
    made = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, tokens, vocabulary, generator=made).to(kind) * 4
    targets = torch.randint(0, vocabulary, (rows, tokens), generator=made)
    targets[torch.rand(rows, tokens, generator=made) < 0.3] = NOTHING
    return Says(logits), Batch(targets, targets, targets)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocabulary", [5, 3000, 300_000])  # one part, several, and one for each token
def test_loss_and_gradient_are_those_of_torch(vocabulary: int, kind: torch.dtype) -> None:
    model, batch = drawn(2, 60 if vocabulary < 9999 else 2, vocabulary, kind)
    logits, targets = model.logits.flatten(0, 1), batch.targets.flatten()
    expected = F.cross_entropy(logits.float(), targets, ignore_index=NOTHING, reduction="sum") / 7
    found = cross_entropy(model, batch) / 7
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(loss, model.logits)[0] for loss in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-5 if kind == torch.float32 else 2**-7, atol=1e-7)


def test_logits_that_need_no_gradient_stay_what_they_are() -> None:
    model, batch = drawn(1, 4, 9, torch.float32)
    with torch.no_grad():
        cross_entropy(model, batch)
    assert torch.equal(model.said, model.logits)


def test_a_gradient_is_taken_once() -> None:
    model, batch = drawn(1, 4, 9, torch.float32)
    loss = cross_entropy(model, batch)
    torch.autograd.grad(loss, model.logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, model.logits)
