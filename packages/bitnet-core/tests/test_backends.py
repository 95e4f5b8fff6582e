from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bitnet_core import backends
from bitnet_core.errors import BackendUnavailable
from bitnet_core.model import Backend
from bitnet_core.reference import BACKEND


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed distributions, as an installer leaves them, and of their modules."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]


def install(folder: Path, distribution: str, name: str, module: str, source: str) -> None:
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{backends.GROUP}]\n{name} = {module}:BACKEND\n")
    (folder / f"{module}.py").write_text(source)


GOOD = """
from bitnet_core.model import Backend
BACKEND = Backend("fast", load=lambda model: None, why_not=lambda: {why!r}, priority=100, api={api})
"""


def test_the_numpy_backend_is_installed_and_runs_anywhere() -> None:
    assert "numpy" in backends.names()
    assert backends.available()["numpy"] is None
    assert backends.get("numpy") is BACKEND


def test_names_are_listed_without_importing_anything(plugins: Path) -> None:
    install(plugins, "fast", "fast", "plugin_loud", "raise SystemExit('imported')")
    assert {"fast", "numpy"} <= set(backends.names())
    assert "plugin_loud" not in sys.modules


def test_auto_takes_the_highest_priority_that_can_run(plugins: Path) -> None:
    install(plugins, "fast", "fast", "plugin_fast", GOOD.format(why=None, api=1))
    assert backends.get().name == "fast"
    assert isinstance(backends.get("auto"), Backend)


def test_auto_passes_over_what_cannot_run_and_its_reason_is_kept(plugins: Path) -> None:
    install(plugins, "fast", "fast", "plugin_fast", GOOD.format(why="it needs a GPU; plug one in", api=1))
    assert backends.get().name != "fast"
    assert backends.available()["fast"] == "it needs a GPU; plug one in"
    with pytest.raises(BackendUnavailable, match="backend 'fast' cannot run here: it needs a GPU; plug one in"):
        backends.get("fast")


def test_a_plugin_that_fails_to_import_does_not_take_the_others_with_it(plugins: Path) -> None:
    install(plugins, "fast", "fast", "plugin_broken", "import no_such_library")
    reason = backends.available()["fast"]
    assert reason == "importing plugin_broken:BACKEND failed: ModuleNotFoundError: No module named 'no_such_library'"
    assert backends.get().name != "fast"


def test_a_plugin_of_another_api_is_refused_with_both_numbers(plugins: Path) -> None:
    install(plugins, "fast", "fast", "plugin_new", GOOD.format(why=None, api=2))
    assert "made for backend API 2, and this is 1" in (backends.available()["fast"] or "")


def test_a_plugin_that_is_no_backend_is_refused(plugins: Path) -> None:
    install(plugins, "fast", "fast", "plugin_wrong", "BACKEND = 3")
    assert "plugin_wrong:BACKEND is not a bitnet_core.Backend but int" in (backends.available()["fast"] or "")


def test_two_backends_of_one_name_are_refused_naming_both(plugins: Path) -> None:
    install(plugins, "fast", "fast", "plugin_one", GOOD.format(why=None, api=1))
    install(plugins, "faster", "fast", "plugin_two", GOOD.format(why=None, api=1))
    with pytest.raises(BackendUnavailable, match=r"two backends are named 'fast': .*plugin_(one|two).* and .*plugin_"):
        backends.names()


def test_one_backend_listed_twice_is_one() -> None:
    point = EntryPoint("numpy", "bitnet_core.reference:BACKEND", backends.GROUP)
    assert list(backends._by_name([point, point])) == ["numpy"]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackendUnavailable, match=r"no backend 'cuda9' is installed; there are .*numpy"):
        backends.get("cuda9")
