"""lm-eval sees our models as it sees others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.registry import get_model  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from bitnet_inference import LLM  # noqa: E402
from bitnet_inference.harness import BitNetLM  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval's own

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WORDS = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
"""


@pytest.fixture(scope="module")
def model() -> Iterator[BitNetLM]:
    with LLM(threads=1) as llm:
        yield BitNetLM(llm)


def evaluate(model: Any, folder: Path, template: str, rows: list[dict[str, Any]], **fields: str) -> dict[str, Any]:
    """The results of one local task."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = template.format(name="ours", file=folder / "rows.jsonl", **fields)
    (folder / "ours.yaml").write_text(text)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    done = lm_eval.simple_evaluate(model=model, tasks=["ours"], task_manager=manager, bootstrap_iters=0)
    found: dict[str, Any] = done["results"]["ours"]
    return found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "task"


def test_it_is_registered_by_its_name() -> None:
    assert get_model("bitnet") is BitNetLM


def test_choices_are_judged_by_their_probability(model: BitNetLM, offline: Path) -> None:
    rows = [
        {"query": "Once upon a time, there was a little", "choices": ["girl named Lily.", "xq zzzz."], "gold": 0},
        {"query": "She went to the", "choices": ["qqq zx.", "park to play."], "gold": 1},
    ]
    assert evaluate(model, offline, CHOICES, rows)["acc,none"] == 1.0


def test_texts_are_continued_up_to_a_stop(model: BitNetLM, offline: Path) -> None:
    rows = [{"query": "Once upon a time", "answer": ", there was a little girl named"}]
    more = "generation_kwargs: {until: [' M', ' L'], max_gen_toks: 30}\nmetric_list: [{metric: exact_match}]"
    assert evaluate(model, offline, WORDS, rows, kind="generate_until", more=more)["exact_match,none"] == 1.0


def test_whole_texts_are_as_surprising_as_the_model_says(model: BitNetLM, offline: Path) -> None:
    text = "Lily and Ben went to the park. They saw a big dog. " * 30
    more = "metric_list: [{metric: bits_per_byte}]"
    found = evaluate(model, offline, WORDS, [{"query": "", "answer": text}], kind="loglikelihood_rolling", more=more)
    assert found["bits_per_byte,none"] == pytest.approx(model.llm.perplexity(text, stride=511).bits_per_byte, rel=1e-6)


def test_the_published_sets_run_as_local_tasks(model: BitNetLM, offline: Path, data: Path) -> None:
    lines = (data / "eval" / "copa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:40]]
    pairs = [(row["query"], " " + choice) for row in rows for choice in row["choices"]]
    totals = iter(score.total for score in model.llm.scores(pairs))
    right = [int(max(range(2), key=[next(totals), next(totals)].__getitem__) == row["gold"]) for row in rows]
    assert evaluate(model, offline, CHOICES, rows)["acc,none"] == pytest.approx(sum(right) / len(rows))
