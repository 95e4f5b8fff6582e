"""The graphics processors of this machine, as their drivers tell; none of them is started or set up."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cgroup import read


@dataclass(frozen=True, slots=True)
class Gpu:
    """One graphics processor; None where its driver does not tell."""

    name: str
    vendor: str
    memory: int | None = None  # bytes; on an Apple chip those that it shares with the CPU
    driver: str | None = None
    capability: str | None = None  # of an NVIDIA one: "9.0"


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Those of NVIDIA and AMD, whether or not this process may see them; Apple's come with the CPU."""
    return (*(nvml(_library()) or nvidia(root)), *amd(root))


def _library() -> Any | None:
    # The driver brings it, at a place where the loader looks by itself.
    try:
        return ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return None


def nvml(library: Any | None) -> list[Gpu]:
    """NVIDIA's by its management library; none where it is missing, or does not fit the driver."""
    try:
        if library is None or library.nvmlInit_v2():
            return []
    except AttributeError:  # older than any driver that can run our kernels
        return []
    try:
        count = ctypes.c_uint()
        failed = library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        text = ctypes.create_string_buffer(96)
        driver = None if library.nvmlSystemGetDriverVersion(text, len(text)) else _text(text)
        found = [] if failed else [_nvml_gpu(library, index, driver) for index in range(count.value)]
        return [gpu for gpu in found if gpu is not None]
    finally:
        library.nvmlShutdown()


def _nvml_gpu(library: Any, index: int, driver: str | None) -> Gpu | None:
    device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
    # A processor that has fallen off the bus is counted, and gives no handle.
    if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)):
        return None
    if library.nvmlDeviceGetName(device, name, len(name)):
        return None
    memory, major, minor = _NvmlMemory(), ctypes.c_int(), ctypes.c_int()
    no_memory = library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
    no_version = library.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
    return Gpu(
        _text(name),
        "NVIDIA",
        None if no_memory else int(memory.total),
        driver,
        None if no_version else f"{major.value}.{minor.value}",
    )


def _text(buffer: ctypes.Array[ctypes.c_char]) -> str:
    return bytes(buffer.value).decode("utf-8", "replace")


def nvidia(root: Path) -> list[Gpu]:
    """NVIDIA's as its Linux driver lists them, without sizes."""
    folder = root / "proc/driver/nvidia"
    version = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", read(folder / "version"))
    models = (re.search(r"^Model:\s*(.+?)\s*$", read(file), re.M) for file in sorted(folder.glob("gpus/*/information")))
    return [Gpu(model[1], "NVIDIA", driver=version and version[1]) for model in models if model]


def amd(root: Path) -> list[Gpu]:
    """AMD's as the Linux kernel lists them."""
    found = []
    for device in sorted((root / "sys/class/drm").glob("card*/device")):
        if read(device / "vendor").strip() != "0x1002":
            continue
        size = read(device / "mem_info_vram_total").strip()
        name = read(device / "product_name").strip() or f"AMD {read(device / 'device').strip()}"
        found.append(Gpu(name, "AMD", int(size) if size.isdecimal() else None, "amdgpu"))
    return found
