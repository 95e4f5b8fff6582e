"""Limits of control groups are found in both versions, in the group itself and above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_core import cgroup
from bitnet_core.cgroup import Limits

MIB = 1 << 20


def _lay(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder that stands for the root of a machine."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_a_machine_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert cgroup.limits(tmp_path) == Limits()


def test_version_2_in_a_container_of_its_own(tmp_path: Path) -> None:
    _lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/",
            "sys/fs/cgroup/cpu.max": "150000 100000",
            "sys/fs/cgroup/memory.max": str(512 * MIB),
            "sys/fs/cgroup/memory.high": "max",
            "sys/fs/cgroup/memory.current": str(200 * MIB),
            "sys/fs/cgroup/memory.stat": f"anon 1\nfile 2\ninactive_file {50 * MIB}\nactive_file 3",
            "sys/fs/cgroup/memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0",
            "sys/fs/cgroup/memory.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\n"
            "full avg10=0.25 avg60=0.00 avg300=0.00 total=9",
        },
    )
    assert cgroup.limits(tmp_path) == Limits(1.5, 512 * MIB, 150 * MIB, 1.5, 0.25, 1)


def test_without_limits_nothing_binds(tmp_path: Path) -> None:
    _lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000",
            "sys/fs/cgroup/user.slice/memory.max": "max",
            "sys/fs/cgroup/user.slice/memory.current": "5",
        },
    )
    assert cgroup.limits(tmp_path) == Limits()


def test_a_group_above_may_bind_more(tmp_path: Path) -> None:
    _lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pods/one",
            "sys/fs/cgroup/pods/one/cpu.max": "400000 100000",
            "sys/fs/cgroup/pods/cpu.max": "50000 100000",
            "sys/fs/cgroup/pods/one/memory.max": str(100 * MIB),
            "sys/fs/cgroup/pods/one/memory.current": str(10 * MIB),
            "sys/fs/cgroup/pods/memory.max": str(300 * MIB),
            "sys/fs/cgroup/pods/memory.current": str(290 * MIB),
        },
    )
    assert cgroup.limits(tmp_path) == Limits(0.5, 300 * MIB, 290 * MIB)


def test_version_1_with_one_mount_a_controller(tmp_path: Path) -> None:
    _lay(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(256 * MIB),
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": str(100 * MIB),
            "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 1\ntotal_inactive_file {40 * MIB}",
            "sys/fs/cgroup/memory/job/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(900 * MIB),
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "proc/pressure/memory": "some avg10=0.10 avg60=0.00 avg300=0.00 total=0",
        },
    )
    assert cgroup.limits(tmp_path) == Limits(2.5, 256 * MIB, 60 * MIB, 0.1, None, 4)


def test_version_1_in_a_container_that_sees_the_path_outside(tmp_path: Path) -> None:
    _lay(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/0123abcd\n4:cpu:/docker/0123abcd",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(64 * MIB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(16 * MIB),
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert cgroup.limits(tmp_path) == Limits(1.0, 64 * MIB, 16 * MIB)


def test_version_2_beside_version_1(tmp_path: Path) -> None:
    _lay(
        tmp_path,
        {
            "proc/self/cgroup": "2:cpu:/\n0::/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/unified/memory.max": str(8 * MIB),
            "sys/fs/cgroup/unified/memory.current": str(MIB),
        },
    )
    assert cgroup.limits(tmp_path) == Limits(3.0, 8 * MIB, MIB)


@pytest.mark.parametrize("text", ["", "max", "150000", "a b", "0 0", "100000 0", "-5 100000", "\x00\xff"])
def test_a_quota_that_makes_no_sense_does_not_bind(tmp_path: Path, text: str) -> None:
    _lay(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": text})
    assert cgroup.limits(tmp_path).cores is None


@pytest.mark.parametrize("line", ["", "nonsense", "::", "0::/../../etc", "3:memory", "0::" + "/a" * 200])
def test_odd_lists_of_groups_are_passed_over(tmp_path: Path, line: str) -> None:
    _lay(tmp_path, {"proc/self/cgroup": line, "proc/pressure/memory": "some avg10=much\nfull"})
    assert cgroup.limits(tmp_path) == Limits()


def test_a_file_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    assert cgroup.read(tmp_path) == ""
    assert cgroup.read(tmp_path / "none") == ""


def test_this_machine_answers() -> None:
    found = cgroup.limits()
    assert found.cores is None or found.cores > 0
    assert found.memory is None or found.memory > 0
