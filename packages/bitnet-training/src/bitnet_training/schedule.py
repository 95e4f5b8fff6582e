"""How rates move from step to step, and how rounding comes in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from .linear import BitLinear
from .replace import projection_of

Course = Literal["two-stage", "cosine", "linear", "constant"]
Order = Literal["together", "first layers first", "last layers first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The learning rate and the weight decay of each step.

    `two-stage` is the schedule that BitNet was published with: up to `switch` the rate falls on a line from the peak
    at the start to zero at the end, and matrices decay; from there it falls on the line of a peak `second` times as
    high, and nothing decays. The masters that flip then come to rest.
    """

    steps: int
    peak: float
    weight_decay: float = 0.1
    kind: Course = "two-stage"
    warmup: float = 0.02  # share of the steps in which the rate rises
    final: float = 0.0  # where the rate ends, as a share of the peak
    switch: float = 0.5  # share of the steps that the first stage has
    second: float = 2 / 3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps: expected 1 or more, got {self.steps}")
        if self.kind not in get_args(Course):
            raise ValueError(f"kind: expected one of {', '.join(get_args(Course))}, got {self.kind!r}")
        for name in ("warmup", "final", "switch", "second"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {getattr(self, name)}")

    def learning_rate(self, step: int) -> float:
        """Of the update number `step`, from 0."""
        done = min(1.0, step / self.steps)
        rising = (step + 1) / (self.warmup * self.steps) if self.warmup else 1.0
        return self.peak * min(1.0, rising) * (self.final + (1 - self.final) * self._height(done))

    def _height(self, done: float) -> float:
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * done)
        falling = 1 - done
        return falling * self.second if self.kind == "two-stage" and done >= self.switch else falling

    def decay(self, step: int) -> float:
        """The weight decay of the update number `step`."""
        over = self.kind == "two-stage" and step >= self.switch * self.steps
        return 0.0 if over else self.weight_decay


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How far each layer has moved from floats to ternary at each step: 0 at first, 1 when `steps` are over.

    Layers move together, or one after another, each on a line of its own share of the steps.
    """

    steps: int
    order: Order = "together"

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps: expected 0 or more, got {self.steps}")
        if self.order not in get_args(Order):
            raise ValueError(f"order: expected one of {', '.join(get_args(Order))}, got {self.order!r}")

    def strength(self, step: int, layer: int = 0, layers: int = 1) -> float:
        """Of one layer at the update number `step`."""
        if step >= self.steps:
            return 1.0
        done = step / self.steps
        if self.order == "together":
            return done
        turn = layer if self.order == "first layers first" else layers - 1 - layer
        return min(1.0, max(0.0, done * layers - turn))

    def apply(self, model: nn.Module, step: int) -> float:
        """Give every BitLinear its strength; the mean of them comes back."""
        found = [
            (int(canonical.split(".")[1]), module)
            for name, module in model.named_modules()
            if isinstance(module, BitLinear) and (canonical := projection_of(name))
        ]
        layers = 1 + max((layer for layer, _ in found), default=0)
        strengths = [self.strength(step, layer, layers) for layer, _ in found]
        for (_, module), strength in zip(found, strengths, strict=True):
            module.set_strength(strength)
        return sum(strengths) / len(strengths) if strengths else 1.0
