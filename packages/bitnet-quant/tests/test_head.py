"""The head that is read in part: within reach the logits of the whole head to the bit, whoever calls and however."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("bitnet_quant.cpu._native", reason="built without the compiled part")

from bitnet_core.model import Model, Reach, Runner, Step
from bitnet_core.testing import assert_within_reach, random_model, some_tokens, tiny_spec
from bitnet_quant.cpu import BACKEND, _native, isas

Floats = npt.NDArray[np.float32]
REACHES = [Reach(), Reach(best=2), Reach(best=17), Reach(margin=2.0), Reach(best=3, margin=0.5)]
SPLITTING = [isa for isa in isas() if isa.startswith(("avx512", "scalar"))]


class Head:
    """A head alone, in planes or as rows of bytes, of rows whose largest magnitude is their scale times 127."""

    def __init__(
        self, rows: Floats, isa: str, *, threads: int = 2, in_planes: bool = True, shrink: float = 1.0
    ) -> None:
        count, columns = rows.shape
        self._engine = _native.Engine(
            isa,
            threads,
            _native.Shape(
                hidden=columns,
                ffn=1,
                layers=0,
                heads=1,
                kv_heads=1,
                head_size=1,
                gate="silu",
                held="f16",
                norm_eps=0,
                sub_norm_eps=0,
                query_scale=1,
                embedding_scale=1,
                residual_scale=1,
            ),
            threads,
        )
        self._count = count
        stored, size = rows.reshape(-1).view(np.uint8), {"rows": count, "columns": columns}
        placed, unit = -(-count // 64) * 64, _native.PLANE_COLUMNS if in_planes else 16
        data, scale = np.empty(placed * -(-columns // unit) * unit, np.uint8), np.empty(placed, np.float32)
        if in_planes:
            rest = np.empty((_native.RESTS, placed), np.float32)
            self._engine.pack_planes(stored, "float32", data, scale, rest, **size)
            matrix = _native.Matrix.planes(data, scale, rest * np.float32(shrink), **size)
        else:
            self._engine.pack_rows(stored, "float32", data, scale, **size)
            matrix = _native.Matrix.bytes(data, scale, **size)
        embedding = _native.Matrix.dense(stored[: 4 * columns], kind="float32", rows=1, columns=columns)
        self._engine.set_ends(embedding, matrix, np.ones(columns, np.float32))
        self._scratch = np.empty(self._engine.scratch_bytes() + 64, np.uint8)
        start = -self._scratch.ctypes.data % 64
        self._engine.use_scratch(self._scratch[start : start + self._engine.scratch_bytes()])

    def logits(self, states: Floats, reaches: Sequence[Reach | None] | None = None) -> Floats:
        """Of each state, with its own reach."""
        found = np.full((len(states), self._count), 7, np.float32)
        wanted = [(r.best, r.margin) if r else (0, 0) for r in reaches or [None] * len(states)]
        self._engine.head(np.ascontiguousarray(states), np.array(wanted, np.float64), found)
        return found

    def rows_read(self) -> list[int]:
        return self._engine.rows_read()


def spread_out(kind: str, count: int, columns: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Rows and twelve states of one kind."""
    random = np.random.default_rng(seed)
    rows, states = random.standard_normal((count, columns)), random.standard_normal((12, columns))
    if kind == "peaked":
        states += rows[random.integers(0, count, 12)] * 0.6
    elif kind == "ties":
        rows = rows[random.integers(0, 5, count)]
    elif kind == "equal rows":
        rows[:] = rows[0]
    elif kind == "zero rows":
        rows[random.random(count) < 0.7] = 0
        states[:3] = -np.abs(states[:3])
    elif kind == "all zero":
        rows[:] = 0
    elif kind == "zero states":
        states[::2] = 0
    elif kind == "huge row":
        rows[count // 2] *= 1e6
        rows[count // 3] *= 1e-6
    elif kind == "all 127":
        rows[:], states[:6], states[6:] = np.sign(rows[:, :1]), 1, -1
    elif kind == "tiny scales":
        rows, states = rows * 1e-38, states * 1e-4
    elif kind == "large scales":
        rows *= 1e36
    elif kind == "one column":
        states *= np.arange(columns) == columns - 1
    return rows.astype(np.float32), states.astype(np.float32)


KINDS = (
    "random", "peaked", "ties", "equal rows", "zero rows", "all zero", "zero states", "huge row", "all 127",
    "tiny scales", "large scales", "one column",
)  # fmt: skip


def check(head: Head, whole: Floats, states: Floats, reach: Reach) -> None:
    """One by one and together, twice, because a head learns from its last call how to begin."""
    for _ in range(2):
        for state, expected in zip(states, whole, strict=True):
            assert_within_reach(head.logits(state[None], [reach])[0], expected, reach)
        for first in range(0, len(states), 5):
            part = slice(first, first + 5)
            for logits, expected in zip(
                head.logits(states[part], [reach] * len(states[part])), whole[part], strict=True
            ):
                assert_within_reach(logits, expected, reach)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize(("count", "columns"), [(96, 128), (1000, 100)])
def test_logits_within_reach_are_those_of_rows_of_bytes(splitting: str, kind: str, count: int, columns: int) -> None:
    rows, states = spread_out(kind, count, columns)
    head = Head(rows, splitting)
    whole = Head(rows, splitting, in_planes=False).logits(states)
    np.testing.assert_array_equal(head.logits(states), whole)
    for reach in REACHES:
        check(head, whole, states, reach)


def rows_at_the_bound(columns: int) -> tuple[Floats, Floats]:
    """A row that gains from its last bits all that the bound allows, and one that stands a hundredth below it.

    All inputs are of one magnitude, and the low bits of the first row follow their signs. Its high bits say nothing,
    and the high bits of the other all, so that the other is found first.
    """
    random = np.random.default_rng(0)
    signs = np.where(np.arange(columns) % 2, 1.0, -1.0)
    rows = np.round(random.standard_normal((640, columns)) * 2) - 60
    positive = np.flatnonzero(signs > 0)
    rows[100] = np.where(signs > 0, 15, 0)
    rows[500] = 0
    rows[500, positive[: int(len(positive) * 0.93)]] = 16
    rows[:, 0], signs[0] = 127, 0  # so that a step of every row is 1
    rows[:, 1], signs[1] = 0, 0
    return rows.astype(np.float32), signs[None].astype(np.float32)


def test_a_row_that_gains_all_that_the_bound_allows_is_found() -> None:
    rows, states = rows_at_the_bound(2562)
    for isa in SPLITTING:
        head, whole = Head(rows, isa), Head(rows, isa, in_planes=False).logits(states)
        assert whole.argmax() == 100
        check(head, whole, states, Reach())


@pytest.mark.parametrize("shrink", [0.0, 0.5, 0.98])
def test_a_bound_that_is_too_tight_would_be_noticed(shrink: float) -> None:
    rows, states = rows_at_the_bound(2562)
    for isa in SPLITTING:
        whole = Head(rows, isa, in_planes=False).logits(states)
        with pytest.raises(AssertionError):
            check(Head(rows, isa, shrink=shrink), whole, states, Reach())


@pytest.mark.parametrize("kind", ["random", "peaked", "ties", "zero rows"])
def test_neither_threads_nor_neighbours_nor_what_went_before_change_a_bit(kind: str) -> None:
    rows, states = spread_out(kind, 1500, 256, seed=3)
    for reach in REACHES:
        one = Head(rows, isas()[0], threads=1)
        alone = np.stack([one.logits(state[None], [reach])[0] for state in states[:8]])
        for threads in (2, 3, 8):
            head = Head(rows, isas()[0], threads=threads)
            for _ in range(3):
                for size in range(1, min(6, 64 // reach.best) + 1):  # of more, and for more, all is read
                    np.testing.assert_array_equal(head.logits(states[:size], [reach] * size), alone[:size])
                head.logits(states[::-1][:3], [Reach(best=40)] * 3)


def test_each_row_of_a_batch_has_its_own_reach() -> None:
    rows, states = spread_out("random", 2000, 128)
    head = Head(rows, isas()[0])
    whole = head.logits(states)
    for reaches in (
        REACHES,
        [*REACHES, None],
        [None, Reach()],
        [Reach(best=3)] * 12,
        [Reach(best=40)] * 2,
        [Reach(best=10**9), Reach()],
    ):
        found = head.logits(states[: len(reaches)], reaches)
        for logits, expected, reach in zip(found, whole, reaches, strict=False):
            assert_within_reach(logits, expected, reach if reach and reach.best <= 2000 else Reach(best=2000))


@pytest.mark.parametrize("margin", [np.inf, -np.inf, np.nan, 1e300, -5.0])
def test_margins_of_all_sizes_mean_what_they_say(margin: float) -> None:
    rows, states = spread_out("random", 700, 128)
    head = Head(rows, isas()[0])
    whole = head.logits(states[:1])[0]
    logits = head.logits(states[:1], [Reach(best=2, margin=margin)])[0]
    if margin > 0:
        np.testing.assert_array_equal(logits, whole)
    assert_within_reach(logits, whole, Reach(best=2))


@pytest.mark.parametrize("splitting", SPLITTING)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_states_that_are_not_finite_give_what_the_whole_head_gives(splitting: str, wrong: float) -> None:
    rows, states = spread_out("random", 300, 128)
    states[1, 5] = wrong
    head = Head(rows, splitting)
    whole = head.logits(states)
    assert not np.isfinite(whole[1]).all()
    np.testing.assert_array_equal(head.logits(states[1:2], [Reach()])[0], whole[1])
    assert_within_reach(head.logits(states[:3], [Reach()] * 3)[0], whole[0], Reach())


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_never_left_out(wrong: float) -> None:
    rows, states = spread_out("random", 300, 128)
    rows[77, 3] = wrong
    for isa in SPLITTING:
        head = Head(rows, isa)
        whole = head.logits(states)
        for expected, state in zip(whole, states, strict=True):
            logits = head.logits(state[None], [Reach()])[0]
            np.testing.assert_array_equal(logits[77], expected[77])
            finite = np.where(np.isfinite(expected), expected, -np.inf)
            if not np.isposinf(expected[77]):
                assert logits[finite.argmax()] == finite.max()


def test_rows_out_of_reach_are_read_in_part() -> None:
    rows, states = spread_out("peaked", 1280, 512, seed=5)
    for isa in SPLITTING:
        head = Head(rows, isa)
        head.logits(states[:1])
        assert head.rows_read() == [0] * 5
        target = head.logits(states[:1])[0].argmax()
        logits = head.logits(states[:1], [Reach()])[0]
        nibbles, *bits = head.rows_read()
        assert nibbles == len(logits)
        assert bits[0] < nibbles / 2
        assert bits[-1] < 20
        assert logits[target] == logits.max()


def test_planes_take_no_more_room_than_rows_of_bytes() -> None:
    spec = tiny_spec(vocab_size=6400, hidden_size=256, head_size=64)
    model = random_model(spec)
    sizes = [BACKEND.load(model, isa=isa, threads=1)._operations._pool.stats().in_use for isa in isas()]  # type: ignore[attr-defined]
    scratch = 6 * 6400 * (3 * 4 + 1)  # sums and bounds of six tokens
    rests = 3 * 4 * 6400
    assert max(sizes) - min(sizes) < scratch + rests + 6400 * 8 + 200_000


def test_the_decoders_greedy_path_is_that_of_the_whole_head(isa: str) -> None:
    spec = tiny_spec(vocab_size=1300)
    model = random_model(spec)

    def path(runner: Runner, reach: Reach | None) -> list[int]:
        cache, tokens, said = runner.new_cache(), some_tokens(spec, 5), list[int]()
        for _ in range(20):
            (logits,) = runner.forward([Step(tokens, cache, "last", reach)])
            assert logits is not None
            tokens = np.array([logits.argmax()], np.int32)
            said.append(int(tokens[0]))
        return said

    runner = BACKEND.load(Model(spec, model.weights), isa=isa)
    assert path(runner, Reach()) == path(runner, None)
