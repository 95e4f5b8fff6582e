"""What a cache holds can be taken out and put into another, pages are counted, and models are told apart."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bitnet_core import backends, reference
from bitnet_core.errors import BackendUnavailable, OutOfMemory
from bitnet_core.formats.safetensors import SafetensorsFile, write
from bitnet_core.memory import Pool
from bitnet_core.model import Backend, Model, Step
from bitnet_core.tensor import TernaryTensor
from bitnet_core.testing import logits_of, random_model, run, some_tokens, tiny_spec

SPEC = tiny_spec()


@pytest.fixture(params=["numpy", "cpu"])
def backend(request: pytest.FixtureRequest) -> Backend:
    try:
        found = backends.get(request.param)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    if reason := found.why_not():
        pytest.skip(reason)
    return found


def test_a_restored_cache_goes_on_as_the_first_would_have(backend: Backend) -> None:
    runner = backend.load(random_model(SPEC))
    tokens = some_tokens(SPEC, 70)
    whole = run(runner, tokens)
    cache = runner.new_cache()
    runner.forward([Step(tokens[:45], cache, "none")])
    content = cache.content()
    cache.close()
    # Its pages are another's before they are restored.
    other = runner.new_cache()
    runner.forward([Step(some_tokens(SPEC, 60, seed=9), other, "none")])
    restored = runner.restore(content)
    size = runner.cache_stats().positions
    start = restored.length
    assert start == 45 // size * size
    rest = logits_of(runner, Step(tokens[start:], restored, "all"))
    np.testing.assert_array_equal(rest, whole[start:])


def test_a_cache_restored_in_another_runner_of_the_same_layout_goes_on(backend: Backend) -> None:
    first, second = (backend.load(random_model(SPEC)) for _ in range(2))
    assert first.layout == second.layout
    tokens = some_tokens(SPEC, 40)
    cache = first.new_cache()
    first.forward([Step(tokens, cache, "none")])
    restored = second.restore(cache.content())
    start = restored.length
    rest = logits_of(second, Step(tokens[start:], restored, "all"))
    np.testing.assert_array_equal(rest, run(first, tokens)[start:])


def test_layouts_tell_apart_what_cannot_be_exchanged(backend: Backend) -> None:
    layouts = {backend.load(random_model(spec)).layout for spec in (SPEC, replace(SPEC, layers=3))}
    assert len(layouts) == 2
    assert backend.name in layouts.pop()


def test_an_empty_cache_has_no_content(backend: Backend) -> None:
    runner = backend.load(random_model(SPEC))
    cache = runner.new_cache()
    assert len(cache.content()) == 0
    assert runner.restore(cache.content()).length == 0
    cache.close()
    with pytest.raises(ValueError, match="the cache is closed"):
        cache.content()


def test_content_that_does_not_fit_is_refused(backend: Backend) -> None:
    runner = backend.load(random_model(SPEC))
    cache = runner.new_cache()
    runner.forward([Step(some_tokens(SPEC, 40), cache, "none")])
    content = cache.content()
    for wrong in (content[:, :-1], content.astype(np.float64), content.reshape(-1), np.float32(1).reshape(())):
        with pytest.raises(ValueError, match="content: expected pages of"):
            runner.restore(wrong)
    assert runner.cache_stats().used == runner.cache_stats().pages(40)


def test_pages_are_counted_and_given_back(backend: Backend) -> None:
    pool = Pool(name="test")
    runner = backend.load(random_model(SPEC), memory=pool)
    before = pool.stats().mapped
    assert runner.cache_stats().used == 0
    cache = runner.new_cache()
    runner.forward([Step(some_tokens(SPEC, 50), cache, "none")])
    fork = cache.fork(20)
    stats = runner.cache_stats()
    assert stats.used == stats.pages(50) == -(-50 // stats.positions)
    assert (stats.used + stats.free) % stats.slab == 0
    content = cache.content()
    assert content.nbytes == 50 // stats.positions * stats.page_bytes
    cache.close()
    assert runner.cache_stats().used == stats.pages(20)
    del fork
    gc.collect()
    assert runner.cache_stats().used == 0
    runner.trim()
    assert runner.cache_stats().free == 0
    assert pool.stats().mapped <= before + (1 << 20)  # what a step needs besides pages stays


def test_a_restore_without_room_changes_nothing() -> None:
    pool = Pool(name="test")
    runner = reference.load(random_model(SPEC), memory=pool)
    cache = runner.new_cache()
    runner.forward([Step(some_tokens(SPEC, 16 * 6), cache, "none")])
    content = cache.content()
    pool.limit = pool.stats().mapped
    with pytest.raises(OutOfMemory):
        runner.restore(content)
    gc.collect()
    assert runner.cache_stats().used == 6


def changed(model: Model, name: str) -> Model:
    """The model with another sign somewhere in one weight."""
    weight = model.weights[name]
    if isinstance(weight, TernaryTensor):
        codes = -weight.codes()
        other = TernaryTensor.from_codes(codes, weight.scale, weight.layout)
    else:
        other = -np.asarray(weight)
    return replace(model, weights={**model.weights, name: other})


def test_a_fingerprint_tells_models_apart() -> None:
    model = random_model(SPEC)
    assert model.fingerprint() == random_model(SPEC).fingerprint()
    found = [model.fingerprint(), random_model(replace(SPEC, norm_eps=1e-6)).fingerprint()]
    found += [changed(model, name).fingerprint() for name in model.weights]
    assert len(set(found)) == len(found) == len(model.weights) + 2


def test_a_file_of_arrays_has_the_metadata_that_it_was_given(tmp_path: Path) -> None:
    arrays = [("a", np.arange(3, dtype=np.int32))]
    write(tmp_path / "one", arrays, header_room=1000, metadata={"format": "mine", "why": "because"})
    write(tmp_path / "two", arrays, header_room=1000)
    assert SafetensorsFile(tmp_path / "one").metadata == {"format": "mine", "why": "because"}
    assert SafetensorsFile(tmp_path / "two").metadata == {"format": "pt"}
