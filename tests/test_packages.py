"""What every package must be: its names, its versions, its language."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
SOURCES = [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("packages/*/*/**/*.py")]


@pytest.fixture(params=PACKAGES, ids=lambda path: path.name)
def package(request: pytest.FixtureRequest) -> Path:
    """The folder of each package in turn."""
    path: Path = request.param
    return path


@pytest.fixture
def module(package: Path) -> ModuleType:
    """The package as it is imported."""
    return importlib.import_module(package.name.replace("-", "_"))


def test_all_names_exactly_what_is_visible(module: ModuleType) -> None:
    visible = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and name != "annotations"
        and (name in module.__all__ or not inspect.ismodule(value))
    }
    assert sorted(visible) == sorted(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


def test_every_public_name_has_its_sentence(module: ModuleType) -> None:
    silent = [name for name in module.__all__ if callable(getattr(module, name)) and not getattr(module, name).__doc__]
    assert silent == []


def test_the_reference_has_every_public_module(module: ModuleType) -> None:
    if module.__name__ == "bitnet_cli":
        return  # a command: `bitnet --help` is its reference
    # Modules inside a subpackage are its own business; what is public there, it exports.
    found = pkgutil.walk_packages(module.__path__, f"{module.__name__}.")
    public = {info.name for info in found if "._" not in info.name and (info.ispkg or info.name.count(".") == 1)}
    listed = set(re.findall(r"automodule:: (\S+)", (ROOT / "docs" / "reference.md").read_text()))
    assert {name for name in listed if name.startswith(f"{module.__name__}.")} == public


def test_versions_agree(package: Path, module: ModuleType) -> None:
    heading = re.search(r"^## (\S+)", (package / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert module.__version__ == heading[1] == importlib.metadata.version(package.name)


def test_running_a_model_brings_no_framework(package: Path) -> None:
    if package.name == "bitnet-training":
        return  # it stands on PyTorch, and nothing stands on it
    required = importlib.metadata.requires(package.name) or []
    names = {re.split(r"[^\w.-]", line)[0].lower() for line in required if "extra ==" not in line}
    assert not names & {"torch", "transformers", "gguf"}


def test_every_dependency_has_a_lower_bound(package: Path) -> None:
    required = importlib.metadata.requires(package.name) or []
    assert [line for line in required if not re.search(r">=\s*\d", line)] == []


def test_every_source_is_python_3_11() -> None:
    for source in SOURCES:
        ast.parse(source.read_text(), str(source), feature_version=(3, 11))
