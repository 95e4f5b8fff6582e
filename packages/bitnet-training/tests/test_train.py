"""The loop: the same numbers in whatever parts a step is computed, and after whatever stop it goes on."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_task as tiny
import torch
from tiny_task import CPU, Memory

from bitnet_training import state
from bitnet_training.checkpoint import Checkpoints
from bitnet_training.distributed import World
from bitnet_training.errors import TrainingStopped
from bitnet_training.loss import cross_entropy
from bitnet_training.models import add_dropout
from bitnet_training.schedule import Rates, Rounding
from bitnet_training.telemetry import Telemetry
from bitnet_training.train import Plan, Task, evaluate, train
from bitnet_training.windows import NOTHING, Batch

PLAN = Plan(report=1, watch=2, evaluate=3, save=4)
TIMES = {"tokens_per_second", "memory_gb"}


def told(memory: Memory) -> list[dict]:
    return [{name: value for name, value in event.items() if name not in TIMES} for event in memory.events]


def weights(task: Task) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.weights(task.model).items()}


def test_a_model_learns():
    memory = Memory()
    outcome = train(tiny.task(steps=60, batch=8), PLAN, CPU, Telemetry([memory]))
    losses = memory.of("loss")
    assert outcome.is_finished
    assert len(losses) == 60
    assert losses[0] == pytest.approx(math.log(40), abs=0.5)
    assert outcome.loss < losses[0] - 0.8
    assert outcome.held_out == memory.of("held_out")[-1] < memory.of("held_out")[0]
    assert memory.of("bits_per_byte")[-1] == pytest.approx(outcome.held_out / math.log(2) / 2)


def test_a_loss_is_what_transformers_says():
    task = tiny.task()
    (batch,) = task.batches(0)
    targets = torch.where(batch.targets == NOTHING, NOTHING, batch.targets)
    said = task.model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False).logits.log_softmax(-1)
    chosen = said.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    expected = -chosen[targets != NOTHING].double().sum()
    assert cross_entropy(task.model, batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_documents_in_one_window_do_not_see_each_other():
    task = tiny.task()
    window = torch.arange(1, 13)[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    call = {"use_cache": False}
    with torch.no_grad():
        together = task.model(input_ids=window, position_ids=positions, **call).logits
        for low, high in ((0, 5), (5, 12)):
            alone = task.model(input_ids=window[:, low:high], **call).logits
            torch.testing.assert_close(together[:, low:high], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_step_in_parts_is_the_step_as_a_whole(rows):
    runs = []
    for parts in (6, rows):
        memory, task = Memory(), tiny.task(batch=6, rows=parts)
        train(task, PLAN, CPU, Telemetry([memory]))
        runs.append(memory)
    assert runs[0].of("loss") == pytest.approx(runs[1].of("loss"), rel=1e-5)
    assert runs[0].of("gradient") == pytest.approx(runs[1].of("gradient"), rel=1e-4)


def test_parts_with_fewer_tokens_to_learn_count_less():
    tokens = torch.arange(24).reshape(4, 6) % 40
    targets = tokens.roll(-1, 1)
    targets[0, 1:] = NOTHING
    targets[3] = NOTHING
    positions = torch.arange(6).expand(4, 6)
    whole = [Batch(tokens, targets, positions)]
    parts = [Batch(tokens[at : at + 1], targets[at : at + 1], positions[at : at + 1]) for at in range(4)]
    losses = []
    for batches in (whole, parts):
        memory = Memory()
        train(tiny.task(steps=3, batches=lambda _, one=batches: one), PLAN, CPU, Telemetry([memory]))
        losses.append(memory.of("loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("stopped", [1, 4, 7])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path, stopped):
    whole, memory = tiny.task(rounding=Rounding(steps=6)), Memory()
    with Checkpoints(tmp_path / "whole") as checkpoints:
        train(whole, PLAN, CPU, Telemetry([memory]), checkpoints)
    parts = Memory()
    with Checkpoints(tmp_path / "parts") as checkpoints:
        first = tiny.task(rounding=Rounding(steps=6))
        outcome = train(first, PLAN, CPU, Telemetry([parts]), checkpoints, stop=after(stopped))
        assert not outcome.is_finished
        resumed = checkpoints.newest()
        assert resumed is not None
        assert resumed.step == stopped
        state.seed(99)  # nothing that this sets may matter
        second = tiny.task(seed=0, rounding=Rounding(steps=6))
        torch.rand(7)
        train(second, PLAN, CPU, Telemetry([parts]), checkpoints, resumed=resumed)
    assert weights(second) == weights(whole)
    kept = [event for event in told(parts) if event["step"] in {1, 2, 3, 5, 6, 8, 9, 10, 11, 12}]
    expected = [event for event in told(memory) if event["step"] in {1, 2, 3, 5, 6, 8, 9, 10, 11, 12}]
    assert [event for event in kept if "loss" in event] == [event for event in expected if "loss" in event]
    both = [(tmp_path / name / "step-000000000012").glob("*.safetensors") for name in ("whole", "parts")]
    for one, other in zip(*map(sorted, both), strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def dropping(world: World = CPU, seed: int = 5, **changes: Any) -> Task:
    """A task whose model drops numbers."""
    made = tiny.task(draws=seed, world=world, **changes)
    add_dropout(made.model, 0.2)
    return made


def test_a_run_that_drops_numbers_goes_on_as_if_it_had_never_stopped(tmp_path):
    whole, first, second = dropping(), dropping(), dropping()
    train(whole, PLAN, CPU, Telemetry([]))
    with Checkpoints(tmp_path) as checkpoints:
        train(first, PLAN, CPU, Telemetry([]), checkpoints, stop=after(5))
        torch.rand(7)
        train(second, PLAN, CPU, Telemetry([]), checkpoints, resumed=checkpoints.newest())
    assert weights(second) == weights(whole)


def test_what_is_dropped_differs_from_step_to_step_by_seed_and_by_process():
    def drawn(process: int, seed: int) -> list[float]:
        def loss(model, batch):
            found.append(torch.rand(()).item())
            return cross_entropy(model, batch)

        found: list[float] = []
        train(dropping(seed=seed, loss=loss, steps=3), PLAN, Alone(torch.device("cpu"), process), Telemetry([]))
        return found

    class Alone(World):
        """One process of several, whose sums are its own."""

    first, again = drawn(0, 5), drawn(0, 5)
    assert first == again
    assert len({*first, *drawn(1, 5), *drawn(0, 6)}) == 9


def test_the_weights_are_kept_that_did_best_on_what_is_held_out(tmp_path):
    # The rate rises until the run gets worse again.
    changes: dict[str, Any] = {"rates": Rates(steps=12, peak=1.0, kind="constant", warmup=1)}
    plan, memory = Plan(evaluate=3, save=4, best=True), Memory()
    with Checkpoints(tmp_path / "whole") as checkpoints:
        outcome = train(tiny.task(**changes), plan, CPU, Telemetry([memory]), checkpoints)
    looks = memory.of("held_out")
    assert min(looks) == looks[2] < looks[3] == outcome.held_out
    assert outcome.best is not None
    assert loss_of(outcome.best) == looks[2]
    for stopped in (3, 9, 10):  # before, at and after the look that was best
        with Checkpoints(tmp_path / str(stopped)) as checkpoints:
            train(tiny.task(**changes), plan, CPU, Telemetry([]), checkpoints, stop=after(stopped))
            again = train(tiny.task(**changes), plan, CPU, Telemetry([]), checkpoints, resumed=checkpoints.newest())
        assert again.best is not None
        assert all(torch.equal(again.best[name], weight) for name, weight in outcome.best.items())


def loss_of(kept: Mapping[str, torch.Tensor]) -> float:
    """What these weights lose on what is held out."""
    task = tiny.task()
    state.load_weights(task.model, kept)
    assert task.held_out is not None
    return evaluate(task.model, task.held_out(), CPU)


def test_the_batches_of_a_step_are_made_before_the_step_before_has_ended():
    def batches(step: int):
        order.append(f"batch {step}")
        return made(step)

    order: list[str] = []
    made = tiny.task().batches
    task = tiny.task(steps=3, batches=batches)
    real = task.optimizer.step
    task.optimizer.step = lambda *_: (order.append("update"), real())
    train(task, PLAN, CPU, Telemetry([]))
    assert order == ["batch 0", "batch 1", "update", "batch 2", "update", "update"]


def after(steps: int) -> Callable[[], bool]:
    """Asks for the end in this step."""
    calls = iter(range(1, 1000))
    return lambda: next(calls) >= steps


def test_every_generator_of_numbers_goes_on(tmp_path):
    import random

    task = tiny.task(steps=2)
    with Checkpoints(tmp_path) as checkpoints:
        train(task, PLAN, CPU, Telemetry([]), checkpoints)
        drawn = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        saved = checkpoints.newest()
        assert saved is not None
        state.load_generators(saved.state["generators"], torch.device("cpu"))
        assert [random.random(), np.random.rand(), torch.rand(()).item()] == drawn  # noqa: NPY002


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_numbers_that_are_none_stop_the_run_before_they_reach_the_weights(tmp_path, spoilt):
    def loss(model, batch):
        calls.append(0)
        total = cross_entropy(model, batch)
        if len(calls) != 7:
            return total
        return total * math.nan if spoilt == "loss" else total + (0 * total).sqrt()

    calls: list[int] = []
    task, memory = tiny.task(loss=loss), Memory()
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            TrainingStopped, match=r"step 7: the loss is .*last checkpoint is whole.*learning_rate"
        ) as caught:
            train(task, PLAN, CPU, Telemetry([memory]), checkpoints)
        assert "\n" not in str(caught.value)
        saved = checkpoints.newest()
    assert saved is not None
    assert saved.step == 4
    assert all(torch.isfinite(weight).all() for weight in task.model.parameters())
    assert "step left out" in memory.of("alarm")[-1]


def test_a_few_bad_steps_are_left_out_where_that_is_allowed():
    def loss(model, batch):
        calls.append(0)
        return cross_entropy(model, batch) * (math.nan if len(calls) in {3, 4, 8} else 1)

    calls: list[int] = []
    memory = Memory()
    outcome = train(tiny.task(loss=loss), Plan(report=1, bad_steps=2), CPU, Telemetry([memory]))
    assert outcome.is_finished
    assert [event["step"] for event in memory.events if "alarm" in event and "left out" in event["alarm"]] == [3, 4, 8]
    calls.clear()
    with pytest.raises(TrainingStopped, match="step 4"):
        train(tiny.task(loss=loss), Plan(bad_steps=1), CPU, Telemetry([]))


def test_weights_that_are_none_are_never_saved(tmp_path):
    task = tiny.task(steps=3)
    real = task.optimizer.step

    def spoil(*_):
        real()
        with torch.no_grad():
            next(task.model.parameters())[0, 0] = math.inf

    task.optimizer.step = spoil
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TrainingStopped, match=r"model.embed_tokens.weight is not finite|the loss is"):
            train(task, Plan(save=1), CPU, Telemetry([]), checkpoints)
        assert checkpoints.newest() is None


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_out_of_memory_is_one_sentence(error):
    def loss(model, batch):
        raise error

    with pytest.raises(TrainingStopped, match=r"step 1: out of memory; lower data.rows, .*untouched"):
        train(tiny.task(loss=loss), PLAN, CPU, Telemetry([]))


def test_out_of_memory_of_the_processor_is_known():
    def loss(model, batch):
        return torch.empty(1 << 60).sum()

    with pytest.raises(TrainingStopped, match="out of memory"):
        train(tiny.task(loss=loss), PLAN, CPU, Telemetry([]))


def test_other_errors_are_not_disguised():
    def loss(model, batch):
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        train(tiny.task(loss=loss), PLAN, CPU, Telemetry([]))


@pytest.mark.parametrize("full_for", [errno.ENOSPC, errno.EFBIG])  # the disk's room, or what `ulimit -f` allows
def test_a_full_disk_is_one_sentence_and_the_last_checkpoint_stands(tmp_path, monkeypatch, full_for):
    with Checkpoints(tmp_path) as checkpoints:
        real, calls = os.fsync, []

        def full(handle: int) -> None:
            calls.append(0)
            if len(calls) > 25:
                raise OSError(full_for, os.strerror(full_for))
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(TrainingStopped, match=rf"step \d+: {os.strerror(full_for)} .*resumed from it"):
            train(tiny.task(), Plan(save=1), CPU, Telemetry([]), checkpoints)
        monkeypatch.undo()
        assert checkpoints.newest() is not None
        assert not list(Path(tmp_path).glob(".*"))


def test_gradients_are_clipped():
    task, memory = tiny.task(steps=1), Memory()
    norms: list[float] = []
    real = task.optimizer.step

    def look(*_):
        norms.append(torch.cat([weight.grad.flatten() for weight in task.model.parameters()]).norm().item())
        real()

    task.optimizer.step = look
    train(task, Plan(clip=0.01, report=1), CPU, Telemetry([memory]))
    assert memory.of("gradient")[0] > 0.1
    assert norms[0] == pytest.approx(0.01, rel=1e-3)


def test_only_matrices_decay():
    groups = tiny.task().optimizer.param_groups
    assert all(weight.ndim == 2 for weight in groups[0]["params"])
    assert all(weight.ndim == 1 for weight in groups[1]["params"])
    task = tiny.task(steps=2, rates=Rates(steps=2, peak=1e-3, weight_decay=0.3, warmup=0, switch=1))
    train(task, PLAN, CPU, Telemetry([]))
    assert [group["weight_decay"] for group in task.optimizer.param_groups] == [0.3, 0.0]


def test_the_whole_precision_of_bfloat16_is_enough_to_learn():
    memory = Memory()
    train(tiny.task(steps=30, batch=8), Plan(report=1, precision=torch.bfloat16), CPU, Telemetry([memory]))
    assert memory.of("loss")[-1] < memory.of("loss")[0] - 0.5


def test_layers_computed_again_change_nothing():
    losses = []
    for again in (False, True):
        task, memory = tiny.task(steps=4), Memory()
        if again:
            task.model.activation_checkpointing_enable({"use_reentrant": False})
        train(task, PLAN, CPU, Telemetry([memory]))
        losses.append(memory.of("loss"))
    assert losses[0] == losses[1]


def test_nothing_held_out_is_no_error():
    outcome = train(tiny.task(held_out=None), PLAN, CPU, Telemetry([]))
    assert outcome.held_out is None
    assert evaluate(tiny.task().model, [], CPU) == 0
