from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from bitnet_core import reference
from bitnet_core.decoder import generate
from bitnet_core.errors import OutOfMemory, UnsupportedError
from bitnet_core.formats import huggingface
from bitnet_core.memory import Pool
from bitnet_core.model import Step
from bitnet_core.testing import random_model, run, some_tokens, tiny_spec

SPEC = tiny_spec()


def test_text_goes_on_with_the_likeliest_token_again_and_again() -> None:
    runner = reference.load(random_model(SPEC))
    prompt = some_tokens(SPEC, 5)
    found = list(generate(runner, prompt, count=12))
    text = list(prompt)
    for token in found:
        assert token == run(runner, np.array(text, np.int32))[-1].argmax()
        text.append(token)
    assert len(found) == 12


def test_text_ends_before_a_stop_token() -> None:
    runner = reference.load(random_model(SPEC))
    whole = list(generate(runner, some_tokens(SPEC, 5), count=12))
    stop = whole[6]
    assert list(generate(runner, some_tokens(SPEC, 5), count=12, stop=frozenset({stop}))) == whole[: whole.index(stop)]


def test_whoever_chooses_sees_the_logits_and_has_the_last_word() -> None:
    runner = reference.load(random_model(SPEC))
    prompt = some_tokens(SPEC, 5)
    seen: list[np.ndarray] = []

    def unlikeliest(logits: np.ndarray) -> int:
        seen.append(logits)
        return int(logits.argmin())

    found = list(generate(runner, prompt, choose=unlikeliest, count=4))
    np.testing.assert_array_equal(seen[0], run(runner, prompt)[-1])
    assert found == [int(logits.argmin()) for logits in seen]


def test_greedy_text_is_transformers_on_the_real_model(data: Path) -> None:
    folder = data / "models" / "bitllama2c-1M-hf"
    expected = np.load(folder / "golden_logits.npz")["greedy_ids"].ravel()
    runner = reference.load(huggingface.load(folder))
    assert list(generate(runner, expected[:1], count=len(expected) - 1)) == expected[1:].tolist()


def test_where_memory_ends_no_cache_has_changed() -> None:
    pool = Pool(name="test")
    runner = reference.load(random_model(SPEC), memory=pool)
    caches = [runner.new_cache() for _ in range(3)]
    runner.forward([Step(some_tokens(SPEC, 10), cache, "none") for cache in caches])
    pool.limit = pool.stats().mapped
    with pytest.raises(OutOfMemory):
        # The first one fits in the pages that are there, and must be taken back when the second does not.
        runner.forward(
            [Step(some_tokens(SPEC, n), cache, "none") for n, cache in zip((20, 500, 1), caches, strict=True)]
        )
    assert [cache.length for cache in caches] == [10, 10, 10]
    pool.limit = None
    tokens = some_tokens(SPEC, 40)
    again = runner.new_cache()
    (logits,) = runner.forward([Step(tokens, again, "all")])
    np.testing.assert_array_equal(logits, run(runner, tokens))


def test_where_an_operation_fails_no_cache_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = reference.load(random_model(SPEC))
    caches = [runner.new_cache(), runner.new_cache()]
    tokens = some_tokens(SPEC, 30)
    runner.forward([Step(tokens[:7], caches[0], "none")])

    def fail(*_: object) -> None:
        raise RuntimeError("the machine is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(reference.NumpyOperations, "merge", fail)
        with pytest.raises(RuntimeError, match="on fire"):
            runner.forward([Step(tokens[7:], caches[0]), Step(tokens, caches[1])])
    assert [cache.length for cache in caches] == [7, 0]
    (rest,) = runner.forward([Step(tokens[7:], caches[0], "all")])
    np.testing.assert_array_equal(rest, run(runner, tokens)[7:])


def test_a_cache_of_another_backend_is_refused() -> None:
    runner = reference.load(random_model(SPEC))
    with pytest.raises(UnsupportedError, match="step 0: its cache was made by another backend"):
        runner.forward([Step(some_tokens(SPEC, 2), object())])


def test_many_runners_work_side_by_side() -> None:
    models = [random_model(SPEC, seed) for seed in range(4)]
    tokens = some_tokens(SPEC, 30)
    expected = [run(reference.load(model), tokens) for model in models]
    found: dict[int, np.ndarray] = {}

    def work(number: int) -> None:
        runner = reference.load(models[number])
        for _ in range(3):
            found[number] = run(runner, tokens)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, logits in enumerate(expected):
        np.testing.assert_array_equal(found[number], logits)
