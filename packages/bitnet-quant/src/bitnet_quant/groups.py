"""Telling whether the I2_S bytes of a model are in groups of 128, or of 64 as bitnet.cpp wrote them on ARM.

Nothing in a file says it. Read wrongly, the columns of a matrix change places; its rows, and the norms, do not. In a
trained model, channels keep their character from weight to weight: a column of `down` is as full as the row of `up`
that feeds it, and columns follow the gains of the norm in front. Only the right reading has these go together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bitnet_core import Model, TernaryTensor, Weights, reference
from bitnet_core.model import Tokens, Weight

from .calibrate import cut
from .quality import logits, nll

Vector = npt.NDArray[np.float64]
_LAYERS = 8  # that are looked at, spread over the depth of the model
_SURE = 6.0  # deviations of chance
_NATS = 0.5  # a token, by which the right reading predicts text better
_RUNNABLE = 100_000_000  # weights; larger models are run only if somebody insists
_WINDOW = 128


@dataclass(frozen=True, slots=True)
class Group:
    """What speaks for the group that I2_S bytes were read in, and for the other."""

    read: int  # 64 or 128
    right: int | None  # None where nothing tells
    pairs: int  # of channels that were compared
    structure: tuple[float, float]  # sum of squared z of their correlations: as read, and in the other group
    nats: tuple[float, float] | None  # a token of ordinary text, likewise; None where it was not asked

    @property
    def wrong(self) -> bool:
        """Whether the other reading is the right one."""
        return self.right is not None and self.right != self.read

    def said(self) -> str:
        """One line."""
        verdict = "nothing tells whether that is right" if self.right is None else f"groups of {self.right} are right"
        text = f"; {self.nats[0]:.2f} against {self.nats[1]:.2f} nats a token of text" if self.nats else ""
        return (
            f"I2_S read in groups of {self.read}: {verdict} (channels go together by {self.structure[0]:.0f} as read, "
            f"by {self.structure[1]:.0f} in the other order, {self.pairs} by chance{text})"
        )

    def problem(self) -> str:
        """The finding with its remedy."""
        return f"{self.said()}; load it with i2_s_group={self.right}"


def detect(
    model: Model, other: Callable[[int], Model] | None = None, text: str | None = None, *, insist: bool = False
) -> Group | None:
    """Which group is right; None for a model without I2_S weights.

    `other` loads the model in another group; without it the bytes at hand are taken in that order. The text is asked
    about where the structure leaves it open, or if somebody insists.
    """
    read = _group_of(model)
    if read is None:
        return None
    turned = other(192 - read) if other else regrouped(model, 192 - read)
    pairs, structure = _structures(model, turned)
    right = _by_structure(read, pairs, structure)
    nats = None
    if text and model.tokenizer is not None and (insist or (right is None and _size(model) <= _RUNNABLE)):
        windows = cut(model.tokenizer, text, size=min(_WINDOW, model.spec.context), count=4)
        nats = _nats(model, windows), _nats(turned, windows)
        if abs(nats[0] - nats[1]) > _NATS:  # what predicts text is right, whatever channels say
            right = read if nats[0] < nats[1] else 192 - read
    return Group(read, right, pairs, structure, nats)


def regrouped(model: Model, group: int) -> Model:
    """The model with its I2_S bytes taken in groups of another size."""

    def make(name: str) -> Weight:
        weight = model.weights[name]
        if not isinstance(weight, TernaryTensor) or not weight.layout.startswith("i2_s"):
            return weight
        return replace(weight, data=weight.data.reshape(-1, group // 4), layout=f"i2_s_{group}")

    makers: Mapping[str, Callable[[], Weight]] = {name: partial(make, name) for name in model.weights}
    return replace(model, weights=Weights(makers))


def _group_of(model: Model) -> int | None:
    """The group of the I2_S weights of the first layer."""
    for inner in model.spec.projections():
        weight = model.weights[f"layers.0.{inner}"]
        if isinstance(weight, TernaryTensor) and weight.layout in ("i2_s_64", "i2_s_128"):
            return 64 if weight.layout == "i2_s_64" else 128
    return None


def _by_structure(read: int, pairs: int, structure: tuple[float, float]) -> int | None:
    """The group in which channels go together far more than by chance, and than in the other."""
    as_read, turned = structure
    chance = 2 * np.sqrt(pairs)  # of the difference of two sums of that many squares
    better, worse = max(structure) - pairs, max(min(structure) - pairs, 0.0)
    if abs(as_read - turned) < _SURE * chance or better < 1.5 * worse:
        return None
    return read if as_read > turned else 192 - read


def _structures(model: Model, turned: Model) -> tuple[int, tuple[float, float]]:
    """How many pairs of channels were compared, and how far they go together in each reading."""
    depth = model.spec.layers
    layers = sorted({int(layer) for layer in np.linspace(0, depth - 1, min(depth, _LAYERS))})
    embedding = _magnitudes(model.weights["embedding"])
    sums, pairs = [0.0, 0.0], 0
    for layer in layers:
        for which, reading in enumerate((model, turned)):
            found = [_together(full, gains) for full, gains in _pairs(reading, layer, embedding)]
            sums[which] += sum(found)
            pairs += len(found) if which == 0 else 0
    return pairs, (sums[0], sums[1])


def _pairs(model: Model, layer: int, embedding: Vector) -> Iterator[tuple[Vector, Vector]]:
    """How full the columns of a matrix are, with what their channels are elsewhere."""
    spec, prefix = model.spec, f"layers.{layer}."
    weights = {inner: model.weights[prefix + inner] for inner in spec.projections()}
    codes = {inner: weight.codes() != 0 for inner, weight in weights.items() if isinstance(weight, TernaryTensor)}
    columns = {inner: used.mean(axis=0) for inner, used in codes.items()}
    rows = {inner: used.mean(axis=1) for inner, used in codes.items()}
    for inner, full in columns.items():
        for norm in (_norm_of(model, inner), f"{inner}.norm"):
            if norm and prefix + norm in model.weights:
                yield full, np.abs(np.asarray(model.weights[prefix + norm], np.float64))
        if full.size == spec.hidden_size and inner != "attn.o":
            yield full, embedding
    for inner in ("ffn.up", "ffn.gate"):
        if inner in rows and "ffn.down" in columns:
            yield columns["ffn.down"], rows[inner]
    if "attn.v" in rows and "attn.o" in columns:
        heads = rows["attn.v"].reshape(spec.kv_heads, -1)
        yield columns["attn.o"], np.repeat(heads, spec.heads // spec.kv_heads, axis=0).ravel()


def _norm_of(model: Model, inner: str) -> str | None:
    """The norm whose gains a projection's columns are multiplied by."""
    if inner in ("attn.o", "ffn.down"):
        return f"{inner.split('.', maxsplit=1)[0]}.sub_norm" if model.spec.sub_norms == "block" else None
    return f"{inner.split('.', maxsplit=1)[0]}.norm"


def _together(first: Vector, second: Vector) -> float:
    """The squared z of a rank correlation: about 1 by chance."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (first, second)]
    if np.ptp(first) == 0 or np.ptp(second) == 0 or len(first) < 8:
        return 1.0
    correlation = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    return float(np.arctanh(np.clip(correlation, -0.999, 0.999)) ** 2 * (len(first) - 3))


def _magnitudes(weight: Weight) -> Vector:
    """The mean magnitude of each column, of some thousand rows at most."""
    some: Any = weight.dense()[:4096] if isinstance(weight, TernaryTensor) else weight[:4096]
    return cast("Vector", np.abs(some.astype(np.float64)).mean(axis=0))


def _nats(model: Model, windows: list[Tokens]) -> float:
    said = logits(model, windows, reference.BACKEND)
    return float(np.concatenate([nll(rows, window) for rows, window in zip(said, windows, strict=True)]).mean())


def _size(model: Model) -> int:
    return sum(int(np.prod(shape)) for shape in model.spec.shapes().values())
