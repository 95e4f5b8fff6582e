"""Windows score every token once, with enough before it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_inference.likelihood import Perplexity, windows


@given(st.integers(2, 300), st.integers(0, 299), st.integers(2, 64), st.data())
def test_every_token_is_scored_once_after_enough(size: int, first: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    tokens = np.arange(size, dtype=np.int32)
    scored: list[int] = []
    for window in windows(tokens, first, context, stride):
        assert 2 <= len(window.tokens) <= context
        part = window.tokens[-window.scored :].tolist()
        before = len(window.tokens) - window.scored
        assert before >= 1
        assert before >= min(part[0], context - stride)
        scored += part
    assert scored == list(range(max(first, 1), size))


def test_a_stride_beyond_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stride: expected 1\.\.7 in a context of 8, got 8"):
        list(windows(np.arange(20, dtype=np.int32), 1, 8, 8))


def test_bits_a_byte_do_not_depend_on_the_tokens() -> None:
    assert Perplexity(np.log(2) * 30, 7, 30).bits_per_byte == pytest.approx(1)
    assert Perplexity(7.0, 7, 30).perplexity == pytest.approx(np.e)
