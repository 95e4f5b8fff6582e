"""The engine of bitnet-inference: what a Runner does, with scheduling, sampling and streams around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitnet_inference.llm import LLM
from bitnet_inference.request import Emission
from bitnet_inference.writing import Writing

from .loop import serve


class _Engine:
    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._writings: list[Writing] = []
        self._readers: list[Iterator[Emission]] = []
        self.vocab = llm.model.spec.vocab_size

    def begin(self, sequences: int) -> None:
        del sequences  # as many as there are prompts in the first step
        for writing in self._writings:
            writing.close()
        self._writings, self._readers = [], []

    def step(self, tokens: list[list[int]]) -> list[int]:
        """The first step brings the prompts; after that the engine goes on by itself with what it finds likeliest."""
        if not self._readers:
            self._writings = [self._llm.write(ids, temperature=0, ignore_eos=True) for ids in tokens]
            self._readers = [iter(writing.ticket) for writing in self._writings]
        return [next(reader).token for reader in self._readers]


def load(path: str, *, backend: str = "auto", threads: int = 1, **options: Any) -> _Engine:
    """A model; options are those of its backend. No prompt is remembered: each is computed anew."""
    count = None if backend == "numpy" else threads
    return _Engine(LLM(path, backend=backend, threads=count, prefix_cache=False, **options))


def main() -> None:
    """The process."""
    serve(load)
