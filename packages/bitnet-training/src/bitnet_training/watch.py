"""Looks at ternary weights while they train: which flip, which are zero, and whether gradients still reach them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .linear import BitLinear, quantize_weight
from .replace import projection_of
from .state import whole

_SAMPLE = 1 << 17  # weights of a matrix whose flips are counted
_NEAR = 0.05  # of a scale, around the borders between codes


@dataclass(frozen=True, slots=True)
class Look:
    """One matrix at one moment; all but scale and gradient are shares."""

    zeros: float  # of codes
    flips: float  # codes that are not what they were at the last look
    dead: float  # rows of zeros alone
    border: float  # masters so near to a border that a small step flips them
    clipped: float  # masters beyond one scale and a half, which round to one all the same
    scale: float
    drift: float  # the scale over what it was at the first look
    gradient: float  # its norm over that of the masters


class Watch:
    """Remembers codes and scales from look to look."""

    def __init__(self, model: nn.Module) -> None:
        self._matrices = {
            projection_of(name) or name: module
            for name, module in model.named_modules()
            if isinstance(module, BitLinear) and module.weight.requires_grad  # under an adapter nothing can flip
        }
        self._codes: dict[str, Tensor] = {}
        self._first: dict[str, float] = {}

    @torch.no_grad()
    def look(self) -> dict[str, Look]:
        """Every ternary matrix of the model as it is now. All processes look together."""
        return {name: self._look(name, module) for name, module in self._matrices.items()}

    def state(self) -> dict[str, Tensor]:
        """What must be remembered over a stop."""
        first = torch.tensor([self._first.get(name, 0.0) for name in self._matrices], dtype=torch.float64)
        return {"first": first, **self._codes}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Remember it again."""
        held = dict(state)
        scales = held.pop("first").tolist()
        self._first = {name: scale for name, scale in zip(self._matrices, scales, strict=True) if scale}
        self._codes = held

    def _look(self, name: str, module: BitLinear) -> Look:
        weight = whole(module.weight)
        codes, scale = quantize_weight(weight)
        sample = codes[:: max(1, codes.numel() // _SAMPLE)].clone()
        before = self._codes.get(name)
        flips = 0.0 if before is None else _share(sample != before.to(sample.device))
        self._codes[name] = sample
        sizes = weight.float().abs() / scale
        first = self._first.setdefault(name, scale.item())
        slope = module.weight.grad
        return Look(
            zeros=_share(codes == 0),
            flips=flips,
            dead=_share((codes == 0).all(1)),
            border=_share((sizes - 0.5).abs() < _NEAR),
            clipped=_share(sizes > 1.5),
            scale=scale.item(),
            drift=scale.item() / first,
            gradient=0.0 if slope is None else float(whole(slope).norm() / weight.norm()),
        )


def overall(looks: Mapping[str, Look]) -> dict[str, float]:
    """The mean over all matrices, but for scales, which say nothing together."""
    rows = [asdict(look) for look in looks.values()]
    return {key: sum(row[key] for row in rows) / len(rows) for key in Look.__slots__ if key != "scale"} if rows else {}


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
