"""PackedLinear: a frozen ternary layer that trains what lies around it from two bits a weight.

The bytes are those of a packed Hugging Face folder: four quarters of the rows over each other, the first in the low
bits. Both passes unpack a tile of them at a time, multiply, and forget it; nothing of the input is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitnet_core import TernaryTensor, UnsupportedError

from .linear import dequantize, multiply, normed, quantize_activations, working_dtype

_TILE = 1 << 22  # weights that are unpacked at a time


def _tiles(packed: Tensor, rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the matrix and their int8 codes, a tile at a time."""
    quarter, cols = packed.shape
    step = max(1, _TILE // cols)
    for number in range(4):
        # Quarters are rounded up: the last may have rows that the matrix has not.
        end = max(0, min(quarter, rows - number * quarter))
        for first in range(0, end, step):
            last = min(first + step, end)
            digits = packed[first:last] >> (2 * number) & 3
            yield slice(number * quarter + first, number * quarter + last), digits.to(torch.int8) - 1


class _PackedProduct(torch.autograd.Function):
    """As BitLinear's product, of weights that have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        codes, steps = quantize_activations(x)
        ctx.save_for_backward(packed, scale)
        ctx.rows, ctx.kind = rows, x.dtype
        y = x.new_empty((len(x), rows), dtype=dtype)
        for place, trits in _tiles(packed, rows):
            y[:, place] = multiply(codes, trits, scale, steps, dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = grads
        packed, scale = ctx.saved_tensors
        to_x = grad.new_zeros((len(grad), packed.shape[1]), dtype=torch.float32)  # a sum of many tiles
        for place, trits in _tiles(packed, ctx.rows):
            to_x += grad[:, place] @ dequantize(trits, scale, grad.dtype)
        return to_x.to(ctx.kind), None, None, None, None


class PackedLinear(nn.Module):
    """A frozen ternary matrix of one scale, and perhaps an RMS norm in front and a bias behind, which stay frozen too.

    Its state has the names and the bytes of a packed folder: `weight`, uint8, and `weight_scale`.
    """

    rms_norm: nn.RMSNorm | None
    weight: Tensor
    weight_scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, tensor: TernaryTensor, *, bias: bool = False, norm_eps: float | None = None) -> None:
        super().__init__()
        if tensor.scale.size != 1:
            raise UnsupportedError(
                f"a matrix of {tensor.scale.size} scales cannot be trained on; one scale a tensor can, as BitNet has it"
            )
        self.out_features, self.in_features = tensor.shape
        # A copy: what core reads is not to be written, and torch knows no such tensors.
        self.register_buffer("weight", torch.from_numpy(np.array(tensor.repack("hf_rows").data)))
        self.register_buffer("weight_scale", torch.from_numpy(tensor.scale.reshape(1).copy()))
        self.bias = nn.Parameter(torch.zeros(self.out_features), requires_grad=False) if bias else None
        self.rms_norm = None if norm_eps is None else nn.RMSNorm(self.in_features, norm_eps).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(normed(self.rms_norm, x))

    def product(self, x: Tensor) -> Tensor:
        """The product of an input that is normed already."""
        scale = self.weight_scale.float()  # a model that is cast to bfloat16 casts its buffers
        apply: Any = _PackedProduct.apply
        inputs = x.reshape(-1, self.in_features)
        rows: Tensor = apply(inputs, self.weight, scale, self.out_features, working_dtype(x))
        y = rows.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def tensor(self) -> TernaryTensor:
        """The matrix as core has it."""
        data, scale = self.weight.cpu().numpy(), self.weight_scale.float().cpu().numpy().reshape(1, 1)
        return TernaryTensor(data, scale, (self.out_features, self.in_features), "hf_rows")

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
