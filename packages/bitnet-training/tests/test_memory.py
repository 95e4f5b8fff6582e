"""What training takes, by the benchmark that measures it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
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


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="what other allocators keep is not known"
)  # nor is there /proc
def test_what_an_adapter_leaves_free_is_given_back(memory: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # The processes that it measures in find the benchmark by its name.
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    found = importlib.import_module("memory")
    asked = argparse.Namespace(model=None, width=256, layers=6, rows=1, window=256, rank=8, recompute="auto")
    full, small = (found.measure(found.resident, way, asked)["resident"] for way in ("full", "qlora"))
    assert small < full / 3.2
