"""The conformance suite on every instruction set that this processor has."""

from __future__ import annotations

from bitnet_core.testing import BackendSuite

from bitnet_quant.cpu import BACKEND


class TestScalar(BackendSuite):
    backend = BACKEND
    options = {"isa": "scalar", "threads": 2, "kv": "f32"}


class TestAvx512(BackendSuite):
    backend = BACKEND
    options = {"isa": "avx512", "threads": 2, "kv": "f32"}
class TestAvx2(BackendSuite):
    backend = BACKEND
    options = {"isa": "avx2", "threads": 2, "kv": "f32"}
class TestAvxVnni(BackendSuite):
    backend = BACKEND
    options = {"isa": "avxvnni", "threads": 2, "kv": "f32"}
