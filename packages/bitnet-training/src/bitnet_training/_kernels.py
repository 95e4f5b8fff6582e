"""What a ternary layer adds to a linear one, on GPUs: kernels of Triton, which torch brings along where it has CUDA.

Codes and scales are those of `bitnet_core.arithmetic` to the bit: quotients are rounded as IEEE has them, halves go to
even, and the mean is summed in float64. Kernels are launched as they are, since what calls them runs many times a step
and a call of a function compiled by torch costs the processor more than they cost the GPU.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

_PARTS = 512  # of a matrix, that are summed on their own: a power of 2
_SPAN = 4096  # elements that a program holds at once


def quantize_activations(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows (..., cols) as int8 codes, and the scales (..., 1) that were multiplied with."""
    x, cols = x.contiguous(), x.shape[-1]
    codes, steps = torch.empty_like(x, dtype=torch.int8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    _launch(_quantize_rows, steps.numel(), x, codes, steps, cols, eps, span=_span(cols))
    return codes, steps


def quantize_weight(weight: Tensor, eps: float, numbers: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Masters as codes in -1, 0, 1, the one scale that multiplies, and their products as `numbers`, or the codes."""
    weight = weight.contiguous()
    size, codes = weight.numel(), torch.empty_like(weight, dtype=torch.int8)
    sums, scale = weight.new_empty(_PARTS, dtype=torch.float64), weight.new_empty((), dtype=torch.float32)
    floats = torch.empty_like(weight, dtype=numbers) if numbers else codes
    each = triton.cdiv(triton.cdiv(size, _PARTS), _SPAN) * _SPAN
    _launch(_sum_magnitudes, _PARTS, weight, sums, size, each, span=_SPAN)
    programs, constants = triton.cdiv(size, _SPAN), {"has_floats": bool(numbers), "parts": _PARTS, "span": _SPAN}
    _launch(_quantize_matrix, programs, weight, sums, codes, floats, scale, size, eps, **constants)
    return codes, scale, floats


def dequantize(codes: Tensor, factors: Tensor, dtype: torch.dtype, *, divide: bool) -> Tensor:
    """Codes (rows, cols) times, or divided by, one factor or one a row."""
    numbers = torch.empty_like(codes, dtype=dtype)
    (rows, cols), stride = codes.shape, int(factors.numel() > 1)
    _launch(_dequantize_rows, rows, codes, factors, numbers, cols, stride, divide=divide, span=_span(cols))
    return numbers


def multiply(codes: Tensor, trits: Tensor, scale: Tensor, steps: Tensor, dtype: torch.dtype) -> Tensor:
    """Products (rows, out) of codes (rows, in) and trits (out, in), summed as int32, with their scales.

    For GPUs that copy tiles by themselves, and rows of whole 16 bytes.
    """
    (rows, inner), outputs, processors = codes.shape, len(trits), _processors(codes.device.index)
    y = torch.empty((rows, outputs), dtype=dtype, device=codes.device)
    if rows <= 64 or outputs <= 64:
        height, width, extent = 64, 64, {"num_warps": 4, "num_stages": 4}
    else:  # what is written goes through shared memory, which has no room for more floats
        height, width, extent = 128, 256 if dtype.itemsize == 2 else 128, {"num_warps": 8, "num_stages": 3}
    programs = min(processors, triton.cdiv(rows, height) * triton.cdiv(outputs, width))
    if not torch.compiler.is_compiling():  # which has memory of its own for the descriptions of tiles
        triton.set_allocator(_allocate)
    constants = {"stride": processors, "height": height, "width": width, "depth": 128} | extent
    _launch(_multiply, programs, codes, trits, scale, steps, y, rows, outputs, inner, **constants)
    return y


def _launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    if torch.compiler.is_compiling():  # which sees to the device itself
        kernel[(programs,)](*arguments, **options)
    elif programs:
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            kernel[(programs,)](*arguments, **options)


def _allocate(size: int, _alignment: int, _stream: int | None) -> Tensor:
    return torch.empty(size, device="cuda", dtype=torch.int8)


def _span(cols: int) -> int:
    return int(min(triton.next_power_of_2(cols), _SPAN))


@torch.compiler.assume_constant_result
def _processors(device: int) -> int:
    return _processors_of(device)


@cache
def _processors_of(device: int) -> int:
    found: int = torch.cuda.get_device_properties(device).multi_processor_count
    return found


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _quantize_rows(x, codes, steps, cols, eps, span: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x, codes = x + row * cols, codes + row * cols
    largest = tl.zeros([span], tl.float32)
    for begin in range(0, cols, span):
        at = begin + tl.arange(0, span)
        largest = _larger(largest, tl.abs(tl.load(x + at, mask=at < cols, other=0).to(tl.float32)))
    top = tl.reduce(largest, 0, _larger)
    step = tl.div_rn(127.0, tl.where(top < eps, eps, top))
    tl.store(steps + row, step)
    for begin in range(0, cols, span):
        at = begin + tl.arange(0, span)
        values = tl.load(x + at, mask=at < cols, other=0).to(tl.float32)
        tl.store(codes + at, libdevice.rint(values * step).to(tl.int8), mask=at < cols)


@triton.jit
def _sum_magnitudes(weight, sums, size, each, span: tl.constexpr):
    part = tl.program_id(0).to(tl.int64)
    total = tl.zeros([span], tl.float64)
    for begin in range(0, each, span):
        at = part * each + begin + tl.arange(0, span)
        total += tl.abs(tl.load(weight + at, mask=at < size, other=0).to(tl.float64))
    tl.store(sums + part, tl.sum(total, 0))


@triton.jit
def _quantize_matrix(
    weight, sums, codes, floats, scale, size, eps, has_floats: tl.constexpr, parts: tl.constexpr, span: tl.constexpr
):
    mean = (tl.sum(tl.load(sums + tl.arange(0, parts)), 0) / size).to(tl.float32)
    mean = tl.where(mean < eps, eps, mean)
    part = tl.program_id(0).to(tl.int64)
    if part == 0:
        tl.store(scale, mean)
    at = part * span + tl.arange(0, span)
    values = tl.load(weight + at, mask=at < size, other=0).to(tl.float32) * tl.div_rn(1.0, mean)
    trits = tl.minimum(tl.maximum(libdevice.rint(values), -1.0), 1.0)
    tl.store(codes + at, trits.to(tl.int8), mask=at < size)
    if has_floats:
        tl.store(floats + at, (trits * mean).to(floats.dtype.element_ty), mask=at < size)


@triton.jit
def _dequantize_rows(codes, factors, numbers, cols, stride, divide: tl.constexpr, span: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    codes, numbers = codes + row * cols, numbers + row * cols
    factor = tl.load(factors + row * stride)
    if divide:
        factor = tl.div_rn(1.0, factor)
    for begin in range(0, cols, span):
        at = begin + tl.arange(0, span)
        values = tl.load(codes + at, mask=at < cols, other=0).to(tl.float32) * factor
        tl.store(numbers + at, values.to(numbers.dtype.element_ty), mask=at < cols)


@triton.jit
def _multiply(
    codes, trits, scale, steps, y, rows, outputs, inner,
    stride: tl.constexpr, height: tl.constexpr, width: tl.constexpr, depth: tl.constexpr,
):  # fmt: skip
    left = tl.make_tensor_descriptor(codes, [rows, inner], [inner, 1], [height, depth])
    right = tl.make_tensor_descriptor(trits, [outputs, inner], [inner, 1], [width, depth])
    result = tl.make_tensor_descriptor(y, [rows, outputs], [outputs, 1], [height, width])
    down, across = tl.cdiv(rows, height), tl.cdiv(outputs, width)
    # One loop of tiles and their parts, so that the next tile is on its way while the last one is written.
    for number in tl.range(tl.program_id(0), down * across, stride, flatten=True):
        # Programs that run together share rows of codes and of trits: groups of 8 tiles above each other.
        first = number // (8 * across) * 8
        group = tl.minimum(down - first, 8)
        row = (first + number % (8 * across) % group) * height
        out = number % (8 * across) // group * width
        sums = tl.zeros((height, width), tl.int32)
        for begin in range(0, inner, depth):
            sums = tl.dot(left.load([row, begin]), right.load([out, begin]).T, sums, out_dtype=tl.int32)
        at = row + tl.arange(0, height)
        factor = tl.div_rn(tl.load(scale), tl.load(steps + at, mask=at < rows, other=1))
        result.store([row, out], (sums.to(tl.float32) * factor[:, None]).to(y.dtype.element_ty))
