"""llama.cpp by its Python module, in whichever interpreter has it."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp as c  # type: ignore[import-not-found, unused-ignore]
import numpy as np

from bitnet_benchmarks.engines.loop import serve


@c.llama_log_callback  # type: ignore[untyped-decorator]
def _silence(*_: object) -> None:
    """Its log goes nowhere."""


class _Llama:
    def __init__(self, path: str, threads: int, context: int, sequences: int) -> None:
        c.llama_backend_init()
        c.llama_log_set(_silence, ctypes.c_void_p(0))
        self._model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path}")
        options = c.llama_context_default_params()
        options.n_ctx, options.n_seq_max = context * sequences, sequences
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        self._context = c.llama_init_from_model(self._model, options)
        if not self._context:
            raise ValueError(f"llama.cpp has no room for {context * sequences} tokens")
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model))
        self._lengths: list[int] = []

    def begin(self, sequences: int) -> None:
        c.llama_memory_clear(c.llama_get_memory(self._context), True)
        self._lengths = [0] * sequences

    def step(self, tokens: list[list[int]]) -> list[int]:
        flat = [(ids[i], place, i == len(ids) - 1) for place, ids in enumerate(tokens) for i in range(len(ids))]
        found: dict[int, int] = {}
        for start in range(0, len(flat), 512):
            found |= self._decode(flat[start : start + 512])
        return [found[place] for place in range(len(tokens))]

    def _decode(self, part: list[tuple[int, int, bool]]) -> dict[int, int]:
        batch = c.llama_batch_init(len(part), 0, 1)
        batch.n_tokens = len(part)
        for i, (token, place, last) in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, self._lengths[place], 1
            batch.seq_id[i][0], batch.logits[i] = place, last
            self._lengths[place] += 1
        failed = c.llama_decode(self._context, batch)
        c.llama_batch_free(batch)
        if failed:
            raise ValueError(f"llama.cpp's decode fails with {failed}")
        lasts = [(i, place) for i, (_, place, last) in enumerate(part) if last]
        return {place: self._likeliest(i) for i, place in lasts}

    def _likeliest(self, row: int) -> int:
        return int(np.ctypeslib.as_array(c.llama_get_logits_ith(self._context, row), (self.vocab,)).argmax())


def load(path: str, *, threads: int = 1, context: int = 1024, sequences: int = 1, **_: Any) -> _Llama:
    """A GGUF file."""
    return _Llama(path, threads, context, sequences)


def main() -> None:
    """The process."""
    serve(load)
