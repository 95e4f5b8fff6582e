"""The reader of requests, by itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_core.errors import FormatError
from bitnet_inference.server.bodies import convert, parse
from bitnet_inference.server.chat import Chat
from bitnet_inference.server.errors import Refusal, refusal_of
from bitnet_inference.server.items import Respond

GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    refused = refusal(lambda: parse(data, Chat))
    assert refused is None or refused.status == 400


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
@given(st.dictionaries(st.sampled_from(Chat.__struct_fields__), VALUES, max_size=4), st.booleans())
def test_any_values_are_taken_or_refused_by_name(more: dict[str, Any], lenient: bool) -> None:
    refused = refusal(lambda: convert({**GOOD, **more}, Chat, lenient=lenient))
    if refused is not None:
        assert refused.status == 400
        assert (refused.param or "").split(".")[0].split("[")[0] in more


def refusal(call: Callable[[], object]) -> Refusal | None:
    try:
        call()
    except (Refusal, FormatError) as error:
        return refusal_of(error)
    return None


@settings(deadline=None)  # the machine may be busy
@given(st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_a_lenient_reader_tells_what_it_ignored(more: dict[str, Any]) -> None:
    extra = {f"x{name}": value for name, value in more.items() if value is not None}
    body, ignored = convert({**GOOD, **extra}, Chat, lenient=True)
    assert len(ignored) == len(extra)
    assert body.model == "m"


def test_a_range_is_named_wherever_it_is() -> None:
    with pytest.raises(Refusal, match=r"top_logprobs: expected a whole number of 0\.\.20, got 21"):
        convert({"model": "m", "input": "x", "top_logprobs": 21}, Respond)
    with pytest.raises(Refusal, match=r"tools\[0\]\.function\.name: expected 1\.\.512 characters|tools"):
        convert({**GOOD, "tools": [{"type": "function", "function": {"name": ""}}]}, Chat)


def test_a_megabyte_is_read_soon() -> None:
    messages = [{"role": "user", "content": "hello there " * 40} for _ in range(2000)]
    data = json.dumps({"model": "m", "messages": messages}).encode()
    best = min(_timed(data) for _ in range(5))
    assert best / (len(data) / 2**20) < 0.5  # a busy machine may take ten times as long as a quiet one


def _timed(data: bytes) -> float:
    began = time.perf_counter()
    parse(data, Chat)
    return time.perf_counter() - began
