"""What every backend must do, as cases and as a suite: inherited by backends' tests, timed by the benchmarks.

    from bitnet_core.testing import BackendSuite

    class TestMyBackend(BackendSuite):
        backend = BACKEND

The suite needs pytest to be collected by, and nothing of it to be imported.
"""

from __future__ import annotations

from .conformance import BackendSuite, assert_within_reach, logits_of, run
from .random_models import CASES, SHAPES, Case, random_adapter, random_model, some_tokens, tiny_spec

__all__ = [
    "CASES",
    "SHAPES",
    "BackendSuite",
    "Case",
    "assert_within_reach",
    "logits_of",
    "random_adapter",
    "random_model",
    "run",
    "some_tokens",
    "tiny_spec",
]
