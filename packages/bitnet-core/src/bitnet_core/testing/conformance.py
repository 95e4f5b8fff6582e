"""What every backend must do, as a suite that backends' tests inherit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from .. import reference
from ..memory import Pool
from ..model import Adapter, Array, Backend, Model, Reach, Runner, Step
from ..tensor import TernaryTensor
from .random_models import CASES, Case, random_adapter, some_tokens


class BackendSuite:
    """Inherit with `backend` set; pytest then runs every check on every case."""

    backend: ClassVar[Backend]
    cases: ClassVar[tuple[Case, ...]] = CASES
    options: ClassVar[Mapping[str, Any]] = {}  # of the backend's load
    # Largest difference to the reference over the spread of its logits. Kernels add floats in their own order,
    # which may move an activation over the edge between two of its 255 steps.
    tolerance: ClassVar[float] = 2e-2

    def pytest_generate_tests(self, metafunc: Any) -> None:
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=[case.name for case in self.cases])

    def load(self, model: Model) -> Runner:
        """The model on the backend under test."""
        return self.backend.load(model, **self.options)

    def test_logits_are_the_references(self, case: Case) -> None:
        model = case.model()
        tokens = some_tokens(case.spec, 40)
        expected = run(reference.load(model), tokens)
        logits = run(self.load(model), tokens)
        assert logits.dtype == np.float32
        assert np.abs(logits - expected).max() <= self.tolerance * max(float(np.ptp(expected)), 1e-6)
        # A flipped step moves a few logits a little: the typical one is far closer.
        assert np.median(np.abs(logits - expected)) <= self.tolerance / 50 * max(float(np.ptp(expected)), 1e-6)

    def test_logits_do_not_depend_on_how_a_prompt_is_cut(self, case: Case) -> None:
        runner = self.load(case.model())
        tokens = some_tokens(case.spec, 37)
        whole = run(runner, tokens)
        for cut in (1, 15, 16, 17, 36):
            cache = runner.new_cache()
            first = logits_of(runner, Step(tokens[:cut], cache, "all"))
            rest = logits_of(runner, Step(tokens[cut:], cache, "all"))
            np.testing.assert_array_equal(np.concatenate([first, rest]), whole)

    def test_logits_do_not_depend_on_who_else_is_in_the_batch(self, case: Case) -> None:
        runner = self.load(case.model())
        prompts = [some_tokens(case.spec, size, seed=size) for size in (1, 5, 16, 33, 2)]
        alone = [run(runner, prompt) for prompt in prompts]
        wants: tuple[Literal["last", "all"], ...] = ("last", "all", "all", "last", "all")
        steps = [Step(tokens, runner.new_cache(), want) for tokens, want in zip(prompts, wants, strict=True)]
        for want, got, expected in zip(wants, runner.forward(steps), alone, strict=True):
            assert got is not None
            np.testing.assert_array_equal(got, expected if want == "all" else expected[-1])

    def test_a_fork_continues_as_its_parent_would_have(self, case: Case) -> None:
        runner = self.load(case.model())
        tokens = some_tokens(case.spec, 50)
        whole = run(runner, tokens)
        parent = runner.new_cache()
        runner.forward([Step(tokens[:41], parent, "none")])
        for length in (0, 7, 16, 40, 41):
            child = parent.fork(length)
            np.testing.assert_array_equal(logits_of(runner, Step(tokens[length:], child, "all")), whole[length:])
            child.close()
        np.testing.assert_array_equal(logits_of(runner, Step(tokens[41:], parent, "all")), whole[41:])

    def test_a_fork_does_not_change_its_parent(self, case: Case) -> None:
        runner = self.load(case.model())
        tokens, other = some_tokens(case.spec, 30), some_tokens(case.spec, 20, seed=9)
        parent = runner.new_cache()
        runner.forward([Step(tokens[:20], parent, "none")])
        children = [parent.fork(), parent.fork(13)]
        runner.forward([Step(other, child, "none") for child in children])
        rest = logits_of(runner, Step(tokens[20:], parent, "all"))
        np.testing.assert_array_equal(rest, run(runner, tokens)[20:])

    def test_what_was_truncated_is_forgotten(self, case: Case) -> None:
        runner = self.load(case.model())
        first, then = some_tokens(case.spec, 30), some_tokens(case.spec, 12, seed=4)
        cache = runner.new_cache()
        runner.forward([Step(first, cache, "none")])
        for length in (30, 17, 16, 3, 0):
            cache.truncate(length)
            rest = logits_of(runner, Step(then, cache, "all"))
            whole = run(runner, np.concatenate([first[:length], then]))
            np.testing.assert_array_equal(rest, whole[length:])
            assert cache.length == length + len(then)
            cache.truncate(length)

    def test_a_state_is_what_the_head_multiplies(self, case: Case) -> None:
        runner = self.load(case.model())
        tokens = some_tokens(case.spec, 9)
        state, none = runner.forward(
            [Step(tokens, runner.new_cache(), "state"), Step(tokens, runner.new_cache(), "none")]
        )
        assert none is None
        assert state is not None
        assert state.shape == (case.spec.hidden_size,)
        assert state.dtype == np.float32
        weights = case.model().weights
        head = weights["embedding" if case.spec.tied else "head"]
        dense = head.dense() if isinstance(head, TernaryTensor) else head
        logits = dense.astype(np.float64) @ state * case.spec.logit_scale
        np.testing.assert_allclose(run(runner, tokens)[-1], logits, rtol=1e-2, atol=2e-2 * np.abs(logits).max())

    def test_logits_within_reach_are_those_of_a_whole_head(self, case: Case) -> None:
        runner = self.load(case.model())
        tokens = some_tokens(case.spec, 6)
        whole = run(runner, tokens)
        for reach in (Reach(), Reach(best=3), Reach(margin=float(np.ptp(whole)) / 4), Reach(best=case.spec.vocab_size)):
            steps = [
                Step(tokens, runner.new_cache(), "all", reach),
                Step(tokens, runner.new_cache(), "last", reach),
                Step(tokens, runner.new_cache(), "last"),
            ]
            some, last, plain = runner.forward(steps)
            alone = logits_of(runner, Step(tokens, runner.new_cache(), "last", reach))
            assert some is not None
            for logits, expected in zip([*some, last, alone], [*whole, whole[-1], whole[-1]], strict=True):
                assert_within_reach(logits, expected, reach)
            np.testing.assert_array_equal(plain, whole[-1])

    def test_a_step_that_cannot_run_changes_nothing(self, case: Case) -> None:
        runner = self.load(case.model())
        cache, closed = runner.new_cache(), runner.new_cache()
        closed.close()
        good = Step(some_tokens(case.spec, 3), cache)
        bad = [
            Step(np.array([case.spec.vocab_size], np.int32), runner.new_cache()),
            Step(np.array([-1], np.int32), runner.new_cache()),
            Step(np.empty(0, np.int32), runner.new_cache()),
            Step(some_tokens(case.spec, 1), closed),
            Step(some_tokens(case.spec, 1), cache),
        ]
        for step in bad:
            refusal = _refusal_of(runner, [good, step])
            assert "step 1" in refusal or "closed" in refusal
            assert cache.length == 0
        assert runner.forward([]) == []

    def test_pages_come_back_when_caches_close(self, case: Case) -> None:
        pool = Pool(name="test")
        runner = self.backend.load(case.model(), **self.options, memory=pool)
        tokens = some_tokens(case.spec, 33)

        def use() -> None:
            caches = [runner.new_cache() for _ in range(3)]
            runner.forward([Step(tokens, cache, "none") for cache in caches])
            for cache in [*caches, *(cache.fork(20) for cache in caches)]:
                cache.close()
                cache.close()

        use()
        before = pool.stats().in_use
        for _ in range(5):
            use()
        assert pool.stats().in_use == before
        runner.close()
        runner.close()
        assert pool.stats().in_use == 0

    def test_an_adapter_changes_what_it_changes_in_the_reference(self, case: Case) -> None:
        model, adapter = case.model(), random_adapter(case.spec)
        tokens = some_tokens(case.spec, 40)
        expected = run(reference.load(model), tokens, adapter)
        logits = run(self.load(model), tokens, adapter)
        assert np.abs(expected - run(reference.load(model), tokens)).max() > 1e-3 * np.ptp(expected)
        assert np.abs(logits - expected).max() <= self.tolerance * np.ptp(expected)
        assert np.median(np.abs(logits - expected)) <= self.tolerance / 50 * np.ptp(expected)

    def test_adapters_share_a_batch_and_nothing_else(self, case: Case) -> None:
        runner = self.load(case.model())
        first = random_adapter(case.spec, 1, rank=3, projections=("attn.q", "attn.o", "ffn.up", "ffn.down"))
        second = random_adapter(case.spec, 2, rank=70)
        adapters = (first, None, second, first, second)
        prompts = [some_tokens(case.spec, size, seed=size) for size in (9, 5, 33, 1, 2)]
        alone = [run(runner, tokens, adapter) for tokens, adapter in zip(prompts, adapters, strict=True)]
        steps = [
            Step(tokens, runner.new_cache(), "all", adapter=adapter)
            for tokens, adapter in zip(prompts, adapters, strict=True)
        ]
        for got, expected in zip(runner.forward(steps), alone, strict=True):
            np.testing.assert_array_equal(got, expected)
        cache = runner.new_cache()
        runner.forward([Step(prompts[2][:17], cache, "none", adapter=second)])
        rest = logits_of(runner, Step(prompts[2][17:], cache.fork(), "all", adapter=second))
        np.testing.assert_array_equal(rest, alone[2][17:])

    def test_memory_of_an_adapter_comes_back_when_it_is_dropped(self, case: Case) -> None:
        pool = Pool(name="test")
        runner = self.backend.load(case.model(), **self.options, memory=pool)
        tokens = some_tokens(case.spec, 3)
        run(runner, tokens, random_adapter(case.spec))
        before = pool.stats().in_use
        for seed in range(3):
            run(runner, tokens, random_adapter(case.spec, seed))
        assert pool.stats().in_use == before
        runner.close()
        assert pool.stats().in_use == 0


def _refusal_of(runner: Runner, steps: Sequence[Step]) -> str:
    try:
        runner.forward(steps)
    except ValueError as error:
        return str(error)
    return "accepted"


def assert_within_reach(logits: Array | None, whole: Array, reach: Reach) -> None:
    """That logits are those of the whole head wherever they are within reach, and those or -inf elsewhere."""
    assert logits is not None
    lowest = min(np.sort(whole)[-reach.best], whole.max() - np.float32(reach.margin))
    expected = np.where((whole >= lowest) | (logits != -np.inf), whole, -np.inf)
    np.testing.assert_array_equal(logits, expected)


def run(runner: Runner, tokens: npt.NDArray[np.int32], adapter: Adapter | None = None) -> Array:
    """Logits of every position of a text on its own."""
    cache = runner.new_cache()
    try:
        return logits_of(runner, Step(tokens, cache, "all", adapter=adapter))
    finally:
        cache.close()


def logits_of(runner: Runner, step: Step) -> Array:
    """What one step on its own gives."""
    (logits,) = runner.forward([step])
    assert logits is not None
    return logits
