"""Energy, where the machine counts it: processors by RAPL, NVIDIA's graphics processors by NVML."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Counter = Callable[[], float]  # joules since some moment; raises OSError when it cannot be read any more


class Meter:
    """The energy of the whole machine between two readings."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = list(counters)
        self._last = [counter() for counter in self._counters]

    def __bool__(self) -> bool:
        return bool(self._counters)

    def read(self) -> float:
        """Joules since the last reading."""
        total = 0.0
        for place, counter in enumerate(self._counters):
            with suppress(OSError):
                now = counter()
                total += now - self._last[place]
                self._last[place] = now
        return total


def meter(root: Path = Path("/")) -> Meter:
    """All that can be read here: RAPL needs rights that users often lack."""
    return Meter([*rapl(root), *nvml(_library())])


def rapl(root: Path) -> list[Counter]:
    """One for each processor package whose count of microjoules may be read."""
    found: list[Counter] = []
    for zone in sorted((root / "sys/class/powercap").glob("*-rapl:[0-9]")):
        with suppress(OSError, ValueError):
            counter = _Wrapping(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
            counter()
            found.append(counter)
    return found


class _Wrapping:
    """A file whose number begins again at 0 when it has come to its end."""

    def __init__(self, file: Path, end: int) -> None:
        self._file = file
        self._end = end
        self._last = self._turns = 0

    def __call__(self) -> float:
        now = int(self._file.read_text())
        self._turns += now < self._last
        self._last = now
        return (now + self._turns * self._end) / 1e6


def nvml(library: Any | None) -> list[Counter]:
    """One for each graphics processor whose driver counts millijoules."""
    try:
        if library is None or library.nvmlInit_v2():
            return []
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        return [counter for index in range(count.value) if (counter := _gpu(library, index)) is not None]
    except AttributeError:  # a driver older than the counts
        return []


def _library() -> Any | None:
    try:
        return ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None


def _gpu(library: Any, index: int) -> Counter | None:
    device, count = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
        return None

    def read() -> float:
        if code := library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(count)):
            raise OSError(f"the driver does not tell the energy of GPU {index}: NVML error {code}")
        return count.value / 1e3

    try:
        read()
    except OSError:
        return None
    return read
