"""Prints how far the reference backend is from transformers: stored golden logits, and models of every family live.

    python packages/bitnet-core/benchmarks/parity.py

The second table needs transformers, and loads what `formats.huggingface.save` wrote.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from bitnet_core import reference
from bitnet_core.errors import UnsupportedError
from bitnet_core.formats import gguf, huggingface
from bitnet_core.formats.safetensors import write
from bitnet_core.model import Model
from bitnet_core.testing import CASES, run, some_tokens

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"


def main() -> None:
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        stored(Path(folder))
    live()


def stored(folder: Path) -> None:
    """The two-layer BitNet of the golden vectors, from each form that it is there in."""
    vectors = np.load(GOLDEN / "tiny_bitnet.npz")
    tokens = vectors["input_ids"].astype(np.int32)
    print(f"{'golden model from':24}{'max |difference|':>18}   of logits up to")
    for form in ("packed folder", "masters", "GGUF"):
        found = run(reference.load(golden_model(form, vectors, folder)), tokens)
        worst = max(np.abs(found - vectors[f"logits_transformers_{way}"]).max() for way in ("online", "offline"))
        print(f"{form:24}{worst:18.1e}   {np.abs(found).max():.0f}")


def golden_model(form: str, vectors: np.lib.npyio.NpzFile, folder: Path) -> Model:
    if form == "GGUF":
        path = folder / "tiny.gguf"
        path.write_bytes(vectors["gguf_file"].tobytes())
        return gguf.load(path)
    kinds = ("master/", "packed/") if form == "packed folder" else ("master/",)
    arrays: dict[str, np.ndarray] = {}
    for kind in kinds:
        for name in vectors.files:
            if name.startswith(kind):
                array = vectors[name]
                arrays[name.removeprefix(kind)] = array.view(ml_dtypes.bfloat16) if kind == "master/" else array
    write(folder / "model.safetensors", iter(arrays.items()), header_room=1 << 16)
    config = json.loads((GOLDEN / "tiny_bitnet.json").read_text())["config"]
    mode = "offline" if form == "packed folder" else "online"
    recipe = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}
    config |= {"model_type": "bitnet", "architectures": ["BitNetForCausalLM"], "quantization_config": recipe}
    (folder / "config.json").write_text(json.dumps(config))
    return huggingface.load(folder)


def live() -> None:
    """Random models of every family, saved by us and run by transformers."""
    import torch
    import transformers

    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    print(f"\n{'random model':24}{'median':>10}{'max':>10}   transformers' class")
    for case in CASES:
        tokens = some_tokens(case.spec, 24)
        with tempfile.TemporaryDirectory() as folder:
            try:
                huggingface.save(case.model(), folder)
            except UnsupportedError:
                continue  # what no folder can hold
            if case.spec.family == "minicpm":
                continue  # what transformers does not have
            ours = run(reference.load(huggingface.load(folder)), tokens)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            with torch.no_grad():
                theirs = model(torch.tensor(tokens[None].astype(np.int64))).logits[0].numpy()
        distance = np.abs(ours - theirs) / np.ptp(theirs)
        print(f"{case.name:24}{np.median(distance):10.1e}{distance.max():10.1e}   {type(model).__name__}")
    print("shares of the spread of the logits; one above 1e-5 is an activation that stood at a tie of two int8 steps")


if __name__ == "__main__":
    main()
