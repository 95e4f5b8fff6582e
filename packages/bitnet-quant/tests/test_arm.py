"""The kernels for Arm, cross-compiled and emulated: every one against the scalar one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCES = ("tests/native/compare.cpp", "cpp/isa.cpp", "cpp/scalar.cpp", "cpp/neon.cpp")
FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-Icpp", "-DBITNET_ARM", "-static", "-march=armv8.2-a+dotprod")


def test_kernels_for_arm_agree_with_the_scalar_ones(tmp_path: Path) -> None:
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    program = tmp_path / "compare"
    subprocess.run([COMPILER, *FLAGS, *SOURCES, "-o", str(program)], cwd=PACKAGE, check=True)
    done = subprocess.run([EMULATOR, str(program)], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["neon compared", "scalar compared"]
    assert done.returncode == 0
