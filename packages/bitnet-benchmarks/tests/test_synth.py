"""Synthetic models have the sizes of real ones, are the same every time, and are read back as what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitnet_core
from bitnet_benchmarks import synth
from bitnet_core import UnsupportedError


@pytest.mark.parametrize("layout", synth.LAYOUT_NAMES)
def test_every_layout_is_written_and_read(layout: str, tmp_path: Path) -> None:
    made = synth.write(tmp_path / "model.gguf", shape="tiny", layout=layout)
    group = 64 if layout == "i2_s_64" else 128
    model = bitnet_core.load(made.path, i2_s_group=group)
    assert model.spec.layers == 2
    assert model.tokenizer is not None
    assert made.nbytes == made.path.stat().st_size
    # bitnet.cpp knows squared ReLU, llama.cpp SiLU: each reads the file that is meant for it.
    assert made.architecture == ("bitnet-b1.58" if layout.startswith("i2_s") else "bitnet")
    assert model.spec.activation == ("relu2" if layout.startswith("i2_s") else "silu")
    codes = model.weights["layers.0.ffn.up"]
    assert isinstance(codes, bitnet_core.TernaryTensor)
    shares = np.bincount(codes.codes().ravel() + 1) / codes.codes().size
    assert np.allclose(shares, 1 / 3, atol=0.02)


def test_the_same_arguments_make_the_same_bytes(tmp_path: Path) -> None:
    first = synth.write(tmp_path / "a.gguf", shape="tiny", seed=3).path.read_bytes()
    assert synth.write(tmp_path / "b.gguf", shape="tiny", seed=3).path.read_bytes() == first
    assert synth.write(tmp_path / "c.gguf", shape="tiny", seed=4).path.read_bytes() != first


def test_a_model_runs(tmp_path: Path) -> None:
    for embedding in ("f16", "q6_k"):
        made = synth.write(tmp_path / f"{embedding}.gguf", shape="tiny", layout="tq2_0", embedding=embedding)
        model = bitnet_core.load(made.path)
        runner = bitnet_core.backends.get().load(model)
        assert model.tokenizer is not None
        tokens = list(bitnet_core.generate(runner, model.tokenizer.encode("Hello"), count=4))
        runner.close()
        assert len(tokens) <= 4


def test_any_text_can_be_written_in_its_tokens() -> None:
    tokenizer = bitnet_core.tokenizer.Tokenizer(synth.vocabulary(70_000))
    for text in ("Hello, world!", "Zoë 🐈\n\t\0", "日本語"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == 70_000


def test_published_sizes_are_kept() -> None:
    assert synth.SHAPES["2b4t"].hidden_size == 2560
    assert synth.SHAPES["llama3-8b"].layers == 32
    for spec in synth.SHAPES.values():
        assert spec.heads % spec.kv_heads == 0
        assert spec.rope.size == spec.head_size


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    for options in ({"shape": "huge"}, {"layout": "hf_rows"}):
        with pytest.raises(UnsupportedError, match="expected one of"):
            synth.write(tmp_path / "x.gguf", **options)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match=r"\.gguf"):
        synth.write(tmp_path / "x.bin", shape="tiny")
    with pytest.raises(UnsupportedError, match="tokens or more"):
        synth.vocabulary(100)
    assert list(tmp_path.iterdir()) == []
