"""Replies in OpenAI's words: usage, logprobs, calls; and what of a text may go out before its end is known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from .. import __version__
from ..llm import LLM
from ..reply import Reply, TokenLogprob
from ..request import Usage
from ..tools import Call

# With what a text begins that may be nothing but a call, and the marks that stand before one.
_STARTS = ("{", "[", "```")
_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<function=")
# What ended the text, in words that every client knows.
_REASONS = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "deadline": "length", "cancelled": "length"}


def reason_of(reply: Reply) -> str:
    """Why a text ended."""
    return _REASONS.get(reply.finish_reason, "stop")


def fingerprint(llm: LLM) -> str:
    """What changes when the same seed may give another text: the version, and what computes."""
    return f"bitnet-{__version__}-{llm.backend.name}"


def usage(found: Usage) -> dict[str, Any]:
    """Tokens of prompt and completion, and the energy they took where the machine tells."""
    told: dict[str, Any] = {
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "total_tokens": found.total_tokens,
        "prompt_tokens_details": {"cached_tokens": found.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": found.accepted_tokens,
            "rejected_prediction_tokens": found.drafted_tokens - found.accepted_tokens,
        },
    }
    if found.joules is not None:
        told["energy_j"] = round(found.joules, 3)
    return told


def logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities, as chats have them."""
    return [{**_token(token), "top_logprobs": [_token(other) for other in token.top]} for token in tokens]


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": max(token.logprob, -9999.0), "bytes": list(token.bytes)}


def calls(found: Sequence[Call]) -> list[dict[str, Any]]:
    """The tools that are to be called."""
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
        }
        for call in found
    ]


def content_of(reply: Reply) -> str | None:
    """What a reply says beside its calls."""
    if not reply.tool_calls:
        return str(reply)
    before = before_calls(reply)
    return before if before.strip() else None


def before_calls(text: str) -> str:
    """What stands before the first mark of a call; nothing, of a text that is a call itself."""
    if text.lstrip().startswith(_STARTS):
        return ""
    places = [place for mark in _MARKS if (place := text.find(mark)) >= 0]
    return text[: min(places)] if places else text


class Withheld:
    """A text in which tools may be called: what cannot belong to a call goes on, the rest waits for the end."""

    def __init__(self) -> None:
        self._text = ""
        self._sent = 0

    def feed(self, text: str) -> str:
        """What may be sent, now that this has come."""
        self._text += text
        ready = before_calls(self._text)
        if not ready.strip():
            return ""
        if len(ready) == len(self._text):
            # The end may be the beginning of a mark.
            ready = ready[: len(ready) - max(_overlap(ready, mark) for mark in _MARKS)]
        found, self._sent = ready[self._sent :], max(self._sent, len(ready))
        return found

    def finish(self, calls: bool) -> str:
        """What was held back; where there are calls, it was theirs."""
        return "" if calls else self._text[self._sent :]


def _overlap(text: str, mark: str) -> int:
    """How much of a mark a text ends with."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
