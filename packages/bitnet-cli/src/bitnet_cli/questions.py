"""Questions with answers in files: which of several texts is likelier, or whether the likeliest one is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import models
from .failures import Refused

if TYPE_CHECKING:
    from bitnet_inference.llm import LLM


@dataclass(frozen=True, slots=True)
class Question:
    """Pairs of what is given and what follows, of which one is right; a single pair must be the likeliest text."""

    pairs: tuple[tuple[str, str], ...]
    right: int


@dataclass(frozen=True, slots=True)
class Mark:
    """How many questions of a file a model got right."""

    file: str
    questions: int
    accuracy: float
    by_length: float  # the same with each text's probability a character
    error: float  # one standard error of the accuracy
    chance: float


def read(source: str, limit: int | None = None) -> list[Question]:
    """Questions of a JSONL file: query and choices, context_options and continuation, or context and continuation."""
    found: list[Question] = []
    for number, line in enumerate(models.read_text(source, "questions").removeprefix("\ufeff").splitlines(), 1):
        if limit is not None and len(found) == limit:
            break
        if line.strip():
            found.append(_question(line, f"{source}:{number}"))
    if not found:
        raise Refused(f"{source}: expected a question a line as JSON, got none")
    return found


def _question(line: str, where: str) -> Question:
    value = models.read_object(line, where)
    if "context" in value:
        return Question(((_text(value, "context", where), _after(_text(value, "continuation", where))),), 0)
    if "context_options" in value:
        after = _after(_text(value, "continuation", where))
        pairs = tuple((before, after) for before in _texts(value, "context_options", where))
    else:
        query = _text(value, "query", where)
        pairs = tuple((query, _after(choice)) for choice in _texts(value, "choices", where))
    right = value.get("gold")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(pairs):
        raise Refused(f"{where}: gold: expected a number of 0..{len(pairs) - 1}, got {right!r}")
    return Question(pairs, right)


def _text(value: dict[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found:
        raise Refused(f"{where}: {name}: expected a text, got {type(found).__name__}")
    return found


def _texts(value: dict[str, Any], name: str, where: str) -> list[str]:
    found = value.get(name)
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(text, str) and text for text in found):
        raise Refused(f"{where}: {name}: expected a list of two texts or more, got {type(found).__name__}")
    return found


def _after(text: str) -> str:
    """What follows begins with the space between words."""
    return text if text[:1].isspace() else f" {text}"


def answer(llm: LLM, file: str, questions: Sequence[Question], adapter: str | None) -> Mark:
    """Score every text of every question, and count."""
    flat = [pair for question in questions for pair in question.pairs]
    scores = iter(llm.scores(flat, adapter=adapter))
    right = even = 0
    for question in questions:
        found = [next(scores) for _ in question.pairs]
        if len(found) == 1:
            right += found[0].greedy
            even += found[0].greedy
            continue
        totals = [score.total for score in found]
        shares = [score.total / len(after.strip()) for score, (_, after) in zip(found, question.pairs, strict=True)]
        right += totals.index(max(totals)) == question.right
        even += shares.index(max(shares)) == question.right
    count = len(questions)
    share = right / count
    chance = sum(1 / len(q.pairs) if len(q.pairs) > 1 else 0.0 for q in questions) / count
    return Mark(file, count, share, even / count, (share * (1 - share) / count) ** 0.5, chance)
