"""Models, adapters and texts of random numbers: small ones of every kind, and the shapes of published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import rope
from ..model import Adapter, Array, Model, ModelSpec, Rope, Weight
from ..tensor import TernaryTensor


def tiny_spec(**changes: Any) -> ModelSpec:
    """A small BitNet of two layers: hidden 128, feed-forward 256, four heads of 32 over two."""
    plain = ModelSpec(
        family="bitnet",
        vocab_size=96,
        hidden_size=128,
        ffn_size=256,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=32,
        context=128,
        rope=Rope(theta=500_000.0, size=32),
        norm_eps=1e-5,
        activation="relu2",
        sub_norms="block",
        tied=True,
    )
    if "head_size" in changes and "rope" not in changes:
        changes["rope"] = replace(plain.rope, size=changes["head_size"])
    return replace(plain, **changes)


# Published models, for what is measured and tested at full size.
SHAPES: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "2b4t": tiny_spec(
            vocab_size=128256,
            hidden_size=2560,
            ffn_size=6912,
            layers=30,
            heads=20,
            kv_heads=5,
            head_size=128,
            context=4096,
        )
    }
)


def random_model(
    spec: ModelSpec,
    seed: int = 0,
    *,
    layout: str = "hf_rows",
    block: int | None = None,
    ternary_embedding: bool = False,
    extreme: bool = False,
) -> Model:
    """A model of random weights, the same for the same arguments.

    `block`: columns that share a scale; None gives each matrix one. `extreme`: all codes and norms are 1. Then
    all rows of gate and up give the same, and every activation that the last projection multiplies is 127.
    """
    random = np.random.default_rng(seed)
    weights: dict[str, Weight] = {}
    for name, shape in spec.shapes().items():
        if len(shape) == 1:
            weights[name] = np.ones(shape, np.float32) if extreme else _random_vector(name, shape[0], random)
        elif name.startswith("layers.") or ternary_embedding:
            weights[name] = _random_ternary((shape[0], shape[1]), random, layout, block, extreme)
        else:
            weights[name] = random.standard_normal(shape).astype(np.float16)
    return Model(spec, weights)


def _random_vector(name: str, size: int, random: np.random.Generator) -> Array:
    if name.endswith("bias"):
        return random.normal(0, 0.2, size).astype(np.float32)
    return random.uniform(0.5, 1.5, size).astype(np.float32)


def _random_ternary(
    shape: tuple[int, int], random: np.random.Generator, layout: str, block: int | None, extreme: bool
) -> TernaryTensor:
    rows, cols = shape
    codes = np.ones(shape, np.int8) if extreme else random.integers(-1, 2, shape).astype(np.int8)
    scales = (1, 1) if block is None else (rows, cols // block)
    # Half-precision values: every layout's files can hold them.
    scale = random.uniform(0.02, 0.2, scales).astype(np.float16).astype(np.float32)
    return TernaryTensor.from_codes(codes, scale, layout)


def random_adapter(spec: ModelSpec, seed: int = 0, *, rank: int = 5, projections: Sequence[str] = ()) -> Adapter:
    """An adapter of random weights, of which the first matrices are in half precision; () changes all projections."""
    random = np.random.default_rng(seed)
    weights = {}
    for layer in range(spec.layers):
        for name, (rows, columns) in spec.projections().items():
            if not projections or name in projections:
                down = random.standard_normal((rank, columns)) / columns**0.5
                up = 0.3 * random.standard_normal((rows, rank))
                weights[f"layers.{layer}.{name}"] = (down.astype(np.float16).astype(np.float32), up.astype(np.float32))
    return Adapter(f"random-{seed}", weights)


@dataclass(frozen=True, slots=True)
class Case:
    """A model that a backend must run as the reference does."""

    name: str
    spec: ModelSpec
    options: Mapping[str, Any]  # of random_model

    def model(self) -> Model:
        """The case's model."""
        return random_model(self.spec, **self.options)


def _case(name: str, spec: ModelSpec, **options: Any) -> Case:
    return Case(name, spec, options)


_QWEN = {
    "family": "qwen3",
    "activation": "silu",
    "qk_norm": True,
    "head_size": 32,
    "norm_eps": 1e-6,
    "sub_norm_eps": 1e-6,
}
_LLAMA = {"family": "llama", "activation": "silu", "sub_norms": "none", "tied": False}

CASES: tuple[Case, ...] = (
    _case("bitnet", tiny_spec()),
    _case("bitnet-i2s", tiny_spec(), layout="i2_s_128"),
    _case("bitnet-i2s-arm", tiny_spec(), layout="i2_s_64"),
    _case("bitnet-tq1", tiny_spec(hidden_size=256, head_size=64), layout="tq1_0"),
    _case("bitnet-tq2", tiny_spec(hidden_size=256, head_size=64), layout="tq2_0"),
    _case("bitnet-odd", tiny_spec(hidden_size=100, heads=5, kv_heads=5, head_size=20, ffn_size=270, activation="silu")),
    _case("bitnet-extreme", tiny_spec(ffn_size=6912), extreme=True),
    _case("llama", tiny_spec(**_LLAMA)),
    _case("llama-wide-heads", tiny_spec(**_LLAMA, heads=2, kv_heads=1, head_size=256)),
    _case("llama-row-scales", tiny_spec(**_LLAMA), block=128),
    _case("llama-stretched", tiny_spec(**_LLAMA, rope=rope.llama3(10000.0, 32, 8.0, 1.0, 4.0, 64))),
    _case("llama-weight-only", tiny_spec(**_LLAMA, inputs="float")),
    _case("qwen2-biases", tiny_spec(**_LLAMA | {"family": "qwen2"}, biases=("attn.q", "attn.k", "attn.v"))),
    _case("qwen3-projection-norms", tiny_spec(**_QWEN, sub_norms="projection", pooling="last")),
    _case(
        "qwen3-blocks",
        tiny_spec(**_QWEN, sub_norms="none", inputs="float", tied=False, hidden_size=256),
        block=128,
        layout="q2_0_128",
        ternary_embedding=True,
    ),
    _case(
        "gemma3",
        tiny_spec(
            family="gemma3",
            layers=4,
            activation="gelu",
            sub_norms="projection",
            qk_norm=True,
            post_norms=True,
            windows=(8, 8, 8, 0),
            rope=Rope(theta=1e6, size=32),
            local_rope=Rope(theta=1e4, size=32),
            embedding_scale=128**0.5,
            attention_scale=0.2,
            pooling="last",
        ),
    ),
    _case(
        "minicpm",
        tiny_spec(
            **_LLAMA | {"family": "minicpm", "tied": True},
            inputs="float",
            embedding_scale=12.0,
            residual_scale=0.3,
            logit_scale=0.5,
            rope=rope.longrope(10000.0, 32, [1.0 + 0.1 * pair for pair in range(16)], 64, 128),
        ),
        block=64,
    ),
)


def some_tokens(spec: ModelSpec, count: int, seed: int = 1) -> npt.NDArray[np.int32]:
    """Random tokens of a model's vocabulary."""
    return np.random.default_rng(seed).integers(0, spec.vocab_size, count, dtype=np.int32)
