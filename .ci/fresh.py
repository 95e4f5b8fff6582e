"""Install the runtime wheels, and nothing of the checkout, into a new environment, and run a model there.

The runtime wheels are those of the environment "run" in pyproject.toml. Prints what they cost: bytes and time.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEVER = ("torch", "transformers", "gguf", "pytest")
LIMIT = 130  # MB on disk, with all that the wheels bring; NumPy alone is 59


def main() -> int:
    """1 with a line for the first thing that is wrong."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["envs"]["run"]
    packages = [Path(member).name.replace("-", "_") for member in table["workspace"]["members"]]
    wheels = [str(next((ROOT / "dist").glob(f"{package}-*.whl"))) for package in packages]
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), packages, wheels)


def measure(folder: Path, packages: list[str], wheels: list[str]) -> int:
    """Install, look, time and run."""
    venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(folder / "venv")
    python = str(folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    [before] = output(folder, python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    bare = size(Path(before))
    # Compiled bytecode is made at the first import, and depends on nothing that is ours.
    subprocess.run([python, "-m", "pip", "install", "-qq", "--no-compile", *wheels], cwd=folder, check=True)
    megabytes = (size(Path(before)) - bare) / 1e6
    print(f"{', '.join(packages)} and all they need: {megabytes:.1f} MB on disk")
    found = output(folder, python, f"import importlib.util as u; print(*filter(u.find_spec, {NEVER!r}))")
    if found != [""]:
        print(f"error: a plain install brings {found[0]}", file=sys.stderr)
        return 1
    if megabytes > LIMIT:
        print(f"error: more than {LIMIT} MB", file=sys.stderr)
        return 1
    command = Path(python).with_name("bitnet.exe" if os.name == "nt" else "bitnet")
    times = [seconds([str(command), "--help"]) for _ in range(6)][1:]
    print(f"bitnet --help: {1000 * statistics.median(times):.0f} ms, the median of {len(times)}")
    for package in packages:
        timer = f"from time import perf_counter as t; a = t(); import {package}; print(t() - a)"
        times = [float(output(folder, python, timer)[0]) for _ in range(6)][1:]
        print(f"import {package}: {1000 * statistics.median(times):.0f} ms, the median of {len(times)}")
    return subprocess.call(
        [python, "-I", str(ROOT / "tests" / "smoke.py"), str(ROOT / "models" / "stories")], cwd=folder
    )


def seconds(command: list[str]) -> float:
    """How long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def output(folder: Path, python: str, code: str) -> list[str]:
    """The lines that a program prints, away from the checkout."""
    done = subprocess.run([python, "-I", "-c", code], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.removesuffix("\n").split("\n")


def size(folder: Path) -> int:
    """Bytes in the files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")


if __name__ == "__main__":
    sys.exit(main())
