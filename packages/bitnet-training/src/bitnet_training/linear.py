"""BitLinear: a linear layer that trains float masters and multiplies ternary weights by int8 activations.

Codes and scales are those of `bitnet_core.arithmetic` to the bit, and sums of codes are exact, in float32 and in
bfloat16 alike: a bfloat16 input is quantized as the float32 number that it is. What is rounded is the result, once to
float32 where its scales meet, and to bfloat16 where that is the type at hand. Devices without integer products
multiply codes as floats of that type, which is exact in float32, and rounds each sum once in bfloat16.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # as all of torch's users call it
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitnet_core import TernaryTensor, arithmetic

try:
    from . import _kernels
except ImportError:  # no triton: torch has none for the processor
    _kernels = None  # type: ignore[assignment]

EPS = float(arithmetic.EPS)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Masters as int8 codes in -1, 0, 1 and the one scale that multiplies, float32: as `arithmetic.absmean`."""
    if _launches(weight):
        return _kernels.quantize_weight(weight, EPS)[:2]
    values = weight.float()
    # float64 only inside the sum, so that its order does not show; mps has none, and may be an ulp off.
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    scale = values.abs().mean(dtype=wide).float().clamp(min=EPS)
    codes = (values * _divided(1.0, scale)).round_().clamp_(-1, 1)
    return codes.to(torch.int8), scale


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 codes, and the scales (rows, 1) that were multiplied with, float32: as `arithmetic.absmax`."""
    if _launches(x):
        return _kernels.quantize_activations(x, EPS)
    values = x.float()
    steps = _divided(127.0, values.abs().amax(-1, keepdim=True).clamp_(min=EPS))
    # No product passes 127 by more than a rounding, so that nothing has to be cut off.
    return (values * steps).round_().to(torch.int8), steps


def multiply(codes: Tensor, trits: Tensor, scale: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """The products (rows, out) that codes (rows, in) and trits (out, in) stand for with their scales."""
    if _has_kernels(codes) and _copies_tiles(codes, trits, dtype):
        return _kernels.multiply(codes, trits, scale, steps, dtype)
    return (sums(codes, trits, dtype) * (scale / steps)).to(dtype)


def sums(codes: Tensor, trits: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums (rows, out) of codes (rows, in) times trits (out, in): int32, or exact or near in `dtype`."""
    if _multiplies_integers(codes, trits):
        return torch._int_mm(codes, trits.T)
    return F.linear(codes.to(dtype), trits.to(dtype))


def dequantize(codes: Tensor, factors: Tensor, dtype: torch.dtype, *, divide: bool = False) -> Tensor:
    """Codes (rows, cols) times, or divided by, one factor or one a row."""
    if _launches(codes):
        return _kernels.dequantize(codes, factors, dtype, divide=divide)
    return (codes * (1 / factors if divide else factors)).to(dtype)


def _divided(over: float, under: Tensor) -> Tensor:
    """The float32 nearest to a quotient, on which codes hang: compiled for a GPU, division itself is only near it."""
    if under.device.type == "mps":
        return over / under
    return (over / under.double()).float()


def _launches(x: Tensor) -> bool:
    """Whether a kernel of ours beats plain operations: not in a model that is compiled, which fuses these."""
    return not torch.compiler.is_compiling() and _has_kernels(x)


def _has_kernels(x: Tensor) -> bool:
    return _kernels is not None and x.device.type == "cuda" and _capability(x.device.index) >= 80


def _copies_tiles(codes: Tensor, trits: Tensor, dtype: torch.dtype) -> bool:
    """Whether the GPU is a Hopper or newer, and rows are of whole 16 bytes, as its copies want them."""
    whole = codes.shape[1] % 16 == 0 and len(trits) * dtype.itemsize % 16 == 0
    return whole and len(codes) > 0 and _capability(codes.device.index) >= 90 and torch.version.cuda is not None


def _multiplies_integers(codes: Tensor, trits: Tensor) -> bool:
    if codes.device.type == "cuda":  # as cuBLAS wants its shapes
        return (
            codes.shape[0] > 16
            and codes.shape[1] % 8 == 0
            and len(trits) % 8 == 0
            and _capability(codes.device.index) >= 75
        )
    return codes.device.type == "cpu" and _cpu_multiplies_integers()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _capability(device: int) -> int:
    """What a GPU can, as a number: 90 is Hopper."""
    return _capability_of(device)


@cache  # apart, since torch's compiler would look through the cache at what must be a constant
def _capability_of(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _cpu_multiplies_integers() -> bool:
    """Whether integer products are fast: without such instructions torch has but a plain loop for some processors."""
    able = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and bool(  # type: ignore[no-untyped-call]
        able.get("avx512_vnni") or able.get("avx_vnni")
    )


class _Product(torch.autograd.Function):
    """y = x W, both quantized; gradients pass through the rounding as if it were not there.

    What is kept for the backward pass are codes, a byte a number; but halves of weights where a kernel makes them
    along with their codes, as autocast keeps them of any layer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        codes, steps = quantize_activations(x.reshape(-1, x.shape[-1]))
        if needs_x and dtype.itemsize == 2 and _launches(weight):
            trits, scale, back = _kernels.quantize_weight(weight, EPS, dtype)
        else:
            trits, scale = quantize_weight(weight)
            back = trits
        kept = (codes, steps) if needs_weight else (None, None)
        ctx.save_for_backward(*kept, back if needs_x else None, scale)
        ctx.kinds = x.dtype, weight.dtype
        return multiply(codes, trits, scale, steps, dtype).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        *shape, outputs = grads[0].shape
        grad = grads[0].reshape(-1, outputs)
        codes, steps, back, scale = ctx.saved_tensors
        x_kind, weight_kind = ctx.kinds
        to_x = to_weight = None
        if back is not None:
            floats = back if back.dtype == grad.dtype else dequantize(back, scale, grad.dtype)
            to_x = (grad @ floats).to(x_kind).view(*shape, back.shape[1])
        if codes is not None:
            to_weight = _outer(grad, dequantize(codes, steps, grad.dtype, divide=True), weight_kind)
        return to_x, to_weight, None


def _outer(grad: Tensor, inputs: Tensor, kind: torch.dtype) -> Tensor:
    """The gradient of weights; a GPU gives the sums of halves as the floats that they are."""
    if grad.device.type == "cuda" and grad.dtype != kind == torch.float32:
        return torch.mm(grad.T, inputs, out_dtype=kind)
    return (grad.T @ inputs).to(kind)


def working_dtype(x: Tensor) -> torch.dtype:
    """The type that products of x come in: autocast's, where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def normed(norm: nn.RMSNorm | None, x: Tensor) -> Tensor:
    """The input behind the norm in front of a projection, if there is one."""
    if norm is None:
        return x
    y: Tensor = norm(x.to(norm.weight.dtype))  # autocast gives half of a number; the norm is fused for one type alone
    return y


class BitLinear(nn.Linear):
    """A linear layer of BitNet b1.58; `weight` holds the float masters, which optimizers see as of any nn.Linear.

    `norm_eps` puts an RMS norm in front, as families do that norm the input of every projection.
    """

    rms_norm: nn.RMSNorm | None
    strength: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.rms_norm = None if norm_eps is None else nn.RMSNorm(in_features, norm_eps, device=device, dtype=dtype)
        # A tensor, since a number that changes from step to step would be compiled anew each time.
        self.register_buffer("strength", torch.ones((), device=device), persistent=False)
        self.whole = True  # strength is 1: nothing of the floats is left

    @torch.no_grad()
    def set_strength(self, strength: float) -> None:
        """How far weights and activations have moved from their floats, 0, to their quantized values, 1."""
        if not 0 <= strength <= 1:
            raise ValueError(f"strength: expected a number from 0 to 1, got {strength}")
        self.strength.fill_(strength)
        self.whole = strength == 1

    def forward(self, x: Tensor) -> Tensor:
        return self.product(normed(self.rms_norm, x))

    def product(self, x: Tensor) -> Tensor:
        """The product of an input that is normed already."""
        if x.shape[-1:] != (self.in_features,) or not x.is_floating_point():
            got = f"{tuple(x.shape)} of {x.dtype}"
            raise ValueError(
                f"x: expected floats (..., {self.in_features}), as the layer's weights are wide, got {got}"
            )
        if not self.whole:
            return self.blended(x)
        apply: Any = _Product.apply
        y: Tensor = apply(x, self.weight, working_dtype(x))
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def blended(self, x: Tensor) -> Tensor:
        """The same product in its obvious form, at any strength."""
        with torch.no_grad():
            codes, steps = quantize_activations(x)
            trits, scale = quantize_weight(self.weight)
            x_change = self.strength * (codes / steps - x)
            weight_change = self.strength * (trits * scale - self.weight)
        return F.linear(x + x_change.to(x.dtype), self.weight + weight_change.to(self.weight.dtype), self.bias)

    @torch.no_grad()
    def tensor(self) -> TernaryTensor:
        """The weights as they are multiplied, as core has them."""
        codes, scale = quantize_weight(self.weight)
        return TernaryTensor.from_codes(codes.cpu().numpy(), scale.item())

    def extra_repr(self) -> str:
        norm = "" if self.rms_norm is None else f", norm_eps={self.rms_norm.eps}"
        return f"{super().extra_repr()}{norm}"
