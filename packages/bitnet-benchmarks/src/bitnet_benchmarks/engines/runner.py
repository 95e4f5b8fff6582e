"""One of our backends' bare Runner: no scheduler, no sampling."""

from __future__ import annotations

from typing import Any

import numpy as np

import bitnet_core
from bitnet_core.model import Cache, Runner, Step

from .loop import serve


class _Runner:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._caches: list[Cache] = []
        self.vocab = runner.spec.vocab_size

    def begin(self, sequences: int) -> None:
        for cache in self._caches:
            cache.close()
        self._caches = [self._runner.new_cache() for _ in range(sequences)]

    def step(self, tokens: list[list[int]]) -> list[int]:
        steps = [Step(np.array(ids, np.int32), cache) for ids, cache in zip(tokens, self._caches, strict=True)]
        return [int(np.argmax(logits)) for logits in self._runner.forward(steps) if logits is not None]


def load(path: str, *, backend: str = "auto", **options: Any) -> _Runner:
    """A model on a backend; options are those of its `load`."""
    chosen = bitnet_core.backends.get(backend)
    if chosen.name == "numpy":
        options.pop("threads", None)  # NumPy asks the system itself
    return _Runner(chosen.load(bitnet_core.load(path), **options))


def main() -> None:
    """The process."""
    serve(load)
