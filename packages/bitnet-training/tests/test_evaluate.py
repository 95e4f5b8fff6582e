from __future__ import annotations

import bz2
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import bitnet_core
from bitnet_core import FormatError, Model, Runner, reference
from bitnet_core.model import Tokens
from bitnet_core.testing import random_model, some_tokens, tiny_spec
from bitnet_training.evaluate import (
    Choice,
    accuracy,
    perplexity,
    questions,
    runner_scorer,
    torch_scorer,
)
from bitnet_training.models import from_core

TEXT = "Once upon a time there was a little dog. The dog liked to play with a red ball in the park every day."


@pytest.fixture(scope="module")
def story(stories: Path) -> Model:
    return bitnet_core.load(stories)


def flat(sequences: Sequence[Tokens]) -> list[np.ndarray]:
    """A scorer to whom every token is as likely as its number says."""
    return [-np.asarray(tokens[1:], float) for tokens in sequences]


def native(model: Model) -> Runner:
    """The model on the native kernels, where they were built, with nothing rounded that torch does not round."""
    cpu = bitnet_core.backends.get("auto")
    return cpu.load(model, kv="f32", head="f16") if cpu.name == "cpu" else cpu.load(model)


class TestScorers:
    def test_a_torch_model_and_a_runner_agree(self) -> None:
        model = random_model(tiny_spec())
        sequences = [some_tokens(model.spec, count, count) for count in (9, 2, 30, 17, 1)]
        found = torch_scorer(from_core(model))(sequences)
        expected = runner_scorer(reference.load(model))(sequences)
        assert [len(row) for row in found] == [8, 1, 29, 16, 0]
        for mine, its in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, its, atol=2e-2 * 60)
            np.testing.assert_allclose(mine[:1], its[:1], atol=1e-4)

    def test_how_sequences_are_put_together_makes_no_difference(self, story: Model) -> None:
        sequences = [some_tokens(story.spec, count, count) for count in (9, 2, 30, 17)]
        model = from_core(story)
        whole, alone = (torch_scorer(model, batch_tokens=tokens)(sequences) for tokens in (8192, 1))
        for mine, its in zip(whole, alone, strict=True):
            np.testing.assert_allclose(mine, its, atol=1e-3)

    def test_a_model_that_trains_goes_on_to_train(self) -> None:
        model = from_core(random_model(tiny_spec())).train()
        torch_scorer(model)([some_tokens(tiny_spec(), 4)])
        assert model.training


class TestPerplexity:
    @pytest.mark.parametrize("stride", [1, 3, 7, None])
    @pytest.mark.parametrize("bos", [None, 0])
    @pytest.mark.parametrize("count", [2, 7, 8, 9, 50])
    def test_every_token_is_predicted_once(self, count: int, bos: int | None, stride: int | None) -> None:
        tokens = np.arange(1, count + 1, dtype=np.int32)
        seen: list[int] = []

        def score(sequences: Sequence[Tokens]) -> list[np.ndarray]:
            seen.extend(len(sequence) for sequence in sequences)
            return flat(sequences)

        found = perplexity(score, tokens, 100, window=8, stride=stride, bos=bos)
        assert max(seen) <= 8
        assert found.tokens == count - (bos is None)
        assert found.nll == tokens.sum() - (tokens[0] if bos is None else 0)

    def test_a_token_has_what_lies_before_it_in_the_window(self) -> None:
        given: list[list[int]] = []

        def score(sequences: Sequence[Tokens]) -> list[np.ndarray]:
            given.extend(sequence.tolist() for sequence in sequences)
            return flat(sequences)

        perplexity(score, np.arange(1, 11, dtype=np.int32), 10, window=5, stride=2, bos=0)
        assert given == [[0, 1, 2, 3, 4], [0, 3, 4, 5, 6], [0, 5, 6, 7, 8], [0, 7, 8, 9, 10]]

    def test_its_figures_are_those_of_their_definitions(self) -> None:
        found = perplexity(lambda some: [np.full(len(t) - 1, math.log(0.25)) for t in some],
                           np.arange(9, dtype=np.int32), 4, window=9)  # fmt: skip
        assert found.perplexity == pytest.approx(4)
        assert found.bits_per_byte == pytest.approx(8 * 2 / 4)

    def test_a_trained_model_has_the_same_by_every_way(self, story: Model) -> None:
        assert story.tokenizer is not None
        tokens = story.tokenizer.encode(TEXT, bos=False)
        scorers = [torch_scorer(from_core(story)), runner_scorer(reference.load(story))]
        scorers.append(runner_scorer(native(story)))
        found = [perplexity(score, tokens, len(TEXT), window=16, stride=8, bos=0).bits_per_byte for score in scorers]
        assert found[0] < 1.2
        assert found == pytest.approx([found[0]] * 3, rel=5e-4)

    def test_a_published_model_has_its_published_figure(self, data: Path) -> None:
        folder = data / "models" / "bitllama2c-1M-hf"
        model = bitnet_core.load(folder)
        assert model.tokenizer is not None
        text = (data / "text" / "tinystories_valid_head.txt").read_text(encoding="utf-8")[:60_000]
        tokens = model.tokenizer.encode(text, bos=False)[: 64 * 255]
        size = len(model.tokenizer.decode(tokens).encode())
        score = torch_scorer(from_core(model, "packed"))
        found = perplexity(score, tokens, size, window=256, bos=model.tokenizer.bos)
        assert found.tokens == 16_320
        assert found.loss == pytest.approx(1.57281, abs=5e-4)
        assert found.bits_per_byte == pytest.approx(1.0931, abs=1e-3)

    @pytest.mark.parametrize("stride", [-1, 0, 8])
    def test_a_stride_that_skips_tokens_is_refused(self, stride: int) -> None:
        with pytest.raises(ValueError, match="stride: expected 1 to 7 in a window of 8 tokens"):
            perplexity(flat, np.arange(9, dtype=np.int32), 4, window=8, stride=stride)

    def test_a_text_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="tokens: expected a text to predict, got 1 tokens of 4 bytes"):
            perplexity(flat, np.arange(1, dtype=np.int32), 4, window=8)


class TestQuestions:
    def test_of_the_three_forms(self, tmp_path: Path) -> None:
        rows = [
            {"query": "Question: what?\n", "choices": ["one", "two"], "gold": 1},
            {"query": "It rained, therefore", "choices": ["one", "two"], "gold": 0},
            {"query": "Question: what?\nAnswer:", "choices": ["A", "B"], "gold": 0},
            {"context_options": ["he", "she"], "continuation": "went.", "gold": 0},
        ]
        path = tmp_path / "set.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        found = questions(path)
        assert found[0] == Choice((("Question: what?\nAnswer:", " one"), ("Question: what?\nAnswer:", " two")), 1)
        assert found[1].answers[0] == ("It rained, therefore", " one")
        assert found[2].answers[1] == ("Question: what?\nAnswer:", " B")
        assert found[3].answers == (("he", " went."), ("she", " went."))
        assert questions(path, 2) == found[:2]

    def test_in_six_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "set.txt.bz2"
        path.write_bytes(bz2.compress(b"A man. he\n2\nruns.\nsits.\nstands.\nsings.\n"))
        (found,) = questions(path)
        assert found.right == 2
        assert found.answers[3] == ("A man. he", " sings.")

    @pytest.mark.parametrize(
        ("name", "count"),
        [("arc_easy", 2376), ("boolq", 3270), ("copa", 100), ("piqa", 1838), ("winogrande", 1267), ("siqa", 1954)],
    )
    def test_of_real_sets(self, data: Path, name: str, count: int) -> None:
        assert len(questions(data / "eval" / f"{name}.jsonl")) == count

    def test_of_hellaswag(self, data: Path) -> None:
        assert len(questions(data / "eval" / "hellaswag_val_full.txt.bz2", 500)) == 500

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"query": "x", "choices": ["a"], "gold": 1}', "line 2.*gold is 1 of 1 answers"),
            ('{"context": "x", "continuation": "y"}', "line 2: expected query, choices and gold, .* got no 'query'"),
            ("{", "line 2"),
            ("[]", "line 2"),
            ("[" * 100_000, "line 2"),
            ('{"query": 7, "choices": ["a"], "gold": 0}', "line 2"),
        ],
    )
    def test_that_are_none_are_refused_by_file_and_line(self, tmp_path: Path, line: str, message: str) -> None:
        path = tmp_path / "set.jsonl"
        path.write_text('{"query": "x", "choices": ["a"], "gold": 0}\n' + line, encoding="utf-8")
        with pytest.raises(FormatError, match=message):
            questions(path)

    @pytest.mark.parametrize("content", [None, b"\xff\xfe", b"BZh9broken"])
    @pytest.mark.parametrize("name", ["set.jsonl", "set.bz2"])
    def test_that_cannot_be_read_are_refused_by_file(self, tmp_path: Path, name: str, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=name):
            questions(tmp_path / name)

    def test_that_break_off_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "set.bz2"
        path.write_bytes(bz2.compress(b"A man. he\n2\nruns.\n"))
        with pytest.raises(FormatError, match="lines: expected six a question, got 3"):
            questions(path)
        path.write_bytes(bz2.compress(b"A man. he\n7\nruns.\nsits.\nstands.\nsings.\n"))
        with pytest.raises(FormatError, match="line 2: expected the right answer's number, 0 to 3, got '7'"):
            questions(path)


class TestAccuracy:
    def test_counts_the_likeliest_and_the_likeliest_by_the_character(self, story: Model) -> None:
        assert story.tokenizer is not None
        short, long = (("The dog", " ran."), ("The dog", " ran and ran and ran."))
        asked = [Choice((short, long), 0), Choice((short, long), 1)]

        def score(sequences: Sequence[Tokens]) -> list[np.ndarray]:
            return [np.full(len(tokens) - 1, -1.0) for tokens in sequences]

        found = accuracy(score, asked, story.tokenizer, window=64)
        pieces = [len(story.tokenizer.encode(given + answer)) - len(story.tokenizer.encode(given))
                  for given, answer in (short, long)]  # fmt: skip
        assert pieces[0] / 4 > pieces[1] / 20  # each token costs the same: by the character the long one is likelier
        assert (found.questions, found.plain, found.normalized) == (2, 0.5, 0.5)
        assert accuracy(score, asked[:1], story.tokenizer, window=64).plain == 1
        assert accuracy(score, asked[:1], story.tokenizer, window=64).normalized == 0
        assert found.error == pytest.approx(0.5)

    def test_is_the_same_by_every_way(self, story: Model, data: Path) -> None:
        assert story.tokenizer is not None
        asked = questions(data / "eval" / "copa.jsonl", 25)
        scorers = [torch_scorer(from_core(story)), runner_scorer(native(story))]
        found = [accuracy(score, asked, story.tokenizer, window=story.spec.context) for score in scorers]
        assert found[0] == found[1]
        assert 0.3 < found[0].normalized < 1

    def test_long_questions_lose_their_beginning(self, story: Model) -> None:
        assert story.tokenizer is not None
        lengths: list[int] = []

        def score(sequences: Sequence[Tokens]) -> list[np.ndarray]:
            lengths.extend(len(tokens) for tokens in sequences)
            return [np.zeros(len(tokens) - 1) for tokens in sequences]

        accuracy(score, [Choice(((TEXT, " Yes."), (TEXT, " No.")), 0)], story.tokenizer, window=8)
        assert lengths == [8, 8]

    def test_of_no_questions_there_is_none(self, story: Model) -> None:
        assert story.tokenizer is not None
        with pytest.raises(ValueError, match="asked: expected one question or more"):
            accuracy(flat, [], story.tokenizer, window=8)


def test_padding_is_not_seen() -> None:
    model = from_core(random_model(tiny_spec()))
    short, long = some_tokens(tiny_spec(), 5, 1), some_tokens(tiny_spec(), 40, 2)
    with torch.no_grad():
        logits = model(torch.from_numpy(short.astype(np.int64))[None]).logits[0].log_softmax(-1)
    expected = logits[np.arange(4), short[1:]]
    np.testing.assert_allclose(torch_scorer(model)([short, long])[0], expected, atol=1e-3)
