"""The Python in the documents runs, with the model in the repository and without a network."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import socket
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def blocks(document: Path) -> list[tuple[int, str]]:
    """Every block fenced as `python`, with the line that it starts on."""
    text = document.read_text()
    return [(text[: match.start(1)].count("\n"), match[1]) for match in BLOCK.finditer(text)]


WITH_CODE = [document for document in DOCUMENTS if blocks(document)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the models, as a reader in the root of a clone has them, and no network."""
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("a document opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("document", WITH_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_python_in_a_document_runs_from_top_to_bottom(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("document")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where a dataclass looks for the names of its types
    names = vars(module)
    with contextlib.redirect_stdout(io.StringIO()):
        for line, code in blocks(document):
            # Empty lines in front make the numbers in a traceback those of the document.
            exec(compile("\n" * line + code, str(document), "exec"), names)  # noqa: S102  # our own documents


def test_the_readme_and_the_first_page_have_python_to_run() -> None:
    assert {ROOT / "README.md", ROOT / "docs" / "index.md"} <= set(WITH_CODE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    lost = [target for target in LINK.findall(document.read_text()) if not (document.parent / target).exists()]
    assert lost == []


def test_the_tests_that_documents_name_exist() -> None:
    lost = []
    for document in DOCUMENTS:
        for file, name in re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", document.read_text()):
            found = [*ROOT.glob(f"packages/*/tests/**/{file}"), *ROOT.glob(f"tests/{file}")]
            if not any(re.search(rf"(?:def|class) {name}\b", path.read_text()) for path in found):
                lost.append(f"{document.name}: {file}::{name}")
    assert lost == []
