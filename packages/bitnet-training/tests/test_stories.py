"""The way in which the model of stories is made, with so few steps that it learns next to nothing."""

from __future__ import annotations

import importlib.util
import random
import re
from pathlib import Path
from types import ModuleType

import pytest

import bitnet_core
from bitnet_training import models

SCRIPT = Path(__file__).parents[3] / "models" / "make_stories.py"
SMALL = [
    "model.hidden_size=32", "model.ffn_size=32", "model.layers=1", "model.heads=2", "model.kv_heads=1",
    "model.context=64", "data.window=64", "data.batch=4", "data.rows=4", "tokenizer.size=300", "schedule.steps=4",
    "telemetry.evaluate=2", "compute.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    if not SCRIPT.is_file():
        pytest.skip("the script lies in the repository, beside the packages")
    found = importlib.util.spec_from_file_location("make_stories", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Stories to learn, of which one is held out, too."""
    draw = random.Random(5)
    words = ["the", "dog", "cat", "saw", "ran", "big", "red", "ball", "and", "said", "to", "him", "with", "a", "sad"]
    told = ["Once " + " ".join(draw.choices(words, k=60)) + "." for _ in range(40)]
    (tmp_path / "learned.txt").write_text("\n<|endoftext|>\n".join(told))
    (tmp_path / "held_out.txt").write_text("\n<|endoftext|>\n".join(told[:1] + [one[::-1] for one in told[:5]]))
    changes = [*SMALL, f"data.cache={tmp_path}/cache"]
    return [
        "--data", str(tmp_path / "learned.txt"), "--valid", str(tmp_path / "held_out.txt"), "--out",
        str(tmp_path / "made"), *(part for change in changes for part in ("--set", change)),
    ]  # fmt: skip


def test_teachers_then_the_ternary_model_and_its_twin_are_trained_and_measured_alike(
    script, arguments, tmp_path, capsys, caplog
):
    caplog.set_level("INFO")
    assert script.main([*arguments, "--teachers", "2", "--twin"]) == 0
    said = dict(
        re.findall(r"stories:.*?py:\d+ (\S.*?) +(\d\.\d{4}) nats a token, .* bits a byte", caplog.text, re.MULTILINE)
    )
    assert list(said) == ["teacher-1", "teacher-2", "ternary, masters", "packed", "float"]
    assert said["teacher-1"] != said["teacher-2"]
    assert float(said["packed"]) == pytest.approx(float(said["ternary, masters"]), rel=2e-3)  # its floats are halves
    assert "overlap: 1 of 40 training documents share a paragraph with those held out; they are left out" in caplog.text
    made = bitnet_core.load(tmp_path / "made" / "model")
    assert made.spec.inputs == "int8"
    assert made.sampling["temperature"] == 0.8
    assert made.tokenizer is not None
    assert "dropout" not in (tmp_path / "made" / "model" / "config.json").read_text()
    card = (tmp_path / "made" / "ternary" / "model" / "README.md").read_text()
    assert f'base = ["{tmp_path}/made/teacher-1/model", "{tmp_path}/made/teacher-2/model"]' in card
    # What has ended is not trained again.
    log = tmp_path / "made" / "teacher-1" / "log.jsonl"
    before = log.read_bytes()
    assert script.main([*arguments, "--teachers", "2"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert script.main([*arguments, "--teachers", "2", "--resume"]) == 0
    assert log.read_bytes() == before


def test_without_teachers_the_ternary_model_learns_alone(script, arguments, tmp_path, caplog):
    caplog.set_level("INFO")
    assert script.main([*arguments, "--teachers", "0"]) == 0
    assert "\npacked " in "\n".join(caplog.messages)
    assert {path.name for path in (tmp_path / "made").iterdir() if path.is_dir()} == {"ternary", "model"}


def test_a_story_is_measured_from_its_beginning_to_the_end_of_the_context(script, stories):
    short, long = "Once upon a time there was a dog. He ran.", "Once upon a time, there was a dog who ran. " * 60
    found = script.measure(stories, "packed", [short, long])
    words = bitnet_core.load(stories).tokenizer
    assert words is not None
    assert found.tokens == len(words.encode(short, eos=True)) - 1 + 512
    assert found.text_bytes == len(short) + len(words.decode(words.encode(long)[1:513]))
    model = models.load(stories, "packed")
    assert found.nll == pytest.approx(sum(nats(model, words.encode(one, eos=True)) for one in (short, long)), rel=1e-3)


def nats(model, ids):
    import torch

    tokens = torch.from_numpy(ids[:513].astype("int64"))[None]
    with torch.no_grad():
        said = model(input_ids=tokens[:, :-1]).logits.log_softmax(-1)
    return -said.gather(-1, tokens[:, 1:, None]).sum().item()
