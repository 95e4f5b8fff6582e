"""Windows hold what the corpus holds, each token once, and their order is anybody's guess but always the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_training.corpus import Corpus, Counts
from bitnet_training.windows import NOTHING, Batches, Stream, Whole, in_order, shuffled


def corpus(*lengths: int, learned: list[int] | None = None) -> Corpus:
    """Documents of these lengths; every token is its own number."""
    total = sum(lengths)
    tokens = np.arange(1, total + 1, dtype=np.uint16)
    starts = np.cumsum([0, *lengths])
    flags = None if learned is None else np.array(learned, np.uint8)
    return Corpus("key", tokens, starts, flags, Counts("uint16", total, len(lengths), 2 * total, False, 0, 0))


def test_a_stream_is_cut_where_windows_end():
    tokens, targets, positions = Stream(corpus(10), 4, apart=False)[1]
    assert tokens.tolist() == [5, 6, 7, 8]
    assert targets.tolist() == [6, 7, 8, 9]
    assert positions.tolist() == [0, 1, 2, 3]
    assert len(Stream(corpus(10), 4, apart=False)) == 2
    assert len(Stream(corpus(8), 4, apart=False)) == 1  # the last token would have no target


def test_documents_apart_start_anew_and_their_ends_say_nothing_about_the_next():
    tokens, targets, positions = Stream(corpus(2, 3, 7), 8, apart=True)[0]
    assert tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert targets.tolist() == [2, NOTHING, 4, 5, NOTHING, 7, 8, 9]
    assert positions.tolist() == [0, 1, 0, 1, 2, 0, 1, 2]


def test_a_document_that_ends_with_the_window_says_nothing_about_the_next():
    _, targets, positions = Stream(corpus(4, 5), 4, apart=True)[0]
    assert targets.tolist() == [2, 3, 4, NOTHING]
    assert positions.tolist() == [0, 1, 2, 3]
    assert Stream(corpus(4, 5), 4, apart=True)[1][1].tolist() == [6, 7, 8, 9]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(2, 9))
def test_a_stream_agrees_with_its_obvious_twin(lengths, size):
    made = corpus(*lengths)
    document = np.repeat(np.arange(len(lengths)), lengths)
    for place in range(len(Stream(made, size, apart=True))):
        tokens, targets, positions = Stream(made, size, apart=True)[place]
        for at in range(size):
            here = place * size + at
            assert tokens[at] == here + 1
            assert targets[at] == (here + 2 if document[here] == document[here + 1] else NOTHING)
            begin = max(place * size, made.starts[document[here]])
            assert positions[at] == here - begin


@given(st.lists(st.integers(1, 15), min_size=1, max_size=40), st.integers(4, 9))
def test_whole_documents_stand_once_and_uncut_where_they_fit(lengths, size):
    made = corpus(*lengths)
    windows = Whole.of(made, size, apart=True)
    seen = Counter(token for place in range(len(windows)) for token in windows[place][0].tolist() if token)
    expected = {
        start + at + 1
        for start, length in zip(made.starts.tolist(), lengths, strict=False)
        for at in range(min(length, size))
    }
    assert seen == Counter(expected)
    assert windows.cut == sum(length > size for length in lengths)
    for place in range(len(windows)):
        tokens, targets, positions = windows[place]
        for at in np.flatnonzero(targets != NOTHING):
            assert targets[at] == tokens[at] + 1
            assert positions[at + 1] == positions[at] + 1


def test_whole_documents_fill_windows_well():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 200, 500).tolist()
    windows = Whole.of(corpus(*lengths), 256, apart=True)
    assert sum(lengths) / (len(windows) * 256) > 0.97


def test_only_answers_are_learned():
    flags = [0, 0, 1, 1, 0, 1, 1]
    _, targets, _ = Whole.of(corpus(4, 3, learned=flags), 8, apart=True)[0]
    assert targets.tolist() == [NOTHING, 3, 4, NOTHING, 6, 7, NOTHING, NOTHING]
    assert Stream(corpus(4, 3, learned=flags), 6, apart=True)[0][1].tolist() == [NOTHING, 3, 4, NOTHING, 6, 7]


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 50))
def test_an_order_has_every_place_once(count, seed, epoch):
    assert sorted(shuffled(place, count, (seed, epoch)) for place in range(count)) == list(range(count))


def test_orders_differ_by_seed_and_epoch_and_look_random():
    orders = [[shuffled(place, 1000, key) for place in range(1000)] for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for one in orders:
        for other in orders:
            if one is not other:
                assert sum(a == b for a, b in zip(one, other, strict=True)) < 15  # of 1000, one is expected
        assert abs(np.corrcoef(np.arange(1000), one)[0, 1]) < 0.1


def test_an_epoch_shows_every_window_once():
    batches = Batches(Stream(corpus(81), 4, apart=False), batch=5, rows=2, seed=3)
    for epoch in range(2):
        seen = [row[0].item() for step in range(4) for part in batches(4 * epoch + step) for row in part.tokens]
        assert sorted(seen) == list(range(1, 81, 4))
    assert [len(part.tokens) for part in batches(0)] == [2, 2, 1]
    assert batches.epoch(6) == 1.5


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_a_step(processes):
    windows = Stream(corpus(81), 4, apart=False)
    alone = torch.cat([part.tokens for part in Batches(windows, 6, 6, 3)(7)])
    shared = [Batches(windows, 6, 2, 3, process, processes)(7) for process in range(processes)]
    together = torch.cat([part.tokens for parts in shared for part in parts])
    assert sorted(map(tuple, alone.tolist())) == sorted(map(tuple, together.tolist()))


def test_evaluation_takes_windows_from_all_over():
    windows = Stream(corpus(81), 4, apart=False)
    assert torch.cat([part.tokens for part in in_order(windows, 3)])[:, 0].tolist() == list(range(1, 81, 4))
    assert torch.cat([part.tokens for part in in_order(windows, 3, 5)])[:, 0].tolist() == [1, 17, 33, 49, 65]


@pytest.mark.parametrize("limit", [1, 5, 7, 9])
def test_processes_evaluate_as_many_batches_each_and_every_window_once(limit):
    windows = Stream(corpus(81), 4, apart=False)
    shared = [list(in_order(windows, 2, limit, process, 2)) for process in range(2)]
    assert len(shared[0]) == len(shared[1])
    judged = [part for parts in shared for part in parts if part.learned]
    alone = torch.cat([part.tokens for part in in_order(windows, 2, limit)])
    assert sorted(torch.cat([part.tokens for part in judged]).tolist()) == sorted(alone.tolist())


def test_a_batch_knows_how_many_tokens_it_learns():
    (part,) = Batches(Stream(corpus(2, 7), 8, apart=True), 1, 1, 0)(0)
    assert part.learned == 7
    assert part.to(torch.device("cpu")).targets is part.targets
