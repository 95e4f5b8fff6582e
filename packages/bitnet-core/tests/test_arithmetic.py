from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitnet_core import arithmetic, rope
from bitnet_core.formats.huggingface.config import parse_config, spec_from_config
from bitnet_core.model import Rope
from bitnet_core.reference import Matrix

GOLDEN = Path(__file__).parent / "golden"


def cases(name: str, key: str) -> list:
    return [pytest.param(case, id=case["name"]) for case in json.loads((GOLDEN / name).read_text())[key]]


@pytest.mark.parametrize("case", cases("quant_math.json", "weight_cases"))
def test_absmean_is_exact_on_the_golden_weights(case: dict) -> None:
    codes, scale = arithmetic.absmean(np.array(case["w"], np.float32))
    np.testing.assert_array_equal(codes, case["ternary"])
    assert scale == pytest.approx(case["absmean"], rel=1.2e-7)


@pytest.mark.parametrize("case", cases("quant_math.json", "activation_cases"))
def test_absmax_is_exact_on_the_golden_activations(case: dict) -> None:
    digits, scale = arithmetic.absmax(np.array(case["x"], np.float32))
    np.testing.assert_array_equal(digits, case.get("q", case.get("q_fp32")))
    expected = case.get("scale", case.get("scale_fp32"))
    np.testing.assert_array_equal(scale.ravel(), np.array(expected, np.float32))


def test_a_layer_gives_the_golden_results_in_every_convention() -> None:
    golden = json.loads((GOLDEN / "linear_forward.json").read_text())
    x = np.array(golden["x"], np.float32)
    digits, act_scale = arithmetic.absmax(x)
    np.testing.assert_array_equal(digits, golden["q"])
    np.testing.assert_allclose(act_scale.ravel(), golden["act_scale"], rtol=1.2e-7)
    codes = np.array(golden["ternary"], np.int8)
    np.testing.assert_array_equal(digits.astype(np.int32) @ codes.T.astype(np.int32), golden["int_acc"])
    scales = {
        "bitlinear_divide": 1 / golden["bitlinear_divide"]["weight_scale"],
        "autobitlinear_offline_multiply": golden["autobitlinear_offline_multiply"]["weight_scale"],
    }
    for name, scale in scales.items():
        matrix = Matrix(codes, np.full((1, 1), scale, np.float32))
        np.testing.assert_allclose(matrix.times(x, "int8"), golden[name]["y"], rtol=1e-5)


def test_a_norm_in_front_of_a_layer_gives_the_golden_result() -> None:
    golden = json.loads((GOLDEN / "linear_forward.json").read_text())
    case = golden["with_use_rms_norm"]
    x = arithmetic.rms_norm(np.array(golden["x"], np.float32), np.array(case["rms_weight"], np.float32), case["eps"])
    scale = golden["autobitlinear_offline_multiply"]["weight_scale"]
    matrix = Matrix(np.array(golden["ternary"], np.int8), np.full((1, 1), scale, np.float32))
    np.testing.assert_allclose(matrix.times(x, "int8"), case["y"], rtol=1e-5)


def test_extreme_sums_are_exact() -> None:
    for cols in (2560, 6912, 140_000):
        matrix = Matrix(np.ones((3, cols), np.int8), np.ones((1, 1), np.float32))
        y = matrix.times(np.full((1, cols), 127, np.float32), "int8")
        np.testing.assert_array_equal(y, np.float32(127 * cols))


@pytest.mark.parametrize("inputs", ["int8", "float"])
def test_blocks_of_scales_equal_the_dense_product(inputs: str) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(-1, 2, (10, 256)).astype(np.int8)
    scale = random.random((10, 4)).astype(np.float32)
    x = random.integers(-127, 128, (3, 256)).astype(np.float32)
    x[:, 0] = 127  # then int8 holds x as it is
    dense = codes * np.repeat(scale, 64, axis=1).astype(np.float64)
    np.testing.assert_allclose(Matrix(codes, scale).times(x, inputs), x @ dense.T, rtol=1e-6)


def test_half_split_rotation_gives_the_golden_heads(golden: Path) -> None:
    vectors = json.loads((golden / "rope.json").read_text())
    heads = np.array(vectors["x_rows_as_heads"], np.float32)[None]
    frequencies = Rope(theta=vectors["theta"], size=vectors["head_dim"]).frequencies()
    for case in vectors["cases"]:
        turned = arithmetic.rotate(heads, np.array([case["pos"]]), frequencies)
        np.testing.assert_allclose(turned[0], case["half_split"], atol=2e-6)


def test_elements_beyond_the_rotated_share_pass_through() -> None:
    x = np.random.default_rng(0).random((2, 3, 10)).astype(np.float32)
    turned = arithmetic.rotate(x, np.array([5, 6]), Rope(theta=1e4, size=4).frequencies())
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert not np.allclose(turned[..., :4], x[..., :4])


# The name of a stretch may go on behind a dash: one kind in several forms.
STRETCHES = {
    "dynamic": ({"factor": 4.0}, Rope(theta=1e4, size=32)),
    "linear": ({"factor": 4.0}, rope.linear(1e4, 32, 4.0)),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
        rope.llama3(1e4, 32, 8.0, 1.0, 4.0, 128),
    ),
    "yarn": ({"factor": 4.0, "original_max_position_embeddings": 256}, rope.yarn(1e4, 32, 4.0, 256)),
    "yarn-weighed": (
        {"factor": 4.0, "original_max_position_embeddings": 256, "mscale": 0.7, "mscale_all_dim": 0.4},
        rope.yarn(1e4, 32, 4.0, 256, magnitude=(0.07 * np.log(4) + 1) / (0.04 * np.log(4) + 1)),
    ),
    "yarn-exact": (
        {"factor": 4.0, "original_max_position_embeddings": 256, "truncate": False},
        rope.yarn(1e4, 32, 4.0, 256, whole_pairs=False),
    ),
    "yarn-of-the-context": (
        {"factor": None, "original_max_position_embeddings": 256},
        rope.yarn(1e4, 32, 4.0, 256),
    ),
    "longrope": (
        {
            "short_factor": [1.0] * 16,
            "long_factor": [1 + 0.2 * pair for pair in range(16)],
            "original_max_position_embeddings": 256,
            "factor": 4.0,
        },
        rope.longrope(1e4, 32, [1 + 0.2 * pair for pair in range(16)], 256, 1024),
    ),
}


@pytest.mark.parametrize("kind", STRETCHES)
def test_stretched_positions_are_those_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is the reference")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields, ours = STRETCHES[kind]
    kind = kind.partition("-")[0]
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": kind, "rope_theta": 1e4, **fields},
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=1024)
    np.testing.assert_allclose(ours.frequencies(), frequencies.numpy(), rtol=1e-5)
    assert ours.magnitude == pytest.approx(magnitude, rel=1e-6)


@pytest.mark.parametrize("kind", STRETCHES)
def test_a_config_says_which_stretch_it_means(kind: str) -> None:
    fields, ours = STRETCHES[kind]
    plain = {"hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    stretch = {"rope_type": kind.partition("-")[0], "rope_theta": 1e4, **fields}
    config = {"model_type": "llama", "vocab_size": 8, "max_position_embeddings": 1024, "rope_parameters": stretch}
    spec = spec_from_config(parse_config(plain | config, "config.json"), "config.json", inputs="float")
    np.testing.assert_allclose(spec.rope.frequencies(), ours.frequencies(), rtol=1e-12)
    assert spec.rope.magnitude == pytest.approx(ours.magnitude, rel=1e-12)
