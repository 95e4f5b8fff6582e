"""A server for tests, with the built-in model, and with the same that has a chat template; and its clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import anthropic
import ollama
import openai
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


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture
def llama(server: Running) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url) as found:
        yield found
