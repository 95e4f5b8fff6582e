"""Two processes compute what one computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_task as tiny
import torch
from tiny_task import CPU, Memory

from bitnet_core import UnsupportedError
from bitnet_training import distributed
from bitnet_training.checkpoint import Checkpoints
from bitnet_training.telemetry import Telemetry
from bitnet_training.train import Plan, train

# What each of two processes does: copies, then shards, then shards that stop and go on; the first writes it all down.
WORKER = """
import json, sys, torch
import tiny_task as tiny
from bitnet_training import state
from bitnet_training.checkpoint import Checkpoints
from bitnet_training.distributed import joined
from bitnet_training.telemetry import Telemetry
from bitnet_training.train import Plan, train

def one(world, parallel, checkpoints=None, resumed=None, stop=lambda: False):
    memory, task = tiny.Memory(), tiny.task(batch=8, rows=2, steps=6, world=world, sharded=parallel == "shard")
    plan = Plan(report=1, watch=2, evaluate=2, save=3, best=True)
    outcome = train(task, plan, world, Telemetry([memory]), checkpoints, resumed=resumed, stop=stop)
    # Processes that differ would tell it here.
    norms = torch.stack([weight.float().norm() for weight in state.weights(task.model).values()])
    best = outcome.best and [weight.norm().item() for weight in outcome.best.values()]
    return {"events": memory.events, "norms": norms.tolist(), "best": best}

torch.set_num_threads(1)
with joined("cpu") as world:
    found = {"processes": world.processes, "replicate": one(world, "replicate"), "shard": one(world, "shard")}
    folder = sys.argv[1] + "/checkpoints"
    checkpoints = Checkpoints(folder)
    with world.first_alone():
        if world.is_first:
            checkpoints.__enter__()
    mine = checkpoints if world.is_first else None
    one(world, "shard", mine, stop=iter([False, False, world.process == 1, False]).__next__)
    resumed = checkpoints.newest()
    found["stopped"] = resumed.step
    found["again"] = one(world, "shard", mine, resumed=resumed)
    world.wait()
    with open(f"{sys.argv[1]}/{world.process}.json", "w") as stream:
        json.dump(found, stream)
"""


def losses(run: dict | Memory) -> list[float]:
    events = run["events"] if isinstance(run, dict) else run.events
    return [event[name] for event in events for name in ("loss", "held_out", "gradient") if name in event]


def test_two_processes_lose_what_one_loses(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--local-addr=127.0.0.1"]
    command = [sys.executable, *launch, str(tmp_path / "worker.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1))
    alone = Memory()
    plan = Plan(report=1, watch=2, evaluate=2, save=3, best=True)
    outcome = train(tiny.task(batch=8, rows=2, steps=6), plan, CPU, Telemetry([alone]))
    assert outcome.best is not None
    best = [weight.norm().item() for weight in outcome.best.values()]
    assert first["processes"] == 2
    for parallel in ("replicate", "shard"):
        assert losses(first[parallel]) == pytest.approx(losses(alone), rel=1e-5, abs=1e-5)
        assert losses(first[parallel]) == losses(second[parallel])
        assert first[parallel]["norms"] == second[parallel]["norms"]
        assert first[parallel]["best"] == pytest.approx(best, rel=1e-4)  # whole, with the first process alone
        assert second[parallel]["best"] is None
    # One process asked for the end, and both ended there; what goes on from shards is what never stopped.
    assert first["stopped"] == 3
    assert losses(first["again"])[-3:] == losses(first["shard"])[-3:]
    assert first["again"]["norms"] == first["shard"]["norms"]
    ternary = [event["ternary"] for event in first["shard"]["events"] if "ternary" in event]
    assert [look["zeros"] for look in ternary] == pytest.approx([look["zeros"] for look in alone.of("ternary")])
    # The shards' checkpoint holds whole tensors: one process alone goes on with it.
    saved = Checkpoints(tmp_path / "checkpoints").newest()
    assert saved is not None
    assert saved.tensors["model"]["model.embed_tokens.weight"].shape == (40, 16)


def test_shards_need_several_processes():
    with pytest.raises(UnsupportedError, match="torchrun"):
        CPU.shard(torch.nn.Linear(2, 2))


def test_a_device_that_is_not_there_is_named():
    assert distributed.choose("cpu") == torch.device("cpu")
    assert distributed.choose("auto").type in {"cpu", "cuda", "mps"}
    with pytest.raises(UnsupportedError, match=r"no device 'tpu'; it has .*cpu"):
        distributed.choose("tpu")


def test_a_process_alone_needs_no_others(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with distributed.joined("cpu") as world:
        assert (world.is_first, world.processes, world.sums(1.5, 2)) == (True, 1, [1.5, 2])
        with world.first_alone():
            world.wait()
