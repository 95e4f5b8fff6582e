"""Quality reports: each figure by its definition, and three ways to show them."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import bitnet_core
from bitnet_core import Model, reference
from bitnet_core.testing import random_model, some_tokens, tiny_spec
from bitnet_quant import recipe
from bitnet_quant.calibrate import cut
from bitnet_quant.quality import Report, divergence, logits, nll, report
from bitnet_quant.recipe import Recipe, Rule
from bitnet_quant.ternarization import fidelity

STORIES = Path(__file__).parents[3] / "models" / "stories"
RECIPE = Recipe((Rule("*.ffn.down", "int8"), Rule("layers.*", "ternary")))


@pytest.fixture
def master() -> Model:
    spec = tiny_spec(inputs="float")
    random = np.random.default_rng(0)
    return Model(
        spec, {name: random.standard_normal(shape).astype(np.float32) for name, shape in spec.shapes().items()}
    )


@pytest.fixture
def found(master: Model) -> Report:
    windows = [some_tokens(master.spec, 12, seed) for seed in range(3)]
    return report(recipe.apply(master, RECIPE), master, windows, recipe=RECIPE)


def test_each_weight_has_the_figures_of_its_definition(master: Model, found: Report) -> None:
    made = recipe.apply(master, RECIPE).weights["layers.1.attn.v"]
    assert isinstance(made, bitnet_core.TernaryTensor)
    weight = next(weight for weight in found.weights if weight.name == "layers.1.attn.v")
    assert weight.fidelity == fidelity(np.asarray(master.weights["layers.1.attn.v"]), made.dense())
    trits = [int((made.codes() == code).sum()) for code in (-1, 0, 1)]
    assert weight.trits is not None
    assert list(weight.trits) == trits
    assert weight.zeros == trits[1] / made.codes().size
    assert weight.bits == pytest.approx(2 + 32 / made.codes().size)
    assert weight.scale == float(made.scale[0, 0])
    forms = {weight.name: (weight.form, weight.bits) for weight in found.weights}
    assert [forms[name] for name in ("layers.0.ffn.down", "embedding")] == [("int8", 8.5), ("float", 32)]
    assert len(forms) == 2 * 7 + 1


def test_the_figures_of_the_whole_model_are_those_of_its_own_logits(master: Model, found: Report) -> None:
    windows = [some_tokens(master.spec, 12, seed) for seed in range(3)]
    ours = logits(recipe.apply(master, RECIPE), windows, reference.BACKEND)
    theirs = logits(master, windows, reference.BACKEND)
    assert found.model is not None
    assert found.model.tokens == 33
    losses = [nll(rows, window) for rows, window in zip(theirs, windows, strict=True)]
    assert found.model.master_perplexity == pytest.approx(math.exp(np.concatenate(losses).mean()))
    probabilities = [np.exp(rows[:-1]) / np.exp(rows[:-1]).sum(axis=1, keepdims=True) for rows in (theirs[0], ours[0])]
    expected = (probabilities[0] * np.log(probabilities[0] / probabilities[1])).sum(axis=1)
    np.testing.assert_allclose(divergence(theirs[0][:-1], ours[0][:-1]), expected, rtol=1e-3)
    assert 0 < found.model.divergence < found.model.worst_divergence


def test_a_model_is_its_own_equal(master: Model) -> None:
    same = report(master, master, [some_tokens(master.spec, 9)])
    assert same.model is not None
    assert (same.model.divergence, same.model.agreement) == (0, 1)
    assert all(weight.fidelity.mse == 0 and weight.fidelity.sqnr == math.inf for weight in same.weights)
    assert "Error by layer" not in same.html()
    assert "<td>0</td><td>∞</td>" in same.html()
    assert json.loads(same.json())["weights"][0]["fidelity"]["sqnr"] is None


def test_the_perplexity_of_a_real_model_is_that_of_its_makers() -> None:
    model = bitnet_core.load(STORIES)
    assert model.tokenizer is not None
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun with her dog."
    said = report(model, model, cut(model.tokenizer, text)).model
    assert said is not None
    assert 1 < said.perplexity < 20


def test_the_table_has_a_line_for_every_weight(found: Report) -> None:
    lines = found.table().splitlines()
    assert [line.split()[0] for line in lines[1:16]] == [weight.name for weight in found.weights]
    assert re.search(r"perplexity \d+\.\d+, of the master", found.table())
    assert max(map(len, lines)) < 110


def test_json_holds_every_figure(found: Report) -> None:
    value = json.loads(found.json())
    assert value["model"]["tokens"] == 33
    weight = next(weight for weight in value["weights"] if weight["name"] == "layers.0.attn.q")
    assert weight["zeros"] == pytest.approx(weight["trits"][1] / sum(weight["trits"]))
    assert set(weight["fidelity"]) == {"mse", "sqnr", "cosine", "angle"}


class Page(HTMLParser):
    """What a page is made of; complains about tags that are not closed in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_fetches_nothing(found: Report) -> None:
    text = found.html("A <title> & more")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert "script" not in page.tags
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text.replace('http-equiv="', "")
    assert "A &lt;title&gt; &amp; more" in text
    assert "prefers-color-scheme: dark" in text
    assert page.tags.count("svg") == 6 + 7  # down is not ternary
    assert page.tags.count("rect") == 3 * 12
    assert page.tags.count("circle") == 14
    assert page.tags.count("tr") == 1 + 15


def test_models_of_other_shapes_are_refused(master: Model) -> None:
    with pytest.raises(ValueError, match="not the model's master"):
        report(master, random_model(tiny_spec(layers=1)))
