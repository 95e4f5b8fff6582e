"""The cpu backend: the conformance suite on every instruction set, and what is its own."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("bitnet_quant.cpu._native", reason="built without the compiled part")

from bitnet_core import backends, reference
from bitnet_core.errors import BackendUnavailable, FormatError, OutOfMemory, UnsupportedError
from bitnet_core.formats import gguf, huggingface
from bitnet_core.memory import Pool
from bitnet_core.model import Model, Step, Weights
from bitnet_core.tensor import TernaryTensor
from bitnet_core.testing import CASES, BackendSuite, Case, logits_of, random_model, run, some_tokens, tiny_spec
from bitnet_quant.cpu import BACKEND, _native, isas, why_not


class _OnOneSet(BackendSuite):
    """The suite where all is held as the reference holds it, which leaves nothing to tolerate."""

    backend = BACKEND
    isa: ClassVar[str]

    @pytest.fixture(autouse=True)
    def _has_the_set(self) -> None:
        if self.isa not in isas():
            pytest.skip(f"this processor has no {self.isa}")


class TestScalar(_OnOneSet):
    isa = "scalar"
    options: ClassVar[dict[str, Any]] = {"isa": "scalar", "threads": 1, "head": "f16", "kv": "f32"}


class TestAvx2(_OnOneSet):
    isa = "avx2"
    options: ClassVar[dict[str, Any]] = {"isa": "avx2", "threads": 2, "head": "f16", "kv": "f32"}


class TestAvxVnni(_OnOneSet):
    isa = "avxvnni"
    options: ClassVar[dict[str, Any]] = {"isa": "avxvnni", "threads": 2, "head": "f16", "kv": "f32"}


class TestAvx512(_OnOneSet):
    isa = "avx512"
    options: ClassVar[dict[str, Any]] = {"isa": "avx512", "threads": 2, "head": "f16", "kv": "f32"}


class TestAvx512Vbmi(_OnOneSet):
    isa = "avx512vbmi"
    options: ClassVar[dict[str, Any]] = {"isa": "avx512vbmi", "threads": 2, "head": "f16", "kv": "f32"}


class TestAsLoadedByDefault(BackendSuite):
    """The head has 255 steps."""

    backend = BACKEND
    tolerance = 0.1


class TestWithHalfPages(BackendSuite):
    """They move activations over the edges of their steps more often."""

    backend = BACKEND
    options: ClassVar[dict[str, Any]] = {"kv": "f16"}
    tolerance = 0.15


class _WithAnInt8Head(_OnOneSet):
    """Rows of 255 steps are not those of the file."""

    tolerance = 0.1


class TestScalarWithAnInt8Head(_WithAnInt8Head):
    isa = "scalar"
    options: ClassVar[dict[str, Any]] = {"isa": "scalar", "head": "int8", "kv": "f32"}


class TestAvx2WithAnInt8Head(_WithAnInt8Head):
    isa = "avx2"
    options: ClassVar[dict[str, Any]] = {"isa": "avx2", "head": "int8", "kv": "f32"}


class TestAvx512WithAnInt8Head(_WithAnInt8Head):
    isa = "avx512"
    options: ClassVar[dict[str, Any]] = {"isa": "avx512", "head": "int8", "kv": "f32"}


class TestWithInt8Pages(BackendSuite):
    """A key and a value of 12 to 64 numbers share a scale each: an error of up to 1/254 of the largest."""

    backend = BACKEND
    options: ClassVar[dict[str, Any]] = {"kv": "int8"}
    tolerance = 0.2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_number_of_threads_changes_no_bit(case: Case, isa: str) -> None:
    model, tokens = case.model(), some_tokens(case.spec, 45)
    first, *others = (run(BACKEND.load(model, threads=threads, isa=isa), tokens) for threads in (1, 2, 3, 8))
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_prompt_of_several_chunks_is_what_its_pieces_are(isa: str) -> None:
    spec = tiny_spec(layers=1, context=1024)
    runner = BACKEND.load(random_model(spec), isa=isa, threads=2)
    tokens = some_tokens(spec, 450)
    whole = run(runner, tokens)
    cache = runner.new_cache()
    pieces = [logits_of(runner, Step(tokens[at : at + 90], cache, "all")) for at in range(0, 450, 90)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("kv", ["f16", "f32", "int8"])
def test_what_lies_in_pages_from_before_never_reaches_the_logits(isa: str, kv: str) -> None:
    spec = tiny_spec(windows=(8, 0))
    runner = BACKEND.load(random_model(spec), isa=isa, threads=2, kv=kv)
    tokens = some_tokens(spec, 40)
    clean = run(runner, tokens)
    for slab in runner._operations._pages.slabs:  # type: ignore[attr-defined]
        slab[...] = 0x7F  # NaN in two bytes, beyond reason in four
    np.testing.assert_array_equal(run(runner, tokens), clean)


@pytest.mark.parametrize("kv", ["f16", "f32", "int8"])
def test_a_token_that_is_not_a_number_leaves_those_before_it_alone(isa: str, kv: str) -> None:
    model = random_model(tiny_spec())
    embedding = np.array(model.weights["embedding"])
    embedding[95] = np.nan
    runner = BACKEND.load(Model(model.spec, {**model.weights, "embedding": embedding}), isa=isa, threads=2, kv=kv)
    tokens = np.minimum(some_tokens(model.spec, 40), 94)
    clean = run(runner, tokens)
    tokens[30] = 95
    logits = run(runner, tokens)
    np.testing.assert_array_equal(logits[:30, :95], clean[:30, :95])
    assert np.isnan(logits[30:]).any()


@pytest.mark.parametrize("columns", [5460, 8640])
def test_odd_shapes_are_the_references(columns: int, isa: str) -> None:
    spec = tiny_spec(ffn_size=columns, hidden_size=68, heads=2, kv_heads=1, head_size=12, layers=1, activation="silu")
    model, tokens = random_model(spec), some_tokens(spec, 9)
    logits, expected = (
        run(BACKEND.load(model, isa=isa, head="f16", kv="f32"), tokens),
        run(reference.load(model), tokens),
    )
    assert np.abs(logits - expected).max() <= 2e-3 * np.ptp(expected)


def test_float_projections_run_too(isa: str) -> None:
    spec = tiny_spec()
    model = random_model(spec)
    mixed = {
        name: weight.dense().astype(np.float16) if isinstance(weight, TernaryTensor) and "ffn" in name else weight
        for name, weight in model.weights.items()
    }
    model, tokens = Model(spec, mixed), some_tokens(spec, 30)
    logits, expected = (
        run(BACKEND.load(model, isa=isa, head="f16", kv="f32"), tokens),
        run(reference.load(model), tokens),
    )
    assert np.abs(logits - expected).max() <= 2e-2 * np.ptp(expected)


def test_int8_pages_give_every_instruction_set_nearly_the_same_logits(isa: str) -> None:
    model, tokens = random_model(tiny_spec()), some_tokens(tiny_spec(), 70)
    logits, expected = (run(BACKEND.load(model, isa=name, kv="int8"), tokens) for name in (isa, "scalar"))
    assert np.abs(logits - expected).max() <= 2e-2 * np.ptp(expected)


@pytest.mark.parametrize("size", [64, 80, 128, 256])
def test_int8_pages_take_little_more_than_half_of_the_memory(size: int) -> None:
    assert _native.head_bytes(size, "int8") <= 0.54 * _native.head_bytes(size, "f16")


@pytest.mark.parametrize(("layers", "held"), [(128, "f32"), (129, "f16")])
def test_pages_are_exact_by_default_where_a_token_takes_little(layers: int, held: str) -> None:
    spec = tiny_spec(layers=layers, hidden_size=16, ffn_size=16, heads=1, kv_heads=1, head_size=16)
    model = random_model(spec)
    chosen, named = (BACKEND.load(model, **options).layout for options in ({}, {"kv": held}))
    assert chosen == named


def test_many_runners_work_at_once() -> None:
    model = random_model(tiny_spec())
    tokens = some_tokens(model.spec, 30)
    expected = run(BACKEND.load(model), tokens)

    def work(threads: int) -> None:
        runner = BACKEND.load(model, threads=threads)
        for _ in range(5):
            np.testing.assert_array_equal(run(runner, tokens), expected)
        runner.close()

    with ThreadPoolExecutor(6) as executor:
        for done in [executor.submit(work, 1 + number % 3) for number in range(12)]:
            done.result()


def test_a_closed_runner_says_so() -> None:
    pool = Pool(name="test")
    runner = BACKEND.load(random_model(tiny_spec()), memory=pool)
    cache = runner.new_cache()
    runner.close()
    runner.close()
    assert pool.stats().in_use == 0
    with pytest.raises(ValueError, match="the runner is closed"):
        runner.new_cache()
    with pytest.raises(ValueError, match="closed"):
        runner.forward([Step(np.array([1], np.int32), cache)])


def test_memory_that_does_not_suffice_is_given_back() -> None:
    model = random_model(tiny_spec())
    needed = Pool(name="all")
    BACKEND.load(model, memory=needed, threads=1)
    for share in (0.1, 0.5, 0.9):
        pool = Pool(int(needed.stats().mapped * share), name="short")
        with pytest.raises(OutOfMemory):
            BACKEND.load(model, memory=pool, threads=1)
        assert pool.stats().in_use == 0


def test_pages_that_do_not_suffice_leave_caches_as_they_were() -> None:
    spec = tiny_spec()
    model = random_model(spec)
    whole = Pool(name="whole")
    runner = BACKEND.load(model, memory=whole, threads=1)
    run(runner, some_tokens(spec, 8))
    limit = whole.stats().mapped
    pool = Pool(limit, name="tight")
    runner = BACKEND.load(model, memory=pool, threads=1)
    cache = runner.new_cache()
    runner.forward([Step(some_tokens(spec, 8), cache)])
    with pytest.raises(OutOfMemory):
        runner.forward([Step(some_tokens(spec, 100_000), cache)])
    assert cache.length == 8
    assert logits_of(runner, Step(some_tokens(spec, 2), cache)).shape == (spec.vocab_size,)


def test_damaged_codes_are_refused_with_their_place() -> None:
    model = random_model(tiny_spec())
    damaged = model.weights["layers.1.ffn.up"]
    assert isinstance(damaged, TernaryTensor)
    data = damaged.data.copy()
    data[3, 5] |= 0b11
    weight = TernaryTensor(data, damaged.scale, damaged.shape, damaged.layout)
    with pytest.raises(FormatError, match="row 3, column 5"):
        BACKEND.load(Model(model.spec, {**model.weights, "layers.1.ffn.up": weight}))


def test_weights_of_another_kind_are_refused_by_name() -> None:
    model = random_model(tiny_spec())
    embedding = np.array(model.weights["embedding"], np.float64)
    with pytest.raises(UnsupportedError, match=r"embedding: .* got float64"):
        BACKEND.load(Model(model.spec, {**model.weights, "embedding": embedding}))


def test_the_backend_is_found_and_preferred() -> None:
    assert backends.available()["cpu"] is None
    assert backends.get("cpu") == BACKEND
    assert BACKEND.priority > reference.BACKEND.priority


def test_an_instruction_set_that_is_not_there_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(tiny_spec())
    monkeypatch.setenv("BITNET_ISA", "sse9")
    assert "'sse9'" in str(why_not())
    assert isas()[0] in str(why_not())
    with pytest.raises(BackendUnavailable, match="no such instruction set in this build; choose one of"):
        BACKEND.load(model)
    monkeypatch.setenv("BITNET_ISA", "scalar")
    assert why_not() is None
    assert run(BACKEND.load(model), some_tokens(model.spec, 3)).shape == (3, model.spec.vocab_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: expected a number of 1 or more, got 0"),
        ({"threads": "2"}, "threads: expected a number of 1 or more, got '2'"),
        ({"threads": 2.0}, "threads: expected a number of 1 or more, got 2.0"),
        ({"threads": True}, "threads: expected a number of 1 or more, got True"),
        ({"head": "f8"}, "head to be f16"),
        ({"kv": "f8"}, "kv to be auto, f16, f32 or int8"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BACKEND.load(random_model(tiny_spec()), **options)


@pytest.mark.parametrize("head", ["f16", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_come_in_runs_are_placed_as_those_that_come_at_once(head: str, tied: bool, isa: str) -> None:
    model = random_model(tiny_spec(vocab_size=97, tied=tied))
    ends = ["embedding"] if tied else ["embedding", "head"]
    whole = dict(model.weights) | {name: np.asarray(model.weights[name], np.float32) for name in ends}
    runs = {name: partial(np.array_split, whole[name], [40, 41, 96]) for name in ends}
    makers = {name: partial(whole.__getitem__, name) for name in whole}
    tokens = some_tokens(model.spec, 9)
    at_once = run(BACKEND.load(Model(model.spec, whole), head=head, isa=isa), tokens)
    in_runs = BACKEND.load(Model(model.spec, Weights(makers, runs)), head=head, isa=isa)
    np.testing.assert_array_equal(run(in_runs, tokens), at_once)


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K"])
def test_a_head_of_blocks_is_placed_without_being_whole_beside_its_place(tmp_path: Path, kind: str) -> None:
    spec = tiny_spec(
        vocab_size=80_000,
        hidden_size=256,
        head_size=64,
        tied=False,
        family="llama",
        activation="silu",
        sub_norms="none",
    )
    gguf.save(random_model(spec), tmp_path / "plain.gguf")
    stored = gguf.KINDS[kind]
    raw = np.random.default_rng(2).integers(0, 128, (80_000 * 256 // stored.block, stored.size), np.uint8)
    raw[:, 1::2] &= 7  # small exponents wherever the scales stand
    with gguf.File(tmp_path / "plain.gguf") as file:
        blobs = [
            gguf.Blob(name, place.shape, place.kind, partial(file.raw, name))
            for name, place in file.tensors.items()
            if name != "output.weight"
        ]
        blobs.append(gguf.Blob("output.weight", (80_000, 256), stored, lambda: raw.reshape(-1)))
        values = {key: np.float32(value) if isinstance(value, float) else value for key, value in file.metadata.items()}
        gguf.write(tmp_path / "m.gguf", values, blobs)
    model = gguf.load(tmp_path / "m.gguf")
    tracemalloc.start()
    runner = BACKEND.load(model)  # its pool's memory is not Python's, and not counted
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tokens = some_tokens(spec, 5)
    assert peak < 0.5 * 4 * 80_000 * 256
    plain = BACKEND.load(Model(model.spec, dict(model.weights)))
    np.testing.assert_array_equal(run(runner, tokens), run(plain, tokens))


# Cuts a model's file short between any look at its size and what is done next.
_CUT_SHORT = """
import os, sys
import bitnet_core
from bitnet_core.errors import FormatError
from bitnet_quant.cpu import load
model, look = bitnet_core.load(sys.argv[1]), os.fstat
def fstat(handle):
    found = look(handle)
    os.truncate(sys.argv[2], 20_000)
    return found
os.fstat = fstat
try:
    load(model)
except FormatError as error:
    print(error)
"""


@pytest.mark.parametrize("form", ["gguf", "folder"])
def test_a_file_cut_short_while_it_is_placed_is_refused_not_fatal(tmp_path: Path, form: str) -> None:
    path = file = tmp_path / "m.gguf"
    if form == "gguf":
        gguf.save(random_model(tiny_spec()), path)
    else:
        path, file = tmp_path, tmp_path / "model.safetensors"
        huggingface.save(random_model(tiny_spec()), path)
    assert file.stat().st_size > 50_000
    done = subprocess.run([sys.executable, "-c", _CUT_SHORT, path, file], capture_output=True, text=True, check=True)
    assert "expected the file of" in done.stdout
