"""Adapters in the cpu backend: what the suite, which every instruction set passes, does not ask."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

pytest.importorskip("bitnet_quant.cpu._native", reason="built without the compiled part")

from bitnet_core import reference
from bitnet_core.errors import OutOfMemory
from bitnet_core.memory import Pool
from bitnet_core.model import Adapter, ModelSpec, Step
from bitnet_core.testing import logits_of, random_adapter, random_model, run, some_tokens, tiny_spec
from bitnet_quant.cpu import BACKEND, _native

SPEC = tiny_spec()
ODD = tiny_spec(hidden_size=100, heads=5, kv_heads=5, head_size=20, ffn_size=270, activation="silu")


def half_adapter(spec: ModelSpec, rank: int = 8) -> Adapter:
    """All in half precision, times a scale that is a power of two."""
    whole = random_adapter(spec, rank=rank)
    return Adapter(
        "half", {name: (down, np.float32(4) * up.astype(np.float16)) for name, (down, up) in whole.weights.items()}
    )


@pytest.mark.parametrize("spec", [SPEC, ODD], ids=["even", "odd"])
def test_the_number_of_threads_changes_no_bit(spec: ModelSpec, isa: str) -> None:
    model, tokens, adapter = random_model(spec), some_tokens(spec, 45), random_adapter(spec, rank=11)
    first, *others = (run(BACKEND.load(model, threads=threads, isa=isa), tokens, adapter) for threads in (1, 2, 3, 8))
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("rank", [1, 3, 4, 6, 64, 65, 200])
def test_every_rank_is_the_references(rank: int, isa: str) -> None:
    adapter, tokens = random_adapter(ODD, rank=rank), some_tokens(ODD, 9)
    model = random_model(ODD)
    expected = run(reference.load(model), tokens, adapter)
    logits = run(BACKEND.load(model, isa=isa, head="f16", kv="f32"), tokens, adapter)
    assert np.abs(logits - expected).max() <= 2e-2 * np.ptp(expected)
    assert np.median(np.abs(logits - expected)) <= 4e-4 * np.ptp(expected)


def test_sequences_of_several_chunks_and_adapters_are_what_each_is_alone(isa: str) -> None:
    spec = tiny_spec(layers=1, context=1024)
    runner = BACKEND.load(random_model(spec), isa=isa, threads=2)
    adapters = [random_adapter(spec, 1), None, random_adapter(spec, 2, rank=16)]
    # 700 tokens are three chunks, and their borders lie inside sequences.
    plan = [(200, 0), (150, 1), (7, 2), (260, 0), (1, 2), (82, 1)]
    prompts = [some_tokens(spec, count, seed=count) for count, _ in plan]
    alone = [run(runner, tokens, adapters[which]) for tokens, (_, which) in zip(prompts, plan, strict=True)]
    steps = [
        Step(tokens, runner.new_cache(), "all", adapter=adapters[which])
        for tokens, (_, which) in zip(prompts, plan, strict=True)
    ]
    for got, expected in zip(runner.forward(steps), alone, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_half_precision_takes_half_the_memory_and_changes_no_number() -> None:
    model, tokens = random_model(SPEC), some_tokens(SPEC, 9)
    adapter = half_adapter(SPEC)
    taken = {}
    for name, weights in (
        ("half", adapter.weights),
        ("whole", {key: (down, up * np.float32(1.1)) for key, (down, up) in adapter.weights.items()}),
        ("none", {}),
    ):
        pool = Pool(name="test")
        runner = BACKEND.load(model, memory=pool, head="f16", kv="f32", threads=1)
        run(runner, tokens, random_adapter(SPEC))
        before = pool.stats().in_use
        kept = Adapter(name, weights)
        run(runner, tokens, kept)
        taken[name] = pool.stats().in_use - before
        if name == "half":
            expected = run(reference.load(model), tokens, kept)
            np.testing.assert_allclose(run(runner, tokens, kept), expected, rtol=0, atol=1e-6 * np.ptp(expected))
    assert taken["none"] == 0
    numbers = sum(down.size + -(-len(up) // 64) * 64 * len(down) for down, up in adapter.weights.values())
    scales = 64 * len(adapter.weights)
    assert taken["half"] == 2 * numbers + scales
    assert taken["whole"] == sum(2 * down.size + 4 * up.size for down, up in adapter.weights.values()) + scales


def test_numbers_of_extreme_sizes_are_the_references() -> None:
    model, tokens = random_model(SPEC), some_tokens(SPEC, 9)
    plain = half_adapter(SPEC).weights
    for down_scale, up_scale in ((1e-20, 1e20), (1e30, 1e-30), (2.0**-100, 2.0**100), (2.0**-14, 2.0**14)):
        weights = {
            name: (down * np.float32(down_scale), up * np.float32(up_scale)) for name, (down, up) in plain.items()
        }
        adapter = Adapter("extreme", weights)
        expected = run(reference.load(model), tokens, adapter)
        logits = run(BACKEND.load(model, head="f16", kv="f32"), tokens, adapter)
        assert np.abs(logits - expected).max() <= 2e-2 * np.ptp(expected)
        assert np.median(np.abs(logits - expected)) <= 4e-4 * np.ptp(expected)


def test_nothing_and_a_rank_of_zero_change_nothing() -> None:
    runner = BACKEND.load(random_model(SPEC))
    tokens = some_tokens(SPEC, 9)
    empty = {"layers.0.attn.q": (np.zeros((0, 128), np.float32), np.zeros((128, 0), np.float32))}
    for weights in ({}, empty):
        np.testing.assert_array_equal(run(runner, tokens, Adapter("nothing", weights)), run(runner, tokens))


def test_an_adapter_is_placed_once_and_lives_no_longer_than_its_last_user() -> None:
    pool = Pool(name="test")
    runner = BACKEND.load(random_model(SPEC), memory=pool)
    tokens = some_tokens(SPEC, 5)
    cache = runner.new_cache()
    runner.forward([Step(tokens, cache, adapter=random_adapter(SPEC, 9))])
    empty = pool.stats().in_use
    adapter = random_adapter(SPEC)
    runner.forward([Step(tokens, cache, adapter=adapter)])
    placed = pool.stats().in_use
    assert placed > empty
    for _ in range(3):
        runner.forward([Step(tokens[:1], cache, adapter=adapter)])
    assert pool.stats().in_use == placed
    seen = weakref.ref(adapter)
    del adapter
    assert seen() is None
    assert pool.stats().in_use == empty
    np.testing.assert_array_equal(run(runner, tokens), run(BACKEND.load(random_model(SPEC)), tokens))


def test_a_closed_runner_holds_no_adapter() -> None:
    pool = Pool(name="test")
    adapter = random_adapter(SPEC)
    runner = BACKEND.load(random_model(SPEC), memory=pool)
    run(runner, some_tokens(SPEC, 5), adapter)
    runner.close()
    assert pool.stats().in_use == 0
    other = BACKEND.load(random_model(SPEC))
    np.testing.assert_array_equal(
        run(other, some_tokens(SPEC, 5), adapter),
        run(BACKEND.load(random_model(SPEC)), some_tokens(SPEC, 5), random_adapter(SPEC)),
    )


def test_an_adapter_that_does_not_fit_in_memory_changes_nothing() -> None:
    model, tokens = random_model(SPEC), some_tokens(SPEC, 5)
    whole = Pool(name="whole")
    sample = BACKEND.load(model, memory=whole, threads=1)
    run(sample, tokens)
    pool = Pool(whole.stats().mapped + (64 << 10), name="tight")
    runner = BACKEND.load(model, memory=pool, threads=1)
    cache = runner.new_cache()
    runner.forward([Step(tokens, cache)])
    before = pool.stats().in_use
    with pytest.raises(OutOfMemory):
        runner.forward([Step(tokens, cache, adapter=random_adapter(SPEC, rank=64))])
    gc.collect()  # the traceback held on to what was placed
    assert cache.length == 5
    assert pool.stats().in_use == before
    expected = run(runner, np.concatenate([tokens, tokens]))[5:]
    np.testing.assert_array_equal(logits_of(runner, Step(tokens, cache, "all")), expected)


def test_adapters_may_be_dropped_by_other_threads_while_one_decodes() -> None:
    pool = Pool(name="test")
    runner = BACKEND.load(random_model(SPEC), memory=pool, threads=2)
    tokens, kept = some_tokens(SPEC, 3), random_adapter(SPEC)
    expected = run(runner, tokens, kept)
    run(runner, tokens, random_adapter(SPEC, rank=16))
    before = pool.stats().in_use
    handed: list[Adapter] = []
    turn = threading.Semaphore(0)

    def drop() -> None:
        for _ in range(40):
            turn.acquire()
            handed.pop()

    dropper = threading.Thread(target=drop)
    dropper.start()
    for seed in range(40):
        fresh = random_adapter(SPEC, seed, rank=16, projections=("ffn.down",))
        handed.append(fresh)
        run(runner, tokens, fresh)
        del fresh
        turn.release()
        np.testing.assert_array_equal(run(runner, tokens, kept), expected)
    dropper.join()
    assert pool.stats().in_use == before


def test_an_adapter_of_other_shapes_is_refused_by_name() -> None:
    runner = BACKEND.load(random_model(SPEC))
    cache = runner.new_cache()
    with pytest.raises(ValueError, match=r"step 0: adapter 'random-0': layers\.0\.attn\.q: expected a projection"):
        runner.forward([Step(some_tokens(SPEC, 2), cache, adapter=random_adapter(ODD))])
    assert cache.length == 0


def test_arrays_that_do_not_fit_are_refused_before_they_are_read() -> None:
    runner = BACKEND.load(random_model(SPEC))
    adapter = _native.Adapter(runner._operations._adapters._shape)  # type: ignore[attr-defined]
    down, up, scale = np.zeros(2 * 4 * 128, np.uint8), np.zeros(2 * 4 * 128, np.uint8), np.ones(4, np.float32)
    adapter.set(0, 0, down, up, scale)
    with pytest.raises(ValueError, match="down: expected"):
        adapter.set(0, 0, down[:-1], up, scale)
    with pytest.raises(ValueError, match="up: expected"):
        adapter.set(0, 0, down, up[:-1], scale)
    with pytest.raises(ValueError, match="no such layer or projection"):
        adapter.set(2, 0, down, up, scale)
    engine = runner._operations._engine  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="adapters: expected 0 elements, got 1"):
        engine.adapt([adapter])
    stranger = BACKEND.load(random_model(ODD))
    run(stranger, some_tokens(ODD, 2))
    with pytest.raises(ValueError, match="an adapter of another model"):
        stranger._operations._engine.adapt([adapter])  # type: ignore[attr-defined]
    run(runner, some_tokens(SPEC, 2))
    assert engine.adapt([adapter]) == 2
    with pytest.raises(ValueError, match="no memory is set for what adapters multiply"):
        engine.merge(0, np.zeros((2, 128), np.float32), np.zeros((2, 128), np.float32))
    with pytest.raises(ValueError, match="memory: expected shape"):
        engine.keep_in(np.zeros((1, engine.kept_columns), np.float32))
