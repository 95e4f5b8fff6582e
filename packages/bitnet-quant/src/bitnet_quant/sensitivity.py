"""How much harm each form does to each matrix of a model: what a search for a recipe goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from bitnet_core import Backend, Model, TernaryTensor, reference
from bitnet_core.model import Tokens, Weight, Weights

from . import blocks
from .calibrate import calibrate
from .compensate import output_error
from .quality import dense, divergence, logits
from .recipe import Form, Rule, formed
from .ternarization import Method

FORMS: tuple[Form, ...] = ("ternary", "int4", "int8", "float")


def measure(
    model: Model,
    windows: Sequence[Tokens],
    *,
    by: Literal["output", "kl"] = "output",
    forms: Sequence[Form] = FORMS,
    method: Method | None = None,
    backend: Backend = reference.BACKEND,
) -> dict[str, dict[Form, float]]:
    """The harm that each form does to each projection that is a float, on its own; forms that do not fit are left out.

    "output" is the error of what the matrix gives over its power, from one calibration. "kl" is the divergence of the
    model's next tokens from what they were: a run of all windows for each matrix and form, for small models.
    """
    rules = [Rule("*", form, method or Method("optimal")) for form in forms]
    if by == "output":
        return {
            name: _output_errors(model.weights[name], _fitting(model, name, rules), second)
            for name, second in _moments(model, windows)
        }
    before = logits(model, windows, backend)
    return {
        name: {
            rule.form: _divergence(model, name, rule, windows, before, backend) for rule in _fitting(model, name, rules)
        }
        for name in _projections(model)
    }


def _fitting(model: Model, name: str, rules: Sequence[Rule]) -> list[Rule]:
    whole = model.spec.shapes()[name][1] % blocks.BLOCK == 0
    return [rule for rule in rules if whole or rule.form not in blocks.KINDS]


def _moments(model: Model, windows: Sequence[Tokens]) -> Iterator[tuple[str, Any]]:
    names = set(_projections(model))
    for layer in calibrate(model, windows):
        for name, moments in layer.items():
            if name in names:
                yield name, moments.second


def _projections(model: Model) -> Iterator[str]:
    """The projections whose weights are floats."""
    for layer in range(model.spec.layers):
        for inner in model.spec.projections():
            name = f"layers.{layer}.{inner}"
            if not isinstance(model.weights[name], TernaryTensor):
                yield name


def _output_errors(weight: Weight, rules: Sequence[Rule], second: Any) -> dict[Form, float]:
    floats: Any = weight  # ternary ones were left out
    return {rule.form: output_error(floats, dense(formed(weight, rule)), second) for rule in rules}


def _divergence(
    model: Model, name: str, rule: Rule, windows: Sequence[Tokens], before: Sequence[Any], backend: Backend
) -> float:
    if rule.form == "float":
        return 0.0
    weight = formed(model.weights[name], rule)
    makers: dict[str, Callable[[], Weight]] = {
        other: partial(model.weights.__getitem__, other) for other in model.weights
    }
    changed = replace(model, weights=Weights(makers | {name: lambda: weight}))
    pairs = zip(before, logits(changed, windows, backend), strict=True)
    return float(np.concatenate([divergence(old, new) for old, new in pairs]).mean())
