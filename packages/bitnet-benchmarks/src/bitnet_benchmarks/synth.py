"""Models of real shapes with random trits and a made-up vocabulary: what speed is compared on without a download.

They say nothing and cost what the real ones cost. llama.cpp and bitnet.cpp load them as well: each format has the
architecture and the tensor types that its readers know.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import numpy.typing as npt

from bitnet_core import LAYOUTS, Model, ModelSpec, Rope, TernaryTensor, UnsupportedError
from bitnet_core.formats import gguf
from bitnet_core.model import Weight
from bitnet_core.testing import SHAPES as CORE_SHAPES
from bitnet_core.tokenizer import Tokenizer
from bitnet_core.vocabularies import BYTE_CHARACTERS, Added, Vocabulary, pipelines

Embedding = Literal["f16", "bf16", "f32", "q6_k"]
_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
_SCALE = 0.02
_SEED_ROWS = 4096  # of an embedding, repeated: random numbers for all of it take longer than writing it


def _llama(**sizes: int) -> ModelSpec:
    plain = CORE_SHAPES["2b4t"]
    rope = Rope(theta=500_000.0, size=sizes["head_size"])
    return replace(plain, **sizes, rope=rope, family="llama", activation="silu", sub_norms="none", tied=False)  # type: ignore[arg-type]  # sizes are numbers


# Sizes of published models; the smallest is for tests.
SHAPES: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "tiny": replace(
            CORE_SHAPES["2b4t"],
            vocab_size=512,
            hidden_size=256,
            ffn_size=512,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=64,
            context=512,
            rope=Rope(theta=500_000.0, size=64),
        ),
        "700m": replace(
            CORE_SHAPES["2b4t"],
            vocab_size=32_000,
            hidden_size=1536,
            ffn_size=4096,
            layers=24,
            heads=16,
            kv_heads=16,
            head_size=96,
            context=2048,
            rope=Rope(theta=10_000.0, size=96),
        ),
        "2b4t": CORE_SHAPES["2b4t"],
        "falcon3-1b": _llama(
            vocab_size=131_072, hidden_size=2048, ffn_size=8192, layers=18, heads=8, kv_heads=4, head_size=256
        ),
        "llama3-8b": _llama(
            vocab_size=128_256, hidden_size=4096, ffn_size=14_336, layers=32, heads=32, kv_heads=8, head_size=128
        ),
    }
)
LAYOUT_NAMES = tuple(name for name in LAYOUTS if name != "hf_rows")


@dataclass(frozen=True, slots=True)
class Made:
    """A model that was written."""

    path: Path
    shape: str
    layout: str
    architecture: str
    parameters: int
    nbytes: int


def write(
    path: str | os.PathLike[str],
    *,
    shape: str = "2b4t",
    layout: str = "i2_s_128",
    layers: int | None = None,
    embedding: Embedding = "f16",
    seed: int = 0,
) -> Made:
    """Write a synthetic model as a GGUF file; the same arguments always make the same bytes."""
    target = Path(path)
    if shape not in SHAPES:
        raise UnsupportedError(f"shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
    if layout not in LAYOUT_NAMES:
        raise UnsupportedError(f"layout: expected one of {', '.join(LAYOUT_NAMES)}, got {layout!r}")
    if target.suffix != ".gguf":
        raise UnsupportedError(f"{target}: expected a name that ends in .gguf")
    spec = SHAPES[shape]
    if layers is not None:
        spec = replace(spec, layers=layers)
    if layout in ("tq1_0", "tq2_0", "q2_0_64", "q2_0_128") and spec.family == "bitnet":
        # The BitNet that llama.cpp knows has SiLU, which costs what squared ReLU does.
        spec = replace(spec, activation="silu")
    model = make(spec, layout, seed)
    if embedding == "q6_k":
        _save_with_q6_k(model, target, layout, seed)
    else:
        gguf.save(model, target, layout=layout, embedding=embedding, name=f"synthetic {shape}")
    with gguf.File(target) as file:
        architecture = str(file.metadata["general.architecture"])
    parameters = sum(math.prod(dims) for dims in spec.shapes().values())
    return Made(target, shape, layout, architecture, parameters, target.stat().st_size)


def make(spec: ModelSpec, layout: str = "i2_s_128", seed: int = 0) -> Model:
    """A model of random weights with a tokenizer; every layer's are the same arrays."""
    random = np.random.default_rng(seed)
    weights: dict[str, Weight] = {}
    for name, shape in spec.layer_shapes().items():
        weight: Weight = np.ones(shape, np.float32)
        if len(shape) == 2:
            weight = TernaryTensor.from_codes(random.integers(-1, 2, shape, dtype=np.int8), _SCALE, layout)
        weights.update({f"layers.{layer}.{name}": weight for layer in range(spec.layers)})
    rows = random.standard_normal((min(_SEED_ROWS, spec.vocab_size), spec.hidden_size), np.float32)
    table = np.tile(rows.astype(np.float16), (-(-spec.vocab_size // len(rows)), 1))[: spec.vocab_size]
    weights |= {"embedding": table, "norm": np.ones(spec.hidden_size, np.float32)}
    if not spec.tied:
        weights["head"] = table
    return Model(spec, weights, Tokenizer(vocabulary(spec.vocab_size)))


def vocabulary(size: int) -> Vocabulary:
    """A byte-level vocabulary of `size` tokens that any text can be written in."""
    if size < 256 + len(_SPECIAL):
        raise UnsupportedError(f"vocabulary: expected {256 + len(_SPECIAL)} tokens or more, got {size}")
    count = size - 256 - len(_SPECIAL)
    merges = tuple(islice(_merges(), count))
    tokens = (*BYTE_CHARACTERS, *(left + right for left, right in merges), *_SPECIAL)
    bos = size - len(_SPECIAL)
    _, normalizer, pre_tokenizer = pipelines.by_name("llama-bpe", "synthetic")
    return Vocabulary(
        file="synthetic",
        tokens=tokens,
        merges=merges,
        alphabet="bytes",
        added={bos + place: Added(special=True) for place in range(len(_SPECIAL))},
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizer,
        ignore_merges=True,
        bos=bos,
        eos=frozenset([bos + 1, bos + 2]),
        prefix=(bos,),
    )


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of bytes, then pairs with one more: no two make the same token."""
    yield from product(BYTE_CHARACTERS, BYTE_CHARACTERS)
    pairs = (first + second for first, second in product(BYTE_CHARACTERS, BYTE_CHARACTERS))
    yield from ((pair, BYTE_CHARACTERS[place]) for pair in pairs for place in range(2))


def _save_with_q6_k(model: Model, target: Path, layout: str, seed: int) -> None:
    """Embedding and head in the type that files of llama.cpp mostly have."""
    if model.spec.hidden_size % 256:
        raise UnsupportedError(f"embedding: q6_k holds rows of a multiple of 256, got {model.spec.hidden_size}")
    draft = target.with_name(f".{target.name}.draft.gguf")
    try:
        gguf.save(model, draft, layout=layout, name="synthetic")
        with gguf.File(draft) as file:
            blobs = [_blob(file, name, seed) for name in file.tensors]
            gguf.write(target, dict(file.metadata), blobs)
    finally:
        draft.unlink(missing_ok=True)


def _blob(file: gguf.File, name: str, seed: int) -> gguf.Blob:
    tensor = file.tensors[name]
    if name not in ("token_embd.weight", "output.weight"):
        return gguf.Blob(name, tensor.shape, tensor.kind, lambda: file.raw(name))
    return gguf.Blob(name, tensor.shape, gguf.KINDS["Q6_K"], lambda: _random_q6_k(tensor.shape, seed))


def _random_q6_k(shape: tuple[int, ...], seed: int) -> npt.NDArray[np.uint8]:
    """Any bytes are a block, but its last two: they are the scale, here 1/64."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (math.prod(shape) // 256, 210), np.uint8)
    blocks[:, 208:] = np.frombuffer(np.float16(1 / 64).tobytes(), np.uint8)
    return blocks.ravel()
