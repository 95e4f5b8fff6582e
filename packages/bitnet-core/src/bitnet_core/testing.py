"""What every backend must do, as cases and as a suite: inherited by backends' tests, timed by the benchmarks.

    from bitnet_core.testing import BackendSuite

    class TestMyBackend(BackendSuite):
        backend = BACKEND

The suite needs pytest to be collected by, and nothing of it to be imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from . import reference, rope
from .memory import Pool
from .model import Adapter, Array, Backend, Model, ModelSpec, Reach, Rope, Runner, Step, Weight
from .tensor import TernaryTensor


def tiny_spec(**changes: Any) -> ModelSpec:
    """A small BitNet of two layers: hidden 128, feed-forward 256, four heads of 32 over two."""
    plain = ModelSpec(
        family="bitnet",
        vocab_size=96,
        hidden_size=128,
        ffn_size=256,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=32,
        context=128,
        rope=Rope(theta=500_000.0, size=32),
        norm_eps=1e-5,
        activation="relu2",
        sub_norms="block",
        tied=True,
    )
    if "head_size" in changes and "rope" not in changes:
        changes["rope"] = replace(plain.rope, size=changes["head_size"])
    return replace(plain, **changes)


# Published models, for what is measured and tested at full size.
SHAPES: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "2b4t": tiny_spec(
            vocab_size=128256,
            hidden_size=2560,
            ffn_size=6912,
            layers=30,
            heads=20,
            kv_heads=5,
            head_size=128,
            context=4096,
        )
    }
)


def random_model(
    spec: ModelSpec,
    seed: int = 0,
    *,
    layout: str = "hf_rows",
    block: int | None = None,
    ternary_embedding: bool = False,
    extreme: bool = False,
) -> Model:
    """A model of random weights, the same for the same arguments.

    `block`: columns that share a scale; None gives each matrix one. `extreme`: all codes and norms are 1. Then
    all rows of gate and up give the same, and every activation that the last projection multiplies is 127.
    """
    random = np.random.default_rng(seed)
    weights: dict[str, Weight] = {}
    for name, shape in spec.shapes().items():
        if len(shape) == 1:
            weights[name] = np.ones(shape, np.float32) if extreme else _random_vector(name, shape[0], random)
        elif name.startswith("layers.") or ternary_embedding:
            weights[name] = _random_ternary((shape[0], shape[1]), random, layout, block, extreme)
        else:
            weights[name] = random.standard_normal(shape).astype(np.float16)
    return Model(spec, weights)


def _random_vector(name: str, size: int, random: np.random.Generator) -> Array:
    if name.endswith("bias"):
        return random.normal(0, 0.2, size).astype(np.float32)
    return random.uniform(0.5, 1.5, size).astype(np.float32)


def _random_ternary(
    shape: tuple[int, int], random: np.random.Generator, layout: str, block: int | None, extreme: bool
) -> TernaryTensor:
    rows, cols = shape
    codes = np.ones(shape, np.int8) if extreme else random.integers(-1, 2, shape).astype(np.int8)
    scales = (1, 1) if block is None else (rows, cols // block)
    # Half-precision values: every layout's files can hold them.
    scale = random.uniform(0.02, 0.2, scales).astype(np.float16).astype(np.float32)
    return TernaryTensor.from_codes(codes, scale, layout)


def random_adapter(spec: ModelSpec, seed: int = 0, *, rank: int = 5, projections: Sequence[str] = ()) -> Adapter:
    """An adapter of random weights, of which the first matrices are in half precision; () changes all projections."""
    random = np.random.default_rng(seed)
    weights = {}
    for layer in range(spec.layers):
        for name, (rows, columns) in spec.projections().items():
            if not projections or name in projections:
                down = random.standard_normal((rank, columns)) / columns**0.5
                up = 0.3 * random.standard_normal((rows, rank))
                weights[f"layers.{layer}.{name}"] = (down.astype(np.float16).astype(np.float32), up.astype(np.float32))
    return Adapter(f"random-{seed}", weights)


@dataclass(frozen=True, slots=True)
class Case:
    """A model that a backend must run as the reference does."""

    name: str
    spec: ModelSpec
    options: Mapping[str, Any]  # of random_model

    def model(self) -> Model:
        """The case's model."""
        return random_model(self.spec, **self.options)


def _case(name: str, spec: ModelSpec, **options: Any) -> Case:
    return Case(name, spec, options)


_QWEN = {
    "family": "qwen3",
    "activation": "silu",
    "qk_norm": True,
    "head_size": 32,
    "norm_eps": 1e-6,
    "sub_norm_eps": 1e-6,
}
_LLAMA = {"family": "llama", "activation": "silu", "sub_norms": "none", "tied": False}

CASES: tuple[Case, ...] = (
    _case("bitnet", tiny_spec()),
    _case("bitnet-i2s", tiny_spec(), layout="i2_s_128"),
    _case("bitnet-i2s-arm", tiny_spec(), layout="i2_s_64"),
    _case("bitnet-tq1", tiny_spec(hidden_size=256, head_size=64), layout="tq1_0"),
    _case("bitnet-tq2", tiny_spec(hidden_size=256, head_size=64), layout="tq2_0"),
    _case("bitnet-odd", tiny_spec(hidden_size=100, heads=5, kv_heads=5, head_size=20, ffn_size=270, activation="silu")),
    _case("bitnet-extreme", tiny_spec(ffn_size=6912), extreme=True),
    _case("llama", tiny_spec(**_LLAMA)),
    _case("llama-wide-heads", tiny_spec(**_LLAMA, heads=2, kv_heads=1, head_size=256)),
    _case("llama-row-scales", tiny_spec(**_LLAMA), block=128),
    _case("llama-stretched", tiny_spec(**_LLAMA, rope=rope.llama3(10000.0, 32, 8.0, 1.0, 4.0, 64))),
    _case("llama-weight-only", tiny_spec(**_LLAMA, inputs="float")),
    _case("qwen2-biases", tiny_spec(**_LLAMA | {"family": "qwen2"}, biases=("attn.q", "attn.k", "attn.v"))),
    _case("qwen3-projection-norms", tiny_spec(**_QWEN, sub_norms="projection", pooling="last")),
    _case(
        "qwen3-blocks",
        tiny_spec(**_QWEN, sub_norms="none", inputs="float", tied=False, hidden_size=256),
        block=128,
        layout="q2_0_128",
        ternary_embedding=True,
    ),
    _case(
        "gemma3",
        tiny_spec(
            family="gemma3",
            layers=4,
            activation="gelu",
            sub_norms="projection",
            qk_norm=True,
            post_norms=True,
            windows=(8, 8, 8, 0),
            rope=Rope(theta=1e6, size=32),
            local_rope=Rope(theta=1e4, size=32),
            embedding_scale=128**0.5,
            attention_scale=0.2,
            pooling="last",
        ),
    ),
    _case(
        "minicpm",
        tiny_spec(
            **_LLAMA | {"family": "minicpm", "tied": True},
            inputs="float",
            embedding_scale=12.0,
            residual_scale=0.3,
            logit_scale=0.5,
            rope=rope.longrope(10000.0, 32, [1.0 + 0.1 * pair for pair in range(16)], 64, 128),
        ),
        block=64,
    ),
)


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


def some_tokens(spec: ModelSpec, count: int, seed: int = 1) -> npt.NDArray[np.int32]:
    """Random tokens of a model's vocabulary."""
    return np.random.default_rng(seed).integers(0, spec.vocab_size, count, dtype=np.int32)


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
