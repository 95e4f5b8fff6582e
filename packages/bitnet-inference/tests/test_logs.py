"""Logs are whole lines of JSON, whatever becomes of the stream and the file, and nobody waits for them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_inference.server import logs
from bitnet_inference.server.logs import written

log = logging.getLogger("bitnet_inference.server")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_line_has_its_time_in_utc_and_its_file_one_reader(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    before = time.time()
    with written(file=path):
        log.info("started", extra={"fields": {"pid": 1}})
        log.debug("nothing of interest")
    [line] = lines(path)
    assert {name: line[name] for name in ("level", "logger", "message", "pid")} == {
        "level": "info",
        "logger": "bitnet_inference.server",
        "message": "started",
        "pid": 1,
    }
    assert line["time"].endswith("Z")
    assert line["time"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_stream_may_have_less_than_the_file(tmp_path: Path) -> None:
    stream = (tmp_path / "stream").open("w+")
    with stream, written(stream, tmp_path / "server.log", level=logging.ERROR):
        log.info("one")
        log.error("two")
    assert [line["message"] for line in lines(tmp_path / "stream")] == ["two"]
    assert [line["message"] for line in lines(tmp_path / "server.log")] == ["one", "two"]


@pytest.mark.parametrize("hangup", [False, True])
def test_a_file_that_was_moved_is_begun_anew(tmp_path: Path, hangup: bool) -> None:
    path, moved = tmp_path / "server.log", tmp_path / "server.log.1"
    with written(file=path):
        log.info("one")
        until(lambda: path.read_text() != "")
        path.rename(moved)
        if hangup:
            os.kill(os.getpid(), signal.SIGHUP)
            until(path.exists)
        log.info("two")
    assert [line["message"] for line in lines(moved)] == ["one"]
    assert [line["message"] for line in lines(path)] == ["two"]


def test_without_a_file_a_hangup_ends_nothing_and_is_told(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from bitnet_inference.server.logs import written
with written(sys.stderr):
    os.kill(os.getpid(), signal.SIGHUP)
    print("here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "here\n")
    assert "SIGHUP changes nothing" in json.loads(done.stderr)["message"]


def test_a_line_that_was_cut_harms_none_that_follows(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text('{"time": "2026-')
    with written(file=path):
        log.info("one")
    first, second = path.read_text().splitlines()
    assert first == '{"time": "2026-'
    assert json.loads(second)["message"] == "one"


def test_a_folder_that_is_gone_and_a_full_disk_stop_nobody(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "server.log"
    path.parent.mkdir()
    with written(file=path), written(file="/dev/full"):
        log.info("one")
        until(lambda: path.read_text() != "")
        path.rename(tmp_path / "kept")
        path.parent.rmdir()
        log.info("two")
    assert [line["message"] for line in lines(tmp_path / "kept")] == ["one", "two"]


def test_a_file_that_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"), written(file=tmp_path / "nowhere" / "server.log"):
        pytest.fail("begun")


def test_nobody_waits_for_a_reader_and_what_is_lost_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_PENDING", 100)
    reading, writing = os.pipe()
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(iter(lambda: os.read(reading, 65536), b"")))
    with os.fdopen(writing, "w") as stream, written(stream):
        began = time.monotonic()
        for _ in range(50):
            for number in range(100):
                log.info("x" * 900, extra={"fields": {"number": number}})
            time.sleep(0.001)
        assert time.monotonic() - began < 5
        reader.start()
        time.sleep(0.3)
        log.info("last")
    reader.join(20)
    os.close(reading)
    seen = [json.loads(line) for line in b"".join(found).splitlines()]
    lost = sum(line["count"] for line in seen if line["message"] == "lines were lost")
    assert lost > 0
    assert lost + sum("number" in line for line in seen) == 5000
    assert seen[-1]["message"] == "last"


def test_words_that_do_not_fit_their_places_are_written_as_they_are(tmp_path: Path) -> None:
    with written(file=tmp_path / "server.log"):
        log.warning("%d of %d", "one")  # noqa: PLE1206  # what is to be survived
        log.warning("two")
    assert [line["message"] for line in lines(tmp_path / "server.log")] == ["%d of %d", "two"]
