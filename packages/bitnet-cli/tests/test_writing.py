"""Commands that write text, with the small model that is built in."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
from command import Bitnet


def feed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_prompt_is_continued(bitnet: Bitnet) -> None:
    said = bitnet("run", "--prompt", "Once upon a time", "-n", "8", "--temperature", "0")
    assert said.code == 0
    assert said.out.startswith("Once upon a time")
    assert len(said.out) > 25
    assert bitnet("run", "--prompt", "Once upon a time", "-n", "8", "--temperature", "0").out == said.out


def test_words_alone_are_a_prompt(bitnet: Bitnet) -> None:
    said = bitnet("run", "Once upon a time", "-n", "8", "--temperature", "0")
    assert said.out == bitnet("run", "--prompt", "Once upon a time", "-n", "8", "--temperature", "0").out


def test_a_prompt_comes_through_a_pipe(bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, "Once upon a time")
    said = bitnet("run", "-n", "6", "--seed", "1", "--stats", "--json").json
    assert said["usage"]["completion_tokens"] == 6
    assert said["finish_reason"] == "length"


@pytest.mark.parametrize("text", ["time, there was\na girl", "time, there was\na girl\n"])
def test_what_is_piped_in_follows_the_prompt(
    text: str, bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = ("run", "stories", "Once upon a", "-n", "4", "--json")
    whole = "Once upon a\n\ntime, there was\na girl"
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:  # noqa: PTH123  # it has a number, no name
        monkeypatch.setattr(sys, "stdin", pipe)
        assert bitnet(*asked).json["prompt"] == whole
        assert bitnet(*asked).json["prompt"] == "Once upon a"  # nothing more comes
    kept = tmp_path / "text"
    kept.write_text(text)
    with kept.open(encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert bitnet("run", "Once upon a", "-n", "4", "--json").json["prompt"] == whole
    assert bitnet(*asked, "--file", kept).json["prompt"] == whole


def test_the_end_of_the_last_line_is_no_part_of_a_prompt(bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ((), ("--prompt", "-"), ("--file", "-")):
        feed(monkeypatch, "Once upon a time\n")
        assert bitnet("run", *words, "-n", "2", "--json").json["prompt"] == "Once upon a time"


def test_words_without_quotes_are_refused_with_what_was_meant(bitnet: Bitnet) -> None:
    said = bitnet("run", "stories", "Once", "upon", "a", "time")
    assert said.code == 2
    assert "nothing takes 'upon a time'; a text of several words stands in quotes" in said.err


def test_help_is_a_word_too(bitnet: Bitnet) -> None:
    assert "tokenize" in bitnet("help").out
    assert bitnet("help").out == bitnet("--help").out
    assert bitnet("help", "bench").out == bitnet("bench", "--help").out
    assert bitnet("help", "run").out == bitnet("run", "--help").out


def test_a_word_that_names_no_model_is_refused_with_what_was_meant(bitnet: Bitnet) -> None:
    said = bitnet("run", "Hello")
    assert said.code == 2
    assert "--prompt 'Hello'" in said.err


def test_the_built_in_model_has_a_name(bitnet: Bitnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bitnet("tokenize", "stories", "Once upon a time", "--count").out == "5\n"
    assert bitnet("show", "stories", "--json").json["spec"]["vocab_size"] == 2048
    assert bitnet("inspect", "stories").code == 0
    assert bitnet("rm", "stories").code == 2
    (tmp_path / "stories").mkdir()  # what lies here comes first
    assert bitnet("show", "stories").code == 2


def test_an_answer_has_the_form_that_is_asked_for(bitnet: Bitnet, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}))
    said = bitnet("run", "--prompt", "A number:", "--schema", schema, "-n", "60", "--seed", "3", "--json").json
    assert said["parsed"] in ({"n": 7}, None)
    assert said["finish_reason"] in ("stop", "length")
    assert said["text"].lstrip().startswith("{")


def test_settings_of_a_text_are_checked_by_name(bitnet: Bitnet) -> None:
    for flag, value in (("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "2"), ("--top-k", "-3")):
        said = bitnet("run", "--prompt", "x", flag, value)
        assert said.code == 2
        assert flag in said.err
    assert bitnet("run", "--prompt", "x", "--schema", "no-such-file").code == 2
    assert bitnet("run", "--prompt", "x", "--adapter", "no-such-folder").code == 2
    assert bitnet("run", "--prompt", "x", "--memory", "1KiB").code in (1, 2)
    assert bitnet("run", "--prompt", "   ").code == 2
    assert bitnet("run", "--prompt", "x", "--file", "y").code == 2


def test_a_conversation_goes_line_by_line(bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    feed(
        monkeypatch,
        f'Hello\\\nagain\n/system Be kind\n/fork\n"""two\nlines"""\n/back\n/stats\n/save {kept}\n/exit\nnever\n',
    )
    said = bitnet("chat", "-n", "6")
    assert said.code == 0, said.err
    assert "mark 1 at 3 messages" in said.out
    messages = json.loads(kept.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert messages[1]["content"] == "Hello\nagain"
    feed(monkeypatch, "And then?\n/undo\n/undo\n/clear\n/help\n")
    again = bitnet("chat", "-n", "4", "--load", kept, "--json").json
    assert [message["role"] for message in again["messages"]] == ["system"]


def test_a_command_that_fails_ends_a_piped_conversation(
    bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for line in ("/nonsense", "/back", "/undo", "/load no-such-file", "/save", "/schema no-such-file"):
        feed(monkeypatch, line + "\n")
        said = bitnet("chat")
        assert said.code == 2, line
        assert said.err.splitlines()[-1].startswith("bitnet: error: ")


def test_a_batch_is_answered_in_order_and_resumed(bitnet: Bitnet, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"id": f"n{n}", "prompt": f"Once upon {n}", "max_tokens": 3} for n in range(7)]
    lines.append({"custom_id": "chat", "body": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}})
    source.write_text("\n".join(map(json.dumps, lines)) + "\n")
    first = bitnet("batch", source, target, "--parallel", "3", "--temperature", "0", "--json")
    assert first.code == 0
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["id"] for answer in answers] == [*(f"n{n}" for n in range(7)), "chat"]
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) * 2 // 3])  # as a kill may leave it
    again = bitnet("batch", source, target, "--temperature", "0", "--json").json
    assert 0 < again["before"] < 8
    texts = {answer["id"]: answer["text"] for answer in map(json.loads, target.read_text().splitlines())}
    assert texts == {answer["id"]: answer["text"] for answer in answers}
    assert bitnet("batch", source, target, "--json").json["before"] == 8


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"prompt": 3}', '{"prompt": "a", "messages": []}', '{"prompt": "a", "temprature": 1}',
     '{"prompt": "a", "temperature": -1}', '{"prompt": "a", "id": [1]}', '{"body": 3}',
     '{"prompt": "a", "max_tokens": 0}'],
)  # fmt: skip
def test_a_bad_line_is_named_before_anything_is_written(line: str, bitnet: Bitnet, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": "a", "prompt": "x"}\n\n' + line + "\n")
    said = bitnet("batch", source, tmp_path / "out.jsonl")
    assert said.code == 2
    assert "in.jsonl:3: " in said.err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_batch_never_writes_over_what_is_not_its_own(bitnet: Bitnet, tmp_path: Path) -> None:
    source, other = tmp_path / "in.jsonl", tmp_path / "other.txt"
    source.write_text('{"prompt": "x"}\n')
    other.write_text("mine\nreally\n")
    assert bitnet("batch", source, other).code == 2
    assert other.read_text() == "mine\nreally\n"
    assert bitnet("batch", source, source).code == 2
    assert bitnet("batch", source, tmp_path / "no" / "out").code == 2
    source.write_text('{"id": 1, "prompt": "x"}\n{"id": "1", "prompt": "x"}\n')
    assert "of line 1" in bitnet("batch", source, tmp_path / "out").err


def test_a_request_that_fails_has_its_line(bitnet: Bitnet, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"id": "long", "prompt": "word " * 3000}) + '\n{"id": "ok", "prompt": "x"}\n')
    said = bitnet("batch", source, target, "-n", "2", "--json")
    assert said.code == 1
    assert said.json["failed"] == 1
    found = {answer["id"]: answer for answer in map(json.loads, target.read_text().splitlines())}
    assert "error" in found["long"]
    assert "text" in found["ok"]


def test_texts_become_vectors(bitnet: Bitnet) -> None:
    said = bitnet("embed", "a cat", "a dog", "--similar", "--json").json
    assert len(said["embeddings"]) == 2
    assert said["cosines"][0][0] == pytest.approx(1, abs=1e-4)
    (line,) = bitnet("embed", "a cat").out.splitlines()
    assert len(json.loads(line)["embedding"]) == 256
    assert "a dog" in bitnet("embed", "a cat", "a dog", "--similar").out


def test_a_text_has_its_perplexity(bitnet: Bitnet, stories: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little girl. She loved to play with her mom in the park. " * 3)
    said = bitnet("ppl", stories, text, "--json").json
    assert 1 < said["perplexity"] < 100
    assert said["bytes"] == len(text.read_bytes())
    assert bitnet("ppl", stories, text, "--stride", "9k").code == 2


def test_questions_are_marked(bitnet: Bitnet, stories: Path, tmp_path: Path) -> None:
    file = tmp_path / "easy.jsonl"
    choices = {"query": "Once upon a", "choices": ["time", "zebra quantum"], "gold": 0}
    options = {"context_options": ["She was happy and", "Zx qq"], "continuation": "smiled", "gold": 0}
    last = {"context": "Once upon a", "continuation": "time"}
    file.write_text("\n".join(map(json.dumps, [choices, options, last])))
    said = bitnet("eval", stories, file, "--json").json
    assert said["marks"][0]["questions"] == 3
    assert said["marks"][0]["accuracy"] > 0.6
    assert "easy" in bitnet("eval", stories, file, "--limit", "2").out
    for bad in ('{"query": "a", "choices": ["b"], "gold": 0}', '{"query": "a", "choices": ["b", "c"], "gold": 5}', "{"):
        file.write_text(bad)
        assert "easy.jsonl:1" in bitnet("eval", stories, file).err
