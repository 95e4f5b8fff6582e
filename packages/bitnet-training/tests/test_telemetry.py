"""What a run says of itself: true numbers, alarms once, and a log that a stop does not spoil."""

from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny_task as tiny
import torch
from tiny_task import CPU, LOOK, Memory

from bitnet_core import UnsupportedError
from bitnet_training.linear import BitLinear
from bitnet_training.telemetry import Lines, Telemetry, Terminal, open_writers, read_lines
from bitnet_training.train import Plan, train
from bitnet_training.watch import Look, Watch, overall


class Model(torch.nn.Module):
    """One ternary matrix whose codes can be read off its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = BitLinear(4, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, -1, 1, -1], [0.1, 0.1, 0.1, 0.1], [4, 0.51, -0.51, 0]]))


def test_a_look_counts_what_is_there():
    model = Model()
    watch = Watch(model)
    look = watch.look()["layer"]
    scale = (4 + 0.4 + 5.02) / 12  # the mean magnitude
    assert look.scale == pytest.approx(scale)
    assert look.zeros == pytest.approx(5 / 12)
    assert look.dead == pytest.approx(1 / 3)
    assert look.clipped == pytest.approx(1 / 12)
    assert look.border == 0
    assert (look.flips, look.drift, look.gradient) == (0, 1, 0)


def test_flips_and_drift_are_counted_from_look_to_look():
    model = Model()
    watch = Watch(model)
    watch.look()
    with torch.no_grad():
        model.layer.weight[0, 0] = -1.0
        model.layer.weight[2, 3] = 0.785 / 2 + 0.01
    model.layer.weight.grad = torch.full((3, 4), 2.0)
    look = watch.look()["layer"]
    assert look.flips == pytest.approx(1 / 12)
    assert look.border == pytest.approx(1 / 12)
    assert look.drift == pytest.approx(1 + (0.785 / 2 + 0.01) / 9.42, rel=1e-4)
    assert look.gradient == pytest.approx((12 * 4) ** 0.5 / model.layer.weight.norm().item())
    assert watch.look()["layer"].flips == 0


def test_a_watch_remembers_over_a_stop():
    model = Model()
    watch = Watch(model)
    watch.look()
    with torch.no_grad():
        model.layer.weight.mul_(-2)
    again = Watch(model)
    again.load({name: tensor.clone() for name, tensor in watch.state().items()})
    assert again.look() == watch.look()
    assert overall(again.look())["drift"] == pytest.approx(2)


def test_flips_of_a_large_matrix_are_counted_on_a_part_of_it():
    model = torch.nn.Sequential(BitLinear(1024, 1024))
    watch = Watch(model)
    watch.look()
    assert watch.state()["0"].numel() <= 1 << 17
    with torch.no_grad():
        model[0].weight.neg_()
    look = watch.look()["0"]
    assert look.flips == pytest.approx(1 - look.zeros, abs=0.01)


def test_a_float_model_has_nothing_to_look_at():
    assert Watch(torch.nn.Linear(2, 2)).look() == {}
    assert overall({}) == {}
    memory = Memory()
    Telemetry([memory]).watch_weights(1, {}, learning=True)
    assert memory.events == []


def test_weights_that_are_frozen_are_not_looked_at():
    assert Watch(Model().requires_grad_(False)).look() == {}


def looks(**changes: float) -> dict[str, Look]:
    return {"layers.0.attn.q": LOOK, "layers.1.ffn.up": Look(**{**asdict(LOOK), **changes})}


def test_a_matrix_of_zeros_is_called_once_until_it_is_well_again():
    memory = Memory()
    said = Telemetry([memory], zeros=0.8)
    for step, zeros in enumerate((0.3, 0.9, 0.95, 0.5, 0.9)):
        said.watch_weights(step, looks(zeros=zeros), learning=True)
    alarms = [event for event in memory.events if "alarm" in event]
    assert [event["step"] for event in alarms] == [1, 4]
    assert alarms[0]["alarm"] == "90% of layers.1.ffn.up are 0: the matrix collapses"


def test_weights_that_do_not_flip_are_called_while_they_should():
    memory = Memory()
    said = Telemetry([memory])
    still = {name: Look(**{**asdict(look), "flips": 0.0}) for name, look in looks().items()}
    said.watch_weights(1, still, learning=False)
    assert memory.of("alarm") == []
    said.watch_weights(2, still, learning=True)
    assert memory.of("alarm") == ["no ternary weight has flipped since the last look: nothing is learned in them"]


def test_a_leap_of_the_loss_is_called(caplog):
    memory = Memory()
    said = Telemetry([memory], spike=2.0)
    for step, loss in enumerate([3.0] * 20 + [7.0, 3.0]):
        said.watch_loss(step, loss)
    assert memory.of("alarm") == ["the loss of 7 leaps above its mean of 3"]
    assert "step 20: the loss of 7" in caplog.text


def test_what_alarms_remember_survives_a_stop():
    said = Telemetry([])
    said.watch_loss(1, 3.0)
    said.watch_weights(1, looks(zeros=0.9), learning=True)
    memory = Memory()
    again = Telemetry([memory])
    again.load(json.loads(json.dumps(said.state())))
    again.watch_weights(2, looks(zeros=0.9), learning=True)
    again.watch_loss(2, 9.0)
    assert memory.of("alarm") == ["the loss of 9 leaps above its mean of 3"]


def test_lines_behind_the_step_that_a_run_goes_on_from_are_forgotten(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = Lines(path)
    for step in range(5):
        lines.write({"step": step, "loss": float("nan") if step == 2 else 1.5})
    lines.close()
    with path.open("a") as stream:
        stream.write('{"step": 5, "lo')  # what a kill leaves
    assert len(read_lines(path)) == 5
    assert read_lines(path)[2] == {"step": 2, "loss": None}
    again = Lines(path, begin=3)
    again.write({"step": 4, "loss": 0.5})
    again.close()
    assert [event["step"] for event in read_lines(path)] == [0, 1, 2, 3, 4]
    assert read_lines(path)[-1]["loss"] == 0.5
    Lines(path).close()
    assert read_lines(path) == []
    assert read_lines(tmp_path / "none") == []


def test_the_terminal_shows_a_line_an_event():
    stream = io.StringIO()
    terminal = Terminal(1000, stream)
    terminal.write({"step": 7, "loss": 1.23456, "learning_rate": 0.00012, "tokens": 5, "speed": 12345.6})
    terminal.write({"step": 8, "ternary": {"zeros": 0.25}, "matrices": {"a": {}}})
    assert stream.getvalue().splitlines() == [
        "   7/1000  loss 1.235  learning_rate 1.20e-04  tokens 5  speed 12346",
        "   8/1000  zeros 0.25",
    ]


def test_the_terminal_says_how_long_the_rest_takes(monkeypatch):
    stream, clock = io.StringIO(), iter([100.0, 110.0, 130.0, 140.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    terminal = Terminal(400, stream)
    for step in (10, 20, 40, 400):
        terminal.write({"step": step, "loss": 1.0})
    assert [line.partition("loss 1")[2] for line in stream.getvalue().splitlines()] == [
        "", "  left 0:06:20", "  left 0:06:00", "",
    ]  # fmt: skip


def test_writers_are_known_by_name(tmp_path):
    with pytest.raises(UnsupportedError, match="writers are tensorboard, mlflow, trackio; got 'paper'"):
        open_writers(["paper"], tmp_path)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "trackio"])
def test_a_writer_that_is_not_installed_says_how(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnsupportedError, match=rf"pip install 'bitnet-training\[{name}\]'"):
        open_writers([name], tmp_path)


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    (writer,) = open_writers(["tensorboard"], tmp_path)
    writer.write({"step": 3, "loss": 1.5, "alarm": "text", "ternary": {"zeros": 0.25}, "matrices": {}})
    writer.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert found.Tags()["scalars"] == ["loss", "ternary/zeros"]
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(3, 1.5)]


def test_every_layer_of_a_real_run_is_watched(tmp_path: Path):
    lines = Lines(tmp_path / "log.jsonl")
    train(tiny.task(steps=4), Plan(report=1, watch=2, evaluate=4), CPU, Telemetry([lines]))
    lines.close()
    events = [event for event in read_lines(tmp_path / "log.jsonl") if "matrices" in event]
    assert [event["step"] for event in events] == [2, 4]
    assert len(events[0]["matrices"]) == 14
    assert "layers.1.ffn.down" in events[0]["matrices"]
    for look in events[1]["matrices"].values():
        assert 0 < look["zeros"] < 1
        assert look["gradient"] > 0
    assert {"loss", "gradient", "learning_rate", "decay", "tokens", "tokens_per_second", "memory_gb"} <= set(
        read_lines(tmp_path / "log.jsonl")[0]
    )
