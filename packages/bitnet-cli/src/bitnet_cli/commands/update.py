"""`bitnet update --check`: whether packages or models have newer versions."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from typing import Any

from ..console import FLAGS, Flags, mark, table
from ..failures import Failed, Refused
from .env import version_of

_PACKAGES = tuple(f"bitnet-{name}" for name in ("core", "quant", "inference", "benchmarks", "cli", "training", "metal"))


def update(*, check: bool = False, flags: Flags = FLAGS) -> None:
    """Whether packages of ours or models of the cache have newer versions; nothing is installed.

    Parameters
    ----------
    check
        Ask the package index that pip uses, and the hub.
    """
    if not check:
        raise Refused("update: say --check; pip installs what is newer: pip install --upgrade bitnet-cli")
    if flags.offline:
        raise Failed("update: package index and hub must be asked, and the network is off")
    flags.remark("asking the package index and the hub")
    packages, models = _packages(), _models()
    shown = table("", "here", "newest", "")
    for row in [*packages, *models]:
        newer = row["newest"] is not None and row["newest"] != row["here"]
        said = "newer" if newer else "not known there" if row["newest"] is None else ""
        shown.add_row(row["name"], row["here"], row["newest"] or "", mark(not newer, said))
    flags.answer({"packages": packages, "models": models}, shown)


def _packages() -> list[dict[str, Any]]:
    """What pip would install in place of what is here."""
    here = {name: version for name in _PACKAGES if (version := version_of(name))}
    pip = _pip()
    found = []
    for name, version in here.items():
        # What is installed would pass for the newest where the index knows none.
        command = ["install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--report", "-", name]
        try:
            done = subprocess.run(
                [*pip, *command, "--disable-pip-version-check"],
                capture_output=True,
                timeout=120,
                check=False,
            )
            report = json.loads(done.stdout) if done.returncode == 0 else {"install": []}
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise Failed(f"update: pip does not answer: {error}") from error
        newer = [item["metadata"]["version"] for item in report["install"]]
        known = done.returncode == 0
        found.append({"name": name, "here": version, "newest": newer[0] if newer else version if known else None})
    return found


def _pip() -> list[str]:
    """The pip of this environment, or another that can look after it."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if program := shutil.which("pip"):
        return [program, "--python", sys.executable]
    raise Failed("update: there is no pip here to ask what is newer: python -m ensurepip brings it")


def _models() -> list[dict[str, Any]]:
    """The newest revision of each model of the cache."""
    from bitnet_core import BitNetError, hub  # noqa: PLC0415

    found = []
    for model in hub.cached():
        try:
            newest: str | None = hub.describe(model.name).revision[:12]
        except BitNetError:
            newest = None
        found.append({"name": model.name, "here": model.revision[:12], "newest": newest})
    return found
