"""Training from the command line: short runs that begin, stop, go on, and become files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from command import STORIES, Bitnet

pytest.importorskip("bitnet_training", reason="bitnet-training is not installed")
pytest.importorskip("torch", reason="torch is not installed")

TEXT = "Once upon a time there was a little girl. She loved to play with her mom in the park every day. "
CONFIG = """
out = "run"
[model]
hidden_size = 32
ffn_size = 64
layers = 1
heads = 2
kv_heads = 1
context = 32
[tokenizer]
size = 300
[data]
train = ["text.txt"]
cache = "tokens"
window = 32
batch = 2
rows = 2
[schedule]
steps = 4
[telemetry]
every = 1
evaluate = 2
[checkpoints]
every = 2
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text and a config."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BITNET_TOKENS", str(folder / "tokens"))
    (folder / "text.txt").write_text(TEXT * 60)
    (folder / "config.toml").write_text(CONFIG)
    return folder


def test_a_run_ends_in_a_model(bitnet: Bitnet, place: Path) -> None:
    said = bitnet("train", "config.toml", "--set", "seed=3", "--json")
    assert said.code == 0, said.err
    assert said.json["finished"]
    assert said.json["step"] == 4
    (run,) = bitnet("jobs", "run", "--json").json
    assert (run["state"], run["step"], run["steps"], run["method"]) == ("finished", 4, 4, "pretrain")
    assert tomllib.loads((place / "run" / "config.toml").read_text())["seed"] == 3
    assert bitnet("export", "run", "made.gguf", "--to", "i2_s").code == 0
    assert bitnet("show", "made.gguf", "--json").json["spec"]["hidden_size"] == 32
    again = bitnet("train", "config.toml")
    assert again.code == 2
    assert "--resume" in again.err
    assert bitnet("jobs", "run", "--report").code == 0
    assert bitnet("jobs", "run", "--stop").code == 1  # it does not run


def test_an_adapter_is_trained_and_merged(bitnet: Bitnet, place: Path) -> None:
    flags = ("--out", "tuned", "--steps", "2", "--batch", "2", "--window", "32", "--rank", "2", "--quiet")
    said = bitnet("finetune", STORIES, "text.txt", *flags)
    assert said.code == 0, said.err
    assert (place / "tuned" / "adapter").is_dir()
    assert bitnet("export", "tuned", "made.gguf").code == 2
    merged = bitnet("merge", STORIES, place / "tuned" / "adapter", "merged.gguf", "--text", "text.txt", "--json")
    assert merged.code == 0, merged.err
    assert merged.json["quality"]["divergence"] >= 0
    assert (place / "merged.gguf").is_file()
    assert "no trit flipped: the changes are small beside the scales" in merged.err
    out = bitnet("run", "--prompt", "Once", "-n", "3", "--adapter", place / "tuned" / "adapter", "--model", STORIES)
    assert out.code == 0, out.err


def test_a_student_learns_from_a_teacher(bitnet: Bitnet, place: Path) -> None:
    small = ("--set", "model.hidden_size=32", "--set", "model.ffn_size=64", "--set", "model.layers=1")
    flags = ("--out", "taught", "--steps", "2", "--batch", "2", "--window", "32", *small)
    said = bitnet("distill", STORIES, "text.txt", *flags, "--json")
    assert said.code == 0, said.err
    assert bitnet("show", place / "taught" / "model", "--json").json["spec"]["vocab_size"] == 2048


def test_a_template_is_a_config(bitnet: Bitnet, place: Path) -> None:
    template = bitnet("config").out
    assert tomllib.loads(template)["schedule"]["steps"] == 1000
    (place / "usual.toml").write_text(template)
    assert bitnet("config", "usual.toml", "--json").json == tomllib.loads(template)
    found = bitnet("config", "config.toml", "--set", "data.batch=6", "--json").json
    assert (found["data"]["batch"], found["data"]["window"]) == (6, 32)
    assert "learning_rate" in bitnet("config", "config.toml", "--set", "optimizer.learning_rat=1").err


def test_a_base_that_no_model_is_called_is_refused(bitnet: Bitnet) -> None:
    said = bitnet("train", "config.toml", "--set", "method='continue'", "--set", "model.base='nothing'")
    assert said.code == 2
    assert "'nothing'" in said.err


def test_the_built_in_model_learns_by_its_name(bitnet: Bitnet, place: Path) -> None:
    flags = ("--out", "tuned", "--steps", "1", "--batch", "2", "--window", "32", "--rank", "2", "--quiet")
    said = bitnet("finetune", "stories", "text.txt", *flags)
    assert said.code == 0, said.err
    assert (place / "tuned" / "adapter").is_dir()


def stopped(bitnet: Bitnet, place: Path, *arguments: str) -> None:
    """Begin a run that would last for hours, and stop it when it has written to its log."""
    command = [sys.executable, "-c", "from bitnet_cli.main import command_line; command_line()"]
    process = subprocess.Popen(
        [*command, "train", *arguments, "--offline"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        log, deadline = place / "run" / "log.jsonl", time.monotonic() + 120
        before = log.stat().st_size if log.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size > before:
                break
            time.sleep(0.1)
        (run,) = bitnet("jobs", "--json").json
        assert (run["state"], run["pid"]) == ("running", process.pid)
        assert bitnet("jobs", "run", "--stop").code == 0
        _, err = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, err
    assert b"Traceback" not in err


def test_a_run_that_is_told_to_stop_goes_on(bitnet: Bitnet, place: Path) -> None:
    stopped(bitnet, place, "config.toml", "--set", "schedule.steps=100000")
    (first,) = bitnet("jobs", "--json").json
    assert first["state"] == "stopped"
    assert first["checkpoints"] >= 1
    refused = bitnet("train", "run/config.toml", "--resume", "--set", "schedule.steps=8")
    assert refused.code == 2
    assert "100000" in refused.err
    assert "8" in refused.err
    stopped(bitnet, place, "config.toml", "--set", "schedule.steps=100000", "--resume")
    (second,) = bitnet("jobs", "--json").json
    assert second["step"] > first["step"]


def test_steps_of_training_are_measured(bitnet: Bitnet) -> None:
    sizes = ("--hidden", "32", "--layers", "1", "--batch", "2", "--window", "32")
    for _ in range(2):
        said = bitnet("bench", "train", "-n", "4", *sizes, "--json")
        assert said.code == 0, said.err
        assert said.json["tokens_per_s"] > 0
        assert len(said.json["step_runs"]) == 3
    assert bitnet("bench", "compare", "last-1", "last", "--json").json["changes"][0]["figure"] == "step"
