"""The server as a process: what a signal does to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving import chat, events

PROGRAM = """
import sys
from bitnet_inference import LLM
from bitnet_inference.server import Models, serve
serve(Models({"stories": LLM(threads=1)}), port=int(sys.argv[1]), drain_s=float(sys.argv[2]), log_level="error",
      audit=sys.argv[3])
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def process(drain_s: float, audit: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = free_port()
    command = [sys.executable, "-c", PROGRAM, str(port), str(drain_s), str(audit)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (
        subprocess.Popen(command, env=environment) as running,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client,
    ):
        try:
            for _ in range(600):
                try:
                    client.get("/readyz")
                    break
                except httpx.TransportError:
                    time.sleep(0.05)
            yield running, client
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_those_at_work_finish_and_the_process_ends_well(tmp_path: Path, number: int) -> None:
    from bitnet_inference.server.audit import verify

    asked = chat(stream=True, max_tokens=400, ignore_eos=True)
    with process(30, tmp_path / "audit.jsonl") as (running, client):
        with client.stream("POST", "/v1/chat/completions", json={**asked, "n": 8}) as reply:
            lines = reply.iter_lines()
            begun = [next(lines) for _ in range(40)]
            running.send_signal(number)
            text = "\n".join([*begun, *lines])
        assert running.wait(20) == 0
    reasons = [choice["finish_reason"] for one in events(text) for choice in one["choices"]]
    assert reasons.count("length") == 8
    assert text.rstrip().endswith("data: [DONE]")
    verify(tmp_path / "audit.jsonl")
    assert "/v1/chat/completions" in (tmp_path / "audit.jsonl").read_text()


def test_a_second_interrupt_waits_for_nobody(tmp_path: Path) -> None:
    asked = chat(stream=True, max_tokens=480, ignore_eos=True)
    with (
        process(30, tmp_path / "audit.jsonl") as (running, client),
        client.stream("POST", "/v1/chat/completions", json={**asked, "n": 8}) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        began = time.monotonic()
        running.send_signal(signal.SIGINT)
        time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
        assert time.monotonic() - began < 10
