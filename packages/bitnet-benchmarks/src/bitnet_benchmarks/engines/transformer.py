"""transformers on the processor."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from bitnet_benchmarks.engines.loop import serve


class _Transformer:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._past: list[Any] = []
        self.vocab = int(model.config.vocab_size)

    def begin(self, sequences: int) -> None:
        self._past = [None] * sequences

    def step(self, tokens: list[list[int]]) -> list[int]:
        found = []
        with torch.inference_mode():
            for place, ids in enumerate(tokens):
                said = self._model(
                    input_ids=torch.tensor([ids]), past_key_values=self._past[place], use_cache=True, logits_to_keep=1
                )
                self._past[place] = said.past_key_values
                found.append(int(said.logits[0, -1].argmax()))
        return found


def load(path: str, *, threads: int = 1, **_: Any) -> _Transformer:
    """A folder of Hugging Face's form; its sequences are run one after another."""
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return _Transformer(transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval())  # type: ignore[no-untyped-call]


def main() -> None:
    """The process."""
    serve(load)
