"""What can be said of a model before anybody asks it: its bytes, its parameters, and a name for just these files."""

from __future__ import annotations

import hashlib
import math

from bitnet_core.model import Model, ModelSpec

from .models import ModelState, files_of

_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "K"))


def parameters(spec: ModelSpec) -> int:
    """How many weights a model has."""
    return sum(math.prod(shape) for shape in spec.shapes().values())


def amount(count: int) -> str:
    """A count as 5.0M."""
    unit, letter = next((each for each in _UNITS if count >= each[0]), (1, ""))
    return f"{count / unit:.1f}{letter}" if letter else str(count)


def size_of(state: ModelState) -> int:
    """Bytes of a model's weights: those of its files, or what they would have; 0 where nothing is known yet."""
    files = files_of(state.origin)
    if files:
        return sum(file.stat().st_size for file in files)
    if state.llm is None:
        return 0
    spec = state.llm.model.spec
    ternary = sum(math.prod(shape) for shape in spec.projections().values()) * spec.layers
    return ternary // 4 + (parameters(spec) - ternary) * 2  # 2 bits, and 16


def digest_of(state: ModelState) -> str:
    """64 hexadecimal digits that change when a model's files do; the files are not read for it."""
    found = hashlib.sha256(state.name.encode())
    for file in files_of(state.origin):
        told = file.stat()
        found.update(f"\0{file.name}\0{told.st_size}\0{told.st_mtime_ns}".encode())
    if isinstance(state.origin, Model):
        found.update(repr(state.origin.spec).encode())
    elif state.origin is not None:
        found.update(str(state.origin).encode())
    return found.hexdigest()
