"""An adapter merged into its base: rounded into new trits, or folded into masters; and what that cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import peft
from transformers import PreTrainedModel

from bitnet_core import Adapter, Backend, Model, Step, TernaryTensor, UnsupportedError, Weights, reference
from bitnet_core.model import Array, Tokens, Weight
from bitnet_quant import Method, ternarize
from bitnet_quant.quality import ModelQuality, spoken

from .lora import adapter_of
from .models import to_core


@dataclass(frozen=True, slots=True)
class Flips:
    """What became of one matrix."""

    trits: int
    flipped: int
    scale_before: float
    scale_after: float


@dataclass(frozen=True, slots=True)
class Merged:
    """A model with an adapter in its trits, and what that changed."""

    model: Model
    flips: Mapping[str, Flips]  # by the canonical names of the matrices that the adapter changes
    # What the merged model says against base and adapter, and what the base alone does; None where no text was given.
    quality: ModelQuality | None = None
    base_quality: ModelQuality | None = None

    def table(self) -> str:
        """Plain text, a line a matrix."""
        lines = [f"{'matrix':24}{'trits':>10}{'flipped':>10}{'share':>9}{'scale':>12}{'after':>12}"]
        for name, one in self.flips.items():
            share = f"{one.flipped / one.trits:.3%}"
            scales = f"{one.scale_before:12.5g}{one.scale_after:12.5g}"
            lines.append(f"{name:24}{one.trits:10}{one.flipped:10}{share:>9}{scales}")
        for what, said in (("merged", self.quality), ("the base alone", self.base_quality)):
            if said:
                lines.append(f"{what}: {said.divergence:.5f} nats a token from base and adapter, over {said.tokens}")
        return "\n".join(lines) + "\n"


def merge(
    model: Model,
    adapter: Adapter,
    windows: Sequence[Tokens] = (),
    *,
    method: Method | None = None,
    backend: Backend = reference.BACKEND,
) -> Merged:
    """Round base and adapter into new trits, by the least squared error unless a method says otherwise.

    A change that is small beside the scale is lost in that. `windows` are texts on which the divergence from base
    and adapter is measured.
    """
    made: dict[str, TernaryTensor] = {}
    for name, (down, up) in adapter.weights.items():
        before = _ternary(model, name)
        made[name] = ternarize(before.dense() + up @ down, method or Method("optimal")).tensor
    makers: dict[str, Callable[[], Weight]] = {
        name: partial((made if name in made else model.weights).__getitem__, name) for name in model.weights
    }
    return _measured(model, replace(model, weights=Weights(makers)), adapter, windows, backend)


def fold(
    model: peft.PeftModel, windows: Sequence[Tokens] = (), *, backend: Backend = reference.BACKEND
) -> tuple[PreTrainedModel, Merged]:
    """Add a trained adapter to the masters under it, which round as before; gives the model without PEFT's layers."""
    adapter = adapter_of(model)
    live = to_core(model, adapted=True)
    # Copies, since the masters are about to change.
    kept: dict[str, Weight] = {name: live.weights[name] for name in live.weights}
    before = replace(live, weights=kept)
    folded = model.merge_and_unload()
    return folded, _measured(before, to_core(folded), adapter, windows, backend)


def _measured(before: Model, after: Model, adapter: Adapter, windows: Sequence[Tokens], backend: Backend) -> Merged:
    flips = {name: _flips(_ternary(before, name), _ternary(after, name)) for name in adapter.weights}
    if not len(windows):
        return Merged(after, flips)
    asked = _said(before, windows, backend, adapter)
    merged, base = (spoken(_said(model, windows, backend), asked, windows) for model in (after, before))
    return Merged(after, flips, merged, base)


def _ternary(model: Model, name: str) -> TernaryTensor:
    weight = model.weights[name]
    if not isinstance(weight, TernaryTensor):
        raise UnsupportedError(f"{name}: an adapter is merged into ternary matrices, this one is floats")
    return weight


def _flips(before: TernaryTensor, after: TernaryTensor) -> Flips:
    old, new = before.codes(), after.codes()
    return Flips(old.size, int((old != new).sum()), float(before.scale.mean()), float(after.scale.mean()))


def _said(model: Model, windows: Sequence[Tokens], backend: Backend, adapter: Adapter | None = None) -> list[Array]:
    """The logits after every token of every window."""
    runner = backend.load(model)
    try:
        found = []
        for window in windows:
            cache = runner.new_cache()
            (rows,) = runner.forward([Step(window, cache, "all", adapter=adapter)])
            cache.close()
            found.append(np.asarray(rows, np.float32))
        return found
    finally:
        runner.close()
