"""What projections multiply, added up layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import bitnet_core
from bitnet_core import Model, Step, reference
from bitnet_core.arithmetic import rms_norm
from bitnet_core.cache import PagedCache
from bitnet_core.decoder import Batch
from bitnet_core.memory import Pool
from bitnet_core.model import Tokens
from bitnet_core.testing import random_model, some_tokens, tiny_spec
from bitnet_quant.calibrate import Moments, calibrate, cut

STORIES = Path(__file__).parents[3] / "models" / "stories"
QWEN: dict[str, Any] = {"family": "qwen3", "activation": "silu", "qk_norm": True, "sub_norms": "projection"}


def float_model(**changes: Any) -> Model:
    """A tiny model whose matrices are floats, as masters are."""
    model = random_model(tiny_spec(inputs="float", **changes))
    dense = {
        name: weight if isinstance(weight, np.ndarray) else weight.dense() for name, weight in model.weights.items()
    }
    return Model(model.spec, dense)


def moments_of(model: Model, windows: Sequence[Tokens]) -> dict[str, Moments]:
    """The moments of all layers at once."""
    return {name: moments for layer in calibrate(model, windows) for name, moments in layer.items()}


def test_the_first_layer_s_moments_are_those_of_the_normed_embedding() -> None:
    model = float_model()
    tokens = some_tokens(model.spec, 20)
    found = moments_of(model, [tokens])
    rows = np.asarray(model.weights["embedding"])[tokens].astype(np.float32)
    inputs = rms_norm(rows, np.asarray(model.weights["layers.0.attn.norm"]), 1e-5).astype(np.float64)
    moments = found["layers.0.attn.q"]
    np.testing.assert_allclose(moments.second, inputs.T @ inputs / 20, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moments.importance, (inputs**2).mean(axis=0), rtol=1e-6)
    assert moments.tokens == 20


@pytest.mark.parametrize("changes", [{}, QWEN], ids=["block norms", "a norm for each projection"])
def test_every_matrix_gets_moments_of_its_width_and_only_the_same_inputs_are_shared(changes: dict[str, Any]) -> None:
    model = float_model(**changes)
    layers = list(calibrate(model, [some_tokens(model.spec, 9), some_tokens(model.spec, 5)]))
    assert len(layers) == model.spec.layers
    for number, layer in enumerate(layers):
        for name, (_, cols) in model.spec.projections().items():
            assert layer[f"layers.{number}.{name}"].second.shape == (cols, cols)
        shared = layer[f"layers.{number}.attn.q"] is layer[f"layers.{number}.attn.v"]
        assert shared == (model.spec.sub_norms == "block")


def test_the_layers_are_those_of_the_model_s_own_forward_pass() -> None:
    # What calibration hands on from layer to layer is what the decoder makes: the inputs of a last projection agree.
    model = float_model()
    tokens = some_tokens(model.spec, 12)
    seen: list[npt.NDArray[np.float32]] = []

    class Listening(reference.NumpyOperations):
        def _linear(self, name: str, x: npt.NDArray[np.float32], batch: Batch[PagedCache]) -> npt.NDArray[np.float32]:
            if name == "layers.1.ffn.down":
                seen.append(x)
            return super()._linear(name, x, batch)

    runner = bitnet_core.decoder.Decoder(model.spec, Listening(model, Pool()))
    runner.forward([Step(tokens, runner.new_cache())])
    inputs = seen[0].astype(np.float64)
    found = moments_of(model, [tokens])["layers.1.ffn.down"]
    np.testing.assert_allclose(found.second, inputs.T @ inputs / 12, rtol=1e-9)


def test_moments_do_not_depend_on_how_texts_are_counted_together() -> None:
    model = float_model()
    texts = [some_tokens(model.spec, 7, seed) for seed in range(3)]
    together = moments_of(model, texts)
    apart = [moments_of(model, [text]) for text in texts]
    for name, moments in together.items():
        expected = sum(one[name].second for one in apart) / 3
        np.testing.assert_allclose(moments.second, expected, rtol=1e-9, atol=1e-12)


def test_all_memory_comes_back_even_when_calibration_is_left_early() -> None:
    pool = Pool()
    layers = calibrate(float_model(), [some_tokens(tiny_spec(), 40)], memory=pool)
    next(layers)
    assert pool.stats().in_use > 0
    layers.close()  # type: ignore[attr-defined]  # it is a generator
    assert pool.stats().in_use == 0


def test_windows_of_nothing_and_tokens_of_no_vocabulary_are_refused() -> None:
    model = float_model()
    with pytest.raises(ValueError, match="got none"):
        next(calibrate(model, []))
    with pytest.raises(ValueError, match="tokens from 0 to 95"):
        next(calibrate(model, [np.array([96], np.int32)]))
    with pytest.raises(ValueError, match="one token or more"):
        next(calibrate(model, [np.zeros(0, np.int32)]))


def test_a_text_is_cut_into_windows_that_each_begin_as_a_text_does() -> None:
    tokenizer = bitnet_core.load(STORIES).tokenizer
    assert tokenizer is not None
    text = "Once upon a time there was a little girl who lived in a small house by the sea. " * 10
    windows = cut(tokenizer, text, size=32)
    assert all(len(window) == 32 and window[0] == tokenizer.bos for window in windows)
    said = np.concatenate([window[1:] for window in windows])
    np.testing.assert_array_equal(said, tokenizer.encode(text, bos=False)[: len(said)])
    assert len(cut(tokenizer, text, size=32, count=2)) == 2
    assert len(cut(tokenizer, "Once upon a time", size=32)) == 1
    with pytest.raises(ValueError, match="too short"):
        cut(tokenizer, "", size=32)
    with pytest.raises(ValueError, match="3 tokens or more"):
        cut(tokenizer, text, size=1)
