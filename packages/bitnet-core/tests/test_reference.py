"""The numpy backend runs the suite that every backend runs."""

from __future__ import annotations

from bitnet_core.reference import BACKEND
from bitnet_core.testing import BackendSuite


class TestNumpyBackend(BackendSuite):
    backend = BACKEND
