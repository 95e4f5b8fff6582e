"""Commands over models and files: what a right call answers, as a document and to be read."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from command import Bitnet

import bitnet_core
from bitnet_core.formats import gguf, huggingface
from bitnet_core.testing import random_model, tiny_spec


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of floats, as they are before they are quantized, with the stories' tokens."""
    stories = bitnet_core.load(Path(__file__).parents[3] / "models" / "stories")
    spec = tiny_spec(
        family="llama", activation="silu", sub_norms="none", inputs="float", vocab_size=2048, tied=False, context=512
    )
    plain = random_model(spec, layout="hf_rows")
    random = np.random.default_rng(1)
    weights = {
        name: random.normal(0, 0.05, spec.shapes()[name]).astype(np.float32)
        if name.startswith("layers.") and len(spec.shapes()[name]) == 2
        else plain.weights[name]
        for name in spec.shapes()
    }
    folder = tmp_path_factory.mktemp("models") / "master"
    huggingface.save(bitnet_core.Model(spec, weights, stories.tokenizer), folder)
    return folder


@pytest.fixture
def tq2(bitnet: Bitnet, stories: Path, tmp_path: Path) -> Path:
    """The stories in another form."""
    target = tmp_path / "stories.gguf"
    assert bitnet("convert", stories, target, "--to", "tq2_0").code == 0
    return target


def test_tokens_come_with_their_text(bitnet: Bitnet, stories: Path) -> None:
    said = bitnet("tokenize", stories, "Once upon a time", "--json")
    assert said.code == 0
    assert said.json["count"] == 5
    assert "".join(said.json["pieces"][1:]) == "Once upon a time"
    assert bitnet("tokenize", stories, "Once upon a time", "--count").out == "5\n"
    ids = bitnet("tokenize", stories, "Once upon a time", "--ids").out
    assert bitnet("tokenize", stories, ids, "--decode").out == "Once upon a time\n"
    assert "upon" in bitnet("tokenize", stories, "Once upon a time").out


def test_text_comes_from_stdin(bitnet: Bitnet, stories: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("Once upon a time")
    for arguments in ((), ("-",), ("--file", "-")):
        with file.open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            assert bitnet("tokenize", stories, *arguments, "--count").out == "5\n"


def test_a_tokenizer_file_is_enough(bitnet: Bitnet, stories: Path) -> None:
    assert bitnet("tokenize", stories / "tokenizer.json", "Once", "--count").out.strip() == "2"


def test_a_template_is_shown_and_rendered(bitnet: Bitnet, stories: Path, tmp_path: Path) -> None:
    chat = shutil.copytree(stories, tmp_path / "chat")
    (chat / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert "message" in bitnet("template", chat).out
    said = bitnet("template", chat, "--user", "Hello", "--system", "Be kind", "--json")
    assert said.json["text"] == "system: Be kind\nuser: Hello\nassistant: "
    messages = tmp_path / "messages.json"
    messages.write_text(json.dumps([{"role": "user", "content": "Hello"}]))
    assert bitnet("template", chat, "--messages", messages, "--no-generation").out.strip() == "user: Hello"


def test_a_model_is_described(bitnet: Bitnet, stories: Path) -> None:
    said = bitnet("show", stories, "--json").json
    assert said["spec"]["layers"] == 6
    assert 5_000_000 < said["parameters"] < 5_500_000
    out = bitnet("show", stories).out
    assert "512 tokens" in out
    assert "no template" in out


def test_files_are_inspected(bitnet: Bitnet, stories: Path, tq2: Path) -> None:
    said = bitnet("inspect", tq2, "--json", "--trits").json
    assert said["format"] == "GGUF version 3"
    assert {tensor["type"] for tensor in said["tensors"]} >= {"TQ2_0", "F32"}
    assert len(said["trits"]) == 42
    out = bitnet("inspect", stories, "--tensors", "--metadata").out
    assert "model.embed_tokens.weight" in out
    assert "BitNetForCausalLM" in out


def test_a_sound_model_is_verified(bitnet: Bitnet, stories: Path, tq2: Path) -> None:
    said = bitnet("verify", tq2, "--against", stories, "--backend", "auto", "--json")
    assert said.code == 0
    assert said.json["problems"] == []
    assert said.json["digest"] == said.json["against"]
    assert "no damage found" in bitnet("verify", stories).out


def test_damage_is_found_and_fails(bitnet: Bitnet, stories: Path, tq2: Path) -> None:
    with gguf.File(tq2) as file:
        place = file.tensors["blk.1.ffn_down.weight"]
    data = bytearray(tq2.read_bytes())
    data[place.start : place.start + 60] = b"\x00" * 60
    tq2.write_bytes(data)
    said = bitnet("verify", tq2, "--against", stories, "--json")
    assert said.code == 1
    assert said.json["problems"]
    differs = bitnet("diff", tq2, stories, "--json")
    assert differs.code == 1
    (row,) = [row for row in differs.json["weights"] if not row["equal"]]
    assert row["name"] == "layers.1.ffn.down"
    assert row["flipped"] > 0


def test_equal_models_have_no_difference(bitnet: Bitnet, stories: Path, tq2: Path) -> None:
    said = bitnet("diff", stories, tq2)
    assert said.code == 0
    assert "0 of 68 weights differ" in said.out


def test_conversion_keeps_every_trit(bitnet: Bitnet, stories: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder"
    refused = bitnet("convert", stories, target, "--to", "hf_divide")
    assert refused.code == 2
    assert "--lossy accepts it" in refused.err
    said = bitnet("convert", stories, target, "--to", "hf_divide", "--lossy", "--json").json
    assert said["before"] == said["after"]
    assert (target / "model.safetensors").is_file()
    assert bitnet("convert", stories, tmp_path / "new.gguf", "--to", "i2_s").code == 0
    again = bitnet("convert", stories, tmp_path / "new.gguf", "--to", "tq1_0")
    assert again.code == 2
    assert bitnet("convert", stories, tmp_path / "new.gguf", "--to", "tq1_0", "--force").code == 0


def test_floats_become_ternary_and_the_cost_is_reported(bitnet: Bitnet, master: Path, tmp_path: Path) -> None:
    target, page, recipe = tmp_path / "made.gguf", tmp_path / "page.html", tmp_path / "recipe.toml"
    said = bitnet("quantize", master, target, "--method", "optimal", "--save-recipe", recipe)
    assert said.code == 0, said
    assert len(bitnet("inspect", target, "--trits", "--json").json["trits"]) == 14
    again = tmp_path / "again.gguf"
    assert bitnet("quantize", master, again, "--recipe", recipe).code == 0
    assert again.read_bytes() == target.read_bytes()
    found = bitnet("report", target, master, "--output", page, "--json").json
    assert any(weight["form"] == "ternary" for weight in found["weights"])
    assert page.read_text().startswith("<!doctype html>")
    assert bitnet("report", target, master, "--output", page).code == 2


def test_a_budget_finds_a_recipe(bitnet: Bitnet, master: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little girl who went to play in the garden with her dog. " * 30)
    arguments = ("--budget", "4", "--calibrate", text, "--windows", "2", "--window", "64")
    assert bitnet("quantize", master, tmp_path / "made.gguf", *arguments).code == 0
    types = {tensor["type"] for tensor in bitnet("inspect", tmp_path / "made.gguf", "--json").json["tensors"]}
    assert types & {"Q8_0", "Q4_0"}


def test_a_model_is_copied_whole_or_not_at_all(bitnet: Bitnet, stories: Path, tq2: Path, tmp_path: Path) -> None:
    said = bitnet("cp", stories, tmp_path / "copy", "--json")
    assert said.json["files"] == len(list(stories.iterdir()))
    assert (tmp_path / "copy" / "config.json").read_bytes() == (stories / "config.json").read_bytes()
    assert bitnet("cp", tq2, tmp_path / "copy.gguf").code == 0
    assert (tmp_path / "copy.gguf").read_bytes() == tq2.read_bytes()
    assert bitnet("cp", tq2, tmp_path / "copy.gguf").code == 2
    assert bitnet("cp", tq2, tmp_path / "copy.gguf", "--force").code == 0
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_an_empty_cache_is_listed(bitnet: Bitnet, home: Path) -> None:
    assert bitnet("ls", "--json").json == []
    assert "bitnet pull" in bitnet("ls").out
    assert bitnet("du", "--json").json["used"] == 0
    assert str(home) in bitnet("du").out
    assert bitnet("rm", "--leftovers", "--unused-for", "30d", "--json").json["freed"] == 0


def test_a_model_that_is_not_here_needs_the_network(bitnet: Bitnet) -> None:
    for command in ("pull", "show", "inspect"):
        said = bitnet(command, "org/model")
        assert said.code == 1
        assert "network is off" in said.err


def test_the_machine_and_its_packages_are_told(bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITNET_SECRET_TOKEN", "hidden-value")
    said = bitnet("env", "--json")
    assert said.json["packages"]["bitnet-core"]
    assert "hidden-value" not in said.out
    names = {row["name"]: row for row in bitnet("backends", "--json").json}
    assert names["numpy"]["usable"]
    assert sum(row["auto"] for row in names.values()) == 1


def test_a_healthy_machine_is_called_so(bitnet: Bitnet) -> None:
    said = bitnet("doctor", "--no-measure", "--json")
    checks = {check["what"]: check for check in said.json["checks"]}
    assert said.code == (0 if said.json["healthy"] else 1)
    assert checks["answers"]["fine"]
    assert "network is off" in checks["hub"]["said"]


def test_what_a_model_needs_is_foretold(bitnet: Bitnet, stories: Path) -> None:
    said = bitnet("fit", stories, "--context", "256", "--threads", "1", "--json")
    assert said.code == 0
    forecast = said.json["forecast"]
    assert forecast["fits"]
    assert forecast["longest"] == 512
    assert forecast["need"]["keys_and_values"] == 256 * 6 * 2 * 2 * 64 * 2
    assert forecast["decode_tokens_per_s"] > 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_each_shell_has_its_completion(shell: str, bitnet: Bitnet) -> None:
    said = bitnet("completion", shell)
    assert said.code == 0
    assert "tokenize" in said.out
