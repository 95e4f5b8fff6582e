"""A checkpoint is whole or passed over: damaged, cut short, killed, out of space, or written by two.

BITNET_KILLS=all kills a save at every system call that touches its folder; by default at a few, chosen at random.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bitnet_core import FormatError
from bitnet_training.checkpoint import Checkpoint, Checkpoints
from bitnet_training.errors import TrainingStopped

EVERY = os.environ.get("BITNET_KILLS") == "all"
SOME = 8
STEPS = {"step-000000000002", "step-000000000003"}
CALLS = "write,fsync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,openat"
CALL = re.compile(r"(?:\d+ +)?(?P<name>\w+)\((?P<rest>.*)")
# For every folder that is written to it, a copy of this process saves steps 2 and 3 there; it stops first, so that
# somebody can begin to trace it. A copy, since the imports take seconds.
SERVER = """
import os, signal, sys, torch
from bitnet_training.checkpoint import Checkpoint, Checkpoints

def save(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (2, 3):
            tensors = {"model": {"w": torch.full((300,), float(step))}, "optimizer": {"w.step": torch.tensor(step)}}
            checkpoints.save(Checkpoint(step, tensors, {"step": step}))

for line in sys.stdin:
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            save(line.strip())
        except OSError as error:
            os._exit(3)
        finally:
            os._exit(sys.exc_info()[0] is not None)
    os.waitpid(child, os.WUNTRACED)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def made(step: int, fill: float = 0.5) -> Checkpoint:
    tensors = {
        "model": {"w": torch.full((4, 3), fill + step), "half": torch.full((3,), fill, dtype=torch.bfloat16)},
        "optimizer": {"w.step": torch.tensor(float(step))},
    }
    return Checkpoint(step, tensors, {"step": step, "text": "ü"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(made(1))
        checkpoints.save(made(2))
    return tmp_path / "run"


def newest(folder: Path) -> int | None:
    found = Checkpoints(folder).newest()
    return None if found is None else found.step


def test_what_is_saved_is_read_back_to_the_bit(folder):
    found = Checkpoints(folder).newest()
    assert found is not None
    assert (found.step, found.state) == (2, {"step": 2, "text": "ü"})
    for name, tensors in made(2).tensors.items():
        assert found.tensors[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert found.tensors[name][key].dtype == tensor.dtype
            assert torch.equal(found.tensors[name][key].reshape(tensor.shape), tensor)


def test_old_checkpoints_go_and_the_latest_is_named(folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(made(3))
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000000000002", "step-000000000003"]
    assert json.loads((folder / "latest").read_text()) == {"checkpoint": "step-000000000003", "step": 3}
    assert not list(folder.glob(".*"))


def test_what_a_kill_left_to_do_is_done_by_the_next_trainer_and_by_no_reader(folder):
    shutil.copytree(folder / "step-000000000001", folder / "step-000000000000")
    (folder / "latest").write_text('{"checkpoint": "step-000000000001", "step": 1}')
    assert newest(folder) == 2
    assert len(list(folder.glob("step-*"))) == 3
    assert json.loads((folder / "latest").read_text())["step"] == 1
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.newest()
    assert {path.name[-1] for path in folder.glob("step-*")} == {"1", "2"}
    assert json.loads((folder / "latest").read_text()) == {"checkpoint": "step-000000000002", "step": 2}


def test_a_folder_without_checkpoints_has_no_newest(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.newest() is None


FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_taken(folder, name, caplog):
    path = folder / "step-000000000002" / name
    data = bytearray(path.read_bytes())
    places = range(0, len(data) * 8, max(1, len(data) * 8 // 40))
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        caplog.clear()
        assert newest(folder) == 1
        assert "passed over" in caplog.text
        assert "step-000000000002" in caplog.text


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["cut", "longer", "gone", "empty", "swapped"])
def test_harm_of_any_kind_is_found_and_named(folder, name, harm, caplog):
    path = folder / "step-000000000002" / name
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "swapped":
        path.write_bytes((folder / "step-000000000001" / name).read_bytes())
    else:
        path.write_bytes({"cut": data[:-1], "longer": data + b" ", "empty": b""}[harm])
    if name == "manifest.json" and harm == "longer":
        assert newest(folder) == 2  # a space behind JSON changes nothing
        return
    assert newest(folder) == 1
    assert re.search(r"passed over: .*step-000000000002", caplog.text)
    if name != "manifest.json":
        assert name in caplog.text


def test_a_file_too_many_is_found(folder, caplog):
    (folder / "step-000000000002" / "extra.bin").write_bytes(b"x")
    assert newest(folder) == 1
    assert "extra.bin: file: expected the files of the manifest" in caplog.text


def test_where_all_are_damaged_nothing_begins_anew_in_silence(folder):
    for path in folder.glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(FormatError, match="one that is whole, got 2 that are damaged"):
        newest(folder)


def test_a_damaged_one_is_written_over_by_the_run_that_goes_on(folder):
    (folder / "step-000000000002" / "model.safetensors").write_bytes(b"")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(made(2, fill=7))
    found = Checkpoints(folder).newest()
    assert found is not None
    assert found.tensors["model"]["w"][0, 0] == 9


def test_a_newer_format_is_passed_over(folder, caplog):
    path = folder / "step-000000000002" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    assert newest(folder) == 1
    assert "format: expected 1, with files, got 2" in caplog.text


def test_a_state_that_is_not_this_runs_is_refused_not_passed_over(folder):
    def usable(state):
        raise TrainingStopped(f"other {state['step']}")

    with pytest.raises(TrainingStopped, match="other 2"):
        Checkpoints(folder).newest(usable)


def test_two_trainers_in_one_folder_are_refused(folder):
    with Checkpoints(folder), pytest.raises(TrainingStopped, match="another trainer writes here"), Checkpoints(folder):
        pass


def test_a_trainer_whose_lock_was_given_twice_saves_no_more(folder):
    with Checkpoints(folder) as first:
        (folder / "lease").write_text("host-1-abc")  # as a second one would, where locks do not work
        with pytest.raises(TrainingStopped, match=r"another trainer \(host-1-abc\) has taken over"):
            first.save(made(3))
    assert newest(folder) == 2


def test_leftovers_of_a_killed_trainer_are_cleared_away(folder):
    (folder / ".step-000000000003.abc.part").mkdir()
    (folder / ".latest.abc.part").write_bytes(b"x")
    with Checkpoints(folder):
        assert not list(folder.glob(".*"))
    assert newest(folder) == 2


def test_at_least_one_is_kept(tmp_path):
    with pytest.raises(ValueError, match="keep: at least 1"):
        Checkpoints(tmp_path, keep=0)


@pytest.fixture(scope="module")
def strace() -> str:
    """The command, where it may trace."""
    command = shutil.which("strace")
    tried = command and subprocess.run([command, "-o", os.devnull, "true"], capture_output=True, check=False)
    if not command or not tried or tried.returncode:
        pytest.skip("NO STRACE: needs the command, and the right to trace")
    return command


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """The process that saves on demand."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        yield running
        running.communicate()


def save(server: subprocess.Popen[str], folder: Path, *traced: str) -> int:
    """Let it save in a folder, traced by a command if there is one; gives its exit status."""
    assert server.stdin
    assert server.stdout
    server.stdin.write(f"{folder}\n")
    server.stdin.flush()
    child = server.stdout.readline().strip()
    if not traced:
        os.kill(int(child), signal.SIGCONT)
        return int(server.stdout.readline())
    with subprocess.Popen([*traced, "-p", child], stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr
        assert "attached" in tracer.stderr.readline()
        os.kill(int(child), signal.SIGCONT)
        return int(server.stdout.readline())


def begun(folder: Path) -> Path:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(Checkpoint(1, {"model": {"w": torch.ones(300)}}, {"step": 1}))
    return folder


@pytest.fixture(scope="module")
def calls(strace: str, server, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int]]:
    """The system calls by which two saves touch their folder: each by its name and number."""
    folder = begun(tmp_path_factory.mktemp("trace") / "run")
    log = folder.parent / "log"
    assert save(server, folder, strace, "-y", "-s", "0", "-o", str(log), "-e", f"trace={CALLS}") == 0
    counter: Counter[str] = Counter()
    found = []
    for line in log.read_text().splitlines():
        if match := CALL.match(line):
            counter[match["name"]] += 1
            if str(folder) in line:
                found.append((match["name"], counter[match["name"]]))
    assert len(found) > 60
    return found


def test_killed_at_a_system_call_a_whole_checkpoint_is_left(strace, server, calls, tmp_path):
    for number, (name, count) in enumerate(calls if EVERY else random.sample(calls, SOME)):
        folder = begun(tmp_path / str(number))
        inject = f"inject={name}:signal=KILL:when={count}"
        assert save(server, folder, strace, "-o", os.devnull, "-e", inject) == -signal.SIGKILL, (name, count)
        found = Checkpoints(folder).newest()
        assert found is not None, (name, count)
        assert found.step in {1, 2, 3}
        assert (found.tensors["model"]["w"] == found.step).all()
        assert save(server, folder) == 0  # the next one goes on
        assert newest(folder) == 3
        assert {path.name for path in folder.iterdir()} - {"latest", "lease", "lock"} == STEPS
        shutil.rmtree(folder)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_leaves_a_whole_checkpoint(strace, server, calls, tmp_path, error):
    touched = [call for call in calls if call[0] in {"write", "fsync", "mkdir", "rename"}]
    for number, (name, count) in enumerate(touched if EVERY else random.sample(touched, SOME)):
        folder = begun(tmp_path / str(number))
        inject = f"inject={name}:error={error}:when={count}"
        status = save(server, folder, strace, "-o", os.devnull, "-e", inject)
        found = Checkpoints(folder).newest()
        assert found is not None
        assert status == 3 or found.step == 3, (name, count)  # what was there already need not be made
        assert (found.tensors["model"]["w"] == found.step).all()
        shutil.rmtree(folder)
