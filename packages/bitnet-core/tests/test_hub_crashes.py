"""Killed, out of space or not alone: the cache holds whole files or none.

BITNET_HUB_CRASHES=all kills and fails a download at every system call that touches the cache, which takes minutes;
by default at a few of them, chosen at random.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import hub_server
import pytest
from hub_server import HubServer

from bitnet_core import errors, hub
from bitnet_core.hub import Patience, Progress
from bitnet_core.hub.part import leftovers, parts

EVERY = os.environ.get("BITNET_HUB_CRASHES") == "all"
SOME = 4  # system calls tried by default
SIZE = 300_000
FILES = {"config.json": b'{"model_type": "bitnet"}', "model.safetensors": random.Random(1).randbytes(SIZE)}
PATIENCE = Patience(connect_s=5, retries=0)
CHILD = """
import sys
from bitnet_core import errors, hub
try:
    print(hub.resolve("org/m", cache=sys.argv[1], endpoint=sys.argv[2], token=False, patience=hub.Patience(retries=0)))
except errors.HubError as error:
    print(error)
    sys.exit(3)
"""
NO_LOCKS = "import fcntl\nfcntl.flock = lambda *_: None\n"
CALLS = "write,fsync,ftruncate,rename,renameat,renameat2,symlink,symlinkat,mkdir,mkdirat,unlink,unlinkat,openat"
CALL = re.compile(r"(?:\d+ +)?(?P<name>\w+)\((?P<rest>.*)")


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        running.add("org/m", FILES)
        yield running


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of three megabytes of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("NO MOUNT: needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def strace() -> str:
    """The command, where it may trace."""
    command = shutil.which("strace")
    if (
        command is None
        or subprocess.run([command, "-o", os.devnull, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("NO STRACE: needs the command, and the right to trace")
    return command


@pytest.fixture(scope="module")
def calls(strace: str, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """The system calls by which a download touches its cache."""
    folder = tmp_path_factory.mktemp("trace")
    log, cache = folder / "log", folder / "cache"
    with HubServer() as server:
        server.add("org/m", FILES)
        said = finish(
            start(server, cache, strace, "-f", "-qq", "-y", "-s", "0", "-o", str(log), "-e", f"trace={CALLS}")
        )
    assert said.startswith(str(cache))
    counter: Counter[str] = Counter()
    found = []
    for line in log.read_text().splitlines():
        if match := CALL.match(line):
            counter[match["name"]] += 1
            if str(cache) in line:
                found.append(Call(match["name"], counter[match["name"]], match["rest"]))
    assert len(found) > 30
    return found


def fetch(server: HubServer, cache: Path, name: str = "org/m") -> Path:
    return hub.resolve(name, cache=cache, endpoint=server.url, token=False, patience=PATIENCE)


def start(server: HubServer, cache: Path, *before: str, code: str = CHILD) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-c", code, str(cache), server.url]
    environment = {**os.environ, "NO_PROXY": "*", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> str:
    said, complained = child.communicate(timeout=60)
    assert child.returncode in {0, 3, -signal.SIGKILL}, complained
    return said


def check_cache(cache: Path) -> None:
    """Every final name is exact."""
    for blob in cache.glob("models--*/blobs/*"):
        if not blob.name.endswith((".incomplete", ".tmp")):
            content = blob.read_bytes()
            assert blob.name in {hub_server.sha256(content), hub_server.git_id(content)}
    for entry in cache.glob("models--*/snapshots/*/*"):
        assert entry.read_bytes() == FILES[entry.name]


def check_recovery(server: HubServer, cache: Path) -> None:
    """Nothing is spoiled, the next download succeeds, and a clean-up leaves nothing behind."""
    check_cache(cache)
    path = fetch(server, cache)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == FILES
    check_cache(cache)
    hub.clean_up(idle_s=-1, cache=cache)
    assert [p for p in cache.rglob("*") if p.name.endswith((".incomplete", ".tmp"))] == []
    assert hub.cached(cache=cache)[0].refs == ("main",)


@dataclass(frozen=True)
class Call:
    """The `number`-th call of `name` in a download, and what it was about."""

    name: str
    number: int
    about: str


def inject(strace: str, call: Call, what: str) -> list[str]:
    inject = f"inject={call.name}:{what}:when={call.number}"
    return [strace, "-f", "-qq", "-o", os.devnull, "-e", f"trace={call.name}", "-e", inject]


def some(calls: list[Call]) -> list[Call]:
    return calls if EVERY else random.sample(calls, min(SOME, len(calls)))


@pytest.mark.parametrize("listed", [parts, lambda folder: list(leftovers(folder, 0))])
def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path: Path, listed: Callable[[Path], object]) -> None:
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(errors.HubError, match=r"blobs: Not a directory \(ENOTDIR\); check the disk$"):
        listed(tmp_path / "blobs")


# Killed


@pytest.mark.timeout(3600)
def test_a_kill_at_a_system_call_leaves_whole_files_or_none(
    strace: str, calls: list[Call], server: HubServer, tmp_path: Path
) -> None:
    killed = 0
    tried = some(calls)
    for index, call in enumerate(tried):
        cache = tmp_path / str(index)
        child = start(server, cache, *inject(strace, call, "signal=SIGKILL"))
        finish(child)
        killed += child.returncode != 0
        check_recovery(server, cache)
    assert killed >= len(tried) * 0.7  # pieces come in other sizes every time: the last writes may not happen


@pytest.mark.parametrize("after", [0, 1, 65_536, 100_000, SIZE - 1] if EVERY else [100_000, SIZE - 1])
def test_a_kill_between_two_bytes_loses_at_most_a_piece(after: int, server: HubServer, tmp_path: Path) -> None:
    children: list[subprocess.Popen[str]] = []
    arrived = threading.Event()

    def kill(handler: hub_server.Handler, content: bytes) -> bool:
        arrived.wait(30)
        handler.send(200, content[:after], length=len(content))
        time.sleep(0.2)  # lets the child write what it was sent
        children[0].kill()
        handler.drop()
        return True

    server.fault(kill)
    children.append(start(server, tmp_path))
    arrived.set()
    finish(children[0])
    assert children[0].returncode == -signal.SIGKILL
    check_cache(tmp_path)
    server.requests.clear()
    path = fetch(server, tmp_path)
    asked = server.asked("", "cdn")
    came = int(re.sub(r"\D", "", asked[0].headers.get("range", "0"))) if asked else SIZE
    assert after - (64 << 10) <= came <= after
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_content_is_flushed_before_it_gets_its_name_and_the_name_after(calls: list[Call]) -> None:
    calls = [call for call in calls if call.name in {"write", "fsync", "rename", "ftruncate"}]
    renames = [index for index, call in enumerate(calls) if call.name == "rename" and ".incomplete" in call.about]
    assert len(renames) == len(FILES)
    for index in renames:
        part = re.search(r"[0-9a-f]+\.[0-9a-f]{16}\.incomplete", calls[index].about)
        assert part
        of_part = [call.name for call in calls[:index] if part[0] in call.about]
        assert of_part[-1] == "fsync"
        assert "write" in of_part
        following = calls[index + 1]
        assert following.name == "fsync"
        assert re.search(r"/blobs>", following.about)


# Failing disks


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("write", "ENOSPC"),
        ("write", "EIO"),
        ("write", "EDQUOT"),
        ("fsync", "EIO"),
        ("rename", "EIO"),
        ("mkdir", "EROFS"),
        ("openat", "EMFILE"),
        ("openat", "EACCES"),
    ],
)
def test_an_error_of_the_disk_is_one_line_and_spoils_nothing(
    name: str, error: str, strace: str, calls: list[Call], server: HubServer, tmp_path: Path
) -> None:
    # Of files that are only looked for, an error means that they are not there.
    calls = [call for call in calls if call.name == name and (name != "openat" or "O_CREAT" in call.about)]
    for index, call in enumerate(calls if EVERY else random.sample(calls, 1)):
        cache = tmp_path / str(index)
        child = start(server, cache, *inject(strace, call, f"error={error}"))
        said = finish(child)
        if child.returncode:
            assert said.count("\n") == 1
            assert f"({error})" in said
            assert str(cache) in said or "..." in said
        check_recovery(server, cache)


def test_a_flush_that_failed_is_not_taken_for_a_success(
    strace: str, calls: list[Call], server: HubServer, tmp_path: Path
) -> None:
    flushes = [call for call in calls if call.name == "fsync" and ".incomplete" in call.about]
    assert len(flushes) == len(FILES)
    for index, call in enumerate(flushes):
        cache = tmp_path / str(index)
        child = start(server, cache, *inject(strace, call, "error=EIO"))
        said = finish(child)
        assert child.returncode == 3
        assert "Input/output error (EIO); check the disk" in said
        assert list(cache.glob("**/*.incomplete")) == []
        check_recovery(server, cache)


def test_a_disk_that_fills_up_on_the_way_is_one_line_and_the_rest_comes_later(server: HubServer, disk: Path) -> None:
    content = random.Random(2).randbytes(2 << 20)
    server.add("org/big", {"m.gguf": content})
    filler = disk / "filler"

    def fill(event: Progress) -> None:
        if event.done and not filler.exists():
            filler.write_bytes(bytes(shutil.disk_usage(disk).free))

    with pytest.raises(errors.HubError, match=r"No space left on device \(ENOSPC\); free some space") as caught:
        hub.resolve("org/big", cache=disk, endpoint=server.url, token=False, patience=PATIENCE, progress=fill)
    assert str(caught.value).isprintable()
    filler.unlink()
    assert fetch(server, disk, "org/big").read_bytes() == content


# Room


def test_a_model_that_no_disk_holds_is_refused_before_its_first_byte(server: HubServer, tmp_path: Path) -> None:
    size = 1 << 60
    lie = {"lfs": {"oid": "a" * 64, "size": size, "pointerSize": 1}}
    server.repos["org/m"].lies["model.safetensors"] = lie
    needed = size + len(FILES["config.json"])
    with pytest.raises(
        errors.HubError, match=rf"expected {needed} bytes of free space for org/m, got \d+; free some space"
    ):
        fetch(server, tmp_path)
    assert server.asked("/resolve/") == []


def test_one_byte_too_many_is_refused_and_the_cache_stays_good(server: HubServer, disk: Path) -> None:
    path = fetch(server, disk)
    free = shutil.disk_usage(disk).free
    server.add("org/big", {"m.gguf": bytes(free + 1)})
    with pytest.raises(errors.HubError, match=rf"expected {free + 1} bytes of free space for org/big, got {free}"):
        fetch(server, disk, "org/big")
    assert server.asked("org/big/resolve") == []
    assert fetch(server, disk) == path
    check_cache(disk)
    server.add("org/big", {"m.gguf": bytes(free - (64 << 10))})  # folders and links take some
    assert len(fetch(server, disk, "org/big").read_bytes()) == free - (64 << 10)


def test_a_part_that_leaves_no_room_for_its_copy_is_given_up(server: HubServer, disk: Path) -> None:
    content = random.Random(3).randbytes(2 << 20)
    server.add("org/big", {"m.gguf": content})
    blobs = disk / "models--org--big/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hub_server.sha256(content)}.{'0' * 16}.incomplete").write_bytes(content[: 3 << 19])
    assert fetch(server, disk, "org/big").read_bytes() == content


# Not alone


def slow(handler: hub_server.Handler, content: bytes) -> bool:
    """Sends what is wanted over more than half a second."""
    handler.begin(content, b"")
    for at in range(handler.offset(), len(content), 10_000):
        handler.put(content[at : at + 10_000])
        handler.hub.closing.wait(0.02)
    return True


@pytest.mark.parametrize("locks", ["locks that work", "locks that lie"])
def test_processes_that_fetch_one_model_and_die_do_not_spoil_it(locks: str, server: HubServer, tmp_path: Path) -> None:
    server.fault(slow, times=None)
    code = CHILD if locks == "locks that work" else NO_LOCKS + CHILD
    for round_ in range(20 if EVERY else 1):
        cache = tmp_path / str(round_)
        server.requests.clear()
        children = [start(server, cache, code=code) for _ in range(8 if EVERY else 4)]
        while not any(p.stat().st_size > 50_000 for p in cache.glob("**/*.incomplete")):
            time.sleep(0.01)
            assert any(child.poll() is None for child in children)
        for child in children[::2]:
            child.kill()
        said = [finish(child) for child in children]
        for child, line in list(zip(children, said, strict=True))[1::2]:
            assert child.returncode == 0, line
        if locks == "locks that lie":
            assert len(server.asked("", "cdn")) > 1
        check_cache(cache)
        check_recovery(server, cache)


def test_threads_that_fetch_one_model_fetch_it_once(server: HubServer, tmp_path: Path) -> None:
    server.fault(slow, times=None)
    events: list[Progress] = []

    def work(_: int) -> Path:
        return hub.resolve(
            "org/m", cache=tmp_path, endpoint=server.url, token=False, patience=PATIENCE, progress=events.append
        )

    with ThreadPoolExecutor(6) as pool:
        (path,) = set(pool.map(work, range(6)))
    assert {p.name: p.read_bytes() for p in path.iterdir()} == FILES
    assert len(server.asked("", "cdn")) == 1
    # Those that wait see the download get on, too.
    assert len([event for event in events if 0 < event.done < event.total]) > 10


def test_a_lock_that_nobody_gives_back_only_costs_time(server: HubServer, tmp_path: Path) -> None:
    from filelock import FileLock

    digest = hub_server.sha256(FILES["model.safetensors"])
    folder = tmp_path / ".locks/models--org--m"
    folder.mkdir(parents=True)
    with FileLock(folder / f"{digest}.lock"):
        patience = Patience(stall_s=0.5, retries=0)
        path = hub.resolve("org/m", cache=tmp_path, endpoint=server.url, token=False, patience=patience)
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    check_cache(tmp_path)


def test_a_cache_that_is_removed_under_a_download_is_one_line(server: HubServer, tmp_path: Path) -> None:
    def remove(event: Progress) -> None:
        if event.done:
            shutil.rmtree(tmp_path / "models--org--big", ignore_errors=True)

    server.add("org/big", {"m.gguf": bytes(3 << 20)})
    with pytest.raises(errors.HubError, match=r"No such file or directory \(ENOENT\)"):
        hub.resolve("org/big", cache=tmp_path, endpoint=server.url, token=False, patience=PATIENCE, progress=remove)
    check_recovery(server, tmp_path)
