"""The loop: a model, the batches of each step, a loss, an optimizer, and what happens around them."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import state
from .checkpoint import Checkpoint, Checkpoints
from .distributed import World
from .errors import TrainingStopped
from .loss import cross_entropy
from .schedule import Rates, Rounding
from .telemetry import Telemetry
from .watch import Watch
from .windows import Batch, mixed

# The sum over a batch of what each of its learned tokens lacks, in nats.
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is trained, on what, and by which measure."""

    model: nn.Module
    batches: Callable[[int], Sequence[Batch]]  # this process's part of a step, from its number
    loss: Loss
    optimizer: Optimizer
    rates: Rates
    rounding: Rounding | None = None
    held_out: Callable[[], Iterable[Batch]] | None = None
    bytes_a_token: float = 0.0  # of what is held out; 0: no bits a byte are told
    draws: int | None = None  # the seed of what a step draws, as dropout does


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """When things happen around the steps, each in steps, and within which bounds."""

    clip: float = 1.0  # of the gradient's norm; 0: unclipped
    bad_steps: int = 0  # in a row, that may be left out
    precision: torch.dtype = torch.float32
    compile: bool = False
    report: int = 10
    watch: int = 50
    evaluate: int = 100
    save: int = 200
    best: bool = False  # the weights are kept that did best on what is held out


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    loss: float  # of the last step, in nats a token
    held_out: float | None  # at the last look
    is_finished: bool
    best: Mapping[str, Tensor] | None = None  # the weights that were kept, if any; the first process has them


@dataclass(slots=True)
class Progress:
    """Where a run stands; all of it is in its checkpoints."""

    step: int = 0
    tokens: int = 0  # learned so far
    bad: int = 0  # steps in a row that were left out
    loss: float = math.nan
    held_out: float | None = None
    best: float = math.inf  # the least loss of all looks at what is held out


def train(
    task: Task,
    plan: Plan,
    world: World,
    telemetry: Telemetry,
    checkpoints: Checkpoints | None = None,
    *,
    resumed: Checkpoint | None = None,
    about: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train from where `resumed` stands to the last step, or until `stop` says so; `about` is kept in checkpoints."""
    keeper = _Keeper(task, world, telemetry, checkpoints, about or {})
    model = world.wrap(task.model).train()
    if plan.compile:
        model.compile()
    now = keeper.restore(resumed) if resumed else keeper.begin()
    clock, asked, learning = _Clock(now), 0.0, list(state.trained(task.model).values())
    parts = _parts(task, world, now.step)
    while now.step < task.rates.steps and not asked:
        _set_rates(task, world, now.step)
        [learned] = world.sums(parts.learned)
        with explained(now.step):
            losses = _gradients(task, plan, world, model, parts.batches, learned)
            length = nn.utils.clip_grad_norm_(learning, plan.clip or math.inf)
            parts = _parts(task, world, now.step + 1)
            # Only now does the processor wait for the device.
            norm, nats = state.whole(length).item(), sum(loss.item() for loss in losses)
        now.loss, asked = world.sums(nats, stop())
        if math.isfinite(now.loss) and math.isfinite(norm):
            task.optimizer.step()
            telemetry.watch_loss(now.step + 1, now.loss)
            now.bad = 0
        else:
            _count_bad(now, norm, plan, telemetry)
        now.step, now.tokens = now.step + 1, now.tokens + int(learned)
        ends = asked or now.step == task.rates.steps
        if ends or now.step % plan.report == 0:
            rates, speed = _rates(task, now), clock.read(now, world.device)
            telemetry.write(now.step, loss=now.loss, gradient=norm, **rates, **speed)
        if ends or now.step % plan.watch == 0:  # while there are gradients to look at
            telemetry.watch_weights(now.step, keeper.watch.look(), learning=task.rates.learning_rate(now.step - 1) > 0)
        task.optimizer.zero_grad()
        if task.held_out and (ends or now.step % plan.evaluate == 0):
            now.held_out = evaluate(model, task.held_out(), world, plan.precision)
            keeper.judge(now, now.held_out, keep=plan.best)
            clock.restart(now)
        if ends or now.step % plan.save == 0:
            keeper.save(now)
    return Outcome(now.step, now.loss, now.held_out, now.step == task.rates.steps, keeper.best)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], world: World, precision: torch.dtype = torch.float32) -> float:
    """Nats a token over batches, of which each process has its share."""
    model.eval()
    losses, tokens = list[Tensor](), 0
    with _autocast(world.device, precision):
        for batch in batches:
            losses.append(cross_entropy(model, batch.to(world.device)))
            tokens += batch.learned
    world.settle(model.train())
    nats, total = world.sums(sum(loss.item() for loss in losses), tokens)
    return nats / max(1.0, total)


def adamw(model: nn.Module, *, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8) -> torch.optim.AdamW:
    """AdamW over what learns: matrices decay, while norms, scales and biases do not."""
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in learning if weight.ndim >= 2], "decays": True},
        {"params": [weight for weight in learning if weight.ndim < 2], "decays": False},
    ]
    is_cuda = any(weight.device.type == "cuda" for weight in learning)
    return torch.optim.AdamW(groups, betas=betas, eps=eps, weight_decay=0.0, fused=is_cuda)


@contextmanager
def explained(step: int) -> Iterator[None]:
    """What a machine lacks, in one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch says so on the processor with a plain RuntimeError.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        raise TrainingStopped(
            f"step {step + 1}: out of memory; lower data.rows, which changes no result, or set compute.recompute to "
            f"always; checkpoints are untouched"
        ) from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}:
            raise
        raise TrainingStopped(
            f"step {step}: {error.strerror} while writing {error.filename or 'the run'}; the last checkpoint is whole, "
            f"and the run can be resumed from it"
        ) from error


@dataclass(slots=True)
class _Keeper:
    """Saves and restores all that a run must remember."""

    task: Task
    world: World
    telemetry: Telemetry
    checkpoints: Checkpoints | None
    about: Mapping[str, Any]
    watch: Watch = field(init=False)
    best: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        self.watch = Watch(self.task.model)

    def begin(self) -> Progress:
        """A run's first step; flips and drifts are counted from here."""
        self.watch.look()
        return Progress()

    def judge(self, now: Progress, held_out: float, *, keep: bool) -> None:
        """Say how the model does, and keep the weights that did best: the first process, out of the device's memory."""
        self.telemetry.write(now.step, **_judged(held_out, self.task.bytes_a_token))
        if keep and held_out < now.best:
            now.best, found = held_out, state.weights(self.task.model)
            if self.world.is_first:
                self.best = {name: weight.to("cpu", copy=True) for name, weight in found.items()}

    def save(self, now: Progress) -> None:
        """All processes give their shards, and the first writes."""
        model, optimizer = self.task.model, self.task.optimizer
        tensors = {
            "model": state.weights(model),
            "optimizer": state.optimizer_state(model, optimizer),
            "watch": self.watch.state(),
            **({} if self.best is None else {"best": self.best}),
        }
        for name, weight in tensors["model"].items():
            if not torch.isfinite(weight).all():
                raise TrainingStopped(f"step {now.step}: {name} is not finite; the last checkpoint is from before that")
        if self.checkpoints is not None and self.world.is_first:
            rest = {
                "about": dict(self.about),
                "progress": {
                    "tokens": now.tokens,
                    "bad": now.bad,
                    "loss": _json(now.loss),
                    "held_out": now.held_out,
                    "best": _json(now.best),
                },
                "telemetry": self.telemetry.state(),
                "generators": state.generators(self.world.device),
            }
            with explained(now.step):
                self.checkpoints.save(Checkpoint(now.step, tensors, rest))
        self.world.wait()

    def restore(self, saved: Checkpoint) -> Progress:
        """Go on as if nothing had happened."""
        state.load_weights(self.task.model, saved.tensors["model"])
        state.load_optimizer(self.task.model, self.task.optimizer, saved.tensors["optimizer"])
        self.watch.load(saved.tensors["watch"])
        self.telemetry.load(saved.state["telemetry"])
        state.load_generators(saved.state["generators"], self.world.device)
        self.best = saved.tensors.get("best") if self.world.is_first else None
        kept = saved.state["progress"]
        loss = math.nan if kept["loss"] is None else kept["loss"]
        best = math.inf if kept.get("best") is None else kept["best"]
        return Progress(saved.step, kept["tokens"], kept["bad"], loss, kept["held_out"], best)


class _Clock:
    """Speed since the last look, and memory."""

    def __init__(self, now: Progress) -> None:
        self.restart(now)

    def restart(self, now: Progress) -> None:
        """What has passed does not count."""
        self._began, self._tokens = time.perf_counter(), now.tokens

    def read(self, now: Progress, device: torch.device) -> dict[str, float]:
        """Tokens a second, and the most memory so far, in GB."""
        speed = (now.tokens - self._tokens) / (time.perf_counter() - self._began)
        self.restart(now)
        on_cuda = device.type == "cuda"
        used = torch.cuda.max_memory_allocated(device) if on_cuda else psutil.Process().memory_info().rss
        return {"tokens_per_second": round(speed, 1), "memory_gb": round(used / 1e9, 3)}


class _Parts(NamedTuple):
    """This process's part of a step, on its device, and how many tokens have something to learn."""

    batches: Sequence[Batch]
    learned: int


def _parts(task: Task, world: World, step: int) -> _Parts:
    """What a step computes; it is made while the device computes the step before."""
    if step >= task.rates.steps:
        return _Parts((), 0)
    found = task.batches(step)
    return _Parts([part.to(world.device) for part in found], sum(part.learned for part in found))


def _gradients(
    task: Task, plan: Plan, world: World, model: nn.Module, parts: Sequence[Batch], learned: float
) -> list[Tensor]:
    """Gradients of the mean over all learned tokens of a step; this process's parts of the loss."""
    losses: list[Tensor] = []
    for part in parts:
        with world.gathering(model, last=part is parts[-1]), _autocast(world.device, plan.precision):
            loss = task.loss(model, part) / learned
            # To hand one device's work to a thread of its own costs more than it saves.
            with torch.autograd.set_multithreading_enabled(False):
                # Wrappers take the mean over processes, of which each holds a part of the sum.
                (loss * world.processes).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses


def _set_rates(task: Task, world: World, step: int) -> None:
    """All that follows from a step's number alone, so that a run which goes on need not remember it."""
    for group in task.optimizer.param_groups:
        group["lr"] = task.rates.learning_rate(step)
        group["weight_decay"] = task.rates.decay(step) if group.get("decays", True) else 0.0
    if task.rounding is not None and step <= task.rounding.steps:  # a model without strengths is whole
        task.rounding.apply(task.model, step)
    if task.draws is not None:  # each process drops other numbers, whoever it was that saved the checkpoint
        state.seed_draws(mixed(task.draws, step, world.process), world.device)


def _rates(task: Task, now: Progress) -> dict[str, float]:
    said = {"learning_rate": task.rates.learning_rate(now.step - 1), "decay": task.rates.decay(now.step - 1)}
    if task.rounding is not None:
        said["strength"] = task.rounding.strength(now.step - 1)
    return {**said, "tokens": now.tokens}


def _judged(nats: float, bytes_a_token: float) -> dict[str, float]:
    return {"held_out": nats} | ({"bits_per_byte": nats / math.log(2) / bytes_a_token} if bytes_a_token else {})


def _count_bad(now: Progress, norm: float, plan: Plan, telemetry: Telemetry) -> None:
    """Leave a step out that would spoil the weights, or stop."""
    now.bad += 1
    said = f"the loss is {now.loss:g} and the gradient's norm {norm:g}"
    telemetry.write(now.step + 1, alarm=f"step left out: {said}")
    if now.bad > plan.bad_steps:
        raise TrainingStopped(
            f"step {now.step + 1}: {said}; the weights are as before this step, and the last checkpoint is whole: "
            f"resume with a lower optimizer.learning_rate, or look at the data of this step"
        )


def _autocast(device: torch.device, kind: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, kind, enabled=kind != torch.float32)


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
