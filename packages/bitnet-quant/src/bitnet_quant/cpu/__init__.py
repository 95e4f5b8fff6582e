"""The cpu backend: kernels in C++ for each instruction set, chosen when a model is loaded."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Literal

from bitnet_core import device
from bitnet_core.decoder import Decoder
from bitnet_core.errors import BackendUnavailable
from bitnet_core.memory import Pool
from bitnet_core.model import Backend, Model, ModelSpec, Runner

_BYTES_A_THREAD = 8 << 20  # of weights that a token reads
_MOST_EXACT_BYTES = 16 << 10  # of a position's keys and values, up to which they are held as float32 by default


def why_not() -> str | None:
    """Why the backend cannot run here, with the remedy; None where it can."""
    try:
        from . import _native  # noqa: PLC0415  # where no compiler was at hand, it is not there
    except ImportError as error:
        return (
            f"its compiled part is missing ({error}); install a C++20 compiler and reinstall bitnet-quant from source, "
            "or install a wheel made for this platform"
        )
    return _refusal(_native, os.environ.get("BITNET_ISA", ""))


def isas() -> list[str]:
    """The instruction sets that have kernels and that this processor has, the best first."""
    from . import _native  # noqa: PLC0415

    return _native.usable()


def load(
    model: Model,
    *,
    memory: Pool | None = None,
    threads: int | None = None,
    head: Literal["f16", "int8"] = "int8",
    kv: Literal["auto", "f16", "f32", "int8"] = "auto",
    isa: str | None = None,
) -> Runner:
    """The model on this processor; weights, pages and scratch are taken from `memory`.

    `threads`: how many work together, by default one for each core that may be used, and fewer for a small model.
    `head`: the output head as int8 with a scale a row, half the bytes and nearly the same logits, of which steps with
    a reach read only what they need; or as it is stored.
    `kv`: how keys and values are held. "auto" is "f32" for small models, of which a position takes up to 16 KiB so, and
    "f16" for others; "int8" has a scale for each key and each value of each head.
    `isa`: the instruction set, by default what BITNET_ISA names, or the best.
    """
    from . import _native  # noqa: PLC0415
    from .operations import CpuOperations  # noqa: PLC0415  # imports the compiled part

    name = isa or os.environ.get("BITNET_ISA", "")
    if refusal := _refusal(_native, name):
        raise BackendUnavailable(f"backend 'cpu' cannot run here: {refusal}")
    if head not in ("f16", "int8"):
        raise ValueError(f"expected head to be f16 or int8, got {head!r}")
    if kv not in ("auto", "f16", "f32", "int8"):
        raise ValueError(f"expected kv to be auto, f16, f32 or int8, got {kv!r}")
    count = _threads(model.spec) if threads is None else threads
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"threads: expected a number of 1 or more, got {count!r}")
    pool = memory or Pool(name="cpu")
    held = _held(model.spec) if kv == "auto" else kv
    operations = CpuOperations(model, pool, isa=name or _native.usable()[0], threads=count, head=head, kv=held)
    return Decoder(model.spec, operations)


def _refusal(native: ModuleType, name: str) -> str | None:
    usable, built = native.usable(), native.built()
    if not name or name in usable:
        return None
    what = "this processor does not have it" if name in built else "there is no such instruction set in this build"
    return f"BITNET_ISA or isa asks for {name!r}, but {what}; choose one of {', '.join(usable)}"


def _threads(spec: ModelSpec) -> int:
    """One for each physical core that affinity and quota leave: more would share the same multipliers.

    Threads meet some two hundred times a token, so each must have enough to read in between to pay for that.
    """
    cpu = device.cpu()
    cores = min(cpu.usable_cores, cpu.physical_cores or cpu.usable_cores)
    codes = spec.layers * sum(rows * cols for rows, cols in spec.projections().values())
    worth = (codes // 4 + 2 * spec.vocab_size * spec.hidden_size) // _BYTES_A_THREAD
    return max(1, min(cores, worth))


def _held(spec: ModelSpec) -> str:
    """Half precision moves activations over the edges of their steps, and what a small model saves by it is little."""
    exact = 2 * 4 * spec.layers * spec.kv_heads * spec.head_size  # bytes of a position's keys and values as float32
    return "f32" if exact <= _MOST_EXACT_BYTES else "f16"


BACKEND = Backend(name="cpu", load=load, why_not=why_not, priority=50)
