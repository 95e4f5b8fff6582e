"""Bad input and bad usage: the right exit code, one line on stderr, nothing on stdout, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import STORIES, Bitnet

# Commands that take a model first, with what else they must be given; {out} is a new name.
WITH_MODEL: dict[str, tuple[str, ...]] = {
    "tokenize": ("text",),
    "template": (),
    "show": (),
    "cp": ("{out}",),
    "inspect": (),
    "verify": (),
    "diff": (str(STORIES),),
    "convert": ("{out}.gguf",),
    "quantize": ("{out}.gguf",),
    "report": (str(STORIES),),
    "fit": (),
    "bench generate": (),
    "bench rivals": (),
    "bench quality": ("text.txt",),
    "run": ("prompt",),
    "chat": (),
    "ppl": ("text.txt",),
    "eval": ("questions.jsonl",),
    "tune": (),
}
BAD_MODELS = (
    "missing",
    "missing.gguf",
    "empty.gguf",
    "short.gguf",
    "page.gguf",
    "noise.gguf",
    "empty-folder",
    "config-only",
    "zero",
    "fifo",
    "loop",
    "unreadable.gguf",
    "org/model/more",
    "http://127.0.0.1/model",
    "../..//..",
    "line\nbreak",
    "\x1b[31mred",
    "bad-\udcff-name.gguf",
    "x" * 100_000,
)
WITHOUT_MODEL = (
    "pull org/model",
    "search",
    "ls",
    "rm org/model",
    "du",
    "login",
    "backends",
    "env",
    "doctor",
    "completion bash",
    "bench machine",
    "bench kernels",
    "bench synth --output {out}.gguf",
    "bench suite {out}.toml",
    "bench compare last-1 last",
    "bench history",
    "setup --yes",
    "new app {out}",
    "backup {out}.tar",
    "restore taken.gguf",
    "update --check",
    "config",
    "jobs",
    "logs",
    "bench train",
)
STORY = str(STORIES)
USAGE = (
    f"run {STORY} prompt --raw --system kind",
    f"run {STORY} prompt --system kind",
    f"run {STORY} prompt --file text.txt",
    f"run {STORY} prompt --max-tokens 0",
    f"run {STORY} prompt --temperature hot",
    f"run {STORY} prompt --temperature 101",
    f"run {STORY} prompt --top-p 1.1",
    f"run {STORY} prompt --top-k -1",
    f"run {STORY} prompt --min-p inf",
    f"run {STORY} prompt --repetition-penalty 0",
    f"run {STORY} prompt --seed one",
    f"run {STORY} prompt --schema text.txt",
    f"run {STORY} prompt --schema empty-folder",
    f"run {STORY} prompt --backend none",
    f"run {STORY} prompt --threads 0",
    f"run {STORY} prompt --threads 1e9",
    f"run {STORY} prompt --context 0",
    f"run {STORY} prompt --context 1Ti",
    f"run {STORY} prompt --context 4kB",
    f"run {STORY} prompt --memory lots",
    f"run {STORY} prompt --head f8",
    f"run {STORY} prompt --adapter empty-folder",
    f"run {STORY} --file no-such-file",
    f"run {STORY} --file zero",
    f"run {STORY} --file short.txt",
    f"run {STORY} one two three",
    f"chat {STORY} --load no-such-file",
    f"chat {STORY} --load text.txt",
    f"chat {STORY} extra",
    "batch",
    "batch text.txt",
    "batch text.txt {out}.jsonl",
    "batch no-such-file {out}.jsonl",
    "batch short.txt {out}.jsonl",
    "batch zero {out}.jsonl",
    "batch questions.jsonl {out}.jsonl",
    "batch prompts.jsonl prompts.jsonl",
    "batch prompts.jsonl taken.gguf",
    "batch prompts.jsonl empty-folder",
    "batch prompts.jsonl no-such-folder/out.jsonl",
    "batch prompts.jsonl {out}.jsonl --parallel 0",
    "batch prompts.jsonl {out}.jsonl --parallel 9k",
    "batch prompts.jsonl {out}.jsonl --model missing",
    "batch prompts.jsonl {out}.jsonl --backend none",
    "logs no-such-file",
    "logs text.txt",
    "logs noise.gguf",
    "logs empty-folder",
    "logs zero",
    "logs fifo",
    "logs loop",
    "logs bad-\udcff-name.gguf",
    "logs text.txt --since soon",
    "logs text.txt --follow --json",
    "logs text.txt short.txt --follow",
    "logs --follow zero",
    "serve --queue 0",
    "embed --file no-such-file",
    "embed --file short.txt",
    "embed text --file text.txt",
    "embed text --model missing",
    "embed text --backend none",
    f"ppl {STORY} short.txt",
    f"ppl {STORY} no-such-file",
    f"ppl {STORY} text.txt --stride 0",
    f"ppl {STORY} text.txt --stride 100k",
    f"eval {STORY}",
    f"eval {STORY} no-such-file",
    f"eval {STORY} text.txt",
    f"eval {STORY} short.txt",
    f"eval {STORY} questions.jsonl --limit 0",
    f"tune {STORY} --threads 0",
    f"tune {STORY} --rounds 1k",
    f"tune {STORY} --aim both",
    "setup",
    "setup --yes --model nonsense",
    "new",
    "new app",
    "new other {out}",
    "new app taken.gguf",
    "new app no-such-folder/app",
    "backup",
    "backup {out}.zip",
    "backup taken.gguf",
    "backup no-such-folder/b.tar",
    "backup {out}.tar --model org/model",
    "restore",
    "restore no-such-file",
    "restore empty-folder",
    "restore empty.gguf",
    "restore zero",
    "restore --rollback",
    "restore taken.gguf --rollback",
    "update",
    "bench generate missing --through both",
    "train",
    "train no-such-file.toml",
    "train empty-folder",
    "train broken.toml",
    "train other.toml",
    "train run.toml --set data.batch=0",
    "train run.toml --set data.batch",
    "train run.toml --set optimizer.learning_rat=1",
    "train run.toml --set optimizer.learning_rate=-1",
    "train run.toml --set optimizer.learning_rate=nan",
    "train run.toml --set method=sft",
    "train misspelt.toml",
    "config no-such-file.toml",
    "config broken.toml",
    "config misspelt.toml",
    "config run.toml --set model.heads=3",
    "config --set data.batch=2",
    f"finetune {STORY}",
    f"finetune {STORY} no-such-file",
    f"finetune {STORY} text.txt --method best",
    f"finetune {STORY} text.txt --steps 0",
    f"finetune {STORY} text.txt --batch 0",
    f"finetune {STORY} text.txt --rank 0",
    f"finetune {STORY} text.txt --learning-rate -1 --out {{out}}",
    f"finetune {STORY} text.txt --set nothing --out {{out}}",
    "finetune nonsense text.txt",
    f"distill {STORY}",
    f"distill {STORY} no-such-file",
    f"distill {STORY} text.txt --temperature 0 --out {{out}}",
    "distill nonsense text.txt",
    f"merge {STORY} no-such-adapter {{out}}",
    f"merge {STORY} empty-folder {{out}}",
    f"merge {STORY} text.txt {{out}}",
    "merge missing empty-folder {out}",
    "export missing {out}",
    "export empty-folder {out}",
    f"export {STORY} {{out}}",
    "jobs missing",
    "jobs text.txt",
    "jobs empty-folder --stop",
    "jobs empty-folder --stop --report",
    "bench train --steps 0",
    "bench train --output no-such-folder/page.html",
    "nonsense",
    "lss",
    "bench nonsense",
    "ls extra",
    "du extra",
    "env extra",
    "tokenize",
    "template",
    "show",
    "cp",
    f"cp {STORY}",
    "inspect",
    "verify",
    f"diff {STORY}",
    f"convert {STORY}",
    f"quantize {STORY}",
    f"report {STORY}",
    "completion",
    "completion tcsh",
    "pull",
    f"pull {STORY}",
    "pull nonsense",
    "pull org/model --revision ..",
    "pull org/model@a --revision b",
    "pull org/model:weights.bin",
    "rm",
    f"rm {STORY}",
    "rm nonsense",
    "rm org/model:file.gguf",
    "rm --unused-for soon",
    "rm --unused-for -3d",
    "rm --unused-for",
    "login --stdin --status",
    "login",
    "search --limit 0",
    "search --limit -1",
    "search --limit 1e9",
    "search --limit abc",
    "search --limit 2000",
    "search --limit 1.5",
    f"tokenize {STORY} text --file also",
    f"tokenize {STORY} text --bos maybe",
    f"tokenize {STORY} --file no-such-file",
    f"tokenize {STORY} --file zero",
    f"tokenize {STORY} --file fifo",
    f"tokenize {STORY} --file empty-folder",
    f"tokenize {STORY} --file latin1.txt",
    f"tokenize {STORY} abc --decode",
    f"tokenize {STORY} 99999999 --decode",
    f"tokenize {STORY} -5 --decode",
    f"tokenize {STORY} 1 --decode --count",
    f"tokenize {STORY} one two three",
    f"template {STORY}",
    f"template {STORY} --user a --messages b",
    f"template {STORY} --messages no-such-file",
    f"inspect {STORY} --tensors=perhaps",
    f"inspect {STORY} --tensors --tensors",
    f"verify {STORY} --backend none",
    f"verify {STORY} --against missing",
    f"convert {STORY} {{out}}.gguf --to tq9",
    f"convert {STORY} {{out}}.gguf --to hf_multiply",
    f"convert {STORY} {{out}} --to tq2_0",
    f"convert {STORY} {{out}}.gguf --group 32",
    f"convert {STORY} taken.gguf",
    f"convert {STORY} {STORY}",
    f"convert {STORY} {{out}}.gguf --to",
    f"quantize {STORY} {{out}}.gguf --method best",
    f"quantize {STORY} {{out}}.gguf --scales block",
    f"quantize {STORY} {{out}}.gguf --block 32",
    f"quantize {STORY} {{out}}.gguf --scales block --block 0",
    f"quantize {STORY} {{out}}.gguf --budget 2",
    f"quantize {STORY} {{out}}.gguf --budget 99 --calibrate text.txt",
    f"quantize {STORY} {{out}}.gguf --budget nan --calibrate text.txt",
    f"quantize {STORY} {{out}}.gguf --compensate",
    f"quantize {STORY} {{out}}.gguf --recipe no-such-file",
    f"quantize {STORY} {{out}}.gguf --recipe broken.toml",
    f"quantize {STORY} {{out}}.gguf --recipe other.toml",
    f"quantize {STORY} {{out}}.gguf --recipe broken.toml --compensate",
    f"quantize {STORY} {{out}}.gguf --calibrate no-such-file",
    f"quantize {STORY} {{out}}.gguf --window 1 --calibrate text.txt",
    f"report {STORY} {STORY} --output taken.gguf",
    f"report {STORY} {STORY} --backend none",
    f"report {STORY} {STORY} --windows 0",
    f"cp {STORY} {STORY}",
    f"cp {STORY} {STORY}/inside",
    f"cp {STORY}/config.json taken.gguf",
    f"fit {STORY} --context 0",
    f"fit {STORY} --context 1e99",
    f"fit {STORY} --context 1Zi",
    f"fit {STORY} --context 2^40",
    f"fit {STORY} --context 100k",
    f"fit {STORY} --threads 0",
    f"fit {STORY} --threads -1",
    f"fit {STORY} --threads 1e9",
    f"fit {STORY} --threads 1000000000",
    f"fit {STORY} --threads abc",
    f"fit {STORY} --threads",
    f"fit {STORY} --parallel 0",
    f"fit {STORY} --parallel 99k",
    "keys create",
    "keys create Ann --role king --keys k.sqlite",
    "keys create Ann --budget -1 --keys k.sqlite",
    "keys create Ann --budget 1e99 --keys k.sqlite",
    "keys create Ann --lasts soon --keys k.sqlite",
    "keys create Ann --period year --keys k.sqlite",
    "keys list --keys nowhere.sqlite",
    "keys list --keys text.txt",
    "keys revoke",
    "keys revoke nobody --keys nowhere.sqlite",
    "keys rotate nobody --keys nowhere.sqlite",
    "keys usage --by week --keys nowhere.sqlite",
    "keys usage --last soon --keys nowhere.sqlite",
    "keys audit nowhere.jsonl",
    "keys bill --send --keys nowhere.sqlite",
    "keys burn",
    "serve --port 70000",
    "serve --port -1",
    "serve --port x",
    "serve nowhere",
    "serve --sequences 0",
    "serve --threads 0",
    "serve --backend none",
    "serve --memory lots",
    "serve --drain -1",
    "serve --issuer https://example.org",
    "serve --audience us",
    "serve --adapter nothing",
    "serve --host 0.0.0.0",
    "bench machine --threads 0",
    "bench machine --threads 1,x",
    "bench machine --threads 5000",
    "bench machine --threads ,",
    "bench machine --backend none",
    "bench machine --output page.pdf",
    "bench machine --output no-such-folder/page.html",
    "bench kernels --case none",
    "bench kernels --backend none",
    "bench synth",
    "bench synth --output model.bin",
    "bench synth --output taken.gguf",
    "bench synth --output {out}.gguf --shape huge",
    "bench synth --output {out}.gguf --layout tl1",
    "bench synth --output {out}.gguf --layers 0",
    "bench synth --output {out}.gguf --layers 1000",
    "bench synth --output {out}.gguf --shape tiny --embedding q5",
    "bench synth --output {out}.gguf --seed -1",
    f"bench generate {STORY} --prompt 0",
    f"bench generate {STORY} --prompt 100k",
    f"bench generate {STORY} --tokens many",
    f"bench generate {STORY} --threads 0",
    f"bench generate {STORY} --threads , --prompt 8 --tokens 2",
    f"bench generate {STORY} --batches , --prompt 8 --tokens 2",
    f"bench generate {STORY} --depths -1",
    f"bench generate {STORY} --depths 10k",
    f"bench generate {STORY} --batches 0",
    f"bench generate {STORY} --rounds 100k",
    f"bench generate {STORY} --head f8",
    f"bench generate {STORY} --backend none --prompt 8 --tokens 2",
    f"bench rivals {STORY} --llama-python no-such-python",
    f"bench quality {STORY}",
    f"bench quality {STORY} no-such-file",
    f"bench quality {STORY} short.txt",
    f"bench quality {STORY} text.txt --window 2",
    f"bench quality {STORY} text.txt --window 4k",
    f"bench quality {STORY} text.txt --backend none",
    "bench suite no-such-file.toml",
    "bench suite broken.toml",
    "bench suite other.toml",
    "bench suite empty.toml",
    "bench suite empty-folder",
    "bench compare last-1 last",
    "bench compare no-such-file.json last",
    "bench compare text.txt text.txt",
    "bench compare a.json a.json",
    "bench history --kind other",
    "bench history --limit 0",
    "ls --config no-such-file.toml",
    "ls --config broken.toml",
    "ls --config empty-folder",
    "ls --config settings-other.toml",
    "ls --config settings-key.toml",
    "ls --config settings-type.toml",
    "ls --json=perhaps",
    "ls --cache",
    "ls --json --json",
)


def table() -> Iterator[list[str]]:
    for command, more in WITH_MODEL.items():
        for model in BAD_MODELS:
            yield [*command.split(), model, *more]
        yield [*command.split(), STORY, *more, "--no-such-flag"]
        yield [*command.split(), STORY, *more, "--thraeds", "3"]
    for command in WITHOUT_MODEL:
        yield [*command.split(), "--no-such-flag"]
        yield [*command.split(), "--no-such-flag=3"]
    for line in USAGE:
        yield line.split(" ")


TABLE = list(table())
FAILED = {"pull", "search", "login", "update"}  # what asks the network may also fail because it is off


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that can be wrong with a file."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "short.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 40)
    (folder / "page.gguf").write_text("<!doctype html><p>not found</p>" * 20)
    (folder / "noise.gguf").write_bytes(bytes(range(256)) * 64)
    (folder / "bad-\udcff-name.gguf").write_bytes(b"GGUF")
    (folder / "empty-folder").mkdir()
    (folder / "config-only").mkdir()
    (folder / "config-only" / "config.json").write_text("{}")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    (folder / "unreadable.gguf").write_bytes(b"")
    (folder / "unreadable.gguf").chmod(0)
    (folder / "taken.gguf").write_bytes(b"mine")
    (folder / "text.txt").write_text("Once upon a time there was a little girl. " * 200)
    (folder / "short.txt").write_text("")
    (folder / "latin1.txt").write_bytes(b"caf\xe9")
    (folder / "broken.toml").write_text("[[rule]\nmatch = ")
    (folder / "other.toml").write_text('[other]\nkey = 1\n[[machine]]\nthread = "many"\n')
    (folder / "empty.toml").write_text("")
    (folder / "run.toml").write_text('[data]\ntrain = ["text.txt"]\n')
    (folder / "misspelt.toml").write_text("[optimizer]\nlearning_rat = 1e-3\n")
    (folder / "questions.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    (folder / "prompts.jsonl").write_text('{"prompt": "Once"}\n')
    (folder / "a.json").write_text('{"format": 99}')
    (folder / "settings-other.toml").write_text("[lss]\njson = true\n")
    (folder / "settings-key.toml").write_text("[ls]\njsno = true\n")
    (folder / "settings-type.toml").write_text('[ls]\njson = "perhaps"\n')
    return folder


def test_the_table_is_long() -> None:
    assert len(TABLE) >= 600
    assert len({tuple(row) for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: ascii(" ".join(row)).replace(STORY, "STORY")[1:60])
def test_bad_input_is_refused_in_one_line(row: list[str], place: Path, bitnet: Bitnet) -> None:
    before = sorted(place.iterdir())
    said = bitnet(*(token.replace("{out}", str(place / "new")) for token in row))
    expected = {1, 2} if row[0] in FAILED else {2}
    assert said.code in expected, said
    assert said.err.endswith("\n")
    lines = said.err.splitlines()
    assert sum(line.startswith("bitnet: error: ") for line in lines) == 1
    assert lines[-1].startswith("bitnet: error: ")
    assert len(lines[-1]) < 700
    assert lines[-1].isprintable()
    assert "Traceback" not in said.err
    assert "fault of bitnet" not in said.err
    assert said.out == ""
    assert sorted(place.iterdir()) == before
    assert (place / "taken.gguf").read_bytes() == b"mine"


@pytest.mark.parametrize("row", TABLE[:: len(TABLE) // 12], ids=lambda row: ascii(" ".join(row))[1:60])
def test_bad_input_ends_a_process_the_same_way(row: list[str], place: Path) -> None:
    arguments = [token.replace("{out}", "new").encode("utf-8", "surrogateescape") for token in row]
    command = [sys.executable, "-c", "from bitnet_cli.main import command_line; command_line()"]
    done = subprocess.run(
        [*command, *arguments, b"--offline"], capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode in (1, 2), done
    assert done.stderr.count(b"bitnet: error: ") == 1
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""
