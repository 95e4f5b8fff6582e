"""What a model's makers advise for sampling: numbers that a file states, each within what it can mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

from ..errors import FormatError

# Advice out of range would be refused at every request, far from the file that gave it.
_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "temperature": (0, 100),
        "top_p": (0, 1),
        "top_k": (0, 1 << 20),
        "min_p": (0, 1),
        "repetition_penalty": (0.01, 100),
    }
)
NAMES = tuple(_RANGES)


def checked(name: str, value: object, file: str | os.PathLike[str], field: str) -> float:
    """The value of one of NAMES, which stands in this field of a file; top_k is whole."""
    least, most = _RANGES[name]
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
        if name != "top_k":
            return value
        if value == int(value):
            return int(value)
    kind = "a whole number" if name == "top_k" else "a number"
    raise FormatError(file, field, f"{kind} of {least}..{most}", value)
