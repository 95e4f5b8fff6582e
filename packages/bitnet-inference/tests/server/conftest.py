"""A server for tests, with the built-in model, and with the same that has a chat template."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serving import Running, running, talker

from bitnet_inference import LLM


@pytest.fixture(scope="session")
def llm() -> Iterator[LLM]:
    with LLM(talker(), threads=1) as found:
        yield found


@pytest.fixture(scope="session")
def server(llm: LLM) -> Iterator[Running]:
    with LLM(threads=1) as plain, running({"stories": plain, "talker": llm}) as found:
        yield found
