"""What control groups allow this process: cores and memory, in either version of cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Version 1 writes "no limit" as the largest multiple of a page; no machine has an exbibyte.
_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that bind this process, its own group's and those above it; None where there is none."""

    cores: float | None = None  # CPU time a second
    memory: int | None = None  # bytes, of the group with the least left
    used: int | None = None  # bytes of that group which cannot be reclaimed at once
    stalled: float | None = None  # percent of the last 10 s in which some task waited for memory
    blocked: float | None = None  # the same, all tasks at once
    kills: int = 0  # processes of the group that the kernel has ended for want of memory, ever


def limits(root: Path = Path("/")) -> Limits:
    """Read the limits from the files below `root`; what cannot be read does not bind."""
    cores = [quota for group in _groups(root, "cpu") if (quota := _quota(group)) is not None]
    memory = [bound for group in _groups(root, "memory") if (bound := _memory(group)) is not None]
    limit, used = min(memory, key=lambda bound: bound[0] - bound[1], default=(None, None))
    stalled, blocked = _stalls(root)
    return Limits(min(cores, default=None), limit, used, stalled, blocked, _kills(root))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups, its own first and the mount's last."""
    mounts = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        names, _, path = line.partition(":")[2].partition(":")
        if names and controller not in names.split(","):
            continue
        # Version 2 has no names; beside version 1 its mount stands in a folder of its own.
        for mount in (mounts / names, mounts / controller) if names else (mounts, mounts / "unified"):
            own = mount / path.lstrip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _quota(group: Path) -> float | None:
    # Version 2 has "quota period" or "max period" in one file, version 1 two files with -1 for no limit.
    words = read(group / "cpu.max").split()
    if not words:
        words = [read(group / "cpu.cfs_quota_us").strip(), read(group / "cpu.cfs_period_us").strip()]
    numbers = [int(word) for word in words if word.isdecimal()]
    return numbers[0] / numbers[1] if len(numbers) == 2 and all(numbers) else None


def _memory(group: Path) -> tuple[int, int] | None:
    """(limit, used) of a group that has a limit."""
    # Beyond memory.high the kernel slows the group until it shrinks: it limits as memory.max does.
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    bounds = [bound for name in names if (bound := _number(group / name)) is not None and bound < _UNLIMITED]
    current = _number(group / "memory.current", group / "memory.usage_in_bytes")
    if not bounds or current is None:
        return None
    # Pages of files that nobody has used lately are given up on demand: a model read once is not memory in use.
    stat = dict(line.split(" ", 1) for line in read(group / "memory.stat").splitlines() if " " in line)
    idle = stat.get("total_inactive_file", stat.get("inactive_file", "0"))
    return min(bounds), max(0, current - (int(idle) if idle.isdecimal() else 0))


def _stalls(root: Path) -> tuple[float | None, float | None]:
    files = [group / "memory.pressure" for group in _groups(root, "memory")]
    for file in (*files, root / "proc/pressure/memory"):
        shares = {}
        for line in read(file).splitlines():
            kind, _, rest = line.partition(" avg10=")
            shares[kind] = _share(rest)
        if shares:
            return shares.get("some"), shares.get("full")
    return None, None


def _share(text: str) -> float | None:
    words = text.split(maxsplit=1)
    try:
        return float(words[0]) if words else None
    except ValueError:
        return None


def _kills(root: Path) -> int:
    for group in _groups(root, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            for line in read(group / name).splitlines():
                key, _, count = line.partition(" ")
                if key == "oom_kill" and count.isdecimal():
                    return int(count)
    return 0


def _number(*files: Path) -> int | None:
    for file in files:
        text = read(file).strip()
        if text.isdecimal():
            return int(text)
    return None


def read(file: Path) -> str:
    """The text of a small file of the system, or nothing: what is missing or forbidden is unknown, not wrong."""
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""
