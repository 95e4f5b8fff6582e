"""Stop strings, compared with what a search through the whole text finds."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitnet_core.tokenizer import Tokenizer
from bitnet_core.vocabularies import BYTE_CHARACTERS, Added, Vocabulary, pipelines
from bitnet_inference.stopping import TextStops

WORDS = ("ab", "aba", "abab", "ba", "bab", "aa", "cab", "abcab")


def make_tokenizer() -> Tokenizer:
    """Every byte, some words of three letters, and a special token, the last."""
    normalizer, pre_tokenizer = pipelines.NAMED["llama-bpe"]
    tokens = (*BYTE_CHARACTERS, *WORDS, "<|end|>")
    last = len(tokens) - 1
    return Tokenizer(
        Vocabulary(
            file="bytes",
            tokens=tokens,
            merges=[],
            alphabet="bytes",
            added={last: Added(special=True)},
            normalizer=normalizer,
            pre_tokenizer=pre_tokenizer,
            eos=frozenset({last}),
        )
    )


TOKENIZER = make_tokenizer()
WORD_IDS = range(256, 256 + len(WORDS))


def byte_ids(data: bytes) -> list[int]:
    """One token a byte."""
    ids = [TOKENIZER.token_id(BYTE_CHARACTERS[byte]) for byte in data]
    assert None not in ids
    return [id_ for id_ in ids if id_ is not None]


letters = st.text("abc", min_size=1, max_size=6)
tokens = st.lists(
    st.sampled_from([*byte_ids(b"abc"), *WORD_IDS]) | st.sampled_from(byte_ids("é中🙂".encode() + b"\xff")), max_size=40
)
stop_lists = st.lists(letters | st.text("abé中🙂\ufffd", min_size=1, max_size=4), max_size=6)


def naive(text: str, stops: Sequence[str], include: bool) -> tuple[str, bool]:
    """The text up to the string that is complete first; of those that end there, the longest."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end if include else end - max(lengths)], True
    return text, False


def run(
    ids: Sequence[int], stops: Sequence[str], *, include: bool = False, min_tokens: int = 0
) -> tuple[list[str], bool]:
    text = TextStops(TOKENIZER, stops, include=include, min_tokens=min_tokens)
    pieces = []
    for token in ids:
        piece, stopped = text.feed(token)
        pieces.append(piece)
        assert stopped == text.stopped
        if stopped:
            break
    pieces.append(text.finish())
    return pieces, text.stopped


@given(tokens, stop_lists, st.booleans())
@settings(max_examples=600, deadline=None)
@example(byte_ids(b"abcabd"), ["abcabd", "bca"], False)
@example(byte_ids(b"aab"), ["aaab", "ab"], True)
@example(byte_ids(b"\xe4\xb8"), ["\ufffd"], False)
@example(byte_ids(b"abcab"), ["cabx", "abcaby"], False)
def test_the_text_ends_where_a_search_through_all_of_it_says(ids: list[int], stops: list[str], include: bool) -> None:
    pieces, stopped = run(ids, stops, include=include)
    assert ("".join(pieces), stopped) == naive(TOKENIZER.decode(ids), stops, include)


@given(tokens, stop_lists)
@settings(max_examples=300, deadline=None)
def test_only_what_may_begin_a_stop_string_is_held_back(ids: list[int], stops: list[str]) -> None:
    text = TextStops(TOKENIZER, stops)
    stream = TextStops(TOKENIZER)
    shown = whole = ""
    for token in ids:
        piece, stopped = text.feed(token)
        if stopped:
            break
        shown += piece
        whole += stream.feed(token)[0]
        held = whole[len(shown) :]
        assert whole == shown + held
        starts = [size for stop in stops for size in range(1, len(stop)) if whole.endswith(stop[:size])]
        assert len(held) == max(starts, default=0)


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    ids = byte_ids(b"one two <|user|> three")
    pieces, stopped = run(ids, ["<|user|>"])
    assert stopped
    assert pieces == [*"one two ", *[""] * 8, ""]


def test_the_stop_string_is_shown_where_it_is_asked_for() -> None:
    assert "".join(run(byte_ids(b"a.b"), ["."], include=True)[0]) == "a."


def test_what_follows_in_the_same_token_is_cut() -> None:
    token = TOKENIZER.token_id("abcab")
    assert token is not None
    assert run([token], ["c"]) == (["ab", ""], True)
    assert run([token], ["c"], include=True) == (["abc", ""], True)


def test_after_the_end_nothing_comes() -> None:
    text = TextStops(TOKENIZER, ["b"])
    assert [text.feed(token) for token in byte_ids(b"abab")] == [("a", False), ("", True), ("", True), ("", True)]
    assert text.finish() == ""


def test_what_was_held_comes_at_the_end() -> None:
    assert run(byte_ids(b"xab"), ["abc"]) == (["x", "", "", "ab"], False)


def test_without_stop_strings_all_text_comes_at_once() -> None:
    ids = [*byte_ids("é".encode()), *WORD_IDS[:2]]
    assert run(ids, []) == (["", "é", "ab", "aba", ""], False)


def test_special_tokens_are_no_text() -> None:
    assert run([*byte_ids(b"a"), len(WORDS) + 256, *byte_ids(b"b")], ["ab"]) == ([""] * 4, True)


def test_bytes_that_are_no_character_can_be_stopped_at() -> None:
    assert run(byte_ids(b"a\xffb"), ["\ufffd"]) == (["a", "", ""], True)
    # This one shows only at the end, that it is none.
    assert run(byte_ids(b"a\xe4\xb8"), ["\ufffd"]) == (["a", "", "", ""], True)


def test_nothing_is_looked_for_in_the_fewest_tokens() -> None:
    pieces, stopped = run(byte_ids(b"abababab"), ["ba"], min_tokens=4)
    assert ("".join(pieces), stopped) == ("ababa", True)


@pytest.mark.parametrize(
    "stops", [["a" * 256], ["ab" * 128, "b" * 255 + "c"], [f"{'a' * 255}{c}" for c in "bcdefghij"]]
)
def test_time_is_in_proportion_to_the_text(stops: list[str]) -> None:
    """A text of what nearly is a stop string, all along: eight times the text takes about eight times as long."""

    def seconds(count: int) -> float:
        ids = byte_ids(b"ab" if "b" in stops[0][:2] else b"a") * count
        best = float("inf")
        for _ in range(3):
            text = TextStops(TOKENIZER, [stop + "!" for stop in stops])
            start = time.process_time()
            for token in ids:
                text.feed(token)
            best = min(best, time.process_time() - start)
        return best

    short = seconds(1000)
    assert seconds(8000) < 8 * short * 4 + 0.05
