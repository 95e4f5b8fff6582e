"""What training takes, by the benchmark that measures it."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    specification = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_an_adapter_on_a_packed_base_takes_less_than_a_third_of_all_masters(memory: ModuleType) -> None:
    asked = argparse.Namespace(model=None, width=128, layers=3, rows=1, window=32, rank=4, recompute="auto")
    full, small = (memory.tensors(way, asked) for way in ("full", "qlora"))
    assert small["tensors"] < full["tensors"] / 3
    assert small["projections"] * 16 == full["projections"]  # two bits for 32
