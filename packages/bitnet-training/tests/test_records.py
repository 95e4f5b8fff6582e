"""Records come from files of every kind, and what is wrong with one is said with file and line."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core import FormatError
from bitnet_training import records
from bitnet_training.records import BadRecords, Record


def read(*files: Path | str, limit: int = 0, **options) -> list[Record]:
    options.setdefault("chat", False)
    return list(records.read(records.find([str(file) for file in files]), bad=BadRecords(limit), **options))


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(path: Path, *values: object) -> Path:
    return write(path, "".join(json.dumps(value) + "\n" for value in values))


def test_a_text_is_one_document_unless_something_stands_between(tmp_path):
    file = write(tmp_path / "a.txt", "one\ntwo<END>\nthree\n<END>four")
    assert [record.text for record in read(file)] == ["one\ntwo<END>\nthree\n<END>four"]
    found = read(file, separator="<END>")
    assert [(record.text, record.where[-2:]) for record in found] == [
        ("one\ntwo", ":1"),
        ("three", ":2"),
        ("four", ":4"),
    ]


def test_byte_order_marks_and_carriage_returns_are_no_text(tmp_path):
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo"))[0].text == "one\ntwo"
    assert read(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n'))[1].text == "b"


def test_a_long_text_comes_in_pieces_that_make_it_up(tmp_path):
    text = "".join(f"line {number} of some more\n" for number in range(100_000))
    found = read(write(tmp_path / "a.txt", text))
    assert len(found) > 1
    assert "".join(record.text for record in found) == text
    assert [record.continues for record in found] == [False] + [True] * (len(found) - 1)
    assert found[1].where == f"{tmp_path / 'a.txt'}:{found[0].text.count(chr(10)) + 1}"


@pytest.mark.parametrize("separator", ["\n\n", "<|END|>", "#"])
def test_marks_across_blocks_are_found(tmp_path, monkeypatch, separator):
    monkeypatch.setattr(records, "_BLOCK", 7)
    texts = [f"document {number}" for number in range(20)]
    found = read(write(tmp_path / "a.txt", separator.join(texts)), separator=separator)
    assert [record.text for record in found] == texts


def test_conversations_come_in_the_usual_forms(tmp_path):
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    file = lines(
        tmp_path / "a.jsonl",
        {"messages": said},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"prompt": "hi", "completion": "ho"},
        {"prompt": "hi", "response": "ho"},
        {"instruction": "hi", "input": "", "output": "ho"},
        {"question": "hi", "answer": "ho"},
        {"conversation": [{"from": "user", "value": "hi"}, {"from": "chatgpt", "value": "ho"}]},
        {"conversations": [{"role": "user", "value": "hi"}, {"role": "assistant", "value": "ho"}]},
        {"prompt": said[:1], "completion": said[1:]},
        {"prompt": said[:1], "completion": "ho"},
        {"instruction": "hi", "context": "", "response": "ho", "category": "greeting"},
        {"query": "hi", "response": "ho"},
        {"input": "hi", "output": "ho"},
        {"instruction": "hi", "input": "", "output": "ho", "system": "", "history": []},
    )
    assert [list(record.messages) for record in read(file, chat=True)] == [said] * 14
    file = lines(tmp_path / "b.jsonl", {"instruction": "sum", "input": "1 2", "output": "3"})
    assert read(file, chat=True)[0].messages[0]["content"] == "sum\n\n1 2"


def test_what_stands_beside_the_messages_is_not_lost(tmp_path):
    told = {"role": "system", "content": "Be brief."}
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    file = lines(
        tmp_path / "a.jsonl",
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"system_prompt": "Be brief.", "question": "hi", "response": "ho"},
        {"system": "Be kind.", "messages": [told, *said]},
    )
    assert [list(record.messages) for record in read(file, chat=True)] == [[told, *said]] * 3
    file = lines(tmp_path / "b.jsonl", {"instruction": "and 2?", "output": "4", "history": [["1 and 1?", "2"]]})
    assert [message["content"] for message in read(file, chat=True)[0].messages] == ["1 and 1?", "2", "and 2?", "4"]
    tools = [{"type": "function", "function": {"name": "add"}}]
    file = lines(
        tmp_path / "c.jsonl", {"messages": said, "tools": tools}, {"messages": said, "tools": json.dumps(tools)}
    )
    assert [list(record.tools) for record in read(file, chat=True)] == [tools, tools]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    assert len(read(lines(tmp_path / "d.jsonl", {"messages": [said[0], call]}), chat=True)) == 1


@pytest.mark.parametrize(("name", "block"), [("a.json", 1 << 20), ("a.json", 7), ("A.JSON", 64), ("a.json.gz", 50)])
def test_lists_in_json_files_are_read_value_by_value(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(records, "_BLOCK", block)
    texts = [{"text": "one, [two] {three"}, {"text": 'fünf "\\', "n": [{}, 1.5]}, {"text": "end"}]
    for written in (
        json.dumps(texts, indent=1),
        json.dumps(texts, ensure_ascii=False),
        "\n".join(map(json.dumps, texts)),
    ):
        file = write(tmp_path / name, gzip.compress(written.encode()) if name.endswith("gz") else written)
        assert [record.text for record in read(file)] == [value["text"] for value in texts]
    file = write(tmp_path / "b.json", json.dumps(texts, indent=1))
    assert [record.where.rpartition(":")[2] for record in read(file)] == ["2", "5", "12"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"text": "a"},\n {"text" 3}]', ":2: JSON: expected ':' delimiter"),
        ('[{"text": "a"},\n', ":2: JSON: expected ']' behind the last record, got the end of the file"),
        ('[{"text": "a"}]\n[1]', ":2: JSON: expected nothing behind the list"),
        ('[\n{"text": "a", "text": "b"}]', ":2: key 'text': expected to stand once"),
        ("[" * 100_000, ":1: JSON"),
        (b'[{"text":\n "\xff"}]', ":2: text: expected UTF-8, got byte 0xff"),
        ('[{"text": "a"}, 3]', ":1: record: expected an object, got int"),
    ],
)
def test_a_bad_value_of_a_list_is_named(tmp_path, text, said):
    file = write(tmp_path / "a.json", text)
    with pytest.raises(FormatError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}{said}")


BAD = [
    (b'{"text": "a"', "JSON"),
    (b'{"text": 3}', "text: expected a text, got int"),
    (b'{"txt": "a"}', "text: expected a text, got keys txt; data.field names another key"),
    (b'{"text": null}', "text: expected a text, got null"),
    (b'{"text": NaN}', "finite"),
    (b'{"text": "a", "text": "b"}', "once"),
    (b'{"text": "  "}', "at least one letter"),
    (b'{"text": "\\ud800"}', "lone surrogate"),
    (b'{"text": "\xff"}', "UTF-8"),
    (b"[1]", "an object, got list"),
    (b"[" * 100_000, "levels"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_a_bad_line_is_named(tmp_path, line, said):
    file = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b'\n{"text": "more"}\n')
    with pytest.raises(FormatError, match=said) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}:2: ")
    assert [record.text for record in read(file, limit=1)] == ["good", "more"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"messages": []}, "1..2048 messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": "a"}]}, "an answer of the assistant"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "an answer of the assistant"),
        ({"prompt": "a"}, "messages, conversations, or prompt, .* with completion, .* got prompt"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
            "an answer",
        ),
        ({"prompt": "a", "completion": "b", "history": [["c"]]}, "pairs of a question and its answer"),
        ({"prompt": "a", "completion": "b", "tools": "{"}, "tools: expected a list, or one as JSON"),
        ({"prompt": "\ud800", "completion": "b"}, r"messages\[0\].content: expected Unicode, got a lone surrogate"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, r"messages\[0\].role"),
        ({"prompt": "a", "completion": None}, r"messages\[1\].content"),
        ({"conversations": [{"from": "human"}, 3]}, "messages"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path, value, said):
    file = lines(tmp_path / "a.jsonl", value)
    with pytest.raises(FormatError, match=f"a.jsonl:1: .*{said}"):
        read(file, chat=True)


def test_bad_records_are_left_out_up_to_their_limit(tmp_path, caplog):
    file = write(tmp_path / "a.jsonl", b"\n".join(line for line, _ in BAD))
    assert read(file, limit=len(BAD)) == []
    assert "left out (11 of at most 11)" in caplog.text
    with pytest.raises(FormatError, match=":11: "):
        read(file, limit=len(BAD) - 1)


def test_a_letter_that_is_none_is_found_on_its_line(tmp_path):
    with pytest.raises(FormatError, match=r"a.txt:3: text: expected UTF-8, got byte 0xff"):
        read(write(tmp_path / "a.txt", b"one\ntwo\nthr\xffee\n"))


def test_a_record_beyond_all_measure_is_left_out_in_little_memory(tmp_path):
    file = tmp_path / "a.jsonl"
    with file.open("wb") as stream:
        stream.write(b'{"text": "one"}\n{"text": "')
        for _ in range(300):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n{"text": "two"}\n')
    code = (
        "import resource, sys; from bitnet_training import records;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "found = list(records.read([sys.argv[1]], chat=False, bad=records.BadRecords(1)));"
        "print([one.where[-2:] for one in found], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True).stdout
    found, grown = said.rsplit(maxsplit=1)
    assert found == "[':1', ':3']"
    assert int(grown) < 150_000  # KiB
    assert resource.RUSAGE_SELF == 0


def test_packed_files_are_read_and_cut_ones_refused(tmp_path):
    packed = gzip.compress(b'{"text": "one"}\n' * 1000)
    assert len(read(write(tmp_path / "a.jsonl.gz", packed))) == 1000
    for bad in (packed[:-9], b"no gzip", packed[:30] + bytes(20) + packed[50:]):
        with pytest.raises(FormatError, match="gzip: expected a whole file"):
            read(write(tmp_path / "b.jsonl.gz", bad), limit=9)


def test_columns_of_parquet_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert [record.where[-2:] for record in read(tmp_path / "a.parquet", limit=1)] == [":1", ":3"]
    with pytest.raises(FormatError, match=r"a.parquet:2: text"):
        read(tmp_path / "a.parquet")
    with pytest.raises(FormatError, match="parquet: expected a whole file"):
        read(write(tmp_path / "b.parquet", b"PAR1 and no more"))


def test_a_saved_dataset_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "saved")
    name = f"datasets:{tmp_path / 'saved'}:train"
    assert [record.text for record in read(name)] == ["one", "two"]
    assert records.digest([name]) == records.digest([name])


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.txt", "no such file"), ("", "a folder.*name its files"), ("*.nothing", "none"), ("a.bin", "ends in .txt")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, said):
    write(tmp_path / "a.bin", "x")
    with pytest.raises(FormatError, match=said):
        read(f"{tmp_path}/{name}")


def test_an_empty_file_and_plain_text_as_conversation_are_refused(tmp_path):
    with pytest.raises(FormatError, match="an empty file"):
        read(write(tmp_path / "a.txt", ""))
    with pytest.raises(FormatError, match=r"a conversation .*, got plain text"):
        read(write(tmp_path / "b.txt", "hello"), chat=True)


def test_patterns_are_spelled_out_in_order_and_the_digest_follows_the_words(tmp_path):
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a.txt", "a")
    found = records.find([f"{tmp_path}/*.txt"])
    assert [Path(name).name for name in found] == ["a.txt", "b.txt"]
    before = records.digest(found)
    assert records.digest(found) == before != records.digest(found[::-1])
    write(tmp_path / "b.txt", "c")
    assert records.digest(found) != before


@given(st.binary(max_size=300), st.sampled_from(["", "\n\n", "#"]), st.booleans())
def test_no_bytes_bring_down_a_reader(tmp_path_factory, content, separator, chat):
    folder = tmp_path_factory.getbasetemp()
    for name in ("any.txt", "any.json", "any.jsonl", "any.jsonl.gz", "any.parquet"):
        file = write(folder / name, content)
        try:
            read(file, limit=2, separator=separator, chat=chat)
        except FormatError as error:
            assert "\n" not in str(error)  # noqa: PT017


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), max_size=20))
def test_texts_come_back_as_they_were_written(tmp_path_factory, texts):
    file = lines(tmp_path_factory.getbasetemp() / "back.jsonl", *({"text": text} for text in texts), {"text": "end"})
    assert [record.text for record in read(file)] == [*texts, "end"]
