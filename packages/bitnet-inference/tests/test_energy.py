"""Energy is counted where the machine counts it, shared out by tokens, and never guessed."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from bitnet_core.model import Tokens
from bitnet_core.testing import some_tokens, tiny_spec
from bitnet_inference import energy
from bitnet_inference.observer import Observation
from bitnet_inference.request import Request
from bitnet_inference.ticket import Job


def zone(root: Path, name: str, joules: float, end: float = 1000.0) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (folder / "max_energy_range_uj").write_text(f"{int(end * 1e6)}\n")
    return folder / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 10), zone(tmp_path, "intel-rapl:1", 990)
    zone(tmp_path, "intel-rapl:0:0", 5)
    meter = energy.Meter(energy.rapl(tmp_path))
    assert meter
    assert meter.read() == 0
    first.write_text("12500000")
    second.write_text("4000000")  # it began again at zero
    assert meter.read() == pytest.approx(2.5 + 14)
    assert meter.read() == 0
    first.unlink()
    second.write_text("5000000")
    assert meter.read() == pytest.approx(1)


def test_a_machine_that_does_not_tell_has_no_meter(tmp_path: Path) -> None:
    assert not energy.Meter(energy.rapl(tmp_path))
    zone(tmp_path, "intel-rapl:0", 1).write_text("what?")
    zone(tmp_path, "amd-rapl:0", 1).unlink()
    assert energy.rapl(tmp_path) == []
    assert energy.nvml(None) == []


class Driver:
    """NVML as far as it is asked: two processors, of which the second does not count."""

    def __init__(self, millijoules: int) -> None:
        self.millijoules = millijoules

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_uint))[0] = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        ctypes.cast(device, ctypes.POINTER(ctypes.c_void_p))[0] = index + 1
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any, count: Any) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        return 0 if device.value == 1 else 3


def test_graphics_processors_that_count_are_read() -> None:
    driver = Driver(5000)
    (counter,) = energy.nvml(driver)
    meter = energy.Meter([counter])
    driver.millijoules = 7500
    assert meter.read() == pytest.approx(2.5)


def test_a_driver_without_counts_is_passed_over() -> None:
    class Old:
        def nvmlInit_v2(self) -> int:
            return 0

    assert energy.nvml(Old()) == []


def job(number: int) -> Job:
    prompt: Tokens = some_tokens(tiny_spec(), 3)
    return Job(Request(prompt=prompt), prompt, number, 0.0)


def test_what_was_used_is_shared_out_by_tokens() -> None:
    joules, now = [0.0], [0.0]
    observation = Observation(None, energy.Meter([lambda: joules[0]]), lambda: now[0])
    one, other = job(1), job(2)
    observation.charge(one, 3)
    observation.charge(other, 1)
    joules[0] = 8.0
    observation.settle()
    assert one.usage().joules is None  # too soon to read again
    now[0] = 1.0
    observation.settle()
    assert (one.usage().joules, other.usage().joules) == (6.0, 2.0)
    observation.charge(one, 1)
    joules[0] = 9.0
    observation.finish(one)
    assert (one.usage().joules, other.usage().joules) == (7.0, 2.0)


def test_without_a_meter_there_is_no_figure() -> None:
    observation = Observation(None, energy.Meter([]), lambda: 0.0)
    one = job(1)
    observation.charge(one, 3)
    observation.settle(now=True)
    observation.finish(one)
    assert one.usage().joules is None
