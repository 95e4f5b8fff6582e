"""Fuzzes the GGUF reader: values, strings, tensors of every type, and models with their tokenizers."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import driver

with driver.imports():
    import numpy as np

    from bitnet_core.errors import BitNetError
    from bitnet_core.formats import gguf
    from bitnet_core.formats.gguf import types
    from bitnet_core.model import runs_of
    from bitnet_core.tensor import TernaryTensor
    from bitnet_core.testing import random_model, tiny_spec

_SMALL = {"hidden_size": 64, "ffn_size": 64, "heads": 2, "kv_heads": 1, "head_size": 32, "layers": 1, "vocab_size": 16}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.gguf"
        seeds = _seeds(path)
        # Opened once: a file made anew for each run would take most of the time.
        handle = os.open(path, os.O_RDWR)
        driver.run("gguf", lambda data: _read(path, handle, data), seeds, sys.argv[1:])


def _read(path: Path, handle: int, data: bytes) -> None:
    os.ftruncate(handle, len(data))
    os.pwrite(handle, data, 0)
    refusal: BitNetError | None = None
    try:
        with gguf.File(path) as file:
            _read_tensors(file, len(data))
    except BitNetError as error:
        refusal = error
    try:
        model = gguf.load(path)
    except BitNetError:
        return
    if refusal is None:
        for name in model.weights:
            rows = sum(run.shape[0] for run in runs_of(model.weights, name))
            if model.weights[name].shape != model.spec.shapes()[name] or rows != model.spec.shapes()[name][0]:
                raise AssertionError(name)


def _read_tensors(file: gguf.File, size: int) -> None:
    for value in file.metadata.values():
        if isinstance(value, gguf.Strings):
            list(value)
    for name, tensor in file.tensors.items():
        if tensor.start + tensor.nbytes > size:
            raise AssertionError(name)
        file.tensor(name)


def _seeds(path: Path) -> list[bytes]:
    """Valid files: every type of value and of tensor, a part of a split file, and models with tokenizers."""
    seeds = []
    values = {f"v{i}": np.ones(1, kind)[0] for i, kind in enumerate(("u1", "i2", "u4", "f4", "f8", "i8", "?"))}
    arrays = {"strings": ["a", "", "longer"] * 30, "numbers": np.arange(5, dtype="u2"), "bools": np.ones(3, bool)}
    gguf.write(
        path,
        values | arrays | {"text": "t", "general.alignment": np.uint32(64)},
        [_blob(kind) for kind in gguf.KINDS.values()],
    )
    seeds.append(path.read_bytes())
    gguf.write(path, {"split.no": np.uint16(0), "split.count": np.uint16(2), "split.tensors.count": np.int32(1)}, [])
    seeds.append(path.read_bytes())
    for layout, changes in (
        ("i2_s_128", {}),
        ("q2_0_64", {"family": "llama", "activation": "silu", "sub_norms": "none"}),
    ):
        gguf.save(random_model(tiny_spec(**_SMALL | changes)), path, layout=layout)
        seeds.append(path.read_bytes())
        gguf.write(path, *_with_tokenizer(path))
        seeds.append(path.read_bytes())
    return seeds


def _blob(kind: gguf.Kind) -> gguf.Blob:
    shape, random = (4, 256), np.random.default_rng(0)
    if kind.layout:
        tensor = TernaryTensor.from_codes(random.integers(-1, 2, shape).astype(np.int8), 0.5)
        return gguf.Blob(kind.name, shape, kind, lambda: types.encode(kind, tensor))
    raw = random.integers(0, 60, kind.nbytes(shape), dtype=np.uint8)
    return gguf.Blob(kind.name, shape, kind, lambda: raw)


def _with_tokenizer(path: Path) -> tuple[dict[str, object], list[gguf.Blob]]:
    with gguf.File(path) as file:
        values = dict(file.metadata)
        blobs = [_kept(file, name) for name in file.tensors]
    letters = ["<s>", "</s>", *"abcdefghijkl", "ab", "abc"]
    values |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": letters,
        "tokenizer.ggml.token_type": [3, 3] + [1] * 14,
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    return values, blobs


def _kept(file: gguf.File, name: str) -> gguf.Blob:
    raw = file.raw(name).copy()
    return gguf.Blob(name, file.tensors[name].shape, file.tensors[name].kind, lambda: raw)


if __name__ == "__main__":
    main()
