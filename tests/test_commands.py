"""The commands of the README, in a clean copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that git has or would have, and nothing that was made from them."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # one that was just removed is still listed
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the tree as a person would, without this environment's variables."""
    variables = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=280)


@pytest.mark.slow
def test_run_writes_text_in_a_clean_copy_and_installs_only_once(clone: Path) -> None:
    first = call(clone, "dev.py", "run", "Once upon a time", "--seed", "7", "--stats")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("Once upon a time")
    assert len(first.stdout) > len("Once upon a time") + 40
    assert "making .venv/run" in first.stderr
    assert "tokens/s" in first.stderr
    assert not list(clone.glob(".venv/run/**/torch"))
    second = call(clone, "dev.py", "run", "Once upon a time", "--seed", "7", "--stats")
    assert second.stdout == first.stdout
    assert "making" not in second.stderr


@pytest.mark.parametrize("arguments", [(), ("ran",)])
def test_a_wrong_command_is_one_line_that_lists_the_right_ones(arguments: tuple[str, ...]) -> None:
    answer = call(ROOT, "dev.py", *arguments)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: no command")
    assert "run" in answer.stderr
    assert "test" in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("model", ["nowhere", "README.md", "models"])
def test_a_model_that_is_none_is_one_line_and_exit_code_2(model: str) -> None:
    answer = call(ROOT, "examples/story.py", "--model", model, "Once")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1


def test_an_unknown_backend_is_one_line_that_lists_the_known_ones() -> None:
    answer = call(ROOT, "examples/story.py", "--backend", "abacus", "Once")
    assert answer.returncode == 2
    assert "numpy" in answer.stderr
    assert answer.stderr.count("\n") == 1
