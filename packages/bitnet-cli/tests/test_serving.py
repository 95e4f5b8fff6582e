"""A server and its keys, as operators start and manage them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import Bitnet

pytest.importorskip("uvicorn", reason='the extra "server" of bitnet-inference is not installed')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(*words: str, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server of its own process that is ready: its address."""
    port = free_port()
    command = [sys.executable, "-c", "from bitnet_cli.main import command_line; command_line()", "serve", *words]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def ask(address: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, Any]:
    """The status and the answer."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    try:
        asked = urllib.request.Request(address + path, data, headers)  # noqa: S310  # loopback
        with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_a_server_answers_and_stops_when_it_is_told_to() -> None:
    with serving("tiny=" + str(Path(__file__).parents[3] / "models" / "stories")) as (address, process):
        assert [one["id"] for one in ask(address, "/v1/models")[1]["data"]] == ["tiny"]
        messages = [{"role": "user", "content": "Once upon a time"}]
        status, said = ask(address, "/v1/chat/completions", {"model": "tiny", "messages": messages, "max_tokens": 8})
        assert status == 200
        assert said["usage"]["completion_tokens"] == 8
        process.send_signal(signal.SIGTERM)
        _, remarks = process.communicate(timeout=30)
        assert process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in remarks


def test_keys_open_a_server_until_they_are_revoked(bitnet: Bitnet, tmp_path: Path) -> None:
    kept = tmp_path / "keys.sqlite"
    made = bitnet("keys", "create", "Ann", "--budget", "1M", "--lasts", "30d", "--keys", kept, "--json").json
    audit = tmp_path / "audit.jsonl"
    with serving("--keys", str(kept), "--audit", str(audit)) as (address, _):
        question = {"model": "stories", "prompt": "Once", "max_tokens": 4}
        assert ask(address, "/v1/completions", question)[0] == 401
        assert ask(address, "/v1/completions", question, made["key"])[0] == 200
        assert bitnet("keys", "revoke", made["id"], "--keys", kept).code == 0
        for _ in range(200):
            if ask(address, "/v1/completions", question, made["key"])[0] == 401:
                break
            time.sleep(0.05)
        assert ask(address, "/v1/completions", question, made["key"])[0] == 401
    used = bitnet("keys", "usage", "--keys", kept, "--json", "--csv", tmp_path / "usage.csv").json
    assert used[0]["group"] == made["id"]
    assert used[0]["completion_tokens"] >= 4
    assert (tmp_path / "usage.csv").read_text().count("\n") == used[0]["requests"] + 1
    assert bitnet("keys", "audit", audit).code == 0
    assert made["key"] not in audit.read_text()


def test_a_server_without_any_key_says_so(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with serving("--keys", str(tmp_path / "keys.sqlite"), "--log", str(log)):
        assert "nobody has a key" in log.read_text()


def test_a_page_of_a_named_origin_may_use_it() -> None:
    page = "https://page.example"
    with serving("--origin", page) as (address, _):
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        request = urllib.request.Request(f"{address}/v1/chat/completions", headers=asked, method="OPTIONS")  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # loopback
            assert answer.headers["Access-Control-Allow-Origin"] == page


def test_the_log_has_a_line_for_each_request_and_no_word_of_what_was_said(tmp_path: Path) -> None:
    path, moved = tmp_path / "server.log", tmp_path / "server.log.1"
    question = {"model": "stories", "prompt": "A canary sang", "max_tokens": 4}
    with serving("--log", str(path), BITNET_SERVE_API_KEY="correct horse battery staple") as (address, process):
        assert ask(address, "/v1/completions", question)[0] == 401
        path.rename(moved)
        process.send_signal(signal.SIGHUP)
        assert ask(address, "/v1/completions", question, "correct horse battery staple")[0] == 200
        process.send_signal(signal.SIGTERM)
        _, remarks = process.communicate(timeout=30)
    kept = moved.read_text() + path.read_text()
    assert remarks.splitlines() == kept.splitlines()  # the same on stderr
    assert "canary" not in kept
    assert "horse" not in kept
    lines = [json.loads(line) for line in kept.splitlines()]
    started = next(line for line in lines if line["message"] == "started")
    assert (started["models"], started["urls"]) == (["stories"], [address])
    refused, answered = [line for line in lines if line.get("path") == "/v1/completions"]
    assert (refused["status"], refused["code"], refused["tenant"]) == (401, "invalid_api_key", None)
    assert "model" not in refused
    assert (answered["status"], answered["code"], answered["tenant"]) == (200, None, "operator")
    assert (answered["route"], answered["model"], answered["streamed"]) == ("/v1/completions", "stories", False)
    assert (answered["completion_tokens"], answered["finish"]) == (4, ["length"])
    assert 0 < answered["first_token_s"] <= answered["seconds"]
    assert lines[-1]["message"] == "stopped"
    assert json.loads(path.read_text().splitlines()[-1])["message"] == "stopped"


def test_a_port_that_is_taken_is_one_line(bitnet: Bitnet) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = bitnet("serve", "--port", str(taken.getsockname()[1]))
    assert said.code == 1
    assert "address already in use" in said.err
    assert said.err.count("bitnet: error") == 1


def test_keys_are_listed_rotated_and_never_shown_again(bitnet: Bitnet, tmp_path: Path) -> None:
    kept = tmp_path / "keys.sqlite"
    first = bitnet("keys", "create", "Bob", "--role", "admin", "--keys", kept, "--json").json
    second = bitnet("keys", "rotate", first["id"], "--keys", kept, "--json").json
    assert second["key"] != first["key"]
    listed = bitnet("keys", "list", "--keys", kept)
    assert first["id"] in listed.out
    assert first["key"] not in listed.out + kept.read_bytes().decode("latin-1")
    assert bitnet("keys", "bill", "--keys", kept, "--json").json == []


def test_a_key_is_meant_by_a_name_that_no_other_living_key_has(bitnet: Bitnet, tmp_path: Path) -> None:
    def ids(*names: str) -> list[str]:
        return [bitnet("keys", "create", name, "--keys", kept, "--json").json["id"] for name in names]

    kept = tmp_path / "keys.sqlite"
    first, second, other = ids("Bob", "Bob", "Eve")
    assert bitnet("keys", "rotate", "Eve", "--keys", kept, "--json").json["id"] == other
    for verb in ("revoke", "rotate"):
        said = bitnet("keys", verb, "Bob", "--keys", kept)
        assert (said.code, said.out) == (2, "")
        assert f"Bob: 2 living keys have this name; give an id: {first}, {second}" in said.err
    assert bitnet("keys", "revoke", first, "--keys", kept).code == 0
    assert bitnet("keys", "revoke", "Bob", "--keys", kept, "--json").json["id"] == second
    said = bitnet("keys", "revoke", "Bob", "--keys", kept)
    assert said.code == 2
    assert "no living one this name" in said.err


def test_other_machines_are_let_in_with_keys_alone(bitnet: Bitnet) -> None:
    said = bitnet("serve", "--host", "0.0.0.0")  # noqa: S104  # refused is what it shall be
    assert said.code == 2
    assert "make a key first" in said.err
    assert said.err.count("bitnet: error") == 1
