"""Figures are measured and make sense: ceilings, generation, kernels, quality, suites; never how fast they are."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bitnet_core
from bitnet_benchmarks import generation, kernels, machine, need, quality, record, report, rivals, suites, synth
from bitnet_benchmarks.generation import Figure, Plan
from bitnet_benchmarks.workers import EngineFailed, Setting, Worker
from bitnet_core import FormatError, reference
from bitnet_core.testing import CASES, random_model, tiny_spec

STORIES = str(Path(__file__).parents[3] / "models" / "stories")
SHORT = Plan(prompt=16, tokens=4, rounds=2)


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    settings = [Setting("runner", STORIES, 1), Setting("runner", STORIES, 1, (("backend", "numpy"),), label="numpy")]
    return generation.measure(settings, replace(SHORT, batches=(1, 2), depths=(0, 32)))


def test_the_ceilings_of_the_machine() -> None:
    found = machine.measure((1,), passes=1)
    assert found.bandwidth[0].median > 1e8
    assert found.throughput[0].median > 1e6
    assert [one.threads for one in found.throughput] == [1]


def test_every_setting_depth_and_batch_has_its_figure(figures: list[Figure]) -> None:
    places = {(figure.engine, figure.depth, figure.batch) for figure in figures}
    assert places == {(engine, depth, batch) for engine in ("runner", "numpy") for depth in (0, 32) for batch in (1, 2)}
    for figure in figures:
        assert len(figure.decode_runs) == len(figure.prompt_runs) == 2
        assert figure.decode_tokens_per_s == pytest.approx(4 * figure.batch / np.median(figure.decode_runs))
        assert figure.prompt_tokens_per_s == pytest.approx(16 / np.median(figure.prompt_runs))
        assert figure.first_token_cold_s > figure.load_s > 0
        assert 20 << 20 < figure.peak_bytes < 4 << 30
        assert figure.bytes_per_token is not None
        assert figure.bandwidth_share is not None
        assert figure.bandwidth_share > 0


def test_ratios_compare_what_ran_alike(figures: list[Figure]) -> None:
    found = rivals.ratios(figures, "runner")
    assert {(ratio.what, ratio.second) for ratio in found} == {("prompt", "numpy"), ("decode", "numpy")}
    assert all(ratio.lowest <= ratio.median <= ratio.highest for ratio in found)
    assert sum(ratio.what == "prompt" for ratio in found) == 1


def test_what_needs_more_context_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 512"):
        generation.measure([Setting("runner", STORIES, 1)], Plan(prompt=4096))


def test_an_engine_that_fails_says_why() -> None:
    with pytest.raises(EngineFailed, match="BackendUnavailable"):
        generation.measure([Setting("runner", STORIES, 1, (("backend", "none"),))], SHORT)
    with Worker(Setting("runner", STORIES, 1)) as worker, pytest.raises(EngineFailed, match="load a model first"):
        worker.ask("prompt", count=1)
    with Worker(Setting("llama", STORIES, 1)) as worker, pytest.raises(EngineFailed, match="process ended"):
        worker.ask("prompt", count=1)  # there is no llama-cpp-python here


def test_engines_agree_on_what_comes_next() -> None:
    tokens = [1, 5, 9, 300]
    found = []
    for backend in ("auto", "numpy"):
        with Worker(Setting("runner", STORIES, 1, (("backend", backend),))) as worker:
            worker.start()
            found.append(worker.ask("likeliest", tokens=tokens, count=4)["tokens"])
    assert found[0] == found[1]


def test_the_engine_is_measured_beside_its_runner() -> None:
    plan = replace(SHORT, batches=(1, 2))
    figures = generation.measure([Setting("runner", STORIES, 1), Setting("engine", STORIES, 1)], plan)
    assert {(figure.engine, figure.batch) for figure in figures} == {
        (e, b) for e in ("runner", "engine") for b in (1, 2)
    }
    assert all(figure.decode_tokens_per_s > 0 for figure in figures)
    found = []
    for kind in ("runner", "engine"):
        with Worker(Setting(kind, STORIES, 1)) as worker:  # type: ignore[arg-type]
            worker.start()
            found.append(worker.ask("likeliest", tokens=[1, 5, 9, 300], count=6)["tokens"])
    assert found[0] == found[1]


def test_transformers_runs_the_same_tokens() -> None:
    if not rivals.has_module(sys.executable, "transformers"):
        pytest.skip("transformers is not installed")
    found = []
    for kind in ("runner", "transformer"):
        with Worker(Setting(kind, STORIES, 1)) as worker:  # type: ignore[arg-type]
            worker.start()
            found.append(worker.ask("likeliest", tokens=[1, 5, 9, 300], count=3)["tokens"])
    assert found[0] == found[1]


def test_a_program_is_asked_in_its_own_words(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text(
        f"#!{sys.executable}\nimport sys, json\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "assert given['-o'] == 'json' and given['-r'] == '1' and '0' in (given['-p'], given['-n'])\n"
        "print(json.dumps([{'n_prompt': int(given['-p']), 'n_gen': int(given['-n']), 'avg_ts': 100.0}]))\n"
    )
    program.chmod(0o755)
    model = synth.write(tmp_path / "model.gguf", shape="tiny").path
    setting = Setting("llama-bench", str(model), 1, (), str(program), "theirs")
    (figure,) = generation.measure([setting], SHORT)
    assert figure.decode_tokens_per_s == pytest.approx(100)
    assert figure.bandwidth_share is None
    program.write_text("#!/bin/sh\necho no such model >&2\nexit 3\n")
    with pytest.raises(EngineFailed, match="no such model"):
        generation.measure([setting], SHORT)


def test_kernels_are_timed_and_right() -> None:
    found = kernels.measure(reference.BACKEND, cases=CASES[:1])
    (case,) = found.cases
    assert case.case == "bitnet"
    assert case.difference == 0
    assert case.decode_us > 0
    assert found.wide[0].throughput_share == 1


def test_a_model_of_chance_has_the_perplexity_of_chance() -> None:
    model = synth.make(synth.SHAPES["tiny"])
    assert model.tokenizer is not None
    windows = quality.windows_of(model.tokenizer, "Once upon a time. " * 40, size=32, count=4)
    found = quality.measure(model, windows, bitnet_core.backends.get())
    assert found.tokens == 4 * 31
    assert found.perplexity > 100
    assert found.agreement is not None
    assert found.agreement > 0.8
    assert found.divergence is not None
    assert found.divergence < 0.1


def test_a_trained_model_is_better_than_chance_and_itself() -> None:
    model = bitnet_core.load(STORIES)
    assert model.tokenizer is not None
    text = "Once upon a time there was a little girl. She loved to play with her mom in the park. " * 8
    windows = quality.windows_of(model.tokenizer, text, size=64, count=2)
    found = quality.measure(model, windows, bitnet_core.backends.get(), other=model)
    assert found.perplexity < 30
    assert found.other_perplexity == pytest.approx(found.perplexity)
    assert found.divergence == pytest.approx(0, abs=1e-9)
    assert found.nll == pytest.approx(math.log(found.perplexity))
    with pytest.raises(ValueError, match="expected 3 tokens"):
        quality.windows_of(model.tokenizer, text, size=2)


def test_what_a_model_needs_is_what_its_weights_take() -> None:
    model = random_model(tiny_spec())
    found = need.needs(model, 128, 3)
    codes = sum(rows * cols for rows, cols in model.spec.projections().values()) * 2
    assert codes / 4 < found.weights < codes / 4 + 2 * 96 * 128 + 40_000
    assert found.keys_and_values == 3 * 128 * 2 * 2 * 2 * 32 * 2
    assert found.total == found.weights + found.keys_and_values + found.scratch
    windowed = tiny_spec(windows=(8, 0))
    assert need.keys_and_values(windowed, 128) == (8 + 128) * 2 * 2 * 2 * 32


def test_a_suite_runs_in_its_order(tmp_path: Path) -> None:
    synth.write(tmp_path / "tiny.gguf", shape="tiny")
    (tmp_path / "text.txt").write_text("Once upon a time. " * 40)
    (tmp_path / "suite.toml").write_text(
        '[[generate]]\nmodel = "tiny.gguf"\nprompt = 8\ntokens = 2\nrounds = 1\n'
        '[[quality]]\nmodel = "tiny.gguf"\ntext = "text.txt"\nwindows = 1\nwindow = 32\n'
    )
    records = list(suites.run(suites.load(tmp_path / "suite.toml")))
    assert [made.kind for made in records] == ["generate", "quality"]
    assert records[0].model is not None
    assert records[0].model["name"] == "tiny.gguf"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "or another"),
        ("[[generate", "TOML"),
        ("[[other]]\n", "machine, kernels, generate, serve, quality"),
        ("[[generate]]\n", "the key model"),
        ('[[generate]]\nmodel = "a"\nprompt = "x"\n', "int"),
        ('[[generate]]\nmodel = "a"\nthreads = [-1]\n', "whole numbers"),
        ('[[generate]]\nmodel = "a"\nthread = [1]\n', "thread"),
        ("generate = 3\n", "a table"),
    ],
)
def test_a_wrong_suite_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(FormatError, match=said):
        suites.load(path)


@pytest.mark.parametrize(
    ("value", "name", "said"),
    [
        (0.007684, "first_p50_s", "7.684 ms"),
        (2.5, "load_s", "2.5 s"),
        (1336.4, "output_tokens_per_s", "1,336"),
        (5.432e-7, "difference", "5.4e-07"),
        (0.421, "bandwidth_share", "42.1%"),
        (66_112_000, "peak_bytes", "63.05 MiB"),
        (None, "load_s", ""),
    ],
)
def test_a_figure_is_read_in_its_unit(value: float | None, name: str, said: str) -> None:
    assert report.number(value, name) == said


def test_records_become_pages(figures: list[Figure]) -> None:
    records = [record.make("generate", figures, model=STORIES), record.make("machine", machine.measure((1,), passes=1))]
    page = report.html([*records, records[0]], "Figures <now>")
    assert "Figures &lt;now&gt;" in page
    assert page.count("<svg") >= 5
    assert "http" not in page
    assert "Over time" in page
    best = max(figure.decode_tokens_per_s for figure in figures)
    assert f"<b>{report.number(best)}</b><span>tokens a second decoded, at best</span>" in page
    assert "<caption>" in page  # what is the same in all rows is said once
    assert "<th>prompt</th>" not in page
    table = report.markdown(records)
    assert "| engine | threads |" in table
    assert "| load |" in table  # its unit stands behind each value
    lines = report.comma_separated(records).splitlines()
    assert lines[0].startswith("record,kind,time,engine")
    assert len(lines) > len(figures)
