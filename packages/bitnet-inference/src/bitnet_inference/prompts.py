"""What callers write, as the tokens that a model reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from bitnet_core.errors import FormatError, UnsupportedError, printable
from bitnet_core.messages import Message, check_messages
from bitnet_core.model import Model, Tokens
from bitnet_core.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Tokens

log = logging.getLogger("bitnet_inference")


def is_several(prompt: object) -> TypeGuard[list[Prompt]]:
    """Whether it is a list of prompts, and not one of token ids."""
    return isinstance(prompt, list | tuple) and bool(prompt) and not isinstance(prompt[0], int | np.integer)


class Prompts:
    """Texts and conversations as tokens of one model."""

    def __init__(self, model: Model, name: str) -> None:
        self.name = name
        self._model = model
        self._warned = False

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; models without one read token ids alone."""
        if self._model.tokenizer is None:
            raise UnsupportedError(f"{printable(self.name)}: the model has no tokenizer: it takes token ids, not text")
        return self._model.tokenizer

    def tokens(self, prompt: Prompt, *, begins: bool = True) -> Tokens:
        """A text, or ids as they are; `begins` says that nothing stands before it."""
        if isinstance(prompt, str):
            tokens = self.tokenizer.encode(prompt, bos=None if begins else False)
            return self._begin() if begins and not len(tokens) else tokens
        tokens = np.asarray(prompt)
        if tokens.ndim != 1 or not tokens.size or tokens.dtype.kind not in "iu":
            raise ValueError(f"prompt: expected a text, or one token id or more, got {_shape(prompt)}")
        vocab_size = self._model.spec.vocab_size
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            bad = int(tokens[(tokens < 0) | (tokens >= vocab_size)][0])
            raise ValueError(f"prompt: expected token ids of 0..{vocab_size - 1}, got {bad}")
        return tokens.astype(np.int32)

    def pair(self, given: str, text: Prompt) -> tuple[Tokens, int]:
        """A text after what is given, as one text, and the place of its first token.

        Words that run over the border belong to the text. With nothing given, what begins every text stands before.
        """
        if not isinstance(text, str):
            before = self.tokens(given) if given else np.empty(0, np.int32)
            return np.concatenate([before, self.tokens(text)]), len(before)
        whole = self.tokenizer.encode(given + text)
        if given:
            before = self.tokenizer.encode(given)
            same = int(np.argmin(np.append(before[: len(whole)] == whole[: len(before)], False)))
            return whole, same
        begin = self._begin()
        if len(whole) and whole[0] == begin[0]:
            return whole, 1
        return np.concatenate([begin, whole]), 1

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
    ) -> Tokens:
        """A conversation as its model's template has it, up to where the answer begins."""
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not isinstance(conversation, list | tuple):
            raise FormatError("messages", "messages", "a text, or a list of messages", _shape(messages))
        if own := {"messages", "tools"} & set(variables or ()):
            raise ValueError(f"template: expected variables beside messages and tools, got {min(own)}")
        if self._model.template is not None:
            rendered = self._model.template.render(conversation, tools=tools or None, **(variables or {}))
            return rendered.encode(self.tokenizer)
        if tools:
            raise UnsupportedError(
                f"{printable(self.name)}: the model has no chat template, so it was not taught to call tools"
            )
        return self.tokens(self._plain(conversation))

    def _plain(self, messages: Sequence[Message]) -> str:
        """The words alone, for models that were never taught to tell who speaks."""
        if not self._warned:
            self._warned = True
            log.warning("%s has no chat template: it is given the words of the messages alone", self.name)
        return "\n".join(message["content"] for message in check_messages(messages))

    def _begin(self) -> Tokens:
        """What stands before every text, for an empty one."""
        tokenizer = self.tokenizer
        first = tokenizer.bos if tokenizer.bos is not None else min(tokenizer.eos, default=None)
        if first is None:
            raise ValueError("prompt: expected a text of one token or more, got an empty one")
        return np.array([first], np.int32)


def _shape(value: object) -> str:
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
