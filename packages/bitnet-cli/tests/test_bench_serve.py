"""`bitnet bench serve` as operators call it: our own server, one that is there, refusals, and what is left running."""

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

import psutil
import pytest
from command import STORIES, Bitnet

pytest.importorskip("uvicorn", reason='the extra "server" of bitnet-inference is not installed')

COMMAND = "from bitnet_cli.main import command_line; command_line()"
# Whoever starts this in the background has its children ignore interrupts: here they are as on a terminal.
HEEDING = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + COMMAND
QUICK = ("--prompt", "16", "--tokens", "4", "--requests", "2", "--threads", "1")


def test_the_built_in_model_is_served_measured_and_kept(bitnet: Bitnet, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    said = bitnet("bench", "serve", *QUICK, "--clients", "1,2", "--rounds", "2", "--output", page)
    assert said.code == 0, said
    assert "1 client " in said.out
    assert "2 clients" in said.out
    assert "<svg" in page.read_text()
    table = bitnet("bench", "history", "--kind", "serve").out
    assert "stories" in table
    assert "served" in table
    assert bitnet("bench", "compare", "last", "last").code == 0


def test_requests_at_a_rate_and_their_goodput_as_json(bitnet: Bitnet) -> None:
    said = bitnet("bench", "serve", STORIES, *QUICK, "--rate", "50.5", "--rounds", "1", "--ttft-limit", "60", "--json")
    (figure,) = said.json
    assert (figure["rate"], figure["clients"], figure["failed"]) == (50.5, None, 0)
    assert figure["output_tokens"] == 8
    assert figure["goodput_per_s"] == figure["requests_per_s"] > 0


@contextmanager
def serving(key: str) -> Iterator[str]:
    """A server that asks for a key: its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["serve", f"tiny={STORIES}", "--port", str(port), "--threads", "1", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], env=os.environ | {"BITNET_SERVE_API_KEY": key}, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_a_server_that_is_there_is_measured_with_its_key(bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("bench", "serve", "--prompt", "16", "--tokens", "4", "--requests", "2", "--clients", "1", "--rounds", "1")
    with serving("open-sesame-open-sesame") as url:
        refused = bitnet(*asked, "--url", url, "--model", "tiny")
        assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
        assert "401" in refused.err
        assert "key" in refused.err
        monkeypatch.setenv("BITNET_BENCH_SERVE_API_KEY", "open-sesame-open-sesame")
        unknown = bitnet(*asked, "--url", url, "--model", "other")
        assert (unknown.code, unknown.err.count("\n")) == (2, 1)
        assert "404" in unknown.err
        (figure,) = bitnet(*asked, "--url", url, "--json").json
        assert (figure["failed"], figure["output_tokens"], figure["peak_bytes"]) == (0, 8, None)
        listed = bitnet("bench", "history", "--kind", "serve", "--json").json
        assert [one["model"] for one in listed] == [{"name": "tiny", "url": url}]
        assert "open-sesame-open-sesame" not in str(listed)


def test_a_server_that_is_not_there_is_a_failure_in_one_line(bitnet: Bitnet) -> None:
    with socket.socket() as probe:  # bound, and nobody listens
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
        for words in ((), ("--model", "m")):
            said = bitnet("bench", "serve", "--url", url, *words)
            assert (said.code, said.out, said.err.count("\n")) == (1, "", 1)
            assert f"{url}: cannot be reached: connection refused" in said.err


@pytest.mark.parametrize(
    "words",
    [
        "--clients 0",
        "--clients 5000",
        "--clients ,",
        "--clients 1 --rate 2",
        "--rate 0",
        "--rate -1",
        "--rate nan",
        "--rate fast",
        "--rate ,",
        "--prompt 0",
        "--prompt 600",
        "--prompt 16 --shared 16",
        "--shared -1",
        "--tokens 0",
        "--requests 0",
        "--seconds 0",
        "--seconds inf",
        "--rounds 0",
        "--rounds 100k",
        "--seed -1",
        "--ttft-limit 0",
        "--token-limit nan",
        "--timeout 0.5",
        "--threads 0",
        "--sequences 0",
        "--backend none",
        "--output page.pdf",
        "--url 127.0.0.1:8000",
        "--url ftp://127.0.0.1/v1",
        "--url http://127.0.0.1:1/v1 --threads 2",
        "--url http://example.com/v1",
        "missing-model",
        "missing.gguf",
        "one two",
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(bitnet: Bitnet, words: str) -> None:
    said = bitnet("bench", "serve", *words.split())
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert len(said.err) < 700


@contextmanager
def long_run() -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """The command while it measures, and the processes that it started."""
    words = ["bench", "serve", "--clients", "2", "--seconds", "600", "--rounds", "1", "--threads", "1", "--no-save"]
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDING, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        children: list[psutil.Process] = []
        while not (len(children) == 2 and all(_connected(child) for child in children)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
            children = psutil.Process(process.pid).children(recursive=True)
        yield process, children
    finally:
        process.kill()
        process.communicate()


def _connected(child: psutil.Process) -> bool:
    return any(one.status == psutil.CONN_ESTABLISHED for one in child.net_connections(kind="tcp"))


def test_an_interrupt_leaves_nothing_running() -> None:
    with long_run() as (process, children):
        process.send_signal(signal.SIGINT)  # to the command alone: whoever it started learns of it by its end
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert not psutil.wait_procs(children, timeout=30)[1]


def test_being_killed_leaves_nothing_running() -> None:
    with long_run() as (process, children):
        process.kill()
        process.communicate(timeout=60)
        assert not psutil.wait_procs(children, timeout=30)[1]


def test_a_server_that_dies_is_a_failure_in_one_line() -> None:
    with long_run() as (process, children):
        (server,) = [
            child for child in children if any(one.status == psutil.CONN_LISTEN for one in child.net_connections())
        ]
        server.kill()
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count("\n")) == (1, "", 1), err
        assert "its process ended: status -9" in err
        assert not psutil.wait_procs(children, timeout=30)[1]
