"""What the matrices of a model are multiplied by on ordinary text: the second moments of each one's inputs.

One layer's moments are held at a time, and the states of all tokens between two layers: a model of any depth is
calibrated in one pass over its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnet_core.cache import PagedCache
from bitnet_core.decoder import Batch, Span
from bitnet_core.memory import Pool
from bitnet_core.model import ATTENTION, FFN, Array, Model, ModelSpec, Tokens
from bitnet_core.reference import NumpyOperations
from bitnet_core.tokenizer import Tokenizer

Sums = npt.NDArray[np.float64]
# Projections that multiply the same inputs as another, unless each has a norm of its own in front.
_SAME_INPUTS = {"attn.k": "attn.q", "attn.v": "attn.q", "ffn.up": "ffn.gate"}


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """The mean of x x^T over the inputs x that a matrix was multiplied by."""

    second: Sums  # (in_features, in_features), symmetric
    tokens: int

    @property
    def importance(self) -> Sums:
        """The mean square of each input: how much an error in its column weighs."""
        return np.diagonal(self.second).copy()


def cut(tokenizer: Tokenizer, text: str, *, size: int = 256, count: int | None = None) -> list[Tokens]:
    """A text as windows of `size` tokens, each begun as a text begins; the last one is cut short or left out.

    `count` is the most that are made, None for all.
    """
    if size < 3 or (count is not None and count < 1):
        raise ValueError(f"windows have 3 tokens or more, and there is one or more of them, got {size} and {count}")
    tokens = tokenizer.encode(text, bos=False)
    begin = np.array([] if tokenizer.bos is None else [tokenizer.bos], np.int32)
    step = size - len(begin)
    starts = range(0, len(tokens), step)[:count]
    windows = [np.concatenate([begin, tokens[start : start + step]]).astype(np.int32) for start in starts]
    if len(windows) > 1 and len(windows[-1]) < size:
        windows.pop()
    if not windows or len(windows[0]) < 3:
        raise ValueError(f"the text is too short: {len(tokens)} tokens, and no window of them says anything")
    return windows


def calibrate(model: Model, windows: Sequence[Tokens], *, memory: Pool | None = None) -> Iterator[dict[str, Moments]]:
    """The moments of every matrix of a layer by its canonical name, one layer after another.

    `windows` are texts as tokens, each on its own; the model is usually the master, whose weights are floats.
    """
    for window in windows:
        _check(window, model.spec)
    if not windows:
        raise ValueError("calibration takes one window of tokens or more, got none")
    operations = _Watched(model, memory or Pool(name="calibration"))
    try:
        states = [operations.embed(window) for window in windows]
        for layer in range(model.spec.layers):
            operations.sums.clear()
            for place, window in enumerate(windows):
                states[place] = _through(operations, layer, states[place], window)
            yield operations.moments(layer, sum(map(len, windows)))
    finally:
        operations.close()


class _Watched(NumpyOperations):
    """The reference's operations, adding up what each projection multiplies."""

    def __init__(self, model: Model, pool: Pool) -> None:
        super().__init__(model, pool)
        self.sums: dict[str, Sums] = {}

    def _linear(self, name: str, x: Array, batch: Batch[PagedCache]) -> Array:
        inner = name.split(".", 2)[2]
        if inner == source_of(inner, self.spec):
            normed = self._norm(x, f"{name}.norm", self.spec.sub_norm_eps) if self._normed else x
            wide = normed.astype(np.float64)
            held = self.sums.get(inner)
            if held is None:
                self.sums[inner] = wide.T @ wide
            else:
                held += wide.T @ wide
        return super()._linear(name, x, batch)

    @property
    def _normed(self) -> bool:
        return self.spec.sub_norms == "projection"

    def moments(self, layer: int, tokens: int) -> dict[str, Moments]:
        """What was added up, as means; projections of the same inputs share one."""
        means = {name: Moments(total / tokens, tokens) for name, total in self.sums.items()}
        names = [*(f"attn.{name}" for name in ATTENTION), *(f"ffn.{name}" for name in FFN)]
        return {f"layers.{layer}.{name}": means[source_of(name, self.spec)] for name in names}


def source_of(name: str, spec: ModelSpec) -> str:
    """The projection whose inputs this one of the same layer shares; itself, where it has its own."""
    return name if spec.sub_norms == "projection" else _SAME_INPUTS.get(name, name)


def _through(operations: _Watched, layer: int, x: Array, window: Tokens) -> Array:
    """One layer over one text."""
    cache = operations.new_cache()
    try:
        cache.extend(len(window))
        batch = Batch(window, np.arange(len(window), dtype=np.int64), (Span(slice(0, len(window)), 0, cache),))
        attended = operations.attend(layer, *operations.project(layer, x, batch), batch)
        return operations.feed(layer, operations.merge(layer, x, attended, batch), batch)
    finally:
        cache.close()


def _check(window: Tokens, spec: ModelSpec) -> None:
    if window.ndim != 1 or not window.size or window.dtype.kind not in "iu":
        raise ValueError(f"a window is one token or more, got {window.dtype} of shape {window.shape}")
    if window.min() < 0 or window.max() >= spec.vocab_size:
        raise ValueError(f"expected tokens from 0 to {spec.vocab_size - 1}, got {window.min()} to {window.max()}")
