"""Perplexity of a text, and accuracy on sets of questions: of a torch model, or of anything that scores tokens.

A scorer takes sequences of tokens and gives, for each, the log-probability of every token but the first, given those
before it. Whatever computes it, the figures are made of it here in one way.
"""

from __future__ import annotations

import bz2
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bitnet_core import Adapter, FormatError, Runner, Step
from bitnet_core.model import Tokens
from bitnet_core.tokenizer import Tokenizer

LogProbs = npt.NDArray[np.floating]
Score = Callable[[Sequence[Tokens]], Sequence[LogProbs]]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model expects a text."""

    tokens: int  # that were predicted
    text_bytes: int
    nll: float  # nats, over all tokens

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll / self.tokens

    @property
    def perplexity(self) -> float:
        """Of a token; vocabularies that differ cannot be compared by it."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Of the text, whatever the vocabulary."""
        return self.nll / math.log(2) / self.text_bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with its answers, each a pair of what is given and what is scored."""

    answers: tuple[tuple[str, str], ...]
    right: int


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of questions whose right answer is the likeliest: as it stands, and by the character."""

    questions: int
    plain: float
    normalized: float  # the log-probability over the length of the answer's text
    error: float  # one standard error of `normalized`


def torch_scorer(model: nn.Module, *, batch_tokens: int = 8192) -> Score:
    """A scorer that runs a torch model of transformers, as many sequences at once as `batch_tokens` hold, padded."""

    @torch.inference_mode()
    def score(sequences: Sequence[Tokens]) -> list[LogProbs]:
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        order = sorted(range(len(sequences)), key=lambda at: len(sequences[at]))
        found: dict[int, LogProbs] = {}
        for batch in _batches([(at, len(sequences[at])) for at in order], batch_tokens):
            width = max(len(sequences[at]) for at in batch)
            # Padding stands behind, where causal attention does not see it.
            rows = np.stack([np.pad(sequences[at], (0, width - len(sequences[at]))) for at in batch])
            tokens = torch.from_numpy(rows.astype(np.int64)).to(device)
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].float()
            chosen = logits.gather(-1, tokens[:, 1:, None])[..., 0] - logits.logsumexp(-1)
            for at, row in zip(batch, chosen.cpu().numpy(), strict=True):
                found[at] = row[: len(sequences[at]) - 1]
        model.train(was_training)
        return [found[at] for at in range(len(sequences))]

    return score


def runner_scorer(runner: Runner, adapter: Adapter | None = None) -> Score:
    """A scorer that runs a model on any backend, perhaps with an adapter, one sequence at a time."""

    def score(sequences: Sequence[Tokens]) -> list[LogProbs]:
        found = []
        for tokens in sequences:
            cache = runner.new_cache()
            try:
                (rows,) = runner.forward([Step(np.asarray(tokens, np.int32), cache, "all", adapter=adapter)])
            finally:
                cache.close()
            logits = np.asarray(rows, np.float64)[:-1]
            logits -= logits.max(-1, keepdims=True)
            chosen = logits[np.arange(len(logits)), np.asarray(tokens)[1:]]
            found.append(chosen - np.log(np.exp(logits).sum(-1)))
        return found

    return score


def _batches(lengths: Sequence[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Numbers of sequences, from the shortest on, that fit together once they are as long as the longest."""
    batch: list[int] = []
    for at, length in lengths:
        if batch and length * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def perplexity(
    score: Score,
    tokens: Tokens,
    text_bytes: int,
    *,
    window: int,
    stride: int | None = None,
    bos: int | None = None,
    at_once: int = 64,
) -> Perplexity:
    """Of a text of any length, each of its tokens predicted once.

    Windows of `window` tokens start every `stride` of them: a token has window - stride before it at least, save in
    the first. `bos` stands in front of every window, and counts as one of its tokens.
    """
    room = window - (bos is not None)
    stride = window - 1 if stride is None else stride
    if window < 2 or not 1 <= stride < window:
        raise ValueError(f"stride: expected 1 to {window - 1} in a window of {window} tokens, got {stride}")
    first = 0 if bos is not None else 1  # nothing predicts a text's first token but BOS
    if len(tokens) <= first or text_bytes < 1:
        raise ValueError(f"tokens: expected a text to predict, got {len(tokens)} tokens of {text_bytes} bytes")
    front = [] if bos is None else [bos]
    total, plan = 0.0, list(_windows(len(tokens), room, stride))
    for begin in range(0, len(plan), at_once):
        part = plan[begin : begin + at_once]
        sequences = [np.concatenate([front, tokens[low:high]]).astype(np.int32) for low, _, high in part]
        for said, (_, new, high) in zip(score(sequences), part, strict=True):
            total -= float(np.asarray(said, np.float64)[max(new, first) - high :].sum())
    return Perplexity(len(tokens) - first, text_bytes, total)


def _windows(count: int, room: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Where each window begins, where what is new in it begins, and where it ends."""
    new = 0
    while new < count:
        high = min(count, room if new == 0 else new + stride)
        yield max(0, new + stride - room) if new else 0, new, high
        new = high


def questions(path: str | os.PathLike[str], limit: int | None = None) -> list[Choice]:
    """The first questions of a file: JSON lines with `query`, `choices` and `gold`, or `context_options`,
    `continuation` and `gold`; or, where its name ends in .bz2, HellaSwag in six lines a question.

    A query that is a question or a passage and does not yet ask for it is followed by "Answer:".
    """
    file, packed = Path(path), Path(path).suffix == ".bz2"
    try:
        with bz2.open(file, "rt", encoding="utf-8") if packed else file.open(encoding="utf-8") as stream:
            count = None if limit is None else limit * (6 if packed else 1)
            lines = [line.rstrip("\n") for line in islice(stream, count)]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FormatError(file, "file", "a text that can be read", error) from error
    if packed:
        return _in_six_lines(file, lines)
    found: list[Choice] = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_choice(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            expected = "query, choices and gold, or context_options, continuation and gold"
            got = f"no {error}" if isinstance(error, KeyError) else error
            raise FormatError(file, f"line {number}", expected, got) from error
    return found


def _choice(row: dict[str, Any]) -> Choice:
    if "context_options" in row:
        answers = [(context, f" {row['continuation']}") for context in row["context_options"]]
    else:
        given = row["query"].rstrip("\n")
        asks = given.startswith(("Question:", "Passage:")) and not given.endswith("Answer:")
        answers = [(given + "\nAnswer:" if asks else given, f" {choice}") for choice in row["choices"]]
    right = row["gold"]
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(answers):
        raise ValueError(f"gold is {right!r} of {len(answers)} answers")
    return Choice(tuple(answers), right)


def _in_six_lines(file: Path, lines: Sequence[str]) -> list[Choice]:
    if len(lines) % 6:
        raise FormatError(file, "lines", "six a question", len(lines))
    found = []
    for at in range(0, len(lines), 6):
        given, gold, *answers = lines[at : at + 6]
        if gold not in ("0", "1", "2", "3"):
            raise FormatError(file, f"line {at + 2}", "the right answer's number, 0 to 3", repr(gold))
        found.append(Choice(tuple((given, f" {answer}") for answer in answers), int(gold)))
    return found


def accuracy(
    score: Score, asked: Sequence[Choice], tokenizer: Tokenizer, *, window: int, at_once: int = 256
) -> Accuracy:
    """How often the right answer is the likeliest, as lm-evaluation-harness counts it.

    The tokens of an answer are those that it adds to what it follows; of sequences longer than `window`, the last
    tokens count. `normalized` divides by the characters of an answer.
    """
    if not asked:
        raise ValueError("asked: expected one question or more, got none")
    pairs = [pair for choice in asked for pair in choice.answers]
    said: list[float] = []
    for first in range(0, len(pairs), at_once):
        encoded = [_encoded(tokenizer, *pair, window) for pair in pairs[first : first + at_once]]
        for row, (_, scored) in zip(score([tokens for tokens, _ in encoded]), encoded, strict=True):
            said.append(float(np.asarray(row, np.float64)[len(row) - scored :].sum()))
    plain = normalized = at = 0
    for choice in asked:
        likely = np.array(said[at : at + len(choice.answers)])
        lengths = np.array([len(answer) - 1 for _, answer in choice.answers])  # without the space in front
        plain += int(likely.argmax()) == choice.right
        normalized += int((likely / np.maximum(lengths, 1)).argmax()) == choice.right
        at += len(choice.answers)
    share = normalized / len(asked)
    error = math.sqrt(share * (1 - share) / max(1, len(asked) - 1))
    return Accuracy(len(asked), plain / len(asked), share, error)


def _encoded(tokenizer: Tokenizer, given: str, answer: str, window: int) -> tuple[Tokens, int]:
    """The tokens of both, at most a window of them, and how many of them are the answer's."""
    front = len(tokenizer.encode(given))
    whole = tokenizer.encode(given + answer)
    scored = min(len(whole) - front, window - 1)
    return whole[-window:], max(scored, 1)
