"""Commands that ask the hub, with a small hub on loopback."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import STORIES, Bitnet

SERVER = Path(__file__).parents[2] / "bitnet-core" / "tests" / "hub_server.py"
if not SERVER.is_file():
    pytest.skip("the small hub stands with bitnet-core's tests", allow_module_level=True)


def _module() -> Any:
    if "hub_server" in sys.modules:
        return sys.modules["hub_server"]
    spec = importlib.util.spec_from_file_location("hub_server", SERVER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_server"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub with the stories and a model that is no ternary one."""
    import huggingface_hub.constants

    with _module().HubServer() as running:
        files = {path.name: path.read_bytes() for path in STORIES.iterdir() if path.is_file()}
        running.add("people/bitnet-stories", files)
        running.add("people/other", {"config.json": b"{}", "model.safetensors": b"weights"})
        running.add("people/bitnet-many", {"a.gguf": b"GGUF" * 9, "b.gguf": b"GGUF" * 9})
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_a_model_is_found_fetched_used_and_removed(bitnet: Bitnet, server: Any) -> None:
    found = bitnet("search", "bitnet", "--json", online=True)
    assert found.code == 0, found
    assert {model["name"] for model in found.json} == {"people/bitnet-stories", "people/bitnet-many"}
    planned = bitnet("pull", "people/bitnet-stories", "--dry-run", "--json", online=True)
    assert planned.json["fits"]
    assert bitnet("ls", "--json").json == []
    assert "stories comes along" in bitnet("ls").out
    shown = bitnet("show", "people/bitnet-stories", online=True)
    assert "needed" in shown.out
    fetched = bitnet("pull", "people/bitnet-stories", "--json", online=True)
    assert fetched.code == 0, fetched
    assert Path(fetched.json["path"]).is_dir()
    (model,) = bitnet("ls", "--json").json
    assert model["name"] == "people/bitnet-stories"
    before = len(server.requests)
    said = bitnet("run", "--model", "people/bitnet-stories", "--prompt", "Once", "-n", "2")
    assert said.code == 0, said
    assert bitnet("show", "people/bitnet-stories", "--json").json["spec"]["layers"] == 6
    assert len(server.requests) == before  # --offline means it
    assert bitnet("du", "--json").json["used"] > 1_000_000
    assert bitnet("rm", "people/bitnet-stories", "--json").json["freed"] > 1_000_000
    assert bitnet("rm", "people/bitnet-stories").code == 2
    assert bitnet("ls", "--json").json == []


def test_a_pinned_model_stays(bitnet: Bitnet, server: Any) -> None:
    pinned = bitnet("pull", "people/bitnet-stories", "--pin", "--json", online=True).json["pinned"]
    assert pinned.startswith("people/bitnet-stories@")
    assert bitnet("ls", "--json").json[0]["pinned"]
    kept = bitnet("rm", "people/bitnet-stories")
    assert kept.code == 1
    assert "pinned" in kept.err
    assert bitnet("rm", "people/bitnet-stories", "--unpin").code == 0


def test_one_of_several_files_must_be_named(bitnet: Bitnet, server: Any) -> None:
    said = bitnet("pull", "people/bitnet-many", online=True)
    assert said.code == 2
    assert "a.gguf" in said.err
    assert bitnet("pull", "people/bitnet-many:c.gguf", online=True).code == 2
    assert bitnet("pull", "people/bitnet-many:a.gguf", online=True).code == 0


def test_what_the_hub_does_not_have_is_said(bitnet: Bitnet, server: Any) -> None:
    for command in ("pull", "show", "run"):
        said = bitnet(command, "people/nothing", *(["text"] if command == "run" else []), online=True)
        assert said.code == 2, said
        assert "people/nothing" in said.err
    assert bitnet("search", "zzz", online=True).out == "nothing found\n"


def test_doctor_and_update_ask_when_they_are_told_to(bitnet: Bitnet, server: Any) -> None:
    checks = {
        check["what"]: check
        for check in bitnet("doctor", "--no-measure", "--online", "--json", online=True).json["checks"]
    }
    assert checks["hub"]["fine"]
    assert bitnet("pull", "people/bitnet-stories", online=True).code == 0
    server.add("people/bitnet-stories", {"config.json": b"{}", "model.safetensors": b"newer"})
    (row,) = bitnet("update", "--check", "--json", online=True).json["models"]
    assert row["newest"] is not None
    assert row["newest"] != row["here"]
