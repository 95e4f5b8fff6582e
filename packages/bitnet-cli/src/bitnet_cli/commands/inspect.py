"""`bitnet inspect`: tensors, types and metadata of a model's files."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import amounts, models
from ..console import FLAGS, Flags, pairs, table
from ..failures import Refused
from ..models import ModelName
from ..stored import Stored, read

if TYPE_CHECKING:
    from bitnet_core import Model

_VALUES = 8  # of an array in the metadata that are shown


def inspect(
    model: ModelName,
    *,
    tensors: Annotated[bool, Parameter(name=["--tensors", "-t"])] = False,
    metadata: Annotated[bool, Parameter(name=["--metadata", "-m"])] = False,
    trits: bool = False,
    flags: Flags = FLAGS,
) -> None:
    """Tensors, types and metadata of a model's files; only their headers are read.

    Parameters
    ----------
    tensors
        List every tensor.
    metadata
        List every key.
    trits
        Count -1, 0 and 1 in every ternary weight: this reads all of it.
    """
    path = models.find(model, flags)
    stored = read(path)
    counted = _trits(models.load(str(path), flags), flags) if trits else None
    record = {"path": path, "format": stored.format, "metadata": _short(stored.metadata), "tensors": stored.tensors}
    if counted is not None:
        record["trits"] = counted
    flags.answer(record, *_shown(path, stored, tensors, metadata), *([_codes(counted)] if counted else []))


def _shown(path: Path, stored: Stored, tensors: bool, metadata: bool) -> list[Any]:
    counts = Counter[str]()
    sizes = Counter[str]()
    for tensor in stored.tensors:
        counts[tensor.type] += 1
        sizes[tensor.type] += tensor.nbytes
    total = sum(math.prod(tensor.shape) for tensor in stored.tensors)
    named = stored.metadata.get("general.architecture") or stored.metadata.get("architectures")
    said = {
        "file": path,
        "format": stored.format,
        "model": stored.metadata.get("general.name"),
        "architecture": ", ".join([named] if isinstance(named, str) else map(str, named or ())) or None,
        "tensors": len(stored.tensors),
        "elements": amounts.amount(total),
        "size": amounts.size(sum(sizes.values())),
    }
    types = table("type", "tensors", "size", "", numbers=(1, 2, 3))
    for name, nbytes in sizes.most_common():
        share = f"{nbytes / max(1, sum(sizes.values())):.1%}"
        types.add_row(name, str(counts[name]), amounts.size(nbytes), share)
    shown: list[Any] = [pairs(said), "", types]
    if tensors:
        listed = table("tensor", "type", "shape", "size", numbers=(2, 3))
        for tensor in stored.tensors:
            listed.add_row(tensor.name, tensor.type, " x ".join(map(str, tensor.shape)), amounts.size(tensor.nbytes))
        shown += ["", listed]
    if metadata:
        shown += ["", pairs({key: _short(value) for key, value in stored.metadata.items()})]
    return shown


def _short(value: Any) -> Any:
    """Values as they can be read: long arrays and texts are cut, and say so."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, str):
        return value if len(value) <= 400 else f"{value[:400]}... ({len(value)} characters)"
    if hasattr(value, "__len__") and len(value) > _VALUES:
        first = [item if not hasattr(item, "item") else item.item() for item in list(value[:_VALUES])]
        return f"{len(value)} of them: {first}..."
    return value


def _trits(found: Model, flags: Flags) -> dict[str, dict[str, float]]:
    from bitnet_core import TernaryTensor  # noqa: PLC0415

    counts: dict[str, dict[str, float]] = {}
    with flags.progress("counting") as tell:
        for place, name in enumerate(found.weights):
            tell(place, len(found.weights), name)
            weight = found.weights[name]
            if isinstance(weight, TernaryTensor):
                low, zero, high = weight.counts()
                counts[name] = {"-1": low, "0": zero, "1": high, "scale": float(weight.scale.mean())}
    if not counts:
        raise Refused("--trits: this model has no ternary weights as it is stored")
    return counts


def _codes(counts: dict[str, dict[str, float]]) -> Any:
    listed = table("weight", "-1", "0", "+1", "zeros", "scale", numbers=(1, 2, 3, 4, 5))
    for name, count in counts.items():
        low, zero, high, scale = count.values()
        share = zero / (low + zero + high)
        listed.add_row(name, f"{low:.0f}", f"{zero:.0f}", f"{high:.0f}", f"{share:.1%}", f"{scale:.4g}")
    return listed
