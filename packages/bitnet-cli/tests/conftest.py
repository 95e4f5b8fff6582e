"""The command in this process, in a home of its own and without a network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from command import STORIES, Bitnet, Said

from bitnet_cli.main import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with nothing in it; caches and settings of whoever runs the tests stay out of it."""
    import huggingface_hub.constants

    folder = tmp_path / "home"
    folder.mkdir()
    for name, value in {
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_DATA_HOME": str(folder / "data"),
        "HF_HOME": str(folder / "huggingface"),
        "NO_COLOR": "1",
        "COLUMNS": "160",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("BITNET_OFFLINE", "BITNET_CONFIG", "BITNET_DEBUG", "BITNET_BENCH_HISTORY", "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    # What it read from the environment when it was imported, perhaps by another package's tests.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "huggingface" / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "huggingface" / "token"))
    return folder


@pytest.fixture
def bitnet(capsys: pytest.CaptureFixture[str]) -> Bitnet:
    """Runs the command with these arguments; the network is off."""

    def run(*arguments: object, online: bool = False) -> Said:
        capsys.readouterr()
        tokens = [str(argument) for argument in arguments]
        code = main([*tokens, *([] if online or not tokens else ["--offline"])])
        caught = capsys.readouterr()
        return Said(code, caught.out, caught.err)

    return run


@pytest.fixture(scope="session")
def stories() -> Path:
    """The small model of the project."""
    return STORIES
