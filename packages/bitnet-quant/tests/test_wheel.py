"""What installs where nothing can be compiled."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bitnet_quant
from bitnet_quant import cpu

PACKAGE = Path(__file__).parents[1]


def test_a_pure_wheel_has_every_module_and_nothing_compiled(tmp_path: Path) -> None:
    for needed in ("hatchling", "scikit_build_core"):
        pytest.importorskip(needed)
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    done = subprocess.run(
        build, cwd=PACKAGE, env={**os.environ, "BITNET_PURE": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "without the cpu backend: BITNET_PURE is 1" in done.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name == f"bitnet_quant-{bitnet_quant.__version__}-py3-none-any.whl"
    sources = PACKAGE / "src"
    kinds = {".py", ".pyi", ".typed"}
    expected = {
        str(path.relative_to(sources)) for path in sources.rglob("*") if path.suffix in kinds or path.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "cpu = bitnet_quant.cpu:BACKEND" in archive.read(points).decode()
    assert held == expected


def test_without_its_compiled_part_the_backend_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cpu, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "bitnet_quant.cpu._native", None)
    reason = cpu.why_not()
    assert reason is not None
    assert "compiled part is missing" in reason
    assert "install a C++20 compiler and reinstall" in reason
