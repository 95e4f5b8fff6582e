"""Fuzzes the reader of Hugging Face folders: config.json, safetensors, an index of shards, tokenizer.json."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import driver

with driver.imports():
    from bitnet_core.formats import huggingface
    from bitnet_core.model import runs_of
    from bitnet_core.testing import random_model, tiny_spec

# The first byte of an input says which file the rest of it is.
FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "generation_config.json")
_SPEC = tiny_spec(hidden_size=16, ffn_size=16, heads=2, kv_heads=1, head_size=8, layers=1, vocab_size=16)
_TOKENIZER = {
    "added_tokens": [{"id": 0, "content": "<s>", "special": True}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": [["a", "b"]]},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        huggingface.save(random_model(_SPEC), folder)
        valid = {file.name: file.read_bytes() for file in folder.iterdir()}
        tensors = list(random_model(_SPEC).weights)
        seeds = valid | {
            "model.safetensors.index.json": json.dumps(
                {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
            ).encode(),
            "tokenizer.json": json.dumps(_TOKENIZER).encode(),
            "generation_config.json": b'{"do_sample": true, "temperature": 0.6, "top_p": 0.9}',
        }

        def read(data: bytes) -> None:
            file = folder / FILES[data[0] % len(FILES)] if data else folder / FILES[0]
            file.write_bytes(data[1:])
            try:
                model = huggingface.load(folder)
                for weight in model.weights:
                    model.weights[weight]
                    for run in runs_of(model.weights, weight):
                        del run
            finally:
                file.unlink()
                if file.name in valid:
                    file.write_bytes(valid[file.name])

        driver.run("folder", read, [bytes([FILES.index(file)]) + data for file, data in seeds.items()], sys.argv[1:])


if __name__ == "__main__":
    main()
