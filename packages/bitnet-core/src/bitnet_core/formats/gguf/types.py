"""The tensor types of GGUF files: how many bytes each takes, and what they mean.

Ternary types come as a TernaryTensor whose data is a view of the bytes that were read; the scales between them are
copied out. F32, F16 and BF16 come as views, all others as float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ...errors import FormatError
from ...model import Weight
from ...tensor import TernaryTensor
from . import blocks
from .blocks import Bytes

Floats = npt.NDArray[np.float32]
_CHUNK = 1 << 17  # elements decoded at a time
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Kind:
    """One tensor type: blocks of `block` elements in `size` bytes, and `tail` bytes behind them all."""

    id: int
    name: str
    block: int
    size: int
    tail: int = 0
    dtype: np.dtype[Any] = _FLOAT32  # of the numbers that come out
    decode: Callable[[Bytes], Floats] | None = None  # (blocks, size) -> (blocks, block)
    layout: str | None = None  # of a ternary type
    scale_at: int = 0  # where a block's float16 scale stands; a type with a tail has its float32 there
    read: bool = True  # False: nothing is known of it but its size

    @property
    def plain(self) -> bool:
        """Whether numbers are stored as they are used."""
        return self.read and self.block == 1 and not self.tail

    @property
    def by_rows(self) -> bool:
        """Whether some rows of numbers can be read without the others."""
        return self.plain or self.decode is not None

    def nbytes(self, shape: Sequence[int]) -> int | None:
        """What a tensor of `shape` takes; None where its blocks do not fit it."""
        count = math.prod(shape)
        # A type with one scale for all has its blocks run over the borders of rows.
        if (count if self.tail else shape[-1]) % self.block:
            return None
        return count // self.block * self.size + self.tail


def _plain(number: int, name: str, dtype: Any) -> Kind:
    kind = np.dtype(dtype)
    return Kind(number, name, 1, kind.itemsize, dtype=kind)


_I2_S = Kind(36, "I2_S", 128, 32, 32, layout="i2_s_128")
_ALL: tuple[Kind, ...] = (
    _plain(0, "F32", "<f4"),
    _plain(1, "F16", "<f2"),
    _plain(30, "BF16", ml_dtypes.bfloat16),
    Kind(2, "Q4_0", 32, 18, decode=blocks.q4_0),
    Kind(3, "Q4_1", 32, 20, decode=blocks.q4_1),
    Kind(6, "Q5_0", 32, 22, decode=blocks.q5_0),
    Kind(7, "Q5_1", 32, 24, decode=blocks.q5_1),
    Kind(8, "Q8_0", 32, 34, decode=blocks.q8_0),
    Kind(10, "Q2_K", 256, 84, decode=blocks.q2_k),
    Kind(11, "Q3_K", 256, 110, decode=blocks.q3_k),
    Kind(12, "Q4_K", 256, 144, decode=blocks.q4_k),
    Kind(13, "Q5_K", 256, 176, decode=blocks.q5_k),
    Kind(14, "Q6_K", 256, 210, decode=blocks.q6_k),
    Kind(34, "TQ1_0", 256, 54, layout="tq1_0", scale_at=52),
    Kind(35, "TQ2_0", 256, 66, layout="tq2_0", scale_at=64),
    _I2_S,
    Kind(37, "I8_S", 1, 1, 32),
    Kind(42, "Q2_0 in blocks of 64", 64, 18, layout="q2_0_64"),
    Kind(42, "Q2_0 in blocks of 128", 128, 34, layout="q2_0_128"),
    # What ggml once used the ids of I2_S and I8_S for. Not read; here so that their sizes can speak up.
    Kind(36, "IQ4_NL_4_4", 32, 18, read=False),
    Kind(37, "IQ4_NL_4_8", 32, 18, read=False),
)
KINDS: Mapping[str, Kind] = MappingProxyType({kind.name: kind for kind in _ALL if kind.read})

_FROM_SOURCE = "convert the model from its Hugging Face folder"
_REQUANTIZE = "store the tensor as F16, BF16 or Q6_K"
# Types that are known and not read: name, and what to do.
UNREAD: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        9: ("Q8_1", _REQUANTIZE),
        15: ("Q8_K", _REQUANTIZE),
        16: ("IQ2_XXS", _REQUANTIZE),
        17: ("IQ2_XS", _REQUANTIZE),
        18: ("IQ3_XXS", _REQUANTIZE),
        19: ("IQ1_S", _REQUANTIZE),
        20: ("IQ4_NL", _REQUANTIZE),
        21: ("IQ3_S", _REQUANTIZE),
        22: ("IQ2_S", _REQUANTIZE),
        23: ("IQ4_XS", _REQUANTIZE),
        24: ("I8", _REQUANTIZE),
        25: ("I16", _REQUANTIZE),
        26: ("I32", _REQUANTIZE),
        27: ("I64", _REQUANTIZE),
        28: ("F64", _REQUANTIZE),
        29: ("IQ1_M", _REQUANTIZE),
        38: ("ambiguous (TL1 in bitnet.cpp, IQ4_NL_8_8 in ggml)", f"neither is read; {_FROM_SOURCE}"),
        39: ("ambiguous (TL2 in bitnet.cpp, MXFP4 in ggml)", f"neither is read; {_FROM_SOURCE}"),
        40: ("NVFP4", _REQUANTIZE),
        41: ("Q1_0", "its codes are -1 and 1 alone; it is not read"),
        134: ("IQ1_BN of ik_llama.cpp", f"{_FROM_SOURCE}, or to I2_S"),
        135: ("IQ2_BN of ik_llama.cpp", f"{_FROM_SOURCE}, or to I2_S"),
        335: ("IQ2_BN_R4 of ik_llama.cpp", f"{_FROM_SOURCE}, or to I2_S"),
        142: ("a Hadamard type of Bonsai", "take the model's Q2_0 file"),
        143: ("a Hadamard type of Bonsai", "take the model's Q2_0 file"),
    }
)


def readings(number: int, i2_s_group: int = 128) -> tuple[Kind, ...]:
    """What the type with this id may be; more than one where forks gave the id away twice."""
    found = tuple(kind for kind in _ALL if kind.id == number)
    if i2_s_group == 128:
        return found
    quarter = i2_s_group // 4
    return tuple(
        replace(kind, block=i2_s_group, size=quarter, layout=f"i2_s_{i2_s_group}") if kind is _I2_S else kind
        for kind in found
    )


def by_layout(layout: str) -> Kind:
    """The type that stores ternary tensors in this layout."""
    if layout == "i2_s_64":
        return readings(36, 64)[0]
    return next(kind for kind in KINDS.values() if kind.layout == layout)


def by_dtype(dtype: np.dtype[Any]) -> Kind:
    """The type that stores these numbers as they are."""
    for kind in KINDS.values():
        if kind.plain and kind.dtype == dtype:
            return kind
    raise ValueError(f"tensors are written as float32, float16 or bfloat16, got {dtype}")


def decode(kind: Kind, raw: Bytes, shape: tuple[int, ...], file: str, field: str) -> Weight:
    """What a tensor's bytes mean; `file` and `field` name them in errors."""
    if kind.layout:
        return ternary(kind, raw, shape, file, field)
    if kind.tail:
        scale = tail_scale(kind, raw)
        if not np.isfinite(scale):
            raise FormatError(file, f"{field} scale", "a finite number", scale)
        return np.asarray(raw[: -kind.tail].view(np.int8).reshape(shape) * scale, np.float32)
    return numbers(kind, raw).reshape(shape)


def numbers(kind: Kind, raw: Bytes) -> npt.NDArray[np.floating[Any]]:
    """The numbers in some bytes of a type that is neither ternary nor scaled by its tail."""
    if (decode_blocks := kind.decode) is None:
        return raw.view(kind.dtype)
    values = np.empty((len(raw) // kind.size, kind.block), np.float32)
    blocks_ = raw.reshape(-1, kind.size)
    step = _CHUNK // kind.block
    with np.errstate(all="ignore"):  # scales that are not numbers become values that are not
        for start in range(0, len(values), step):
            values[start : start + step] = decode_blocks(blocks_[start : start + step])
    return values.reshape(-1)


def tail_scale(kind: Kind, raw: Bytes) -> np.float32:
    """The scale that stands behind the codes of I2_S and I8_S; what follows it says nothing."""
    return np.float32(raw[len(raw) - kind.tail :][:4].copy().view("<f4")[0])


def ternary(kind: Kind, raw: Bytes, shape: tuple[int, ...], file: str, field: str) -> TernaryTensor:
    """A ternary tensor as it is used: its codes and scales proven, its scales as few as say the same."""
    tensor = stored(kind, raw, shape)
    wrong = ~np.isfinite(tensor.scale) | (tensor.scale <= 0 if kind.tail else False)
    if wrong.any():
        expected = "finite numbers, and above 0 where there is one for all" if kind.tail else "finite numbers"
        raise FormatError(file, f"{field} scale", expected, tensor.scale[wrong][0])
    tensor.check_codes(file, field)
    if tensor.scale.size > 1 and (tensor.scale == tensor.scale[0, 0]).all():
        return replace(tensor, scale=tensor.scale[:1, :1].copy())  # the usual file, without unpacking it
    return tensor.simplified()


def stored(kind: Kind, raw: Bytes, shape: tuple[int, ...]) -> TernaryTensor:
    """A ternary tensor as it lies in the file, unproven: its codes a view, its scales one a block."""
    rows, cols = math.prod(shape[:-1]), shape[-1]
    layout = kind.layout or ""
    if kind.tail:
        scale = np.full((1, 1), tail_scale(kind, raw))
        return TernaryTensor(raw[: -kind.tail].reshape(-1, kind.size), scale, (rows, cols), layout)
    parts = raw.reshape(-1, kind.size)
    halves = parts[:, kind.scale_at : kind.scale_at + 2].copy().view("<f2")
    scale = halves.astype(np.float32).reshape(rows, cols // kind.block)
    codes = parts[:, : kind.scale_at] if kind.scale_at else parts[:, 2:]
    return TernaryTensor(codes, scale, (rows, cols), layout)


def encode(kind: Kind, weight: Weight) -> Bytes:
    """The bytes of a tensor in a type of plain numbers or a ternary one; ValueError where it cannot say the same."""
    if kind.layout is None and not kind.plain:
        raise ValueError(f"{kind.name} is read and not written; F32, F16, BF16 and the ternary types are")
    if kind.layout is None:
        return _encode_plain(kind, weight.dense() if isinstance(weight, TernaryTensor) else weight)
    if not isinstance(weight, TernaryTensor):
        raise TypeError(f"{kind.name} holds ternary tensors, got {weight.dtype}")
    packed = weight.repack(kind.layout).data
    if kind.tail:
        tail = np.zeros(kind.tail, np.uint8)
        tail[:4] = np.array([_single_scale(kind, weight)], "<f4").view(np.uint8)
        return np.concatenate([packed.reshape(-1), tail])
    raw = np.empty((len(packed), kind.size), np.uint8)
    halves = _half_scales(kind, weight).view(np.uint8).reshape(-1, 2)
    raw[:, kind.scale_at : kind.scale_at + 2] = halves
    raw[:, slice(kind.scale_at) if kind.scale_at else slice(2, None)] = packed
    return raw.reshape(-1)


def _encode_plain(kind: Kind, values: npt.NDArray[Any]) -> Bytes:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values.astype(kind.dtype))
    if narrow.dtype.itemsize < values.dtype.itemsize or kind.name == "F16":
        lost = ~np.isfinite(narrow) & np.isfinite(values)
        if lost.any():
            raise ValueError(f"{kind.name} cannot hold {float(values[lost][0])}; F32 and BF16 can")
    return narrow.reshape(-1).view(np.uint8)


def check_scales(kind: Kind, weight: TernaryTensor) -> None:
    """Raise where a type cannot hold a tensor's scales, as far as they tell without the codes."""
    if kind.tail:
        _single_scale(kind, weight)
    else:
        _check_halves(kind, weight.scaled_by(kind.block))


def _single_scale(kind: Kind, weight: TernaryTensor) -> np.float32:
    scale = weight.simplified().scale
    if scale.size != 1:
        raise ValueError(f"{kind.name} holds one scale, this tensor has {scale.size}; TQ types hold one a block")
    single = np.float32(scale[0, 0])
    if single == 0 and not weight.codes().any():
        return np.float32(1e-5)  # what an absmean of zeros is taken for
    if not (np.isfinite(single) and single > 0):
        raise ValueError(f"{kind.name} holds a scale above 0, this tensor's is {single}")
    return single


def _check_halves(kind: Kind, scale: Floats) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = scale.astype("<f2")
    if not np.isfinite(halves).all() or ((halves == 0) != (scale == 0)).any():
        raise ValueError(f"{kind.name} holds float16 scales, which cannot say all of {scale.min()}..{scale.max()}")
    return halves


def _half_scales(kind: Kind, weight: TernaryTensor) -> npt.NDArray[np.float16]:
    scale = weight.scaled_by(kind.block)
    if kind.scale_at:  # TQ types are written with 0 for a block of zeros
        used = weight.codes().reshape(*scale.shape, kind.block).any(axis=2)
        scale = np.where(used, scale, np.float32(0))
    return _check_halves(kind, scale)
