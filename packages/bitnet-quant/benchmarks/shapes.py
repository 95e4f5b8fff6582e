"""Synthetic models of real shapes: random codes, made once and shared between layers until they are placed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitnet_core.model import Model, ModelSpec, Weight
from bitnet_core.tensor import TernaryTensor
from bitnet_core.testing import SHAPES
from bitnet_quant.cpu import _native


def bitnet_2b(layers: int = 30) -> ModelSpec:
    """The shape of the largest published BitNet, with as many of its layers as are wanted."""
    return replace(SHAPES["2b4t"], layers=layers)


def synthetic(spec: ModelSpec, seed: int = 0) -> Model:
    """A model of random weights; every layer's are the same arrays, of which a backend makes its own copies."""
    random = np.random.default_rng(seed)
    weights: dict[str, Weight] = {}
    for name, shape in spec.layer_shapes().items():
        if len(shape) == 1:
            weight: Weight = np.ones(shape, np.float32)
        else:
            codes = random.integers(-1, 2, shape, dtype=np.int8)
            weight = TernaryTensor.from_codes(codes, 0.02, "i2_s_128")
        weights.update({f"layers.{layer}.{name}": weight for layer in range(spec.layers)})
    embedding = np.empty((spec.vocab_size, spec.hidden_size), np.float16)
    for first in range(0, spec.vocab_size, 4096):  # rows that repeat would share the highest logit
        part = embedding[first : first + 4096]
        part[...] = random.standard_normal(part.shape, np.float32)
    weights |= {"embedding": embedding, "norm": np.ones(spec.hidden_size, np.float32)}
    return Model(spec, weights)


def bytes_of_a_token(spec: ModelSpec, isa: str, head: str) -> int:
    """Bytes of weights that a token's step must read in the order of these kernels."""
    columns = _native.Kernels(isa).columns
    of_a_block = 4 if columns == 16 else 2.5  # a row's bytes: two bits a digit, or five for three of them
    matrices = sum(rows * -(-width // columns) * of_a_block for rows, width in spec.projections().values())
    return round(spec.layers * matrices) + spec.vocab_size * spec.hidden_size * (1 if head == "int8" else 2)
