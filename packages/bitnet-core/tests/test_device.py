"""Machines are described from what their systems tell, and none of them raises."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core import device
from bitnet_core.device import CpuCache

ZEN5 = """processor\t: {index}
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9755 128-Core Processor
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse4_2 fma f16c avx avx2 avx512f avx512bw avx512vl avx512vbmi avx512_vnni avx_vnni avx512_bf16{more}

"""
GRAVITON = """processor\t: {index}
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes atomics fphp asimdhp asimddp sve i8mm bf16 svei8mm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1

"""
# What `sysctl hw machdep.cpu` prints on an Apple M2, as far as we read it.
M2 = """hw.ncpu: 8
hw.memsize: 25769803776
hw.perflevel0.physicalcpu: 4
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 16777216
hw.perflevel0.cpusperl2: 4
hw.perflevel1.l1dcachesize: 65536
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.neon: 1
hw.optional.AdvSIMD: 1
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.cachelinesize: 128
hw.l1dcachesize: 65536
hw.l2cachesize: 4194304
hw.osenvironment:
machdep.cpu.core_count: 8
machdep.cpu.brand_string: Apple M2
"""
INTEL_MAC = """hw.optional.avx1_0: 1
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
hw.optional.sse4_2: 1
hw.optional.fma: 1
hw.physicalcpu: 4
hw.logicalcpu: 8
hw.cachelinesize: 64
hw.l1dcachesize: 32768
hw.l2cachesize: 262144
hw.l3cachesize: 8388608
machdep.cpu.vendor: GenuineIntel
machdep.cpu.brand_string: Intel(R) Core(TM) i7-7700K CPU @ 4.20GHz
"""


def _linux(root: Path, cpuinfo: str, files: dict[str, str] | None = None) -> Path:
    for name, text in {"proc/cpuinfo": cpuinfo, **(files or {})}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _topology(threads: int, per_core: int) -> dict[str, str]:
    """Files of a machine whose sibling threads are numbered next to each other."""
    files = {}
    for index in range(threads):
        first = index - index % per_core
        siblings = f"{first}-{first + per_core - 1}\n" if per_core > 1 else f"{first}\n"
        folder = f"sys/devices/system/cpu/cpu{index}"
        files[f"{folder}/topology/core_cpus_list"] = siblings
        for place, (level, kind, size, shared) in enumerate(
            [
                (1, "Data", "48K", siblings),
                (1, "Instruction", "32K", siblings),
                (2, "Unified", "1024K", siblings),
                (3, "Unified", "32768K", f"0-{threads - 1}\n"),
            ]
        ):
            cache = f"{folder}/cache/index{place}"
            files[f"{cache}/level"] = f"{level}\n"
            files[f"{cache}/type"] = f"{kind}\n"
            files[f"{cache}/size"] = f"{size}\n"
            files[f"{cache}/coherency_line_size"] = "64\n"
            files[f"{cache}/shared_cpu_list"] = shared
    return files


def test_an_x86_server_with_two_threads_a_core(tmp_path: Path) -> None:
    text = "".join(ZEN5.format(index=index, core=index // 2, more="") for index in range(8))
    found = device.linux_cpu(_linux(tmp_path, text, _topology(8, 2)), "x86_64", None)
    assert (found.name, found.vendor) == ("AMD EPYC 9755 128-Core Processor", "AMD")
    assert (found.logical_cores, found.physical_cores, found.usable_cores) == (8, 4, 8)
    assert found.instruction_sets == {
        *("sse4.2", "fma", "f16c", "avx", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512vbmi"),
        *("avx512vnni", "avxvnni", "avx512bf16"),
    }
    assert found.caches == (
        CpuCache(1, 48 << 10, 64, 2, 4),
        CpuCache(2, 1 << 20, 64, 2, 4),
        CpuCache(3, 32 << 20, 64, 8, 1),
    )


def test_only_what_every_core_can_do_is_listed(tmp_path: Path) -> None:
    text = ZEN5.format(index=0, core=0, more=" amx_int8 amx_tile") + ZEN5.format(index=1, core=1, more="")
    assert "amx-int8" not in device.linux_cpu(_linux(tmp_path, text), "x86_64", None).instruction_sets
    text = ZEN5.format(index=0, core=0, more=" amx_int8 amx_tile")
    assert device.linux_cpu(_linux(tmp_path, text), "x86_64", None).instruction_sets >= {"amx-int8", "amx-tile"}


def test_an_arm_server(tmp_path: Path) -> None:
    text = "".join(GRAVITON.format(index=index) for index in range(4))
    found = device.linux_cpu(_linux(tmp_path, text), "aarch64", None)
    assert (found.name, found.vendor, found.logical_cores) == ("Neoverse-V1", "Arm", 4)
    assert found.physical_cores is None
    assert found.instruction_sets == {"neon", "fp16", "dotprod", "sve", "i8mm", "bf16"}


def test_an_arm_board_with_two_kinds_of_cores(tmp_path: Path) -> None:
    little = GRAVITON.replace("sve i8mm bf16 svei8mm", "").replace("0xd40", "0xd05")
    text = little.format(index=0) + GRAVITON.replace("0xd40", "0xd0b").format(index=1)
    found = device.linux_cpu(_linux(tmp_path, text), "aarch64", None)
    assert found.name == "Cortex-A55 + Cortex-A76"
    assert found.instruction_sets == {"neon", "fp16", "dotprod"}


@pytest.mark.parametrize(
    ("implementer", "part", "name", "vendor"),
    [
        ("0x61", "0x032", "Apple 0x032", "Apple"),
        ("0xc0", "0xac3", "Ampere 0xac3", "Ampere"),
        ("0x41", "0xfff", "Arm 0xfff", "Arm"),
        ("0x99", "0x001", "0x99 0x001", "0x99"),
        ("junk", "junk", "junk junk", "junk"),
    ],
)
def test_an_arm_core_that_is_not_in_the_table(
    tmp_path: Path, implementer: str, part: str, name: str, vendor: str
) -> None:
    text = GRAVITON.replace("0x41", implementer).replace("0xd40", part).format(index=0)
    found = device.linux_cpu(_linux(tmp_path, text), "aarch64", None)
    assert (found.name, found.vendor) == (name, vendor)


def test_physical_cores_without_topology_come_from_cpuinfo(tmp_path: Path) -> None:
    text = "".join(ZEN5.format(index=index, core=index // 2, more="") for index in range(6))
    assert device.linux_cpu(_linux(tmp_path, text), "x86_64", None).physical_cores == 3


@pytest.mark.parametrize(
    ("allowed", "quota", "usable"),
    [
        (None, "max 100000", 8),
        (3, "max 100000", 3),
        (None, "150000 100000", 2),
        (None, "200000 100000", 2),
        (None, "10000 100000", 1),
        (1, "800000 100000", 1),
        (None, "1600000 100000", 8),
    ],
)
def test_usable_cores_are_what_affinity_and_quota_leave(
    tmp_path: Path, allowed: int | None, quota: str, usable: int
) -> None:
    text = "".join(ZEN5.format(index=index, core=index, more="") for index in range(8))
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota}\n"}
    assert device.linux_cpu(_linux(tmp_path, text, files), "x86_64", allowed).usable_cores == usable


def test_the_largest_cache_of_a_level_stands_for_it(tmp_path: Path) -> None:
    files = _topology(2, 1)
    files["sys/devices/system/cpu/cpu1/cache/index2/size"] = "2M\n"
    found = device.linux_cpu(_linux(tmp_path, "", files), "x86_64", None)
    assert found.caches[1] == CpuCache(2, 2 << 20, 64, 1, 2)


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = device.linux_cpu(tmp_path, "riscv64", None)
    assert (found.name, found.vendor, found.physical_cores) == (None, None, None)
    assert (found.instruction_sets, found.caches) == (frozenset(), ())
    assert found.usable_cores >= 1


@given(st.text(st.sampled_from("\t\n :-,0x9aKMG\x00é") | st.characters(codec="utf-8"), max_size=200))
@settings(max_examples=150, deadline=None)
def test_no_text_makes_the_readers_raise(text: str) -> None:
    device.apple_cpu(text, "arm64")
    info = device._cpuinfo("processor: 0\nCPU implementer: " + text)
    device._identity(info)
    device._count(text)
    device._listed(text)


def test_odd_files_below_sys_are_passed_over(tmp_path: Path) -> None:
    files = _topology(1, 1)
    files = dict.fromkeys(files, "?\n")
    found = device.linux_cpu(_linux(tmp_path, "flags\n: :\nprocessor : x\n", files), "x86_64", None)
    assert found.caches == ()


def test_an_apple_chip() -> None:
    found = device.apple_cpu(M2, "arm64")
    assert (found.name, found.vendor, found.architecture) == ("Apple M2", "Apple", "arm64")
    assert (found.logical_cores, found.physical_cores, found.usable_cores) == (8, 8, 8)
    assert found.instruction_sets == {"neon", "fp16", "dotprod", "i8mm", "bf16"}
    assert found.caches == (CpuCache(1, 128 << 10, 128, 1), CpuCache(2, 16 << 20, 128, 4))


def test_an_intel_mac() -> None:
    found = device.apple_cpu(INTEL_MAC, "x86_64")
    assert (found.name, found.vendor) == ("Intel(R) Core(TM) i7-7700K CPU @ 4.20GHz", "Intel")
    assert found.instruction_sets == {"avx", "avx2", "sse4.2", "fma"}
    assert [cache.size for cache in found.caches] == [32 << 10, 256 << 10, 8 << 20]
    assert found.physical_cores == 4


def test_a_mac_that_tells_nothing() -> None:
    found = device.apple_cpu("", "arm64")
    assert (found.name, found.vendor, found.caches) == (None, None, ())
    assert found.usable_cores >= 1


def test_windows_tells_by_numbers() -> None:
    found = device.windows_cpu(lambda number: number in {38, 39, 40, 41}, "AMD64", 1)
    assert found.instruction_sets == {"sse4.2", "avx", "avx2", "avx512f"}
    assert found.usable_cores == 1
    found = device.windows_cpu(lambda number: number in {19, 43, 66}, "ARM64", None)
    assert found.instruction_sets == {"neon", "dotprod", "i8mm"}


def test_this_machine_is_described_as_json() -> None:
    found = device.describe()
    record = json.loads(json.dumps(found.record()))
    assert record["cpu"]["architecture"] == platform.machine()
    assert record["cpu"]["instruction_sets"] == sorted(found.cpu.instruction_sets)
    assert record["memory"] > 0
    assert 1 <= found.cpu.usable_cores <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_asked_anew() -> None:
    script = "import os; os.sched_setaffinity(0, {0}); from bitnet_core import device; print(device.cpu().usable_cores)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "1"


def test_measured_bandwidth_is_about_what_numpy_reads() -> None:
    found = device.bandwidth(32 << 20, threads=1, passes=5)
    assert (found.nbytes, found.threads) == (32 << 20, 1)
    assert found.lowest <= found.median <= found.highest
    assert 1e8 < found.median < 1e12


def test_two_threads_read_all_of_it() -> None:
    assert device.bandwidth(1 << 20, threads=2, passes=1).threads == 2


def test_the_default_reads_more_than_the_caches_hold() -> None:
    caches = sum(cache.size for cache in device.cpu().caches)
    assert device._beyond_caches() > caches


@pytest.mark.parametrize(
    ("nbytes", "threads", "passes"), [(4, 2, 1), (1 << 20, 0, 1), (1 << 20, -1, 1), (1 << 20, 1, 0)]
)
def test_reading_nothing_is_refused(nbytes: int, threads: int, passes: int) -> None:
    with pytest.raises(ValueError, match="reading takes a thread, a pass and 4 bytes a thread"):
        device.bandwidth(nbytes, threads, passes)


def test_nothing_is_measured_at_import() -> None:
    script = (
        "import threading, sys; before = threading.active_count(); import bitnet_core.device; "
        "assert threading.active_count() == before; assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)
