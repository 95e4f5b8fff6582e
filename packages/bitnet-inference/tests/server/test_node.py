"""The `openai` package for Node, where it is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from serving import Running

from bitnet_inference import LLM


def test_nodes_package_gets_the_same(server: Running, llm: LLM) -> None:
    node = shutil.which("node")
    probe = [node or "node", "-e", "require.resolve('openai')"]
    if node is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("NO OPENAI FOR NODE: npm install openai, and set NODE_PATH to its node_modules")
    script = Path(__file__).parent / "client.cjs"
    done = subprocess.run([node, str(script), server.url], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = llm.chat("Once upon a time", max_tokens=8, temperature=0)
    assert {found["chat"], found["stream"], found["response"], found["batch"]} == {expected}
    assert found["logprobs"] == [2] * 8
    assert found["usage"] == 8
    assert found["call"] in ("Oslo", "Rome")
    assert found["streamedCall"] == "weather"
    assert found["formed"] in ("Oslo", "Rome")
    assert found["embedded"] == [256, 256]
    assert found["errors"] == [
        ["NotFoundError", 404, "model"],
        ["BadRequestError", 400, "n"],
        ["BadRequestError", 400, "colour"],
    ]
    until = time.monotonic() + 5
    while len(server.app.state.works) and time.monotonic() < until:
        time.sleep(0.01)
    assert not len(server.app.state.works)
