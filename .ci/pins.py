"""Fails where this environment holds a package that neither pyproject.toml nor constraints.txt pins exactly."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Print what differs from the pins; 1 if anything does."""
    environments = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["envs"].values()
    lines = [line for table in environments for line in table.get("dependencies", [])]
    lines += [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(pin(line) for line in lines)
    ours = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    installed = {plain(found.name): found.version for found in importlib.metadata.distributions()}
    findings = [
        f"{name}=={version} is installed, the pins say {pins.get(name, 'nothing')}"
        for name, version in sorted(installed.items())
        # A local version, as in 2.13.0+cpu, is another build of the same release.
        if name not in ours and pins.get(name) != version.partition("+")[0]
    ]
    print("\n".join(findings) or f"{len(installed) - len(ours & set(installed))} packages, each at its pinned version")
    return 1 if findings else 0


def pin(line: str) -> tuple[str, str]:
    """Name and version of `name==version; marker`."""
    name, _, version = line.partition(";")[0].partition("==")
    return plain(name), version.strip()


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


if __name__ == "__main__":
    sys.exit(main())
