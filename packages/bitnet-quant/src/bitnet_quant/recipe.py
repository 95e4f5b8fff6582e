"""Recipes: which weights become ternary, int8 or int4 and which stay floats, by name or searched under a budget."""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np

from bitnet_core import FormatError, TernaryTensor, UnsupportedError
from bitnet_core.durable import replacing
from bitnet_core.model import Model, Tokens, Weight, Weights

from . import blocks
from .calibrate import Moments, Sums, calibrate
from .compensate import compensate
from .ternarization import Method, ternarize

Form = Literal["ternary", "int8", "int4", "float"]
# Bits a weight: two for a code, what GGUF's blocks of 32 take with their scales, and 16.
BITS: Mapping[str, float] = MappingProxyType({"ternary": 2.0, "int4": 4.5, "int8": 8.5, "float": 16.0})
_KEYS = ("match", "form", "rule", "scales", "block", "compensate")


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of the matrices whose canonical names match a pattern, as in "layers.*.ffn.down"."""

    match: str
    form: Form
    method: Method = field(default_factory=Method)  # of ternary weights
    compensate: bool = False  # whether ternary weights are rounded so that outputs on calibration text stay near

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"{self.match}: a form is one of {', '.join(get_args(Form))}, got {self.form!r}")
        if self.compensate and (self.form != "ternary" or self.method.rule == "exact"):
            raise ValueError(f"{self.match}: compensation is for floats that become ternary, got {self.form}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Rules in their order: the first that matches decides; what none matches stays as it is."""

    rules: tuple[Rule, ...]

    def rule(self, name: str) -> Rule:
        """What is to become of a weight."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.match)), Rule(name, "float"))

    def toml(self) -> str:
        """The recipe as text; `parse` reads it."""
        return "\n".join(_table(rule) for rule in self.rules)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the text to a file that is whole or not there."""
        with replacing(path) as stream:
            stream.write(self.toml().encode())


def parse(text: str, file: str | os.PathLike[str] = "recipe") -> Recipe:
    """A recipe from TOML: an array of tables `rule` with match and form, and for ternary rule, scales, block and
    compensate."""
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(file, "TOML", "well-formed text", error) from error
    rules = value.get("rule", [])
    if set(value) - {"rule"} or not isinstance(rules, list):
        raise FormatError(file, "keys", "an array of tables [[rule]]", ", ".join(value))
    return Recipe(tuple(_rule(table, file, f"rule {number}") for number, table in enumerate(rules, 1)))


def load(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a TOML file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(path, "file", "a readable text", error) from error
    return parse(text, path)


def apply(
    model: Model,
    recipe: Recipe,
    windows: Sequence[Tokens] = (),
    *,
    progress: Callable[[str], None] | None = None,
) -> Model:
    """The model with its matrices as the recipe says; those that are ternary already stay as they are.

    Ternary weights are made now, and held packed; eight and four bits are rounded at every access. `windows` are the
    texts that compensation calibrates on.
    """
    rules = {name: recipe.rule(name) for name, shape in model.spec.shapes().items() if len(shape) == 2}
    for name, asked in rules.items():
        _check_fits(name, asked, model)
    made: dict[str, TernaryTensor] = {}
    wanted = [name for name, rule in rules.items() if rule.form == "ternary"]
    if any(rules[name].compensate for name in wanted) and not len(windows):
        raise ValueError("a recipe that compensates needs calibration text")
    for name, second in _with_moments(model, windows, [name for name in wanted if rules[name].compensate]):
        made[name] = _ternary(model.weights[name], rules[name], second)
        if progress:
            progress(name)
    for name in wanted:
        if name not in made:
            made[name] = _ternary(model.weights[name], rules[name], None)
            if progress:
                progress(name)
    makers: dict[str, Callable[[], Weight]] = {}
    for name in model.weights:
        rule = rules.get(name)
        if name in made:
            makers[name] = partial(made.__getitem__, name)
        elif rule and rule.form in blocks.KINDS:
            makers[name] = partial(_rounded, model, name, rule.form)
        else:
            makers[name] = partial(model.weights.__getitem__, name)
    return replace(model, weights=Weights(makers))


def formed(weight: Weight, rule: Rule, second: Sums | None = None) -> Weight:
    """One weight as a rule says; `second` are the moments that compensation needs."""
    if rule.form == "ternary":
        return _ternary(weight, rule, second)
    if rule.form == "float" or isinstance(weight, TernaryTensor):
        return weight
    return blocks.rounded(rule.form, weight)  # type: ignore[arg-type]  # weights are floats where not ternary


def search(
    model: Model,
    budget_bits: float,
    sensitivity: Mapping[str, Mapping[Form, float]],
    *,
    method: Method | None = None,
    compensate: bool = False,
    cost: Callable[[str, Form], float] | None = None,
) -> Recipe:
    """The recipe of least harm whose matrices cost `budget_bits` a weight on average.

    `sensitivity` says what harm each form does to each matrix, as `sensitivity.measure` finds it. `cost` may be a
    kernel's figure for a whole matrix in a form, in any unit; the budget is then that unit a weight. Each step takes
    the change that spares the most harm for its cost, among those that no mixture of two others beats.
    """
    if not sensitivity:
        raise ValueError("a search needs the sensitivity of one matrix or more, got none")
    shapes = model.spec.shapes()
    sizes = {name: math.prod(shapes[name]) for name in sensitivity}
    price = cost or (lambda name, form: BITS[form] * sizes[name])
    paths = {name: _hull([(price(name, form), harm, form) for form, harm in sensitivity[name].items()])
             for name in sensitivity}  # fmt: skip
    budget = budget_bits * sum(sizes.values())
    spent = sum(path[0][0] for path in paths.values())
    if spent > budget:
        least = spent / sum(sizes.values())
        raise ValueError(f"the cheapest forms cost {least:.4g} a weight, above the budget of {budget_bits:.4g}")
    steps = sorted(
        (-(before[1] - after[1]) / (after[0] - before[0]), number, name)
        for name, path in paths.items()
        for number, (before, after) in enumerate(pairwise(path))
    )
    chosen = dict.fromkeys(paths, 0)
    for _, number, name in steps:
        extra = paths[name][number + 1][0] - paths[name][number][0]
        if chosen[name] == number and spent + extra <= budget:
            chosen[name] += 1
            spent += extra
    rules = []
    for name, place in chosen.items():
        form = paths[name][place][2]
        ternary = form == "ternary"
        rules.append(Rule(name, form, (method if ternary else None) or Method(), compensate and ternary))
    return Recipe(tuple(rules))


def _hull(options: list[tuple[float, float, Form]]) -> list[tuple[float, float, Form]]:
    """The options from the cheapest to the least harmful that lie on the lower hull of harm over cost."""
    hull: list[tuple[float, float, Form]] = []
    for option in sorted(options):
        if hull and (option[1] >= hull[-1][1] or option[0] == hull[-1][0]):
            continue
        while len(hull) > 1 and _slope(hull[-2], option) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(first: tuple[float, float, Form], second: tuple[float, float, Form]) -> float:
    return (second[1] - first[1]) / (second[0] - first[0])


def _with_moments(model: Model, windows: Sequence[Tokens], names: list[str]) -> Iterator[tuple[str, Sums]]:
    """The second moments of the inputs of each of these weights, one layer at a time."""
    if not names:
        return
    known = set(names)
    for layer in calibrate(model, windows):
        found: Mapping[str, Moments] = layer
        for name in found:
            if name in known:
                known.discard(name)
                yield name, found[name].second
    if known:
        raise ValueError(f"{min(known)}: only the projections of layers see calibration text; do not compensate it")


def _check_fits(name: str, rule: Rule, model: Model) -> None:
    cols = model.spec.shapes()[name][1]
    if rule.form in blocks.KINDS and cols % blocks.BLOCK and not isinstance(model.weights[name], TernaryTensor):
        raise UnsupportedError(f"{name}: {rule.form} holds rows of a multiple of {blocks.BLOCK} columns, got {cols}")


def _ternary(weight: Weight, rule: Rule, second: Sums | None) -> TernaryTensor:
    if isinstance(weight, TernaryTensor):
        return weight
    floats: Any = weight  # weights are floats where not ternary
    if rule.compensate and second is not None:
        return compensate(floats, second, rule.method).tensor
    return ternarize(floats, rule.method).tensor


def _rounded(model: Model, name: str, form: str) -> Weight:
    weight: Any = model.weights[name]
    return weight if isinstance(weight, TernaryTensor) else np.asarray(blocks.rounded(form, weight))


def _table(rule: Rule) -> str:
    lines = ["[[rule]]", f"match = {_quoted(rule.match)}", f'form = "{rule.form}"']
    if rule.form == "ternary":
        lines += [f'rule = "{rule.method.rule}"', f'scales = "{rule.method.scales}"']
        if rule.method.block:
            lines.append(f"block = {rule.method.block}")
        if rule.compensate:
            lines.append("compensate = true")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    escaped = "".join(f"\\u{ord(c):04x}" if c in '"\\' or not c.isprintable() else c for c in text)
    return f'"{escaped}"'


def _rule(table: object, file: str | os.PathLike[str], field_: str) -> Rule:
    if not isinstance(table, dict) or not {"match", "form"} <= set(table) <= set(_KEYS):
        got = ", ".join(table) if isinstance(table, dict) else type(table).__name__
        raise FormatError(file, field_, f"match, form and no keys but {', '.join(_KEYS[2:])}", got)
    kinds = {"block": int, "compensate": bool}
    for key, value in table.items():
        if type(value) is not kinds.get(key, str):
            raise FormatError(file, f"{field_} {key}", f"a value of type {kinds.get(key, str).__name__}", repr(value))
    try:
        method = Method(table.get("rule", "absmean"), table.get("scales", "tensor"), table.get("block", 0))
        return Rule(table["match"], table["form"], method, table.get("compensate", False))
    except ValueError as error:
        raise FormatError(file, field_, "a rule that can be followed", error) from error
