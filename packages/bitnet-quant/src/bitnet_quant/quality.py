"""What quantization cost: each weight against its master, and what the model says against what the master says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_core import Backend, Model, Step, TernaryTensor, reference
from bitnet_core.model import Array, Tokens, Weight

from . import page
from .recipe import BITS, Recipe
from .ternarization import Fidelity, fidelity

_HEAD = (
    f"{'weight':26}{'shape':>14}{'bits':>7}{'zeros':>8}{'scale':>11}{'mse':>11}{'sqnr dB':>9}{'cosine':>9}{'angle':>8}"
)


@dataclass(frozen=True, slots=True)
class WeightQuality:
    """One matrix against its master."""

    name: str
    shape: tuple[int, int]
    form: str  # ternary, int8, int4 or float
    bits: float  # a weight, scales among them
    trits: tuple[int, int, int] | None  # how many codes are -1, 0, 1; None where not ternary
    scale: float | None  # the mean of the scales
    fidelity: Fidelity

    @property
    def zeros(self) -> float | None:
        """The share of codes that are 0."""
        return self.trits[1] / sum(self.trits) if self.trits else None


@dataclass(frozen=True, slots=True)
class ModelQuality:
    """What the model says about a text against what its master says."""

    tokens: int  # that were predicted
    divergence: float  # Kullback-Leibler, of the model from the master, in nats a token
    worst_divergence: float  # of one token
    agreement: float  # the share of tokens for which both find the same one likeliest
    perplexity: float
    master_perplexity: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures; as a table, as JSON, and as a page."""

    weights: tuple[WeightQuality, ...]
    model: ModelQuality | None = None  # None where no text was given

    def table(self) -> str:
        """Plain text, a line a weight."""
        lines = [_HEAD, *map(_line, self.weights)]
        if said := self.model:
            lines += ["", f"perplexity {said.perplexity:.4f}, of the master {said.master_perplexity:.4f}"]
            lines.append(f"divergence {said.divergence:.4f} nats a token, {said.worst_divergence:.4f} at worst")
            lines.append(f"the same likeliest token for {said.agreement:.1%} of {said.tokens}")
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """All figures; what is infinite, as the ratio over an error of zero, is null."""
        value = {
            "weights": [asdict(weight) | {"zeros": weight.zeros} for weight in self.weights],
            "model": self.model and asdict(self.model),
        }
        return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"

    def html(self, title: str = "Quantization report") -> str:
        """One page that needs nothing else: figures, trits and errors by layer, and the table."""
        return page.render(title, self)


def report(
    model: Model,
    master: Model,
    windows: Sequence[Tokens] = (),
    *,
    recipe: Recipe | None = None,
    backend: Backend = reference.BACKEND,
) -> Report:
    """A model against the master that it was made of; `windows` are the texts that both are asked about.

    The recipe says which floats stand for eight or four bits. One weight of each model is held at a time, until
    there are texts: then both are placed on the backend, one after the other.
    """
    if model.spec.shapes() != master.spec.shapes():
        raise ValueError("the weights of the two differ in names or shapes: the second is not the model's master")
    found = []
    for name, shape in model.spec.shapes().items():
        if len(shape) == 2:
            form = recipe.rule(name).form if recipe else None
            found.append(_quality(name, model.weights[name], master.weights[name], form))
    said = spoken(logits(model, windows, backend), logits(master, windows, backend), windows) if len(windows) else None
    return Report(tuple(found), said)


def logits(model: Model, windows: Sequence[Tokens], backend: Backend) -> list[Array]:
    """What a model says after every token of every window, each on its own: (tokens, vocab) each."""
    runner = backend.load(model)
    try:
        found = []
        for window in windows:
            cache = runner.new_cache()
            (rows,) = runner.forward([Step(window, cache, "all")])
            cache.close()
            found.append(np.asarray(rows, np.float32))
        return found
    finally:
        runner.close()


def spoken(model: Sequence[Array], master: Sequence[Array], windows: Sequence[Tokens]) -> ModelQuality:
    """Two models' logits over the same windows, compared."""
    apart = np.concatenate([divergence(old[:-1], new[:-1]) for old, new in zip(master, model, strict=True)])
    same = [old[:-1].argmax(axis=1) == new[:-1].argmax(axis=1) for old, new in zip(master, model, strict=True)]
    losses = [np.concatenate([nll(rows, w) for rows, w in zip(said, windows, strict=True)]) for said in (model, master)]
    return ModelQuality(
        tokens=len(apart),
        divergence=float(apart.mean()),
        worst_divergence=float(apart.max()),
        agreement=float(np.concatenate(same).mean()),
        perplexity=math.exp(float(losses[0].mean())),
        master_perplexity=math.exp(float(losses[1].mean())),
    )


def nll(rows: Array, window: Tokens) -> npt.NDArray[np.float64]:
    """The negative log-likelihood of every token of a window but the first, in nats."""
    said = _log_softmax(rows[:-1])
    return -said[np.arange(len(said)), window[1:]]


def divergence(master: Array, model: Array) -> npt.NDArray[np.float64]:
    """Kullback-Leibler divergence of the model from the master in each row of logits, in nats."""
    old, new = _log_softmax(master), _log_softmax(model)
    apart: npt.NDArray[np.float64] = (np.exp(old) * (old - new)).sum(axis=1)
    return np.maximum(apart, 0)  # rounding may take one of zero below it


def _log_softmax(rows: Array) -> npt.NDArray[np.float64]:
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def _quality(name: str, weight: Weight, master: Weight, form: str | None) -> WeightQuality:
    shape = (weight.shape[0], weight.shape[1])
    near = fidelity(dense(master), dense(weight))
    if isinstance(weight, TernaryTensor):
        bits = 8 * (weight.data.nbytes + weight.scale.nbytes) / math.prod(shape)
        return WeightQuality(name, shape, "ternary", bits, weight.counts(), float(weight.scale.mean()), near)
    plain = form in (None, "float", "ternary")
    bits = 8.0 * weight.dtype.itemsize if plain else BITS[str(form)]
    return WeightQuality(name, shape, "float" if plain else str(form), bits, None, None, near)


def dense(weight: Weight) -> Any:
    """A weight as floats."""
    return weight.dense() if isinstance(weight, TernaryTensor) else weight


def _line(weight: WeightQuality) -> str:
    near = weight.fidelity
    rows, cols = weight.shape
    zeros = "" if weight.zeros is None else f"{weight.zeros:.1%}"
    scale = "" if weight.scale is None else f"{weight.scale:.4g}"
    return (
        f"{weight.name:26}{f'{rows} x {cols}':>14}{weight.bits:7.3g}{zeros:>8}{scale:>11}"
        f"{near.mse:11.3e}{near.sqnr:9.2f}{near.cosine:9.5f}{near.angle:7.2f}°"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
