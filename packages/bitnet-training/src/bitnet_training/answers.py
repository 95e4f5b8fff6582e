"""Conversations as tokens, with which of them the model is to learn: the assistant's answers, to the token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet_core import FormatError
from bitnet_core.chat import ChatTemplate
from bitnet_core.messages import Message
from bitnet_core.tokenizer import Tokenizer, Tokens

from .conversations import is_learned

_Pieces = list[tuple[str, bool]]
Flags = npt.NDArray[np.bool_]


def encode(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    where: str,
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[Tokens, Flags]:
    """The tokens of a conversation, and whether each is learned.

    Each answer is encoded apart from what stands before it, since a model that answers has that as whole tokens, too.
    """
    segments = _plain(messages) if template is None else _rendered(messages, tokenizer, template, where, tools)
    bos = True if template and template.needs_bos and tokenizer.bos is not None else None
    end = tokenizer.encode("", bos=False, eos=True) if template is None and tokenizer.eos else np.zeros(0, np.int32)
    tokens, flags = [], []
    wanted = [is_learned(message) for message in messages if message["role"] == "assistant"]
    for number, (pieces, is_answer) in enumerate(segments):
        ids = tokenizer.encode_pieces(pieces, bos=False if number else bos, eos=False)
        if is_answer:
            ids = np.concatenate((ids, end))
        learned = np.full(len(ids), is_answer and wanted.pop(0))
        if is_answer:  # what a template writes behind the token that ends the turn, a model never has to
            special = np.flatnonzero(np.isin(ids, list(tokenizer.special_tokens.values())))
            learned[special[-1] + 1 if len(special) else len(ids) :] = False
        tokens.append(ids)
        flags.append(learned)
    return np.concatenate(tokens), np.concatenate(flags)


def _plain(messages: Sequence[Message]) -> Iterator[tuple[_Pieces, bool]]:
    """Contents as they stand: prompts that were written out for a model without a template."""
    for message in messages:
        yield [(message["content"], False)], message["role"] == "assistant"


def _rendered(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    where: str,
    tools: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[_Pieces, bool]]:
    """The text that the template makes, cut where answers begin and end."""
    render = partial(template.render, tools=tools)
    whole = render(messages, add_generation_prompt=False)
    borders = [0]
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if not index:
            raise FormatError(where, "messages[0].role", "a message to answer", "the assistant's")
        asked = render(messages[:index], add_generation_prompt=True).text
        answered = render(messages[: index + 1], add_generation_prompt=False).text
        if not (answered.startswith(asked) and whole.text.startswith(answered)):
            expected = "a template under which a conversation begins as its first turns alone do"
            raise FormatError(where, f"messages[{index}]", expected, "other text", hint="train on single answers")
        borders += [len(asked), len(answered)]
    borders.append(len(whole.text))
    pieces = _cut(whole.pieces(tokenizer.special_tokens), borders)
    return ((part, number % 2 == 1) for number, part in enumerate(pieces))


def _cut(pieces: Iterable[tuple[str, bool]], borders: Sequence[int]) -> Iterator[_Pieces]:
    """The pieces between each two borders, which are counted in characters."""
    held = list(pieces)
    starts = np.cumsum([0, *(len(text) for text, _ in held)])
    for low, high in pairwise(borders):
        yield [
            (text[max(low - start, 0) : high - start], trusted)
            for (text, trusted), start in zip(held, starts.tolist(), strict=False)
            if start < high and start + len(text) > low
        ]
