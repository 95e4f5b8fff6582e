"""Verification: wrong groups named, dead channels, lopsided trits, and backends that answer wrongly."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitnet_core
from bitnet_core import Backend, Model, Runner, TernaryTensor, backends, reference
from bitnet_core.formats import gguf
from bitnet_core.model import Weight
from bitnet_core.testing import CASES, Case, random_model, some_tokens, tiny_spec
from bitnet_quant import groups
from bitnet_quant.groups import regrouped
from bitnet_quant.verification import SAMPLE, Channels, agree, verify

STORIES = Path(__file__).parents[3] / "models" / "stories"
DATA = (os.environ.get("BITNET_DATA"), Path(__file__).parents[4] / "shared" / "data")
READINGS = [(64, 64), (64, 128), (128, 64), (128, 128)]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real models, which the project does not ship."""
    for folder in DATA:
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("NO REAL DATA: set BITNET_DATA to the folder with models/, tokenizers/ and text/")


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A trained model as an I2_S file of either group."""
    folder = tmp_path_factory.mktemp("stories")
    for group in (64, 128):
        gguf.save(bitnet_core.load(STORIES), folder / f"{group}.gguf", layout=f"i2_s_{group}")
    return {group: folder / f"{group}.gguf" for group in (64, 128)}


@pytest.mark.parametrize(("wrote", "read"), READINGS)
def test_a_file_read_in_the_wrong_group_is_named_with_its_remedy(
    wrote: int, read: int, stories: dict[int, Path]
) -> None:
    found = verify(stories[wrote], i2_s_group=read)
    assert found.group is not None
    assert (found.group.read, found.group.right, found.group.nats) == (read, wrote, None)
    if wrote == read:
        assert found.problems == ()
    else:
        assert len(found.problems) == 1
        assert f"I2_S read in groups of {read}: groups of {wrote} are right" in found.problems[0]
        assert f"load it with i2_s_group={wrote}" in found.problems[0]
        assert found.problems[0] in found.table()


@pytest.mark.parametrize(("wrote", "read"), READINGS)
def test_text_tells_the_group_of_a_file_by_itself(wrote: int, read: int, stories: dict[int, Path]) -> None:
    model = gguf.load(stories[wrote], i2_s_group=read)  # type: ignore[arg-type]  # one of the two
    found = groups.detect(model, None, SAMPLE, insist=True)
    assert found is not None
    assert found.nats is not None
    right, wrong = sorted(found.nats)
    assert (found.nats[0] == right) == (wrote == read)
    assert right < 3
    assert wrong > 6
    assert found.right == wrote


@pytest.mark.parametrize(("wrote", "read"), READINGS)
def test_the_group_of_another_trained_model_is_told_in_both_ways(
    wrote: int, read: int, data: Path, tmp_path: Path
) -> None:
    folder = data / "models" / "bitllama2c-1M-hf"
    model = bitnet_core.load(folder)
    gguf.save(replace(model, tokenizer=None), tmp_path / "m.gguf", layout=f"i2_s_{wrote}")
    by_structure = verify(tmp_path / "m.gguf", i2_s_group=read).group
    opened = gguf.load(tmp_path / "m.gguf", i2_s_group=read)  # type: ignore[arg-type]  # one of the two
    by_text = verify(replace(opened, tokenizer=model.tokenizer), text=SAMPLE).group
    assert by_structure is not None
    assert by_text is not None
    assert by_text.nats is not None
    assert by_structure.right == by_text.right == wrote
    assert max(by_text.nats) - min(by_text.nats) > 5


@pytest.mark.parametrize("seed", range(6))
def test_random_weights_tell_nothing_and_no_group_is_made_up(seed: int) -> None:
    spec = tiny_spec(hidden_size=256, head_size=64, ffn_size=512)
    found = verify(random_model(spec, seed, layout="i2_s_128")).group
    assert found is not None
    assert found.right is None
    assert "nothing tells" in found.said()


@pytest.mark.parametrize("read", [64, 128])
def test_text_decides_where_the_structure_leaves_it_open(read: int, stories: dict[int, Path]) -> None:
    right = bitnet_core.load(STORIES)
    opened = gguf.load(stories[64], i2_s_group=read)  # type: ignore[arg-type]  # one of the two
    weights: dict[str, Weight] = {}
    for name, weight in right.weights.items():
        # Of one projection alone the bytes are in doubt, and the norm before it has nothing to say.
        weights[name] = weight.dense() if isinstance(weight, TernaryTensor) else weight
        if name.endswith("ffn.gate"):
            weights[name] = opened.weights[name]
        elif name.endswith("ffn.norm"):
            weights[name] = np.ones(weight.shape, np.float32)
    model = replace(opened, weights=weights)
    opened_only = groups.detect(replace(model, tokenizer=None), None, SAMPLE)
    with_words = groups.detect(model, None, SAMPLE)
    assert opened_only is not None
    assert with_words is not None
    assert (opened_only.right, opened_only.nats) == (None, None)
    assert with_words.right == 64
    assert with_words.nats is not None


def test_models_without_i2_s_have_no_group() -> None:
    for layout in ("hf_rows", "tq2_0"):
        spec = tiny_spec(hidden_size=256, head_size=64)
        assert verify(random_model(spec, layout=layout)).group is None


def test_taking_bytes_in_the_other_group_twice_changes_nothing() -> None:
    model = random_model(tiny_spec(), layout="i2_s_128")
    turned = regrouped(model, 64)
    back = regrouped(turned, 128)
    for name, weight in model.weights.items():
        once, twice = turned.weights[name], back.weights[name]
        if isinstance(weight, TernaryTensor):
            assert isinstance(once, TernaryTensor)
            assert isinstance(twice, TernaryTensor)
            assert once.digest() != weight.digest() == twice.digest()
            assert sorted(once.codes().ravel()) == sorted(weight.codes().ravel())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_of_model_is_verified(case: Case) -> None:
    found = verify(case.model(), backend=reference.BACKEND)
    assert found.agreement is not None
    assert (found.agreement.worst, found.agreement.different) == (0, 0)
    lopsided = [problem for problem in found.problems if "training leaves them nearly even" in problem]
    assert len(lopsided) == len(found.problems) == (14 if case.name == "bitnet-extreme" else 0)


def with_dead_channels(*, trained: bool) -> Model:
    """A model with channels that a norm has turned off; a trained one has no weights behind them."""
    model = random_model(tiny_spec())
    weights: dict[str, Weight] = dict(model.weights)
    down = weights["layers.1.ffn.down"]
    assert isinstance(down, TernaryTensor)
    gains = np.array(weights["layers.1.ffn.sub_norm"], np.float32)
    codes = down.codes().copy()
    gains[[3, 40, 77]] = 1e-34
    if trained:
        codes[:, [3, 40, 77]] = 0
    weights["layers.1.ffn.sub_norm"] = gains
    weights["layers.1.ffn.down"] = TernaryTensor.from_codes(codes, down.scale, "i2_s_64")
    return replace(model, weights=weights)


def test_dead_channels_have_no_weights_unless_the_bytes_are_in_another_layout() -> None:
    good = verify(with_dead_channels(trained=True))
    assert good.channels == (Channels("layers.1.ffn.down", 3, 0),)
    assert good.problems == ()
    assert "3 dead channels, 0 with weights" in good.table()
    bad = verify(with_dead_channels(trained=False))
    assert bad.channels == (Channels("layers.1.ffn.down", 3, 3),)
    assert "layers.1.ffn.down: 3 of 3 dead channels have weights" in bad.problems[0]
    misread = verify(regrouped(with_dead_channels(trained=True), 128))
    assert misread.channels[0].used > 0
    assert misread.problems


def test_the_histogram_counts_every_code_and_points_at_what_training_does_not_make() -> None:
    model = random_model(tiny_spec())
    found = verify(model)
    projections = [f"layers.{layer}.{name}" for layer in range(2) for name in model.spec.projections()]
    assert sorted(trits.name for trits in found.trits) == sorted(projections)
    weight = model.weights["layers.0.attn.k"]
    assert isinstance(weight, TernaryTensor)
    counts = next(trits.counts for trits in found.trits if trits.name == "layers.0.attn.k")
    assert list(counts) == [int((weight.codes() == code).sum()) for code in (-1, 0, 1)]
    zeros = TernaryTensor.from_codes(np.zeros(weight.shape, np.int8), 1.0)
    found = verify(replace(model, weights={**model.weights, "layers.0.attn.k": zeros}))
    assert found.problems == ("layers.0.attn.k: all codes are 0",)
    ones = TernaryTensor.from_codes(np.abs(weight.codes()), 1.0)
    found = verify(replace(model, weights={**model.weights, "layers.0.attn.k": ones}))
    assert "layers.0.attn.k: 0 codes are -1" in found.problems[0]


def backend(change: Any) -> Backend:
    """The reference, given another model than it was asked to load."""

    def load(model: Model, **options: Any) -> Runner:
        return reference.load(change(model), **options)

    return Backend("odd", load, lambda: None, 0)


def test_a_backend_that_computes_another_model_is_found_out() -> None:
    def one_sign_turned(model: Model) -> Model:
        weight = model.weights["layers.1.attn.o"]
        assert isinstance(weight, TernaryTensor)
        turned = TernaryTensor.from_codes(-weight.codes(), weight.scale)
        return replace(model, weights={**model.weights, "layers.1.attn.o": turned})

    def with_nan(model: Model) -> Model:
        norm = np.array(model.weights["norm"], np.float32)
        norm[0] = np.nan
        return replace(model, weights={**model.weights, "norm": norm})

    stories = bitnet_core.load(STORIES)
    with np.errstate(invalid="ignore"):
        for change in (one_sign_turned, with_nan):
            found = verify(stories, backend=backend(change))
            assert found.agreement is not None
            assert not found.agreement.right
            assert "backend odd does not compute this model" in found.problems[0]
            assert "does not agree" in found.table()


def test_a_backend_that_only_rounds_is_right() -> None:
    def nudged(model: Model) -> Model:
        embedding = np.asarray(model.weights["embedding"], np.float32)
        steps = np.abs(embedding).max(axis=1, keepdims=True) / 127
        return replace(model, weights={**model.weights, "embedding": np.rint(embedding / steps) * steps})

    found = agree(bitnet_core.load(STORIES), backend(nudged), some_tokens(tiny_spec(), 20), 8)
    assert found.tokens == 28
    assert 0 < found.median < found.worst
    assert found.right


@pytest.mark.parametrize("name", [name for name, reason in backends.available().items() if reason is None])
def test_every_backend_of_this_machine_computes_a_real_model(name: str) -> None:
    found = verify(STORIES, backend=backends.get(name))
    assert found.agreement is not None
    assert found.agreement.right, found.table()
    assert found.problems == ()
