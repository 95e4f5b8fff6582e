"""Whole runs, from a config to a model that others load; and what is wrong is one sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import bitnet_core
from bitnet_core import UnsupportedError
from bitnet_training import config, models, options, tokenizer
from bitnet_training.__main__ import main
from bitnet_training.checkpoint import Checkpoints
from bitnet_training.config import Config
from bitnet_training.linear import BitLinear
from bitnet_training.run import run
from bitnet_training.schedule import Rounding
from bitnet_training.telemetry import read_lines

TEXT = "".join(
    f"The {number % 7}th of {number % 11} dogs likes {number % 13} cats, and {number} more.\n" for number in range(300)
)
CONFIG = (Path(__file__).parent / "tiny_run.toml").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a text and a config."""
    (tmp_path / "text.txt").write_text(TEXT)
    said = f'out = "{tmp_path}/run"\n{CONFIG}'.replace(
        "[data]", f'[data]\ntrain = ["{tmp_path}/text.txt"]\ncache = "{tmp_path}/cache"'
    )
    (tmp_path / "run.toml").write_text(said)
    return tmp_path


def asked(folder: Path, *changes: str) -> Config:
    return config.load(folder / "run.toml", changes)


def test_a_run_leaves_all_that_is_needed(folder, capsys):
    outcome = run(asked(folder))
    out = folder / "run"
    assert (outcome.step, outcome.is_finished) == (6, True)
    assert {path.name for path in out.iterdir()} == {
        "checkpoints", "config.toml", "log.jsonl", "model", "report.html", "tokenizer",
    }  # fmt: skip
    assert config.load(out / "config.toml") == asked(folder)
    assert capsys.readouterr().out.count("loss") == 6
    assert len(read_lines(out / "log.jsonl")) == 6 + 3 + 2
    assert "<svg" in (out / "report.html").read_text()
    card = (out / "model" / "README.md").read_text()
    assert "| held out | 5% of these |" in card
    assert "nats a token, held out" in card
    assert options.parse(Config, card.split("```toml\n")[1].split("```")[0]) == asked(folder)


def test_the_model_of_a_run_says_what_the_trained_one_says(folder):
    run(asked(folder))
    loaded = bitnet_core.load(folder / "run" / "model")
    assert loaded.tokenizer is not None
    saved = Checkpoints(folder / "run" / "checkpoints").newest()
    assert saved is not None
    trained = models.build(loaded.spec)
    trained.load_state_dict({**trained.state_dict(), **saved.tensors["model"]}, strict=True)
    trained.tie_weights()
    tokens = loaded.tokenizer.encode("The 3th of 5 dogs")
    with torch.no_grad():
        expected = trained(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].argmax(-1)
    again = models.load(folder / "run" / "model")
    with torch.no_grad():
        found = again(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].argmax(-1)
    assert found.tolist() == expected.tolist()


def test_a_finished_model_is_written_in_every_form_that_is_asked_for(folder):
    forms = '["packed", "masters", "tq2_0"]'
    run(asked(folder, f"export={forms}", "model.hidden_size=256", "model.ffn_size=256", "schedule.steps=1"))
    packed, masters, gguf = (bitnet_core.load(folder / "run" / name) for name in ("model", "masters", "tq2_0.gguf"))
    for name in ("layers.0.attn.q", "layers.1.ffn.down"):
        codes = packed.weights[name].codes()
        assert (masters.weights[name].codes() == codes).all()
        assert (gguf.weights[name].codes() == codes).all()
    again = ("method=continue", f"model.base={folder}/run/masters", f"out={folder}/more", "schedule.steps=1")
    assert run(asked(folder, *again)).is_finished


RISING = ("schedule.kind=constant", "schedule.warmup=1", "optimizer.learning_rate=1", "schedule.steps=12")


def test_the_model_that_did_best_on_what_is_held_out_is_the_one_at_the_end(folder):
    best = ("checkpoints.best=true", *RISING)
    run(asked(folder, *best))
    looks = {event["step"]: event["held_out"] for event in read_lines(folder / "run/log.jsonl") if "held_out" in event}
    kept = min(looks, key=lambda step: looks[step])
    assert kept < 12
    card = (folder / "run" / "model" / "README.md").read_text()
    assert f"| weights of step, which did best on what was held out | {kept} |" in card
    assert f"| nats a token, held out | {looks[kept]:.4g} |" in card
    assert "| steps | 12 |" in card
    saved = Checkpoints(folder / "run" / "checkpoints").newest()
    assert saved is not None
    weight = models.load(folder / "run" / "model", "float").get_parameter("model.embed_tokens.weight")
    assert torch.equal(weight, saved.tensors["best"]["model.embed_tokens.weight"])
    assert not torch.equal(weight, saved.tensors["model"]["model.embed_tokens.weight"])
    # A run that ended before its model was written writes the same.
    written = (folder / "run" / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(folder / "run" / "model")
    run(asked(folder, *best), resume=True)
    assert (folder / "run" / "model" / "model.safetensors").read_bytes() == written


def test_there_is_no_best_without_anything_held_out(folder):
    with pytest.raises(ValueError, match=r"checkpoints.best: something held out to choose by"):
        run(asked(folder, "checkpoints.best=true", "data.held_out=0"))


def test_a_run_that_drops_numbers_ends_the_same_after_a_stop(folder):
    drops = ("model.dropout=0.2", "compute.recompute=always")
    run(asked(folder, *drops))
    run(asked(folder, "model.dropout=0", f"out={folder}/plain"))
    for last in (folder / "run" / "checkpoints").glob("step-*6"):
        (last / "model.safetensors").write_bytes(b"")
    written = (folder / "run" / "model" / "model.safetensors").read_bytes()
    run(asked(folder, *drops), resume=True)
    assert (folder / "run" / "model" / "model.safetensors").read_bytes() == written
    assert (folder / "plain" / "model" / "model.safetensors").read_bytes() != written


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own compiler does it
def test_several_teachers_teach_a_model_that_the_compiler_has(folder, compiled):
    for seed in (1, 2):
        run(asked(folder, "model.ternary=false", f"seed={seed}", f"out={folder}/{seed}", *RISING))
    teachers = [f"{folder}/{seed}/model" for seed in (1, 2)]
    taught = ("method=distill", f"teacher.base={json.dumps(teachers)}", "teacher.task=0", "teacher.temperature=1")
    usual = (*taught, f"tokenizer.path={folder}/1/tokenizer", "model.dropout=0.1", "data.rows=4", "schedule.steps=8")
    outcome = run(asked(folder, *usual, "compute.compile=true"))
    assert outcome.is_finished
    # The student in training and at looks, and the teachers, which are alike.
    assert sum(compiled.values()) == 3, compiled
    assert run(asked(folder, *usual, f"out={folder}/plain")).loss == pytest.approx(outcome.loss, rel=1e-4)


@pytest.fixture
def compiled(compiler, monkeypatch):
    """How often each graph was compiled, by a compiler that makes no code."""
    counts = Counter[str]()

    def count(graph, _):
        counts[str(len(counts))] += 1
        return graph.forward

    real = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: real(self, backend=count))
    return counts


def test_one_switch_makes_the_float_twin(folder):
    run(asked(folder, "model.ternary=false"))
    events = read_lines(folder / "run" / "log.jsonl")
    assert not any("ternary" in event for event in events)
    # Nothing in a folder of BitNet's class says that its floats are no masters.
    twin = bitnet_core.load(folder / "run" / "model", masters=False)
    assert twin.spec.inputs == "float"
    assert isinstance(twin.weights["layers.0.attn.q"], np.ndarray)


def test_a_folder_with_a_run_is_not_written_over(folder):
    run(asked(folder))
    before = (folder / "run" / "log.jsonl").read_bytes()
    with pytest.raises(UnsupportedError, match=r"has a run's checkpoints; go on with it \(--resume\)"):
        run(asked(folder))
    assert (folder / "run" / "log.jsonl").read_bytes() == before
    outcome = run(asked(folder), resume=True)  # there is nothing left to do
    assert outcome.step == 6
    assert (folder / "run" / "log.jsonl").read_bytes() == before


def test_to_go_on_from_nothing_is_to_begin_and_says_so(folder, caplog):
    caplog.set_level("INFO")
    assert run(asked(folder, "schedule.steps=1"), resume=True).is_finished
    assert "no checkpoint yet: from step 0" in caplog.text


def test_who_interrupts_before_torch_is_there_gets_no_traceback(folder):
    code = (
        "import builtins, sys, bitnet_training.__main__ as command\n"
        "real = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'peft': raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = interrupted\n"
        f"sys.exit(command.main([{str(folder / 'run.toml')!r}]))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_a_vocabulary_that_no_model_has_learned_is_learned_anew(folder):
    (folder / "run" / "checkpoints").mkdir(parents=True)
    tokenizer.train(["quite other words"] * 9, 260, folder / "run" / "tokenizer")
    run(asked(folder, "schedule.steps=1"))
    loaded = bitnet_core.load(folder / "run" / "model")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.vocab_size == 280


@pytest.mark.parametrize("name", ["tokenizer", "model", "adapter"])
def test_what_stands_in_a_folder_that_no_run_made_is_not_written_over(folder, name):
    (folder / "run" / name).mkdir(parents=True)
    (folder / "run" / name / "mine").write_text("dear to me")
    with pytest.raises(UnsupportedError, match=f"run/{name}: no run made it"):
        run(asked(folder))
    assert (folder / "run" / name / "mine").read_text() == "dear to me"
    assert not (folder / "run" / "checkpoints").exists()


def test_a_run_says_what_it_is_about_to_do_and_where_all_of_it_is(folder, caplog):
    caplog.set_level("INFO")
    run(asked(folder, "schedule.steps=3", "compute.device=cpu"))
    assert "weights learn on cpu: 3 steps of 4 windows of 32 tokens, which is the data 0." in caplog.text
    assert f"step 3 of 3; all of it is in {folder}/run" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate: the checkpoint was made with 0.002, .* has 0.5"),
        ("seed=7", "seed: the checkpoint was made with 0, .* has 7"),
        ("model.layers=3", "model.layers: the checkpoint was made with 2, .* has 3"),
        ("schedule.steps=60", "schedule.steps: the checkpoint was made with 6"),
    ],
)
def test_a_run_that_goes_on_as_another_is_refused_with_both_values(folder, change, said):
    run(asked(folder, "checkpoints.every=5"))
    with pytest.raises(UnsupportedError, match=said):
        run(asked(folder, change), resume=True)
    assert config.load(folder / "run" / "config.toml") == asked(folder, "checkpoints.every=5")


def test_a_run_that_cannot_begin_leaves_no_config(folder):
    with pytest.raises(UnsupportedError, match="tq2_0 holds"):
        run(asked(folder, "export=['tq2_0']"))
    assert not (folder / "run" / "config.toml").exists()


def test_a_run_that_goes_on_with_other_data_is_refused(folder):
    run(asked(folder))
    (folder / "text.txt").write_text(TEXT + "More.\n")
    with pytest.raises(UnsupportedError, match=r"data: the checkpoint was made with tokens .*, and now they are"):
        run(asked(folder), resume=True)


def test_what_changes_no_weight_may_change(folder):
    run(asked(folder))
    run(asked(folder, "telemetry.every=3", "checkpoints.keep=5", "data.rows=4"), resume=True)


def test_a_damaged_checkpoint_is_passed_over_and_the_run_ends_the_same(folder, caplog):
    run(asked(folder))
    last = folder / "run" / "checkpoints" / "step-000000000006" / "model.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[:100])
    run(asked(folder), resume=True)
    assert "passed over: " in caplog.text
    assert "model.safetensors: size" in caplog.text
    assert last.read_bytes() == whole


def test_documents_keep_apart_or_not_as_asked(folder):
    run(asked(folder, "data.document_mask=false", "data.separator=\\n"))
    run(asked(folder, "data.packing=whole", "data.separator=.", f"out={folder}/whole"))


CHAT = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(40)
]
METHODS = {
    "continue": ("data.packing=stream", "compute.recompute=always"),
    "sft": ("tokenizer.template={template}", "data.train=['{chat}']"),
    "lora": ("adapter.rank=2",),
    "qlora": ("adapter.rank=2",),
    "distill": ("teacher.base={stories}", "teacher.attention=1.0", "model.rounding=0.5"),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_the_model_of_stories(folder, stories, method):
    (folder / "chat.jsonl").write_text("".join(json.dumps(one) + "\n" for one in CHAT))
    (folder / "template.jinja").write_text(
        "{% for message in messages %}{{ message.role }}: {{ message.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    names = {"template": folder / "template.jinja", "chat": folder / "chat.jsonl", "stories": stories}
    changes = [change.format(**names) for change in METHODS[method]]
    usual = (f"method={method}", f"model.base={stories}", "schedule.steps=2", "data.batch=2", "data.held_out=0.3")
    outcome = run(asked(folder, *usual, "telemetry.windows=1", *changes))
    assert outcome.is_finished
    assert outcome.loss > 0
    assert (folder / "run" / ("adapter" if "lora" in method else "model")).is_dir()
    if "lora" in method:
        saved = Checkpoints(folder / "run" / "checkpoints").newest()
        assert saved is not None
        assert all("lora_" in name for name in saved.tensors["model"])  # the base lies where it lay
        assert not any("ternary" in event for event in read_lines(folder / "run" / "log.jsonl"))  # nor can it flip


def test_layers_are_rounded_one_after_another_if_asked(folder, monkeypatch):
    seen = []
    given = Rounding.apply

    def apply(self, model, step):
        found = given(self, model, step)
        seen.append([layer.strength.item() for layer in model.modules() if isinstance(layer, BitLinear)][::7])
        return found

    monkeypatch.setattr(Rounding, "apply", apply)
    run(asked(folder, "model.rounding=0.7", "model.order=last layers first", "telemetry.evaluate=99"))
    assert seen == [[0, 0], [0, 0.5], [0, 1], [0.5, 1], [1, 1]]


def test_a_float_twin_teaches_the_ternary_model_from_random_numbers(folder):
    run(asked(folder, "model.ternary=false", f"out={folder}/twin"))
    twin = ("method=distill", f"teacher.base={folder}/twin/model", "teacher.temperature=1", "teacher.logits=1")
    outcome = run(asked(folder, *twin, f"tokenizer.path={folder}/twin/tokenizer"))
    assert outcome.is_finished


def test_a_tokenizer_too_large_for_the_base_is_refused(folder, stories, data):
    tokenizer = data / "tokenizers" / "llama3" / "tokenizer.json"
    with pytest.raises(bitnet_core.FormatError, match="at most the model's 2048 tokens, got 128"):
        run(asked(folder, "method=continue", f"model.base={stories}", f"tokenizer.path={tokenizer}"))


def test_an_adapter_on_a_float_model_is_warned_of(folder, caplog):
    run(asked(folder, "model.ternary=false", "model.sub_norms=none", "model.activation=silu", "export=['masters']"))
    base = f"model.base={folder}/run/masters"
    run(asked(folder, "method=lora", base, f"out={folder}/adapted", "schedule.steps=1"))
    assert "its floats are rounded to ternary as they stand, which it never learned" in caplog.text


def test_windows_wider_than_the_base_was_made_for_are_refused(folder, stories):
    with pytest.raises(ValueError, match=r"data.window: at most the context of .*, 512, got 1024"):
        run(asked(folder, "method=continue", f"model.base={stories}", "data.window=1024", "data.held_out=0"))


def test_questions_and_answers_without_a_template_are_joined_with_a_word(folder, stories, caplog):
    (folder / "chat.json").write_text(json.dumps([{"instruction": "Say ho.", "output": "ho"}] * 99))
    run(asked(folder, "method=sft", f"model.base={stories}", f"data.train={folder}/chat.json", "schedule.steps=1"))
    assert "no chat template (tokenizer.template): questions and answers are joined as they stand" in caplog.text


def test_conversations_that_are_cut_before_their_answers_are_left_out(folder, stories, caplog):
    talks = [{"prompt": "Say ho, please. " * 9, "completion": "ho"}, {"prompt": "Say ho.", "completion": "ho"}]
    (folder / "chat.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks * 50))
    few = ("data.batch=1", "data.rows=1", "schedule.steps=6", "data.window=16")
    run(asked(folder, "method=sft", f"model.base={stories}", f"data.train={folder}/chat.jsonl", *few))
    assert "48 documents are longer than a window of 16 tokens and are cut; 48 lose their answers" in caplog.text
    (folder / "chat.jsonl").write_text(json.dumps(talks[0]))
    with pytest.raises(bitnet_core.FormatError, match="windows: expected an answer in the first 16 tokens"):
        run(
            asked(
                folder,
                "method=sft",
                f"model.base={stories}",
                f"data.train={folder}/chat.jsonl",
                *few,
                f"out={folder}/long",
            )
        )


WRONG = [
    (["--set", "data.train=['none.txt']"], "none.txt: file: expected a regular file, got no such file"),
    (["--set", "data.windo=3"], "data.windo: expected a key that is known, got 'data.windo'; did you mean 'window'?"),
    (["--set", "data.window=64"], "data.window: expected at most the model's context of 32, got 64"),
    (["--set", "compute.device=tpu"], "this machine has no device 'tpu'"),
    (["--set", "compute.parallel=shard"], "shards need several processes"),
    (["--set", "method=sft", "--set", "model.base=./none"], "none"),
    (["--set", "optimizer.learning_rate=1e-4x"], 'expected a number, got "1e-4x"'),
    (["--set", "data.batch=3", "--set", "data.rows=3", "--set", "telemetry.writers=['paper']"], "not paper"),
    (["--set", "export=['packed', 'tq2_0']"], "tq2_0 holds a multiple of 256 columns, a 16 x 16 matrix has 16"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(folder, capsys, arguments, said):
    assert main([str(folder / "run.toml"), *arguments]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert complaint.startswith("bitnet: error: ")
    assert said.replace("'data.windo'", "'windo'") in complaint


def test_a_folder_that_cannot_be_made_is_named(folder, capsys):
    assert main([str(folder / "run.toml"), "--set", f"out={folder}/text.txt/run"]) == 2
    assert "text.txt/run/checkpoints: Not a directory" in capsys.readouterr().err


def test_data_that_moved_is_the_same_data(folder):
    run(asked(folder, "schedule.steps=3"))
    (folder / "text.txt").rename(folder / "moved.txt")
    run(asked(folder, "schedule.steps=3", f"data.train=['{folder}/moved.txt']"), resume=True)


def test_the_template_of_all_settings_is_a_config(capsys, tmp_path):
    assert main(["--template"]) == 0
    path = tmp_path / "all.toml"
    path.write_text(capsys.readouterr().out)
    assert config.load(path) == Config()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own of 700 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("NO MOUNT: needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_where_there_is_room(folder, disk, capsys):
    usual = ["--set", f"out={disk}/run", "--set", "checkpoints.every=1", "--set", "schedule.steps=12"]
    assert main([str(folder / "run.toml"), *usual, "--set", "checkpoints.keep=20"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "No space left on device" in said
    assert "the last checkpoint is whole, and the run can be resumed from it" in said
    saved = Checkpoints(disk / "run" / "checkpoints").newest()
    assert saved is not None
    shutil.copytree(disk / "run", folder / "run")
    assert run(asked(folder, "schedule.steps=12"), resume=True).is_finished


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bitnet_training", str(folder / "run.toml"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_who_asks_for_the_end_gets_it_with_a_checkpoint(folder):
    with start(folder, "--set", "schedule.steps=100000", "--set", "checkpoints.every=50000") as running:
        assert running.stdout
        while "5/100000" not in running.stdout.readline():
            pass
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "SIGTERM: this step is finished and saved" in said
    saved = Checkpoints(folder / "run" / "checkpoints").newest()
    assert saved is not None
    assert saved.step >= 5
    assert read_lines(folder / "run" / "log.jsonl")[-1]["step"] == saved.step
