"""Tokens are made once, appear at once, and are mapped; what is held out is looked for in what is learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitnet_core import FormatError
from bitnet_core.chat import ChatTemplate
from bitnet_core.tokenizer import Tokenizer
from bitnet_training import corpus, data, tokenizer
from bitnet_training.config import Config, DataConfig
from bitnet_training.overlap import Paragraphs
from bitnet_training.records import Record
from bitnet_training.windows import Stream, Whole

STORY = "Once upon a time there was a dog named Spot who liked to dig in the garden.\nThe end."
OTHER = "Once upon a time there was a cat named Tom who liked to sleep upon the warm roof.\nThe end."


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tokenizer.train([STORY, OTHER], 300, tmp_path_factory.mktemp("words"))


def lines(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def prepared(tmp_path: Path, words: Tokenizer, **asked) -> data.Data:
    asked = {"cache": str(tmp_path / "cache"), "window": 8, **asked}
    return data.prepare(Config(data=DataConfig(**asked)), words, None)


def test_every_document_has_its_beginning_and_its_end(tmp_path, words):
    found = prepared(tmp_path, words, train=(lines(tmp_path / "a.jsonl", STORY, OTHER, STORY),), held_out=0)
    made = found.learned.corpus
    assert made.counts.documents == 3
    assert made.counts.text_bytes == len(STORY + OTHER + STORY)
    for low, high, text in zip(made.starts[:-1], made.starts[1:], [STORY, OTHER, STORY], strict=True):
        assert made.tokens[low] == made.tokens[high - 1] == 0
        assert words.decode(made.tokens[low:high].astype(np.int64)) == text
    assert made.tokens.dtype == np.uint16
    assert isinstance(made.tokens.base, np.memmap)


def test_a_text_in_pieces_is_one_document(tmp_path, words):
    records = [Record("a:1", "Once upon "), Record("a:2", "a time", continues=True), Record("a:3", "The end")]
    made = corpus.prepare("key", tmp_path, lambda: corpus.Writer(records, words))
    low, middle, high = made.starts
    assert [words.decode(made.tokens[low:middle].astype(int)), words.decode(made.tokens[middle:high].astype(int))] == [
        "Once upon a time",
        "The end",
    ]


def test_tokens_are_made_once_for_the_same_words_and_again_for_others(tmp_path, words, monkeypatch):
    file = lines(tmp_path / "a.jsonl", STORY)
    first = prepared(tmp_path, words, train=(file,), held_out=0)
    with monkeypatch.context() as patched:
        patched.setattr(corpus.Writer, "publish", lambda *_: pytest.fail("made again"))
        assert prepared(tmp_path, words, train=(file,), held_out=0).key == first.key
        assert prepared(tmp_path, words, train=(file,), held_out=0, window=9).key == first.key
    others = {prepared(tmp_path, words, train=(lines(tmp_path / "a.jsonl", STORY, OTHER),), held_out=0).key}
    other = tokenizer.train([OTHER], 290, tmp_path / "others")
    others.add(prepared(tmp_path, other, train=(file,), held_out=0).key)
    assert len({first.key, *others}) == 3


def test_a_cut_file_in_the_cache_is_made_again(tmp_path, words, caplog):
    file = lines(tmp_path / "a.jsonl", STORY)
    first = prepared(tmp_path, words, train=(file,), held_out=0)
    path = tmp_path / "cache" / first.key / "tokens.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    again = prepared(tmp_path, words, train=(file,), held_out=0)
    assert again.learned.corpus.tokens.tobytes() == whole
    assert "made again, since it is not whole" in caplog.text


def test_a_maker_that_fails_leaves_nothing(tmp_path, words):
    bad = tmp_path / "a.jsonl"
    bad.write_text('{"text": "good"}\n{"text": 3}\n')
    with pytest.raises(FormatError, match=r"a.jsonl:2"):
        prepared(tmp_path, words, train=(str(bad),), held_out=0)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_no_records_are_no_corpus(tmp_path, words):
    file = tmp_path / "a.jsonl"
    file.write_text("\n\n")
    with pytest.raises(FormatError, match="at least one that can be used"):
        prepared(tmp_path, words, train=(str(file),), held_out=0)
    with pytest.raises(FormatError, match=r"data.train: expected at least one file"):
        prepared(tmp_path, words)


def test_too_few_tokens_are_no_windows(tmp_path, words):
    with pytest.raises(FormatError, match="at least 513 tokens to learn"):
        prepared(tmp_path, words, train=(lines(tmp_path / "a.jsonl", STORY),), held_out=0, window=512)


def test_what_shares_a_paragraph_with_what_is_held_out_is_counted_and_left_out(tmp_path, words, caplog):
    caplog.set_level("INFO")
    shared = f"Another beginning.\n{STORY.upper()}"
    asked = {"train": (lines(tmp_path / "a.jsonl", OTHER, shared),), "valid": (lines(tmp_path / "b.jsonl", STORY),)}
    both = prepared(tmp_path, words, **asked)
    assert both.learned.corpus.counts.documents == 2
    assert (
        "1 of 2 training documents share a paragraph with those held out; they are learned all the same" in caplog.text
    )
    one = prepared(tmp_path, words, **asked, overlap="leave out")
    assert one.learned.corpus.counts.documents == 1
    assert "1 of 2 training documents share a paragraph with those held out; they are left out" in caplog.text


def test_short_paragraphs_and_other_words_are_no_overlap():
    seen = Paragraphs([STORY])
    assert len(seen) == 1
    assert not seen.any_in(f"{OTHER}\nThe end.")
    assert seen.any_in("x\n  once upon a TIME there was a dog  named Spot who liked to dig in the garden.  ")


def test_the_last_part_is_held_out_where_nothing_else_is(tmp_path, words):
    many = [f"{STORY} {number}" for number in range(50)]
    found = prepared(tmp_path, words, train=(lines(tmp_path / "a.jsonl", *many),), held_out=0.1)
    assert isinstance(found.learned, Stream)
    assert isinstance(found.held_out, Stream)
    learned, held = found.learned.corpus, found.held_out.corpus
    assert learned.counts.documents + held.counts.documents == 50
    assert held.counts.documents in {4, 5}
    assert held.tokens[0] == 0
    assert words.decode(held.tokens.astype(int)).endswith("49")
    assert found.bytes_a_token == pytest.approx(len(STORY) / (len(held.tokens) / held.counts.documents), rel=0.1)


def test_conversations_are_kept_whole(tmp_path, words):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "Once?", "completion": "A dog."}) + "\n")
    found = prepared(tmp_path, words, train=(str(file),), held_out=0, form="chat", window=16)
    assert isinstance(found.learned, Whole)
    tokens, targets, _ = found.learned[0]
    learned = [token for token in targets.tolist() if token >= 0]
    assert words.decode(learned, special=True) == "A dog.<|endoftext|>"
    assert words.decode(tokens[: len(tokens)].tolist()).startswith("Once?A dog.")


def test_a_conversation_that_the_template_refuses_is_named_and_counted(tmp_path, words):
    file = tmp_path / "a.jsonl"
    turns = [{"prompt": "Once?", "completion": "A dog."}, {"prompt": "STOP", "completion": "A cat."}]
    file.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    template = ChatTemplate(
        "{% for message in messages %}{% if message.content == 'STOP' %}{{ raise_exception('stopped') }}{% endif %}"
        "{{ message.content }}{% endfor %}"
    )
    asked = {"cache": str(tmp_path / "cache"), "window": 16, "train": (str(file),), "form": "chat", "held_out": 0}
    with pytest.raises(FormatError, match=r"a.jsonl:2: .*stopped"):
        data.prepare(Config(data=DataConfig(**asked)), words, template)
    found = data.prepare(Config(data=DataConfig(**asked, bad_records=1)), words, template)
    assert len(found.learned) == 1


def test_documents_longer_than_a_window_are_told(tmp_path, words, caplog):
    prepared(
        tmp_path, words, train=(lines(tmp_path / "a.jsonl", STORY * 3, "a"),), held_out=0, packing="whole", window=16
    )
    assert "1 documents are longer than a window of 16 tokens and are cut" in caplog.text


def test_a_corpus_larger_than_memory_is_made_in_little_of_it(tmp_path, words):
    file = tmp_path / "a.jsonl"
    line = json.dumps({"text": STORY * 20}) + "\n"
    with file.open("w") as stream:
        for _ in range(10):
            stream.write(line * 500)
    code = """
import resource, sys
from pathlib import Path
from bitnet_core.chat import ChatTemplate
from bitnet_core.tokenizer import Tokenizer
from bitnet_training import corpus, records
words = Tokenizer.from_folder(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = records.read([sys.argv[1]], chat=False, bad=records.BadRecords())
made = corpus.prepare("key", Path(sys.argv[3]), lambda: corpus.Writer(found, words))
print(made.counts.documents, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    words.save(tmp_path)
    command = [sys.executable, "-c", code, str(file), str(tmp_path), str(tmp_path / "cache")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert said[0] == "5000"
    assert int(said[1]) < 60_000  # KiB, for 8 MB of text and its tokens
