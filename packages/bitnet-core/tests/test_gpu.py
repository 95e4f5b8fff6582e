"""Graphics processors are listed as their drivers tell, and a broken driver lists none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from ctypes import CDLL
from pathlib import Path

import pytest

from bitnet_core import gpu
from bitnet_core.gpu import Gpu

# A library with NVML's interface and two processors, of which the second has no memory of its own to tell of.
NVML = """
#include <stdio.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory;
static int cards[3] = {0, 1, 2};
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return COUNT; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "570.12.3"); return DRIVER; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **card) { *card = &cards[index]; return index == 2 ? 15 : 0; }
int nvmlDeviceGetName(void *card, char *text, unsigned size) {
  snprintf(text, size, "%s", *(int *)card ? "NVIDIA GB10" : "NVIDIA H200"); return NAME;
}
int nvmlDeviceGetMemoryInfo(void *card, memory *out) {
  memset(out, 0, sizeof *out); out->total = 150754820096ULL; return *(int *)card ? 3 : 0;
}
int nvmlDeviceGetCudaComputeCapability(void *card, int *major, int *minor) {
  *major = *(int *)card ? 12 : 9; *minor = *(int *)card; return 0;
}
"""


def _library(folder: Path, **results: int) -> CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler to make a library for the test")
    source, built = folder / "nvml.c", folder / "libnvml.so"
    source.write_text(NVML)
    codes = {"INIT": 0, "COUNT": 0, "DRIVER": 0, "NAME": 0, **results}
    defines = [f"-D{name}={code}" for name, code in codes.items()]
    subprocess.run([compiler, "-shared", "-fPIC", *defines, "-o", built, source], check=True, timeout=60)
    return CDLL(str(built))


def test_nvml_lists_what_answers(tmp_path: Path) -> None:
    assert gpu.nvml(_library(tmp_path)) == [
        Gpu("NVIDIA H200", "NVIDIA", 150754820096, "570.12.3", "9.0"),
        Gpu("NVIDIA GB10", "NVIDIA", None, "570.12.3", "12.1"),
    ]


@pytest.mark.parametrize(("call", "found"), [("INIT", 0), ("COUNT", 0), ("NAME", 0), ("DRIVER", 2)])
def test_a_library_that_fails_lists_less(tmp_path: Path, call: str, found: int) -> None:
    listed = gpu.nvml(_library(tmp_path, **{call: 999}))
    assert len(listed) == found
    assert all(card.driver is None for card in listed)


def test_a_library_that_is_something_else_lists_none() -> None:
    assert gpu.nvml(None) == []
    assert gpu.nvml(CDLL(None) if sys.platform != "win32" else None) == []


@pytest.mark.parametrize(
    "version",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n",
    ],
)
def test_the_linux_driver_lists_models(tmp_path: Path, version: str) -> None:
    for number, model in enumerate(["NVIDIA GeForce RTX 4090", "Tesla K80"]):
        folder = tmp_path / f"proc/driver/nvidia/gpus/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 185\n")
    (tmp_path / "proc/driver/nvidia/version").write_text(version)
    assert gpu.nvidia(tmp_path) == [
        Gpu("NVIDIA GeForce RTX 4090", "NVIDIA", None, "550.54.15"),
        Gpu("Tesla K80", "NVIDIA", None, "550.54.15"),
    ]


def _card(root: Path, name: str, **files: str) -> None:
    folder = root / f"sys/class/drm/{name}/device"
    folder.mkdir(parents=True)
    for file, text in files.items():
        (folder / file).write_text(text + "\n")


def test_the_kernel_lists_cards_of_amd_and_of_others(tmp_path: Path) -> None:
    _card(tmp_path, "card0", vendor="0x1a03", device="0x2000")
    _card(tmp_path, "card1", vendor="0x1002", device="0x744c", mem_info_vram_total="25753026560")
    _card(tmp_path, "card2", vendor="0x1002", device="0x74a1", product_name="AMD Instinct MI300X")
    (tmp_path / "sys/class/drm/card1-DP-1").mkdir()
    assert gpu.amd(tmp_path) == [
        Gpu("AMD 0x744c", "AMD", 25753026560, "amdgpu"),
        Gpu("AMD Instinct MI300X", "AMD", None, "amdgpu"),
    ]


def test_a_machine_without_any_lists_none(tmp_path: Path) -> None:
    assert (gpu.nvidia(tmp_path), gpu.amd(tmp_path)) == ([], [])


def test_this_machine_answers() -> None:
    assert all(card.name and card.vendor for card in gpu.gpus())
