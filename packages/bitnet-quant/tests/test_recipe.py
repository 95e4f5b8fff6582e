"""Recipes: by name, from TOML and back, searched under a budget, and applied."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import FormatError, Model, TernaryTensor, UnsupportedError, reference
from bitnet_core.model import Tokens
from bitnet_core.testing import random_model, run, some_tokens, tiny_spec
from bitnet_quant import blocks, recipe, sensitivity
from bitnet_quant.calibrate import Moments, calibrate
from bitnet_quant.compensate import output_error
from bitnet_quant.recipe import BITS, Form, Recipe, Rule, search
from bitnet_quant.ternarization import Method, ternarize

MIXED = Recipe(
    (
        Rule("layers.0.*", "ternary", Method("optimal", "row")),
        Rule("*.ffn.down", "int8"),
        Rule("layers.*.attn.[qk]", "int4"),
        Rule("layers.*", "ternary", Method("threshold", "block", 32), compensate=True),
    )
)


@pytest.fixture
def master() -> Model:
    spec = tiny_spec(inputs="float")
    random = np.random.default_rng(0)
    weights = {
        name: random.standard_normal(shape).astype(np.float32) * 0.1 if len(shape) == 2 else np.ones(shape, np.float32)
        for name, shape in spec.shapes().items()
    }
    return Model(spec, weights)


def moments_of(model: Model, windows: Sequence[Tokens]) -> dict[str, Moments]:
    """The moments of all layers at once."""
    return {name: moments for layer in calibrate(model, windows) for name, moments in layer.items()}


def test_the_first_rule_that_matches_decides_and_what_none_matches_stays() -> None:
    assert MIXED.rule("layers.0.ffn.down").form == "ternary"
    assert MIXED.rule("layers.1.ffn.down").form == "int8"
    assert MIXED.rule("layers.1.attn.q").form == "int4"
    assert MIXED.rule("layers.1.attn.v").compensate
    assert MIXED.rule("embedding").form == "float"


def test_a_recipe_comes_back_from_its_own_text(tmp_path: Path) -> None:
    MIXED.save(tmp_path / "recipe.toml")
    assert recipe.load(tmp_path / "recipe.toml") == MIXED
    odd = Recipe((Rule('a"b\\c\nd', "int8"), Rule("é", "float")))
    assert recipe.parse(odd.toml()) == odd
    assert recipe.parse("") == Recipe(())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rule = 3", "array of tables"),
        ("[[rules]]\nmatch = 'a'", "array of tables"),
        ("[[rule]]\nmatch = 'a'", "rule 1: expected match, form"),
        ("[[rule]]\nmatch = 'a'\nform = 'int8'\n[[rule]]\nmatch='b'\nform='int8'\nbits = 3", "rule 2: expected match"),
        ("[[rule]]\nmatch = 'a'\nform = 'int2'", "a form is one of"),
        ("[[rule]]\nmatch = 'a'\nform = 'ternary'\nscales = 'block'", "a block of columns"),
        ("[[rule]]\nmatch = 'a'\nform = 'ternary'\nblock = '3'", "of type int"),
        ("[[rule]]\nmatch = 'a'\nform = 'ternary'\ncompensate = 1", "of type bool"),
        ("[[rule]]\nmatch = 'a'\nform = 'int8'\ncompensate = true", "compensation is for floats"),
        ("[[rule", "well-formed"),
    ],
)
def test_a_text_that_is_no_recipe_is_refused_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        recipe.parse(text, "my.toml")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="readable text"):
        recipe.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(FormatError, match="readable text"):
        recipe.load(tmp_path / "bad.toml")


def test_applied_weights_are_what_each_rule_makes_of_them(master: Model) -> None:
    seen: list[str] = []
    tokens = some_tokens(master.spec, 40)
    made = recipe.apply(master, MIXED, [tokens], progress=seen.append).weights
    expected = ternarize(np.asarray(master.weights["layers.0.ffn.up"]), Method("optimal", "row")).tensor
    assert isinstance(made["layers.0.ffn.up"], TernaryTensor)
    assert made["layers.0.ffn.up"].digest() == expected.digest()
    down = np.asarray(master.weights["layers.1.ffn.down"])
    np.testing.assert_array_equal(made["layers.1.ffn.down"], blocks.rounded("int8", down))
    assert made["embedding"] is master.weights["embedding"]
    assert made["norm"] is master.weights["norm"]
    assert len(seen) == len(set(seen)) == 7 + 4  # layer 0 whole; v, o, gate and up of layer 1
    gate = made["layers.1.ffn.gate"]
    assert isinstance(gate, TernaryTensor)
    assert gate.block == 32
    dense = np.asarray(master.weights["layers.1.ffn.gate"])
    second = moments_of(master, [tokens])["layers.1.ffn.gate"].second
    plain = ternarize(dense, Method("threshold", "block", 32)).tensor.dense()
    assert output_error(dense, gate.dense(), second) < output_error(dense, plain, second)


def test_an_applied_model_runs_and_a_finer_recipe_is_nearer(master: Model) -> None:
    tokens = some_tokens(master.spec, 16)
    before = run(reference.load(master), tokens)
    far = [
        float(np.square(run(reference.load(recipe.apply(master, Recipe((rule,)))), tokens) - before).mean())
        for rule in (Rule("layers.*", "ternary"), Rule("layers.*", "int4"), Rule("layers.*", "int8"))
    ]
    assert far[0] > far[1] > far[2] > 0


def test_weights_that_are_ternary_already_stay_as_they_are() -> None:
    model = random_model(tiny_spec())
    for form in ("ternary", "int8", "float"):
        made = recipe.apply(model, Recipe((Rule("layers.*", form),)))
        assert made.weights["layers.0.attn.q"] is model.weights["layers.0.attn.q"]


def test_compensation_without_text_or_of_what_sees_no_text_is_refused(master: Model) -> None:
    with pytest.raises(ValueError, match="needs calibration text"):
        recipe.apply(master, MIXED)
    with pytest.raises(ValueError, match="embedding: only the projections"):
        recipe.apply(master, Recipe((Rule("embedding", "ternary", compensate=True),)), [some_tokens(master.spec, 9)])


def harms(names: list[str], seed: int) -> dict[str, dict[Form, float]]:
    random = np.random.default_rng(seed)
    forms: tuple[Form, ...] = ("ternary", "int4", "int8", "float")
    return {
        name: dict(zip(forms, sorted(random.exponential(1, 4), reverse=True), strict=True)) | {"float": 0.0}
        for name in names
    }


@given(st.integers(0, 1000), st.floats(2, 16.5))
@settings(max_examples=60, deadline=None)
def test_a_search_keeps_the_budget_and_comes_near_the_best_of_all_recipes(seed: int, budget: float) -> None:
    model = random_model(tiny_spec(layers=1))
    names = [f"layers.0.{name}" for name in ("attn.q", "attn.k", "attn.v", "attn.o")]
    sizes = {name: float(np.prod(model.spec.shapes()[name])) for name in names}
    found = harms(names, seed)
    chosen = search(model, budget, found)
    forms = {name: chosen.rule(name).form for name in names}
    total = sum(sizes.values())
    assert sum(BITS[forms[name]] * sizes[name] for name in names) <= budget * total
    forms_known: tuple[Form, ...] = ("ternary", "int4", "int8", "float")
    best = min(
        sum(found[name][form] for name, form in zip(names, combination, strict=True))
        for combination in itertools.product(forms_known, repeat=4)
        if sum(BITS[form] * sizes[name] for name, form in zip(names, combination, strict=True)) <= budget * total
    )
    # What one more step would have spared is the most that a greedy search over hulls may be behind.
    slack = max(found[name]["ternary"] for name in names)
    assert sum(found[name][forms[name]] for name in names) <= best + slack


def test_a_search_spends_where_harm_is() -> None:
    model = random_model(tiny_spec(layers=1))
    names = list(harms([f"layers.0.{name}" for name in model.spec.projections()], 0))
    even: dict[str, dict[Form, float]] = {name: {"ternary": 1.0, "int8": 0.1} for name in names}
    even["layers.0.ffn.down"] = {"ternary": 50.0, "int8": 0.1}
    chosen = search(model, 3.8, even, method=Method("optimal"), compensate=True)
    assert chosen.rule("layers.0.ffn.down") == Rule("layers.0.ffn.down", "int8")
    assert chosen.rule("layers.0.ffn.up") == Rule("layers.0.ffn.up", "ternary", Method("optimal"), compensate=True)
    assert recipe.parse(chosen.toml()) == chosen


def test_a_kernel_s_own_cost_takes_the_place_of_bits() -> None:
    model = random_model(tiny_spec(layers=1))
    found: dict[str, dict[Form, float]] = {"layers.0.attn.q": {"ternary": 2.0, "int4": 1.0, "int8": 0.5}}
    # On this machine four bits are the slowest of all: nothing speaks for them.
    costs = {"ternary": 1.0, "int4": 9.0, "int8": 3.0}
    size = 128 * 128
    chosen = search(model, 9 / size, found, cost=lambda _, form: costs[form])
    assert chosen.rule("layers.0.attn.q").form == "int8"


def test_a_budget_below_the_cheapest_forms_is_refused() -> None:
    model = random_model(tiny_spec(layers=1))
    with pytest.raises(ValueError, match=r"cost 2 a weight, above the budget of 1\.5"):
        search(model, 1.5, harms(["layers.0.attn.q"], 0))
    with pytest.raises(ValueError, match="got none"):
        search(model, 4, {})


@pytest.mark.parametrize("by", ["output", "kl"])
def test_measured_sensitivity_falls_with_the_bits_and_guides_a_search(master: Model, by: str) -> None:
    windows = [some_tokens(master.spec, 24, seed) for seed in range(2)]
    found = sensitivity.measure(master, windows, by=by)  # type: ignore[arg-type]
    assert set(found) == {f"layers.{layer}.{name}" for layer in range(2) for name in master.spec.projections()}
    for harm in found.values():
        assert harm["ternary"] > harm["int4"] > harm["int8"] > harm["float"] == 0
    chosen = search(master, 3, found)
    assert {chosen.rule(name).form for name in found} > {"ternary"}


def test_rows_that_blocks_do_not_divide_are_refused_by_name_and_left_out_of_what_is_measured() -> None:
    spec = tiny_spec(inputs="float", ffn_size=172)
    random = np.random.default_rng(0)
    model = Model(spec, {name: random.normal(0, 1, shape).astype(np.float32) for name, shape in spec.shapes().items()})
    with pytest.raises(
        UnsupportedError, match=r"layers\.0\.ffn\.down: int4 holds rows of a multiple of 32 columns, got 172"
    ):
        recipe.apply(model, Recipe((Rule("layers.*", "int4"),)))
    found = sensitivity.measure(model, [some_tokens(spec, 9)])
    assert set(found["layers.0.ffn.down"]) == {"ternary", "float"}
    assert set(found["layers.0.ffn.up"]) == {"ternary", "int4", "int8", "float"}
