"""Build the kernels and the thread pool without Python, and check them: natively, under sanitizers, and for Arm.

Last, the extension that Python imports is built with sanitizers of addresses and of undefined behaviour, and runs the
conformance suite and the tests of packing on this processor's best instruction set.

What runs is packages/bitnet-quant/cpp/check: each table of kernels against the plain one, between pages that nobody
may touch. Arm is cross-compiled, and runs in an emulator of three processors: one without dot products, one with them,
and one with products of matrices. What is missing for that is said, and is no failure; `--install` lets root fetch it
with apt-get.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "packages" / "bitnet-quant"
SOURCE = PACKAGE / "cpp" / "check"
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_PACKAGES = ("g++-aarch64-linux-gnu", "qemu-user")
SECONDS = 300  # the most for one build or one run; each takes a tenth of that
SANITIZED = "-O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize="
# Runs pytest with the package in the folder, in place of the one that is installed.
UNDER_TEST = """
import sys
folder, *arguments = sys.argv[1:]
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable_skbc")]
sys.path.insert(0, folder)
from bitnet_quant.cpu import _native
if not _native.__file__.startswith(folder):
    sys.exit(f"the extension under test is {_native.__file__}")
import pytest
sys.exit(pytest.main(arguments))
"""
TESTS = "TestAsLoadedByDefault or TestWithHalfPages or TestWithInt8Pages or test_packing"
# Each processor, and the tables that must be found there.
PROCESSORS = {
    "max": "i8mm,dotprod,neon,scalar",
    "cortex-a76": "dotprod,neon,scalar",
    "cortex-a53": "neon,scalar",
}


class Wrong(Exception):
    """A build or a check failed."""


@dataclass(frozen=True)
class Build:
    """One way to build the program, and the commands that run it; in them the word "check" stands for it."""

    name: str
    compiler: str
    flags: str  # instead of those of a release
    runs: tuple[tuple[str, ...], ...]
    cross: bool = False


def main() -> int:
    """1 with a line for the first thing that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="as root: fetch what Arm needs with apt-get")
    wish = parser.parse_args()
    # CMake and Ninja may stand beside this Python.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if wish.install and not has_arm():
        install()
    try:
        for build in builds():
            check(build)
        check_extension()
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def has_arm() -> bool:
    return bool(shutil.which(ARM_COMPILER) and shutil.which(EMULATOR))


def install() -> None:
    """Ask apt-get, where there is one and this is root; whatever it answers, the checks go on."""
    if not shutil.which("apt-get") or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    print(f"INSTALLING {' and '.join(ARM_PACKAGES)} with apt-get, to run the Arm kernels in an emulator", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    arguments = ["-qq", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", *ARM_PACKAGES]):
        try:
            done = subprocess.run(
                ["apt-get", *arguments, *command], env=environment, timeout=SECONDS, check=False, capture_output=True
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            print(f"apt-get did not come to an end: {error}")
            return
        if done.returncode:
            print(done.stderr.decode(errors="replace").strip())


def builds() -> Iterator[Build]:
    """All that this machine can build, and a sentence for what it cannot."""
    native = [name for name in ("g++", "clang++", "clang++-19") if shutil.which(name)][:2]
    if not native:
        raise Wrong("no C++ compiler (g++, clang++) found")
    for compiler in native:
        yield Build(f"native, {compiler}", compiler, "-O3", (("check",),))
    yield Build("address and undefined", native[0], f"{SANITIZED}address,undefined", (("check",),))
    # With random addresses a thread sanitizer may find its own place taken.
    fixed = ("setarch", "-R") if runs("setarch", "-R", "true") else ()
    yield Build("thread", native[0], f"{SANITIZED}thread", ((*fixed, "check", "--only", "threads"),))
    if not has_arm():
        print(f"NOT CHECKED: the Arm kernels; they need `apt-get install {' '.join(ARM_PACKAGES)}`")
        return
    emulated = tuple(
        (EMULATOR, "-cpu", processor, "check", "--tables", tables, "--rounds", "200")
        for processor, tables in PROCESSORS.items()
    )
    yield Build("Arm, emulated", ARM_COMPILER, "-O3", emulated, cross=True)


def runs(*command: str) -> bool:
    return bool(shutil.which(command[0])) and not subprocess.run(command, capture_output=True, check=False).returncode


def check(build: Build) -> None:
    """Build in a folder of its own, and run."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"-DCMAKE_CXX_COMPILER={build.compiler}", f"-DCMAKE_CXX_FLAGS_RELEASE={build.flags}"]
        if build.cross:
            settings += ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
            settings += ["-DCMAKE_EXE_LINKER_FLAGS=-static"]
        if shutil.which("ninja"):
            settings += ["-G", "Ninja"]
        finish(build.name, ["cmake", "-S", str(SOURCE), "-B", folder, *settings])
        finish(build.name, ["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1)])
        print(f"{build.name}: built in {time.monotonic() - start:.0f} s", flush=True)
        program = str(Path(folder) / "check")
        for command in build.runs:
            start = time.monotonic()
            output = finish(build.name, [program if word == "check" else word for word in command])
            lines = output.strip().splitlines()
            print(f"  {' '.join(command)}: {'; '.join(lines)}; {time.monotonic() - start:.0f} s", flush=True)


def check_extension() -> None:
    """The tests of the backend over an extension that watches every access; only where GCC's library for it is."""
    name = "extension, address and undefined"
    libraries = [sanitizer(library) for library in ("libasan.so", "libubsan.so")]
    if not all(libraries):
        print("NOT CHECKED: the extension under sanitizers; they need GCC's libasan and libubsan")
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        built, placed = Path(folder) / "build", Path(folder) / "package"
        settings = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_COMPILER=g++"]
        settings += [f"-DCMAKE_CXX_FLAGS_RELEASE={SANITIZED}address,undefined"]
        if shutil.which("ninja"):
            settings += ["-G", "Ninja"]
        finish(name, ["cmake", "-S", str(PACKAGE), "-B", str(built), *settings])
        finish(name, ["cmake", "--build", str(built), "--parallel", str(os.cpu_count() or 1)])
        shutil.copytree(PACKAGE / "src" / "bitnet_quant", placed / "bitnet_quant")
        for library in built.glob("_native*"):
            shutil.copy(library, placed / "bitnet_quant" / "cpu")
        print(f"{name}: built in {time.monotonic() - start:.0f} s", flush=True)
        start = time.monotonic()
        watched = {
            "LD_PRELOAD": ":".join(libraries),
            "PYTHONMALLOC": "malloc",
            "ASAN_OPTIONS": "detect_leaks=0",  # an interpreter leaves much behind
        }
        files = [str(PACKAGE / "tests" / f"test_{noun}.py") for noun in ("cpu_backend", "packing")]
        command = [sys.executable, "-c", UNDER_TEST, str(placed), "-q", "-p", "no:cacheprovider", "-k", TESTS, *files]
        output = finish(name, ["env", *(f"{key}={value}" for key, value in watched.items()), *command])
        print(f"  {output.strip().splitlines()[-1]}; {time.monotonic() - start:.0f} s", flush=True)


def sanitizer(library: str) -> str:
    """Where GCC keeps it; nothing where there is none."""
    if not shutil.which("g++"):
        return ""
    found = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=False)
    path = found.stdout.strip()
    return path if Path(path).is_absolute() else ""


def finish(name: str, command: list[str]) -> str:
    """What a command prints; its end is shown where it fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, check=False, text=True
        )
    except FileNotFoundError:
        raise Wrong(f"{name}: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Wrong(f"{name}: {' '.join(command)} did not end within {SECONDS} s") from None
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-60:]))
        raise Wrong(f"{name}: {' '.join(command)}: exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
