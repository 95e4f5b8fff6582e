"""Better, worse or within noise: the test is exact, errs as seldom as it says, and sees what is there."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest

from bitnet_benchmarks.compare import Comparison, compare, mann_whitney
from bitnet_benchmarks.record import Record


def figure(decode: list[float], prompt: list[float] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "engine": "runner",
        "threads": 1,
        "prompt": 64,
        "tokens": 16,
        "depth": 0,
        "batch": 1,
        "decode_runs": decode,
        "prompt_runs": prompt or [1.0, 1.01, 0.99, 1.02, 0.98],
        **more,
    }


def record(*figures: dict[str, Any], **changes: Any) -> Record:
    plain = Record(
        id="abc",
        kind="generate",
        time="2026-01-01T00:00:00+00:00",
        versions={"bitnet-core": "0.1.0"},
        machine={"cpu": {"name": "one"}},
        model={"name": "m", "sha256": "1"},
        options={},
        figures=figures,
    )
    return replace(plain, **changes)


def brute_force(first: list[float], second: list[float]) -> float:
    """The same probability by all ways to divide the values."""
    values = [*first, *second]
    m, middle = len(first), len(first) * len(second) / 2

    def apart(chosen: tuple[int, ...]) -> float:
        rest = [values[i] for i in range(len(values)) if i not in chosen]
        return abs(sum((values[i] > b) + 0.5 * (values[i] == b) for i in chosen for b in rest) - middle)

    seen = apart(tuple(range(m)))
    every = [apart(chosen) for chosen in itertools.combinations(range(len(values)), m)]
    return sum(one >= seen - 1e-9 for one in every) / len(every)


@pytest.mark.parametrize("sizes", [(3, 3), (5, 5), (4, 6), (1, 7), (8, 8)])
def test_the_probability_is_exact(sizes: tuple[int, int]) -> None:
    chance = random.Random(7)
    for ties in (False, True):
        for _ in range(3 if sum(sizes) > 12 else 10):
            first, second = ([chance.randrange(4) if ties else chance.random() for _ in range(n)] for n in sizes)
            assert mann_whitney(first, second) == pytest.approx(brute_force(first, second))


def test_five_runs_can_differ_and_three_cannot() -> None:
    assert mann_whitney([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / math.comb(10, 5))
    assert mann_whitney([1, 2, 3], [4, 5, 6]) > 0.05


def test_many_runs_are_compared_by_the_normal_approximation() -> None:
    first = [1 + n / 1000 for n in range(30)]
    assert mann_whitney(first, [value + 0.0005 for value in first]) > 0.5
    assert mann_whitney(first, [value * 2 for value in first]) < 1e-6


def test_equal_machines_are_seldom_told_apart() -> None:
    chance = random.Random(1)
    wrong = 0
    for _ in range(400):
        first, second = ([chance.lognormvariate(0, 0.1) for _ in range(5)] for _ in range(2))
        found = compare(record(figure(first)), record(figure(second)))
        wrong += verdict(found) != "within noise"
    assert wrong / 400 < 0.08  # 5% is promised, and no more than the exact test's 3.2% is due


def test_a_tenth_is_seen_through_noise_of_two_percent() -> None:
    chance = random.Random(2)
    seen = 0
    for _ in range(100):
        first = [chance.gauss(1.0, 0.02) for _ in range(5)]
        second = [chance.gauss(1.1, 0.02) for _ in range(5)]
        seen += verdict(compare(record(figure(first)), record(figure(second)))) == "worse"
    assert seen > 90


def verdict(found: Comparison) -> str:
    (change,) = [change for change in found.changes if change.figure == "decode"]
    return change.verdict


def test_a_clear_difference_that_is_too_small_does_not_count() -> None:
    first = [1.000, 1.001, 1.002, 1.003, 1.004]
    second = [1.005, 1.006, 1.007, 1.008, 1.009]
    assert verdict(compare(record(figure(first)), record(figure(second)))) == "within noise"
    assert verdict(compare(record(figure(first)), record(figure(second)), least=0.001)) == "worse"
    assert verdict(compare(record(figure(second)), record(figure(first)), least=0.001)) == "better"


def test_single_figures_count_beyond_their_share() -> None:
    old = record(figure([1.0], peak_bytes=1000, multiplications_per_s=10.0))
    new = record(figure([1.0], peak_bytes=1200, multiplications_per_s=12.0))
    found = {change.figure: change.verdict for change in compare(old, new).changes}
    assert found["peak_bytes"] == "worse"
    assert found["multiplications_per_s"] == "better"
    assert [change.figure for change in compare(old, new).regressions] == ["peak_bytes"]


def test_what_makes_records_hard_to_compare_is_said() -> None:
    old = record(figure([1.0]))
    new = record(
        figure([1.0]),
        machine={"cpu": {"name": "two"}},
        model={"name": "m", "sha256": "2"},
        versions={"bitnet-core": "0.2.0"},
    )
    notes = " ".join(compare(old, new).notes)
    assert "models differ" in notes
    assert "one and two" in notes
    assert "0.1.0 became 0.2.0" in notes


def test_records_without_a_common_figure_are_refused() -> None:
    with pytest.raises(ValueError, match="no figure in common"):
        compare(record(figure([1.0])), record(figure([1.0], threads=2)))
    with pytest.raises(ValueError, match="shares"):
        compare(record(figure([1.0])), record(figure([1.0])), alpha=0)
