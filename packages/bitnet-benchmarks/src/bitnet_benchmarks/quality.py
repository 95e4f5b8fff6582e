"""What a model makes of a text on a backend: perplexity, and how it differs from the reference or another model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitnet_core import Backend, Model, Step, reference
from bitnet_core.model import Array, Runner, Tokens
from bitnet_core.tokenizer import Tokenizer

Told = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Quality:
    """Figures over the predicted tokens of all windows; nats are natural logarithms."""

    backend: str
    windows: int
    tokens: int  # that were predicted
    nll: float  # nats a token
    perplexity: float
    bits_per_byte: float
    error: float  # of nll: one standard error over windows
    agreement: float | None  # the share of tokens with the same likeliest one as the other
    divergence: float | None  # Kullback-Leibler of this from the other, nats a token
    other_perplexity: float | None


def windows_of(tokenizer: Tokenizer, text: str, *, size: int = 256, count: int | None = None) -> list[Tokens]:
    """A text in pieces of `size` tokens, each begun as a text begins; a last one that is short is left out."""
    if size < 3:
        raise ValueError(f"window: expected 3 tokens or more, got {size}")
    tokens = tokenizer.encode(text, bos=False)
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    step = size - len(begin)
    pieces = [tokens[start : start + step] for start in range(0, len(tokens), step)][:count]
    if len(pieces) > 1 and len(pieces[-1]) < step:
        pieces.pop()
    if not pieces or len(pieces[0]) < 2:
        raise ValueError(f"text: expected more than {len(tokens)} tokens")
    return [np.concatenate([begin, piece]).astype(np.int32) for piece in pieces]


def measure(
    model: Model,
    windows: Sequence[Tokens],
    backend: Backend,
    *,
    other: Model | None = None,
    reference_windows: int = 2,
    progress: Told | None = None,
    **options: object,
) -> Quality:
    """Perplexity over the windows; against another model, or against the reference on the first of them."""
    if model.tokenizer is None:
        raise ValueError("quality: expected a model with a tokenizer")
    against = windows if other is not None else windows[:reference_windows]
    theirs = _all(reference.BACKEND if other is None else backend, other or model, against)
    runner = backend.load(model, **options)
    losses: list[npt.NDArray[np.float64]] = []
    apart: list[npt.NDArray[np.float64]] = []
    same: list[npt.NDArray[np.bool_]] = []
    try:
        for place, window in enumerate(windows):
            rows = said(runner, window)
            losses.append(-rows[np.arange(len(window) - 1), window[1:]])
            if place < len(theirs):
                old = theirs[place]
                apart.append(np.maximum((np.exp(old) * (old - rows)).sum(axis=1), 0))
                same.append(old.argmax(axis=1) == rows.argmax(axis=1))
            if progress:
                progress(place + 1, len(windows), "")
    finally:
        runner.close()
    nlls = np.concatenate(losses)
    nbytes = sum(len(model.tokenizer.decode(window[1:], special=True, continues=True).encode()) for window in windows)
    means = np.array([loss.mean() for loss in losses])
    other_nll = [-rows[np.arange(len(w) - 1), w[1:]] for rows, w in zip(theirs, windows, strict=False)]
    return Quality(
        backend=backend.name,
        windows=len(windows),
        tokens=len(nlls),
        nll=float(nlls.mean()),
        perplexity=math.exp(float(nlls.mean())),
        bits_per_byte=float(nlls.sum()) / math.log(2) / max(1, nbytes),
        error=float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else 0.0,
        agreement=float(np.concatenate(same).mean()) if same else None,
        divergence=float(np.concatenate(apart).mean()) if apart else None,
        other_perplexity=math.exp(float(np.concatenate(other_nll).mean())) if other is not None else None,
    )


def said(runner: Runner, window: Tokens) -> npt.NDArray[np.float64]:
    """Log-probabilities of the token after each of a window's but the last."""
    cache = runner.new_cache()
    try:
        (rows,) = runner.forward([Step(window, cache, "all")])
    finally:
        cache.close()
    return _log_softmax(np.asarray(rows, np.float32)[:-1])


def _all(backend: Backend, model: Model, windows: Sequence[Tokens]) -> list[npt.NDArray[np.float64]]:
    if not windows:
        return []
    runner = backend.load(model)
    try:
        return [said(runner, window) for window in windows]
    finally:
        runner.close()


def _log_softmax(rows: Array) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide
