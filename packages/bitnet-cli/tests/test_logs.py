"""What `bitnet logs` tells of a server's log: figures, advice, damage, and lines as they come."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from command import Bitnet

from bitnet_cli.loglines import Line
from bitnet_cli.traffic import OTHERS, Groups, Spread, Traffic, figures_of, step_of

LIFE = "bitnet_inference.server"
COMMAND = [sys.executable, "-c", "from bitnet_cli.main import command_line; command_line()", "logs"]
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()


def line(when: float = NOON, message: str = "request", **fields: Any) -> dict[str, Any]:
    """A line of a log; a request unless something else is said."""
    stamp = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    logger = f"{LIFE}.requests" if message == "request" else LIFE
    return {"time": stamp, "level": "info", "logger": logger, "message": message} | fields


def request(when: float = NOON, **fields: Any) -> dict[str, Any]:
    """A request that went well, but for what is said otherwise."""
    usual = {"id": "req_1", "tenant": "key1", "method": "POST", "path": "/v1/completions", "status": 200,
             "route": "/v1/completions", "seconds": 1.0, "address": "10.0.0.1", "code": None}  # fmt: skip
    return line(when, **usual | fields)


def answered(when: float = NOON, **fields: Any) -> dict[str, Any]:
    """A request that a model was at work for."""
    work = {"model": "stories", "streamed": True, "prompt_tokens": 100, "cached_tokens": 50, "completion_tokens": 41,
            "queue_s": 0.001, "first_token_s": 0.2, "finish": ["stop"]}  # fmt: skip
    return request(when, **work | fields)


def refused(code: str, status: int, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Requests that were refused."""
    return [request(NOON + n, code=code, status=status, seconds=0.001, **fields) for n in range(count)]


def text(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(one) + "\n" for one in lines)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "serve.log"


def advised(bitnet: Bitnet, log: Path, *lines: dict[str, Any]) -> dict[str, str]:
    """What is advised of these lines: the figure by what it is about."""
    log.write_text(text(*lines))
    return {one["about"]: one["seen"] for one in bitnet("logs", log, "--json").json["advice"]}


def test_requests_are_counted_by_status_model_key_route_and_address(bitnet: Bitnet, log: Path) -> None:
    log.write_text(
        text(
            answered(),
            answered(NOON + 1, model="other", tenant="key2"),
            request(NOON + 2, status=404, code="error", route=None, path="/x", tenant=None, address="10.0.0.2"),
        )
    )
    found = bitnet("logs", log, "--json").json
    assert (found["lines"], found["all"]["requests"], found["all"]["failed"]) == (3, 3, 1)
    counts = {name: {group: one["requests"] for group, one in groups.items()} for name, groups in found["by"].items()}
    assert counts == {
        "status": {"200": 2, "404": 1},
        "model": {"other": 1, "stories": 1},
        "key": {"key1": 1, "key2": 1, "nobody": 1},
        "route": {"POST /v1/completions": 2, "no such path": 1},
        "address": {"10.0.0.1": 2, "10.0.0.2": 1},
    }
    assert found["all"]["codes"] == {"error": 1}
    assert found["all"]["tokens_per_s"]["p50"] == pytest.approx(40 / 0.8, rel=0.02)
    assert (found["from"], found["to"]) == ("2026-11-20T12:00:00.000+00:00", "2026-11-20T12:00:02.000+00:00")


def test_what_is_shown_holds_the_same_figures(bitnet: Bitnet, log: Path) -> None:
    fault = line(NOON + 9, "a request has failed", level="error", error="RuntimeError", at=["gate.py:1 serve"])
    log.write_text(text(*(answered(NOON + n) for n in range(8)), *refused("overloaded", 503, 2), fault))
    said = bitnet("logs", log)
    assert said.code == 0
    assert said.err == ""
    for words in ("10, 1.1 a second", "2 (20.0%)", "overloaded", "stories", "RuntimeError", "line 11", "p99", "req_1"):
        assert words in said.out


def test_percentiles_are_within_a_hundredth() -> None:
    draw = random.Random(5)
    values = sorted(draw.lognormvariate(0, 2) for _ in range(20_000))
    spread = Spread()
    for value in values:
        spread.add(value, step_of(value))
    for share in (0.5, 0.9, 0.95, 0.99):
        assert spread.at(share) == pytest.approx(values[int(share * len(values)) - 1], rel=0.0101)
    assert spread.at(1) == values[-1]
    assert Spread().at(0.5) is None


def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    groups, one = Groups(), decoded(answered())
    for n in range(5000):
        groups.add("often", one, figures_of(one))
        groups.add(f"model-{n}", one, figures_of(one))
    found = dict(groups.items())
    assert len(found) <= 402
    assert found["often"].requests == 5000
    assert found[OTHERS].requests > 4000
    assert sum(tally.requests for tally in found.values()) == 10_000


def decoded(record: dict[str, Any]) -> Line:
    import msgspec

    return msgspec.json.decode(json.dumps(record), type=Line)


def test_the_course_over_time_has_few_columns_however_long_the_log_is() -> None:
    for step in (0.01, 1, 60, 86400, 86400 * 100):
        traffic = Traffic()
        for n in range(3000):
            traffic.add(decoded(answered(NOON + n * step)), "")
        columns = list(traffic.course.columns(24))
        assert 2 <= len(columns) <= 24
        assert sum(one.requests for _, _, one in columns) == 3000
        assert all(later[0] - earlier[0] == earlier[1] for earlier, later in pairwise(columns))


def test_damaged_lines_are_counted_and_named(bitnet: Bitnet, log: Path) -> None:
    good = json.dumps(answered())
    wrong = ["no JSON", '{"time": "soon"}', "[]", '{"a":' * 5000, json.dumps(answered(seconds=-1)),
             json.dumps(answered(prompt_tokens="many")), "x" * 3_000_000, "\x00" * 40]  # fmt: skip
    log.write_text("\n".join(["", good, *wrong, good, good[:70]]))
    said = bitnet("logs", log, "--json")
    assert said.code == 0
    assert said.json["lines"] == 2
    named = said.json["damaged"]["named"]
    assert said.json["damaged"]["count"] == len(wrong) + 1
    assert [one["line"] for one in named] == [*range(3, 3 + len(wrong)), 4 + len(wrong)]
    assert "longer than" in named[6]["why"]
    assert "cut short" in named[-1]["why"]
    assert f"{len(wrong) + 1} damaged lines are left out: {log}:3, " in said.err
    assert bitnet("logs", log, "--quiet").err == ""


def test_bytes_that_are_no_text_are_damage(bitnet: Bitnet, log: Path) -> None:
    log.write_bytes(b"\xff\xfe\n" + text(answered()).encode() + b'{"time": "\xff"}\n')
    assert [one["line"] for one in bitnet("logs", log, "--json").json["damaged"]["named"]] == [1, 3]


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_log_is_a_log(content: bytes, bitnet: Bitnet, log: Path) -> None:
    log.write_bytes(content)
    assert bitnet("logs", log).out == "no lines\n"
    assert bitnet("logs", log, "--json").json["all"]["requests"] == 0


def test_what_is_no_log_is_refused_with_its_first_line(bitnet: Bitnet, log: Path) -> None:
    log.write_text("<!doctype html>\n<html>\n")
    said = bitnet("logs", log)
    assert said.code == 2
    assert f"{log}:1: expected lines of bitnet serve's log, got none in 2" in said.err


def test_compressed_logs_are_read_beside_others(bitnet: Bitnet, log: Path, tmp_path: Path) -> None:
    old = tmp_path / "serve.log.1.gz"
    old.write_bytes(gzip.compress(text(*(answered(NOON + n) for n in range(50))).encode()))
    log.write_text(text(answered(NOON + 60)))
    assert bitnet("logs", old, log, "--json").json["lines"] == 51
    assert bitnet("logs", old, "--json").json["lines"] == 50
    draw = random.Random(1)
    lines = [answered(NOON + n, id=f"req_{draw.getrandbits(96):x}") for n in range(2000)]
    data = gzip.compress(text(*lines).encode())
    old.write_bytes(data[: len(data) // 2])
    said = bitnet("logs", old, "--json")
    assert said.code == 0
    assert 500 < said.json["lines"] < 1500
    assert "the compressed file ends" in said.json["damaged"]["named"][-1]["why"]


@pytest.mark.parametrize("name", ["-", None])
@pytest.mark.parametrize("packed", [False, True])
def test_a_log_comes_by_stdin(name: str | None, packed: bool, bitnet: Bitnet, monkeypatch: pytest.MonkeyPatch) -> None:
    data = text(answered(), request(NOON + 1, status=500, code="error")).encode()
    data = gzip.compress(data) if packed else data
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    found = bitnet("logs", *([name] if name else []), "--json").json
    assert found["all"]["failed"] == 1
    assert not sys.stdin.closed


def test_older_lines_are_left_out(bitnet: Bitnet, log: Path) -> None:
    now = time.time()
    log.write_text(text(answered(now - 7200), answered(now - 1800), answered(now - 60)))
    assert bitnet("logs", log, "--since", "1h", "--json").json["all"]["requests"] == 2
    said = bitnet("logs", log, "--since", "10s")
    assert said.code == 0
    assert "all lines are older; the last one was written just now" in said.err


def test_what_clients_wrote_does_not_reach_the_terminal(bitnet: Bitnet, log: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\u202e\r\n"
    log.write_text(
        text(
            answered(model=evil, path=evil, tenant=evil, address=evil, route=evil, id=evil, code=evil, finish=[evil]),
            request(route=None, path=evil, id="req_2", seconds=9),
            line(NOON, evil, level="error", error=evil, at=[evil]),
        )
    )
    said = bitnet("logs", log)
    assert said.code == 0
    assert not set("\x1b\x07\u202e\r") & set(said.out)


def test_the_slowest_requests_come_first(bitnet: Bitnet, log: Path) -> None:
    log.write_text(text(*(answered(NOON + n, seconds=(n * 37) % 100, id=f"req_{n}") for n in range(100))))
    slowest = bitnet("logs", log, "--json").json["slowest"]
    assert [one["seconds"] for one in slowest] == list(range(99, 89, -1))
    assert slowest[0]["id"] == "req_27"


def test_errors_that_differ_in_numbers_alone_are_one(bitnet: Bitnet, log: Path) -> None:
    errors = [line(NOON + n, f"request {n} of 'key{n}' failed", level="error", at=["a.py:3 f"]) for n in range(30)]
    others = [line(NOON + n, "memory is short", level="warning") for n in range(2)]
    log.write_text(text(*others, *errors))
    found = bitnet("logs", log, "--json").json["errors"]
    assert [(one["level"], one["count"], one["line"]) for one in found] == [
        ("error", 30, "line 3"),
        ("warning", 2, "line 1"),
    ]


def test_a_sound_server_needs_no_advice(bitnet: Bitnet, log: Path) -> None:
    started = line(NOON, "started", models=["stories"], urls=["http://127.0.0.1:8000"])
    lines = [
        started,
        *(answered(NOON + n) for n in range(200)),
        line(NOON + 300, "stopping"),
        line(NOON + 301, "stopped"),
    ]
    assert advised(bitnet, log, *lines) == {}
    assert "nothing to advise" in bitnet("logs", log).out


GOOD = [answered(NOON + n) for n in range(100)]


@pytest.mark.parametrize(
    ("about", "seen", "lines"),
    [
        ("queue", "5 of 105 requests (4.8%) were refused because the queue was full", refused("overloaded", 503, 5)),
        ("queue", "970 of 1,070 requests", [line(NOON, "refused", count=970, reason="requests", seconds=1.0)]),
        ("queue", "waited 2.0", [answered(NOON + n, queue_s=2.0, first_token_s=2.1) for n in range(10)]),
        ("first token", "at p50 and 8.92 s at p99; prompts have 100 tokens",
         [answered(NOON + n, prompt_tokens=9000, first_token_s=9.0, seconds=11.0) for n in range(3)]),
        ("wrong keys", "25 requests showed a wrong key, 25 of those written down from 10.9.9.9",
         refused("invalid_api_key", 401, 25, tenant=None, address="10.9.9.9")),
        ("wrong keys", "500 requests", [line(NOON, "refused", count=500, reason="wrong keys", seconds=1.0)]),
        ("limits", "12 of 12 requests of the key greedy came too fast",
         refused("rate_limit_exceeded", 429, 12, tenant="greedy")),
        ("limits", "6 of 6 requests of the key poor came with its budget spent",
         refused("insufficient_quota", 429, 6, tenant="poor")),
        ("clients that leave", "5 clients left before an answer began, half of them within 29.8 s",
         [request(NOON + n, status=499, seconds=30.0) for n in range(5)]),
        ("refusals", "5 of 105 requests ended as context_length_exceeded", refused("context_length_exceeded", 400, 5)),
        ("refusals", "model_not_found", refused("model_not_found", 404, 5)),
        ("cut texts", "150 of 250 texts (60%)", [answered(NOON + n, finish=["length"]) for n in range(150)]),
        ("deadlines", "5 of 105 texts", [answered(NOON + n, finish=["deadline"]) for n in range(5)]),
        ("models", "the model large was unloaded 9 times",
         [line(NOON + n, "unloading the model large") for n in range(9)]),
        ("crashes", "2 of 3 starts", [line(NOON + n, "started") for n in range(3)]),
        ("errors", "3 errors; most often KeyError at chat.py:3 f",
         [line(NOON, "it failed", level="error", error="KeyError", at=["a", "chat.py:3 f"])] * 3),
        ("cache", "2.4% of 210,000 prompt tokens came from the cache",
         [answered(NOON + n, prompt_tokens=1000, cached_tokens=0) for n in range(200)]),
        ("log", "12 lines of the log were lost", [line(NOON, "lines were lost", count=12)]),
        ("connections", "8 connections", [line(NOON, "refused", count=8, reason="connections", seconds=1.0)]),
    ],
)  # fmt: skip
def test_advice_stands_on_a_figure(
    about: str, seen: str, lines: list[dict[str, Any]], bitnet: Bitnet, log: Path
) -> None:
    assert seen in advised(bitnet, log, *GOOD, *lines)[about]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["missing.log"], 2, "missing.log"),
        (["."], 2, "expected a file with a server's log, got a folder"),
        (["/dev/zero"], 2, "a pipe or a device"),
        (["{log}", "--since", "yesterday"], 2, "expected a time such as 12h"),
        (["{log}", "--since", "-1h"], 2, "--since"),
        (["{log}", "--folow"], 2, "--follow"),
        (["{log}", "--follow", "--json"], 2, "leave one out"),
        (["{log}", "{log}", "--follow"], 2, "one file"),
        (["{log}.gz", "--follow"], 2, "compressed"),
        (["."[:0]], 2, ""),
        (["bad-\udcff-name.log"], 2, "bad-"),
        (["x" * 100_000], 2, "xxx"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], code: int, said: str, bitnet: Bitnet, log: Path
) -> None:
    log.write_text(text(answered()))
    Path(f"{log}.gz").write_bytes(gzip.compress(log.read_bytes()))
    found = bitnet("logs", *(word.format(log=log) for word in arguments))
    assert (found.code, found.out) == (code, "")
    assert said in found.err
    assert found.err.count("\n") == 1
    assert found.err.startswith("bitnet: error: ")


@contextmanager
def following(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_lines_are_shown_as_they_are_written_and_over_a_change_of_files(log: Path, tmp_path: Path) -> None:
    log.write_text(text(*(answered(NOON + n, path=f"/old/{n}") for n in range(40))))
    with following(log, "--follow") as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(10)]
        assert [f"/old/{n} " in one for n, one in enumerate(shown, 30)] == [True] * 10
        whole = text(answered(path="/new"))
        with log.open("a") as stream:
            stream.write(whole[:50])
            stream.flush()
            stream.write(whole[50:])
        assert "/new  1.00 s  first token 200 ms  100 (50 cached) + 41 tokens" in process.stdout.readline()
        log.rename(tmp_path / "serve.log.1")
        log.write_text("damage\n" + text(answered(path="/next"), line(NOON, "stopped")))
        assert process.stdout.readline() == "damage\n"
        assert "/next" in process.stdout.readline()
        assert "stopped" in process.stdout.readline()
        process.send_signal(2)
        assert process.wait(timeout=30) == 130


def test_a_server_s_stderr_is_followed_through_a_pipe() -> None:
    with following("--follow") as process:
        said, complaint = process.communicate(text(answered(), request(status=401, code="invalid_api_key")), timeout=60)
        assert process.returncode == 0, complaint
        assert [one.split()[1] for one in said.splitlines()] == ["200", "401"]
        assert "invalid_api_key" in said


def test_a_reader_that_leaves_early_ends_it_well(log: Path) -> None:
    log.write_text(text(*(answered(NOON + n) for n in range(5000))))
    with following(log, "--follow", "--since", "5000d") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
        process.stdout = None


def test_a_long_log_takes_little_memory(log: Path) -> None:
    lines = text(*(answered(NOON + n, id=f"req_{n}", address=f"10.0.{n % 256}.{n % 7}") for n in range(2000)))
    script = (
        "import resource, sys; from bitnet_cli.main import main; peak = lambda: "
        "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; main(['logs', sys.argv[1], '--json', '-q']); "
        "before = peak(); main(['logs', sys.argv[2], '--json', '-q']); print(peak() - before, file=sys.stderr)"
    )
    log.write_text(lines)
    large = log.with_name("large.log")
    with large.open("w") as stream:
        for _ in range(25):
            stream.write(lines)
    done = subprocess.run([sys.executable, "-c", script, log, large], capture_output=True, text=True, check=True)
    assert int(done.stderr.split()[-1]) < 16 << 10  # KiB; the file has 20 MB
