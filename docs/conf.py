"""Sphinx: pages in Markdown, the reference from docstrings, and every warning an error."""

from __future__ import annotations

import re
from typing import Any

import bitnet_core

project = "BitNet"
copyright = "the BitNet authors, Apache-2.0"  # noqa: A001  # Sphinx's name
release = version = bitnet_core.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("npt.ArrayLike", "npt.DTypeLike")}
autodoc_default_options = {"members": True}
# Pages are made without the gigabytes that training stands on, and without what extras bring.
autodoc_mock_imports = [
    "torch", "transformers", "accelerate", "peft", "lm_eval",
    "starlette", "uvicorn", "prometheus_client", "joserfc", "sqlalchemy", "h11", "websockets",
]  # fmt: skip
suppress_warnings = ["ref.python"]  # two packages may each have a class of one name

html_theme = "furo"
html_title = "BitNet"
html_copy_source = False
html_show_sphinx = False

_MARKUP = re.compile(r"([*_|\\<>])")


def escape_docstring(*event: Any) -> None:
    """Docstrings are plain text with `code` and indented drawings; to reStructuredText half of that is markup."""
    lines: list[str] = event[-1]
    result: list[str] = []
    drawing = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if indented and not drawing and (number == 0 or not lines[number - 1].strip()):
            result += ["::", ""]
            drawing = True
        drawing = drawing and (indented or not line.strip())
        result.append(line if drawing else escape_text(line))
    lines[:] = result


def escape_text(line: str) -> str:
    """One line with every character literal but the backticks around code."""
    parts = line.split("`")
    if len(parts) % 2 == 0:  # an odd backtick opens nothing
        return _MARKUP.sub(r"\\\1", line).replace("`", "\\`")
    return "`".join(part if place % 2 else _MARKUP.sub(r"\\\1", part) for place, part in enumerate(parts))


def setup(app) -> None:  # type: ignore[no-untyped-def]  # Sphinx is installed where the pages are built only
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escape_docstring)
