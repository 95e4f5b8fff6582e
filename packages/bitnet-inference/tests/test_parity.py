"""Greedy text is what transformers says, token for token, however it is made."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_core import Model, backends
from bitnet_core.formats import huggingface
from bitnet_inference.engine import Engine
from bitnet_inference.request import Request
from bitnet_inference.settings import Sampling

PROMPTS, SIZE, COUNT = 50, 12, 100

Texts = list[tuple[int, ...]]


@pytest.fixture(scope="module")
def model(data: Path) -> Model:
    return huggingface.load(data / "models" / "bitllama2c-1M-hf")


@pytest.fixture(scope="module")
def prompts(data: Path, model: Model) -> np.ndarray:
    """The beginnings of fifty paragraphs; every other one goes on from a beginning that it shares."""
    text = (data / "text" / "tinystories_valid_head.txt").read_text(encoding="utf-8")[:60_000]
    assert model.tokenizer is not None
    found = [model.tokenizer.encode(part)[:SIZE] for part in text.split("\n") if len(part) > 200]
    rows = np.array([row for row in found if len(row) == SIZE][:PROMPTS], np.int32)
    assert len(rows) == PROMPTS
    return rows


@pytest.fixture(scope="module")
def theirs(data: Path, prompts: np.ndarray) -> Texts:
    """What transformers says."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    try:
        transformers.utils.logging.disable_progress_bar()
        folder = data / "models" / "bitllama2c-1M-hf"
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokens = torch.tensor(prompts.astype(np.int64))
        with torch.no_grad():
            found = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=COUNT, eos_token_id=None
            )
    finally:
        logging.disable(logging.NOTSET)
    return [tuple(row[SIZE:]) for row in found.tolist()]


def ours(model: Model, prompts: np.ndarray, *, backend: str, together: int, drafts: Any, **options: Any) -> Texts:
    """What the engine says, with so many requests at once."""
    placement = {"threads": options.pop("threads")} if "threads" in options else {}
    runner = backends.get(backend).load(model, **placement)
    sampling = Sampling(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
    found: Texts = []
    with Engine(runner, max_sequences=PROMPTS, **options) as engine:
        for first in range(0, len(prompts), together):
            requests = [Request(prompt=row, sampling=sampling, drafts=drafts) for row in prompts[first:][:together]]
            tickets = [engine.submit(request) for request in requests]
            found += [ticket.result(120).outputs[0].tokens for ticket in tickets]
    runner.close()
    return found


WAYS = [
    {"backend": "cpu", "together": 1, "drafts": "off", "threads": 1},
    {"backend": "cpu", "together": 1, "drafts": "on", "threads": 2},
    {"backend": "cpu", "together": 50, "drafts": "off", "threads": 1},
    {"backend": "cpu", "together": 50, "drafts": "auto", "threads": 2},
    {"backend": "cpu", "together": 50, "drafts": "on", "threads": 2, "prefix_cache": False},
    {"backend": "cpu", "together": 50, "drafts": "auto", "threads": 1, "step_tokens": 64},
    {"backend": "numpy", "together": 50, "drafts": "on"},
    {"backend": "numpy", "together": 50, "drafts": "off", "prefix_cache": False},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(map(str, way.values())))
def test_fifty_texts_of_a_hundred_tokens_are_those_of_transformers(
    model: Model, prompts: np.ndarray, theirs: Texts, way: dict[str, Any]
) -> None:
    if way["backend"] == "cpu" and (reason := backends.get("cpu").why_not()):
        pytest.skip(f"the cpu backend cannot run here: {reason}")
    assert ours(model, prompts, **way) == theirs
