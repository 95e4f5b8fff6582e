"""lm-eval's `local-completions`, as it is, against the server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving import Running

from bitnet_inference import LLM

completions: Any = pytest.importorskip(
    "lm_eval.models.openai_completions", reason="NO LM-EVAL: pip install lm-eval[api]"
)
instance: Any = pytest.importorskip("lm_eval.api.instance")


def test_lm_eval_scores_and_generates_as_the_library_does(server: Running, llm: LLM) -> None:
    model = completions.LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="stories",
        tokenizer_backend="remote",
        max_length=512,
        batch_size=2,
    )
    pairs = [("Once upon a", " time there was"), ("The dog", " ran")]
    found = model.loglikelihood(
        [instance.Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]
    )
    encode = llm.tokenizer.encode
    expected = []
    for given, text in pairs:
        before, after = encode(given, bos=False), encode(given + text, bos=False)
        expected += llm.score_tokens([(np.asarray(after), len(before))])
    assert [score for score, _ in found] == pytest.approx([score.total for score in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [score.greedy for score in expected]
    until = {"until": ["."], "max_gen_toks": 20}
    [text] = model.generate_until([instance.Instance("generate_until", {}, ("Once upon a time", until), 0)])
    assert text == str(llm.generate("Once upon a time", temperature=0, max_tokens=20, stop="."))
