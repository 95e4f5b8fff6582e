"""`bitnet diff`: two models side by side."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import models
from ..console import FLAGS, Flags, mark, table
from ..failures import FAILED

if TYPE_CHECKING:
    from bitnet_core import Model

_SIDE = Parameter(help="A folder, a GGUF file, or a name on the hub.")


def diff(
    first: Annotated[str, _SIDE],
    second: Annotated[str, _SIDE],
    *,
    all_weights: bool = False,
    flags: Flags = FLAGS,
) -> int:
    """Two models side by side: exit code 1 if they differ in what they compute.

    Parameters
    ----------
    all_weights
        List weights that are equal, too.
    """
    one, other = models.load(first, flags), models.load(second, flags)
    specs = _specs(one, other)
    weights = _weights(one, other, flags)
    tokenizers = _same_tokens(one, other)
    templates = (one.template and one.template.source) == (other.template and other.template.source)
    unlike = [row for row in weights if not row["equal"]]
    same = not specs and not unlike and tokenizers
    record = {"same": same, "spec": specs, "weights": weights, "tokenizer": tokenizers, "template": templates}
    flags.answer(record, *_shown(specs, weights if all_weights else unlike, tokenizers, templates, len(weights)))
    return 0 if same else FAILED


def _specs(one: Model, other: Model) -> dict[str, tuple[Any, Any]]:
    pairs = {field.name: (getattr(one.spec, field.name), getattr(other.spec, field.name)) for field in fields(one.spec)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _weights(one: Model, other: Model, flags: Flags) -> list[dict[str, Any]]:
    shapes, others = one.spec.shapes(), other.spec.shapes()
    names = list(dict.fromkeys([*shapes, *others]))
    rows: list[dict[str, Any]] = []
    with flags.progress("comparing") as tell:
        for place, name in enumerate(names):
            tell(place, len(names), name)
            if shapes.get(name) != others.get(name):
                rows.append({"name": name, "equal": False, "what": f"{shapes.get(name)} and {others.get(name)}"})
            else:
                rows.append({"name": name, **_compared(one.weights[name], other.weights[name])})
    return rows


def _compared(one: Any, other: Any) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415

    from bitnet_core import TernaryTensor  # noqa: PLC0415

    ternary = [isinstance(weight, TernaryTensor) for weight in (one, other)]
    dense = [np.asarray(w.dense() if t else w, np.float32) for w, t in zip((one, other), ternary, strict=True)]
    apart = float(np.abs(dense[0] - dense[1]).max(initial=0))
    size = float(np.abs(dense[0]).max(initial=0)) or 1.0
    found: dict[str, Any] = {"equal": apart == 0, "ternary": ternary, "worst": apart / size}
    if all(ternary):
        flipped = int((one.codes() != other.codes()).sum())
        found |= {"flipped": flipped, "what": f"{flipped} of {one.codes().size} trits, scales by {apart / size:.1e}"}
        if not flipped:
            found["what"] = "scales only" if apart else "the same"
    else:
        form = " and ".join("ternary" if is_ternary else "floats" for is_ternary in ternary)
        found["what"] = f"{form}, by {apart / size:.1e} of the largest at most"
    return found


def _same_tokens(one: Model, other: Model) -> bool:
    sides = [model.tokenizer and list(model.tokenizer.vocabulary_bytes()) for model in (one, other)]
    return sides[0] == sides[1]


def _shown(
    specs: dict[str, tuple[Any, Any]], rows: list[dict[str, Any]], tokens: bool, templates: bool, count: int
) -> list[Any]:
    shown: list[Any] = []
    if specs:
        listed = table("", "first", "second")
        for name, (one, other) in specs.items():
            listed.add_row(name, str(one), str(other))
        shown.append(listed)
    if rows:
        listed = table("weight", "")
        for row in rows:
            listed.add_row(row["name"], mark(row["equal"], row["what"]))
        shown.append(listed)
    unlike = sum(not row["equal"] for row in rows)
    shown.append(mark(not specs, "the same shape" if not specs else "not the same shape"))
    shown.append(mark(not unlike, f"{unlike} of {count} weights differ"))
    shown.append(mark(tokens, "the same tokens" if tokens else "other tokens"))
    shown.append(mark(templates or None, "the same chat template" if templates else "another chat template"))
    return shown
