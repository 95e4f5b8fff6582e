"""The audit log has a line for each thing done, and no line of it can be changed alone."""

from __future__ import annotations

import json
import logging
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_core.errors import FormatError, UnsupportedError
from bitnet_inference.server.audit import Audit, Head, verify


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def entries(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def write(file: Path, count: int) -> Head:
    with Audit(file, clock=lambda: 0.0) as audit:
        for number in range(count):
            audit.append("request", number=number, tenant="a")
    return audit.head


def eventually(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        threading.Event().wait(0.01)
    return true()


def test_each_thing_done_is_one_line_in_order(file: Path) -> None:
    head = write(file, 2500)
    assert verify(file) == head
    assert head.lines == 2500
    assert [entry["number"] for entry in entries(file)] == list(range(2500))
    assert entries(file)[0]["at"] == "1970-01-01T00:00:00.000+00:00"
    if sys.platform != "win32":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_line_is_there_before_the_log_is_closed(file: Path) -> None:
    with Audit(file) as audit:
        audit.append("request")
        assert eventually(lambda: file.stat().st_size > 0, 1.0)


def test_a_log_goes_on_where_it_ended(file: Path) -> None:
    first = write(file, 3)
    assert write(file, 3).lines == 6
    assert verify(file, head=first).lines == 6
    assert verify(file, head=Head(0, "0" * 64)).lines == 6


def test_whatever_a_field_holds_it_is_one_short_line(file: Path) -> None:
    with Audit(file) as audit:
        for text in ('a\r\n{"n":9}', "\x1b[31m", "\u2028", "\ud800", "x" * 10_000_000, '"\\'):
            audit.append("request", path=text)
    assert verify(file).lines == 6
    data = file.read_bytes()
    assert len(data) < 6 * 1024
    assert b"\x1b" not in data
    assert "\u2028".encode() not in data


def test_a_byte_that_was_changed_is_noticed(file: Path) -> None:
    write(file, 3)
    good = file.read_bytes()
    for place in range(0, len(good), 5):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(FormatError, match="line"):
            verify(file)


def test_lines_that_are_missing_moved_or_doubled_are_noticed(file: Path) -> None:
    head = write(file, 5)
    lines = file.read_bytes().splitlines(keepends=True)
    for wrong in (lines[1:], lines[:2] + lines[3:], [lines[1], lines[0], *lines[2:]], [*lines, lines[-1]]):
        file.write_bytes(b"".join(wrong))
        with pytest.raises(FormatError):
            verify(file)
    file.write_bytes(b"".join(lines[:4]))
    assert verify(file).lines == 4  # a shorter log is whole in itself
    with pytest.raises(FormatError, match="line 5: expected the hash"):
        verify(file, head=head)


def test_a_log_that_was_made_anew_does_not_have_a_head_that_was_kept(file: Path) -> None:
    head = write(file, 3)
    file.unlink()
    with Audit(file, clock=lambda: 1.0) as audit:
        for _ in range(5):
            audit.append("request")
    assert verify(file).lines == 5
    with pytest.raises(FormatError, match="line 3: expected the hash"):
        verify(file, head=head)


def test_wherever_a_crash_cut_it_the_log_goes_on_whole(file: Path) -> None:
    write(file, 2)
    good = file.read_bytes()
    first = good.index(b"\n") + 1
    for end in range(first, len(good) + 1, 7):
        file.write_bytes(good[:end])
        write(file, 1)
        torn = end - (first if end < len(good) else len(good))
        found = entries(file)
        assert verify(file).lines == len(found)
        assert [entry.get("bytes_lost") for entry in found if entry["event"] == "recovered"] == ([torn] if torn else [])
        assert file.read_bytes().startswith(good[: end - torn])


def test_a_damaged_last_line_is_not_built_upon(file: Path) -> None:
    write(file, 2)
    good = file.read_bytes()
    for bad in (good.replace(b'"number":1', b'"number":7'), good + b"hello\n", good + b"{}\n", b"\n" * 5):
        file.write_bytes(bad)
        with pytest.raises(FormatError):
            Audit(file)
        assert file.read_bytes() == bad


def test_two_servers_do_not_write_one_log(file: Path) -> None:
    with Audit(file), pytest.raises(UnsupportedError, match="another process writes"):
        Audit(file)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_stops_requests_and_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bitnet_inference.server.audit._PENDING", 5)
    monkeypatch.setattr("bitnet_inference.server.audit._AGAIN", 0.05)
    caplog.set_level(logging.CRITICAL, "bitnet_inference.server")
    import os

    audit = Audit(file)
    handle = os.dup(audit._handle)
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123  # a device
        os.dup2(full.fileno(), audit._handle)
    audit.append("request", number=0)
    for number in range(1, 8):
        audit.append("request", number=number)
    assert eventually(lambda: audit.stuck)
    os.dup2(handle, audit._handle)
    os.close(handle)
    assert eventually(lambda: not audit.stuck)
    audit.close()
    assert verify(file).lines == 8


CRASH = """
import sys
from bitnet_inference.server.audit import Audit
audit = Audit(sys.argv[1])
for number in range(40):
    audit.append("request", number=number)
    if number % 5 == 4:
        while audit.head.lines < number + 1:
            pass
audit.close()
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="NO strace: no crash can be put at a chosen write")
@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_crash_at_any_write_leaves_a_whole_chain(tmp_path: Path, call: str) -> None:
    lines = []
    for when in (1, 3, 8) if call == "write" else (1,):
        file = tmp_path / f"{call}{when}.jsonl"
        file.touch()
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(file), "-e", f"trace={call}"]
        command += ["-e", f"inject={call}:signal=KILL:when={when}", sys.executable, "-c", CRASH, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "ptrace" in done.stderr:
            pytest.skip("NO ptrace here: no crash can be put at a chosen write")
        lines.append(verify(file).lines)
        with Audit(file) as audit:
            audit.append("request")
        assert verify(file).lines == lines[-1] + 1
    assert lines == sorted(lines)
    assert call == "fsync" or lines[0] < lines[-1] < 41
