"""Learning from float teachers: what they expect of the next token, and how one's attention relates positions.

After BitNet Distillation: cross entropy, plus the divergence from the teacher's softened expectations, plus, in one
layer, the divergence of the relations softmax(A A' / sqrt(d)) of queries, keys and values, as MiniLM has them. Of
several teachers it is the mean of their expectations that is learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .replace import projections

NOTHING = -100  # the target where nothing is to be learned
_STATES = ("q", "k", "v")


class Losses(NamedTuple):
    """What is minimized, and its parts before they are weighed; each a mean over the tokens to be learned."""

    total: Tensor
    task: Tensor
    logits: Tensor
    attention: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighing:
    """What counts how much; the defaults are those published for classification."""

    temperature: float = 5.0  # divides the logits of both
    task: float = 1.0  # the tokens that really follow
    logits: float = 10.0
    attention: float = 1e5
    layer: int = -1  # of the student, from the end where negative; the teacher's is as deep by proportion
    heads: int = 0  # that states are cut in to be related; 0: as many as both models can have, up to their KV heads

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {self.temperature}")
        for name in ("task", "logits", "attention", "heads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")


def expected(logits: Iterable[Tensor], temperature: float) -> Tensor:
    """What teachers of these logits expect on average, softened, as logarithms of chances."""
    # Made one by one: no more than two are there at once.
    each = ((one.float() / temperature).log_softmax(-1) for one in logits)
    total, count = next(each), 1
    for one in each:
        torch.logaddexp(total, one, out=total)
        count += 1
    return total.sub_(math.log(count))


def logits_loss(student: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """How far the student's softened expectations diverge from those wanted, for each token."""
    new = (student.float() / temperature).log_softmax(-1)
    return F.kl_div(new, wanted, reduction="none", log_target=True).sum(-1)


def relation_loss(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """Mean divergence of how the student relates positions from how the teacher does, of states (rows, tokens, width).

    Widths may differ; each is cut in as many heads.
    """
    new, old = (_relations(states, heads).flatten(0, -2) for states in (student, teacher))
    return F.kl_div(new, old, reduction="batchmean", log_target=True)


def _relations(states: Tensor, heads: int) -> Tensor:
    """Log-softmax of scaled products of each position with each: (rows, heads, tokens, tokens)."""
    if states.shape[-1] % heads:
        raise ValueError(f"heads: expected a divisor of the width {states.shape[-1]}, got {heads}")
    rows, tokens, width = states.shape
    parts = states.float().view(rows, tokens, heads, width // heads).transpose(1, 2)
    return F.log_softmax(parts @ parts.mT / math.sqrt(parts.shape[-1]), -1)


class Distillation:
    """Scores a student by its teachers; for relations it listens to one layer of both until it is closed."""

    def __init__(self, teachers: Sequence[nn.Module], student: nn.Module, weighing: Weighing) -> None:
        if not teachers or (weighing.attention and len(teachers) > 1):
            most = "one teacher, whose attention is related" if weighing.attention else "one teacher or more"
            raise ValueError(f"teachers: expected {most}, got {len(teachers)}")
        self.teachers = [teacher.requires_grad_(False).eval() for teacher in teachers]
        self.weighing = weighing
        self._heads, self._heard = 1, (_States(), _States())
        self._hooks: list[RemovableHandle] = []
        mine, *theirs = (_config(model) for model in (student, *teachers))
        for its in theirs:
            if mine.vocab_size != its.vocab_size:
                size = its.vocab_size
                raise ValueError(
                    f"teacher: expected a vocabulary of {mine.vocab_size} tokens, as the student's, got {size}"
                )
        if weighing.attention:
            self._listen(student, mine, theirs[0])

    def _listen(self, student: nn.Module, mine: Any, its: Any) -> None:
        layers, depth = mine.num_hidden_layers, its.num_hidden_layers
        if not -layers <= self.weighing.layer < layers:
            raise ValueError(f"layer: expected one of the student's {layers}, got {self.weighing.layer}")
        number = self.weighing.layer % layers
        self._heads = self.weighing.heads or math.gcd(mine.num_key_value_heads, its.num_key_value_heads)
        deep = (number + 1) * depth // layers - 1
        for model, at, states in ((student, number, self._heard[0]), (self.teachers[0], max(0, deep), self._heard[1])):
            names = projections(model)
            for part in _STATES:
                module = model.get_submodule(names[f"layers.{at}.attn.{part}"])
                self._hooks.append(module.register_forward_hook(partial(states.hear, part)))

    def loss(self, logits: Tensor, targets: Tensor, **inputs: Any) -> Losses:
        """What to minimize after the student's forward pass on the same inputs.

        `targets` (rows, tokens) stand where the logits are that should find them, -100 where nothing is learned.
        """
        asked = self.weighing
        with torch.no_grad():
            wanted = expected((teacher(**inputs).logits for teacher in self.teachers), asked.temperature)
        # Where nothing is learned a loss is computed and does not count: to choose, the processor would have to wait.
        where = targets != NOTHING
        count = where.sum().clamp(min=1)
        task = soft = relations = logits.new_zeros((), dtype=torch.float32)
        if asked.task:
            nats = F.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), ignore_index=NOTHING, reduction="sum"
            )
            task = nats / count
        if asked.logits:
            soft = logits_loss(logits, wanted, asked.temperature).where(where, 0).sum() / count
        if asked.attention:
            pairs = zip(*(states.taken() for states in self._heard), strict=True)
            parts = [relation_loss(new, old, self._heads) for new, old in pairs]
            relations = torch.stack(parts).mean()
        total = asked.task * task + asked.logits * soft + asked.attention * relations
        return Losses(total, task.detach(), soft.detach(), relations.detach())

    def close(self) -> None:
        """Stop listening."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _config(model: nn.Module) -> Any:
    return model.config


class _States:
    """The last outputs of a layer's query, key and value projections."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def hear(self, part: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._parts[part] = output

    def taken(self) -> Sequence[Tensor]:
        """Them, once: the graph behind them is not kept alive."""
        if len(self._parts) < len(_STATES):
            raise ValueError("logits: expected those of a forward pass of the student since the last loss, got older")
        found = [self._parts[part] for part in _STATES]
        self._parts.clear()
        return found
