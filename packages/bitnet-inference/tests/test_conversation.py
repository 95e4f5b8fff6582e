"""Conversations remember, branch, are kept in files, and call tools for the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_core import load
from bitnet_core.chat import ChatTemplate
from bitnet_core.errors import FormatError
from bitnet_core.tokenizer import Tokenizer
from bitnet_inference import LLM
from bitnet_inference.llm import BUILT_IN

_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant:' }}"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(replace(load(BUILT_IN), template=ChatTemplate(_TEMPLATE)), threads=1) as made:
        yield made


def saying(tokenizer: Tokenizer, *texts: str) -> Callable[[list[int], Any], Any]:
    """A processor that has the model say one text after another."""
    scripts = [[*tokenizer.encode(text, bos=False).tolist(), min(tokenizer.eos)] for text in texts]
    left: list[int] = []

    def force(_: list[int], logits: Any) -> Any:
        if not left:
            left.extend(scripts.pop(0))
        return np.where(np.arange(len(logits)) == left.pop(0), np.float32(0), np.float32(-np.inf))

    return force


def test_what_was_said_is_remembered(llm: LLM) -> None:
    conversation = llm.conversation("Be kind.", max_tokens=8, temperature=0)
    first = conversation.say("Hello")
    conversation.say("And then?")
    assert [message["role"] for message in conversation.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert conversation.messages[2]["content"] == first
    assert conversation.last is not None
    assert conversation.last.usage.cached_tokens > 0


@pytest.mark.parametrize("when", ["before", "while"])
def test_what_fails_was_never_said(llm: LLM, when: str) -> None:
    def fails(tokens: list[int], logits: Any) -> Any:
        if broken and len(tokens) > start + 2:
            raise RuntimeError("broken")
        return logits

    conversation = llm.conversation("Be kind.", max_tokens=6, temperature=0, processors=(fails,))
    broken, start = when == "while", 0
    said = "Hello" if broken else "word " * 600
    with pytest.raises(RuntimeError if broken else ValueError, match="broken" if broken else "prompt: expected"):
        conversation.say(said)
    assert [message["role"] for message in conversation.messages] == ["system"]
    broken = False
    conversation.say("Hello")
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]


def test_a_fork_goes_its_own_way(llm: LLM) -> None:
    conversation = llm.conversation(max_tokens=4, temperature=0)
    conversation.say("Hello")
    other = conversation.fork()
    other.say("More")
    assert len(conversation.messages) == 2
    assert len(other.messages) == 4


def test_a_conversation_goes_on_from_its_file(llm: LLM, tmp_path: Path) -> None:
    conversation = llm.conversation("Be kind.", max_tokens=6, temperature=0)
    conversation.say("Hello")
    conversation.save(tmp_path / "talk.json")
    expected = conversation.say("More")
    again = llm.conversation(max_tokens=6, temperature=0)
    again.load(tmp_path / "talk.json")
    assert again.say("More") == expected


@pytest.mark.parametrize("content", [b"{}", b"[]", b"not json", b'{"kind": "bitnet conversation", "messages": [{}]}'])
def test_a_file_that_is_no_conversation_is_refused(llm: LLM, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "talk.json").write_bytes(content)
    conversation = llm.conversation()
    with pytest.raises(FormatError):
        conversation.load(tmp_path / "talk.json")
    assert conversation.messages == []


def test_tools_are_called_and_their_answers_given_back(llm: LLM) -> None:
    asked: list[str] = []

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        asked.append(city)
        return "rain"

    call = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    processor = saying(llm.tokenizer, call, "It rains.")
    conversation = llm.conversation(tools=[weather], processors=(processor,), drafts="off")
    assert conversation.say("How is it in Rome?") == "It rains."
    assert asked == ["Rome"]
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[2]["content"] == "rain"


def test_a_model_that_calls_without_end_is_stopped(llm: LLM) -> None:
    calls = []

    def again() -> str:
        """Do it again."""
        calls.append(1)
        return "done"

    script = ['{"name": "again", "arguments": {}}'] * 20
    conversation = llm.conversation(tools=[again], processors=(saying(llm.tokenizer, *script),), drafts="off")
    reply = conversation.say("Go")
    assert len(calls) == 8
    assert not reply.tool_calls


def test_what_was_said_before_the_reader_left_stays(llm: LLM) -> None:
    conversation = llm.conversation(max_tokens=200, temperature=0, ignore_eos=True)
    for _ in conversation.stream("Hello"):
        break
    assert conversation.messages[-1]["role"] == "assistant"
    assert conversation.last is not None
    assert conversation.last.finish_reason == "cancelled"
