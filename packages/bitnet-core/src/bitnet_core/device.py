"""What this machine has: its processor, its limits and its graphics processors; what is unknown is None."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import psutil

from . import cgroup, memory
from .cgroup import Limits, read
from .gpu import Gpu, gpus

# Our names of instruction sets, and what Linux, macOS and Windows (by number) call them.
_LINUX = {
    "sse4_2": "sse4.2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx_vnni": "avxvnni",
    "avx_vnni_int8": "avxvnniint8",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
    "amx_tile": "amx-tile",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
    "asimd": "neon",
    "neon": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "sme2": "sme2",
}
_APPLE = {
    "sse4_2": "sse4.2",
    "avx1_0": "avx",
    "avx2_0": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi",
    "neon": "neon",
    "AdvSIMD": "neon",
    "arm.FEAT_FP16": "fp16",
    "arm.FEAT_DotProd": "dotprod",
    "arm.FEAT_I8MM": "i8mm",
    "arm.FEAT_BF16": "bf16",
    "arm.FEAT_SME": "sme",
    "arm.FEAT_SME2": "sme2",
}
# Windows tells of no AVX-512 beyond its foundation.
_WINDOWS = {
    19: "neon",
    38: "sse4.2",
    39: "avx",
    40: "avx2",
    41: "avx512f",
    43: "dotprod",
    46: "sve",
    47: "sve2",
    66: "i8mm",
    67: "fp16",
    68: "bf16",
    70: "sme",
    71: "sme2",
}
_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
_IMPLEMENTERS = {
    0x41: "Arm",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}
_ARM_PARTS = {
    0xD03: "Cortex-A53",
    0xD05: "Cortex-A55",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1",
    0xD41: "Cortex-A78",
    0xD44: "Cortex-X1",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
    0xD84: "Neoverse-V3",
    0xD8E: "Neoverse-N3",
}


@dataclass(frozen=True, slots=True)
class CpuCache:
    """The data caches of one level, the largest of them where they differ."""

    level: int
    size: int  # bytes of one
    line: int | None = None  # bytes
    shared_by: int | None = None  # logical cores
    count: int | None = None  # in the machine


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor; instruction sets are those that every core has."""

    name: str | None
    vendor: str | None
    architecture: str  # as Python's platform.machine() has it: "x86_64", "aarch64", "arm64"
    logical_cores: int | None
    physical_cores: int | None
    usable_cores: int  # threads worth starting: what affinity and quota leave
    instruction_sets: frozenset[str]
    caches: tuple[CpuCache, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """All that `describe` finds."""

    system: str
    cpu: Cpu
    memory: int  # bytes
    limits: Limits
    gpus: tuple[Gpu, ...]

    def record(self) -> dict[str, Any]:
        """The same as dicts, lists, numbers and strings, in an order that does not change: for JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self, order="deterministic")
        return found


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes a second, over several passes."""

    median: float
    lowest: float
    highest: float
    nbytes: int  # of one pass
    threads: int


def describe(root: Path = Path("/")) -> Machine:
    """The whole machine; nothing is measured."""
    found, total = cpu(root), psutil.virtual_memory().total
    cards = gpus(root)
    if platform.system() == "Darwin" and found.vendor == "Apple":
        cards = (*cards, Gpu(found.name or "Apple", "Apple", total))  # one chip, one memory
    return Machine(platform.platform(), found, total, cgroup.limits(root), cards)


def cpu(root: Path = Path("/")) -> Cpu:
    """The processor of this machine, read from the files below `root` where the system has such files."""
    system, machine, allowed = platform.system(), platform.machine(), _affinity()
    if system == "Darwin":
        return apple_cpu(_sysctl(), machine)
    if system == "Windows":
        return windows_cpu(_feature_present, machine, allowed)
    return linux_cpu(root, machine, allowed)


def linux_cpu(root: Path, machine: str, allowed: int | None) -> Cpu:
    """The processor by /proc and /sys below `root`; `allowed` logical cores by affinity."""
    info = _cpuinfo(read(root / "proc/cpuinfo"))
    flags = [set(line.split()) for key in ("flags", "Features") for line in info.get(key, ())]
    common = set.intersection(*flags) if flags else set()
    cores = root / "sys/devices/system/cpu"
    logical = len(info.get("processor", ())) or os.cpu_count()
    name, vendor = _identity(info)
    return Cpu(
        name,
        vendor,
        machine,
        logical,
        _physical(cores, info),
        _usable(logical, allowed, cgroup.limits(root).cores),
        frozenset(_LINUX[flag] for flag in common if flag in _LINUX),
        _caches(cores),
    )


def _cpuinfo(text: str) -> dict[str, list[str]]:
    """Each key's values, core after core."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def _identity(info: Mapping[str, Sequence[str]]) -> tuple[str | None, str | None]:
    """Name and vendor; Arm cores have numbers for both, and a machine may mix several."""
    if "model name" in info and "vendor_id" in info:
        vendor = info["vendor_id"][0]
        return info["model name"][0], _VENDORS.get(vendor, vendor)
    numbers = dict.fromkeys(zip(info.get("CPU implementer", ()), info.get("CPU part", ()), strict=False))
    names, vendors = [], []
    for implementer, part in numbers:
        vendor = _IMPLEMENTERS.get(_hex(implementer), implementer)
        names.append(_ARM_PARTS.get(_hex(part), f"Arm {part}") if vendor == "Arm" else f"{vendor} {part}")
        vendors.append(vendor)
    keys = ("model name", "cpu model", "cpu", "uarch", "Processor", "Model")
    name = " + ".join(names) or next((info[key][0] for key in keys if key in info), None)
    return name, vendors[0] if vendors else None


def _hex(text: str) -> int:
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text) else -1


def _physical(cores: Path, info: Mapping[str, Sequence[str]]) -> int | None:
    # Threads of one core list the same siblings; older kernels only have the older name.
    for name in ("core_cpus_list", "thread_siblings_list"):
        siblings = {text for file in cores.glob(f"cpu[0-9]*/topology/{name}") if (text := read(file).strip())}
        if siblings:
            return len(siblings)
    pairs = set(zip(info.get("physical id", ()), info.get("core id", ()), strict=False))
    return len(pairs) or None


def _usable(logical: int | None, allowed: int | None, quota: float | None) -> int:
    # A quota is rounded up: two threads in 1.5 cores' time do 1.5 cores' work, one thread does one core's.
    limits = (logical, allowed, None if quota is None else math.ceil(quota))
    return max(1, min((limit for limit in limits if limit is not None), default=1))


def _caches(cores: Path) -> tuple[CpuCache, ...]:
    largest: dict[int, CpuCache] = {}
    groups: dict[int, set[str]] = {}
    for folder in cores.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size = _count(read(folder / "level")), _count(read(folder / "size"))
        if level is None or size is None or read(folder / "type").strip() == "Instruction":
            continue
        shared = read(folder / "shared_cpu_list").strip()
        groups.setdefault(level, set()).add(shared or str(folder))
        if level not in largest or size > largest[level].size:
            line = _count(read(folder / "coherency_line_size"))
            largest[level] = CpuCache(level, size, line, _listed(shared))
    return tuple(
        CpuCache(level, cache.size, cache.line, cache.shared_by, len(groups[level]))
        for level, cache in sorted(largest.items())
    )


def _count(text: str) -> int | None:
    """A number as the kernel writes sizes: "48K" is 49152."""
    match = re.fullmatch(r"(\d{1,15})([KMG]?)\s*", text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]] if match else None


def _listed(text: str) -> int | None:
    """How many numbers a list such as "0-3,8" names."""
    spans = [part.split("-") for part in text.split(",")]
    if not all(part.isdecimal() for span in spans for part in span):
        return None
    return sum(int(span[-1]) - int(span[0]) + 1 for span in spans)


def apple_cpu(text: str, machine: str) -> Cpu:
    """The processor by the output of `sysctl hw machdep.cpu`; macOS has neither affinity nor quotas."""
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    name = values.get("machdep.cpu.brand_string")
    logical = _count(values.get("hw.logicalcpu", "")) or os.cpu_count()
    sets = {ours for key, ours in _APPLE.items() if values.get(f"hw.optional.{key}") == "1"}
    vendor = values.get("machdep.cpu.vendor", "Apple" if (name or "").startswith("Apple") else None)
    return Cpu(
        name,
        _VENDORS.get(vendor or "", vendor),
        machine,
        logical,
        _count(values.get("hw.physicalcpu", "")),
        _usable(logical, None, None),
        frozenset(sets),
        tuple(cache for level in (1, 2, 3) if (cache := _apple_cache(values, level))),
    )


def _apple_cache(values: Mapping[str, str], level: int) -> CpuCache | None:
    key = f"l{level}{'d' if level == 1 else ''}cachesize"
    # The plain names are those of the slowest cores.
    size = _count(values.get(f"hw.perflevel0.{key}", values.get(f"hw.{key}", "")))
    if not size:
        return None
    shared = 1 if level == 1 else _count(values.get("hw.perflevel0.cpusperl2", "")) if level == 2 else None
    return CpuCache(level, size, _count(values.get("hw.cachelinesize", "")), shared)


def _sysctl() -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "hw", "machdep.cpu"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def windows_cpu(present: Callable[[int], bool], machine: str, allowed: int | None) -> Cpu:
    """The processor by what Windows tells; `present` asks for one feature by its number."""
    name = platform.processor() or None
    vendor = next((ours for theirs, ours in _VENDORS.items() if theirs in (name or "")), None)
    logical = os.cpu_count()
    sets = frozenset(ours for number, ours in _WINDOWS.items() if present(number))
    physical = psutil.cpu_count(logical=False)
    return Cpu(name, vendor, machine, logical, physical, _usable(logical, allowed, None), sets, ())


def _feature_present(number: int) -> bool:
    windll = getattr(ctypes, "windll", None)
    return windll is not None and bool(windll.kernel32.IsProcessorFeaturePresent(number))


def _affinity() -> int | None:
    try:
        ask = getattr(psutil.Process(), "cpu_affinity", None)  # macOS has none
        return None if ask is None else len(ask())
    except (OSError, psutil.Error):
        return None


def bandwidth(nbytes: int | None = None, threads: int | None = None, passes: int = 9) -> Measured:
    """How fast this machine reads memory: measured now, for about `passes` times `nbytes` of reading.

    Each thread reads its own contiguous part, all starting at once, and takes its maximum as int32: the reading
    is the work. Parts in sum are larger than all caches, unless `nbytes` says otherwise; nothing is written.
    """
    workers = cpu().usable_cores if threads is None else threads
    size = _beyond_caches() if nbytes is None else nbytes
    if workers < 1 or passes < 1 or size < 4 * workers:
        raise ValueError(f"reading takes a thread, a pass and 4 bytes a thread, got {workers}, {passes}, {size} bytes")
    with memory.Pool(name="bandwidth").take(size // 4, np.int32) as block:
        seconds = _read(np.array_split(block.array, workers), passes)
        speeds = [block.array.nbytes / second for second in seconds]
        return Measured(statistics.median(speeds), min(speeds), max(speeds), block.array.nbytes, workers)


def _beyond_caches() -> int:
    caches = sum(cache.size * (cache.count or 1) for cache in cpu().caches)
    return max(1 << 20, min(max(256 << 20, 4 * caches), memory.available() // 4))


def _read(parts: Sequence[npt.NDArray[np.int32]], passes: int) -> list[float]:
    """Seconds of each pass, the first one left out."""
    ticks: list[float] = []
    gate = threading.Barrier(len(parts), lambda: ticks.append(time.perf_counter()), timeout=60)

    def work(part: npt.NDArray[np.int32]) -> None:
        part.fill(1)  # by the thread that reads it: pages lie near the core that first writes them
        for _ in range(passes + 1):
            gate.wait()
            part.max()
        gate.wait()

    with ThreadPoolExecutor(len(parts)) as pool:
        for done in [pool.submit(work, part) for part in parts]:
            done.result()
    return [end - start for start, end in pairwise(ticks[1:])]
