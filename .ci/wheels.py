"""Build the wheel of every package into dist/, and prove what is in it.

A wheel holds the files under src, its metadata and its licence, and nothing else; building it again somewhere else
gives the same bytes; and its version is the one in the package's `__init__` and at the top of its changelog.
"""

from __future__ import annotations

import email.message
import email.parser
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
METADATA = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}


class Wrong(Exception):
    """A wheel is not what it must be."""


def main() -> int:
    """Build and check every package; 1 with a line for the first thing that is wrong."""
    shutil.rmtree(DIST, ignore_errors=True)
    try:
        for package in sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml")):
            check(package)
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check(package: Path) -> None:
    """Build one package twice, the second time from a copy in another place, and look inside."""
    wheel = build(package, DIST)
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(package, Path(folder) / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        if build(copy, Path(folder) / "dist").read_bytes() != wheel.read_bytes():
            raise Wrong(f"{wheel.name}: a second build, from a copy of {package.name}, gives other bytes")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not is_compiled(name)}
        if (count := len(archive.namelist()) - len(files)) != (package / "CMakeLists.txt").is_file():
            raise Wrong(f"{wheel.name}: {count} compiled files; a C++ compiler makes one for a package with C++")
        info = next(name for name in files if name.endswith(".dist-info/METADATA")).rpartition("/")[0]
        metadata = email.parser.HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
    compare_files(wheel.name, files, expected_files(package, info))
    compare_versions(package, metadata)
    print(f"{wheel.name}: {len(files)} files, {wheel.stat().st_size:,} bytes, the same when built again")


def build(package: Path, folder: Path) -> Path:
    """The wheel of a package, from the tools of this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Wrong(f"{package.name}: the build failed: {done.stderr.strip().splitlines()[-1]}")
    name = package.name.replace("-", "_")
    return next(folder.glob(f"{name}-*.whl"))


def expected_files(package: Path, info: str) -> set[str]:
    """What the sources say: all that git does not ignore under src, and the usual metadata."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "src"]
    listed = subprocess.run(command, cwd=package, capture_output=True, text=True, check=True).stdout
    sources = {name.removeprefix("src/") for name in listed.split("\0") if name and (package / name).is_file()}
    if not any(name.endswith("/py.typed") for name in sources):
        raise Wrong(f"{package.name}: no py.typed under src")
    settings = (package / "pyproject.toml").read_text()
    entry_points = {"entry_points.txt"} if re.search(r"entry-points|project\.scripts", settings) else set()
    return sources | {f"{info}/{name}" for name in METADATA | entry_points}


def is_compiled(name: str) -> bool:
    """The one kind of file that is in a wheel, and not among the sources."""
    return re.fullmatch(r"\w+/(\w+/)*_native(\.[\w-]+)*\.(so|pyd)", name) is not None


def compare_files(wheel: str, files: set[str], expected: set[str]) -> None:
    for difference, what in ((expected - files, "lacks"), (files - expected, "should not hold")):
        if difference:
            raise Wrong(f"{wheel} {what} {', '.join(sorted(difference))}")


def compare_versions(package: Path, metadata: email.message.Message) -> None:
    """One version everywhere, and the promises of the metadata."""
    [init] = package.glob("src/*/__init__.py")
    literal = re.search(r'^__version__ = "([^"]+)"$', init.read_text(), re.MULTILINE)
    heading = re.search(r"^## (\S+)", (package / "CHANGELOG.md").read_text(), re.MULTILINE)
    found = {
        "__init__": literal[1] if literal else None,
        "the changelog's first heading": heading[1] if heading else None,
        "the wheel": metadata["Version"],
    }
    if len(set(found.values())) != 1:
        raise Wrong(
            f"{package.name}: versions differ: " + ", ".join(f"{version} in {at}" for at, version in found.items())
        )
    wanted = {"Name": package.name, "License-Expression": "Apache-2.0", "Requires-Python": ">=3.11"}
    for field, value in wanted.items():
        if metadata[field] != value:
            raise Wrong(f"{package.name}: {field} is {metadata[field]!r}, not {value!r}")
    if not metadata.get_payload():
        raise Wrong(f"{package.name}: the wheel has no description; its README.md is empty")


if __name__ == "__main__":
    sys.exit(main())
