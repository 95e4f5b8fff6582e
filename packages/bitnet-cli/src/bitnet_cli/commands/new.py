"""`bitnet new`: a folder to begin with."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..console import FLAGS, Flags
from ..failures import Refused


def new(
    template: Literal["app", "suite", "quantize"],
    folder: Annotated[Path, Parameter(help="A folder that is not there yet, or is empty.")],
    *,
    flags: Flags = FLAGS,
) -> None:
    """A folder to begin with: a program (app), benchmarks (suite), or a recipe (quantize); each runs as it is.

    Parameters
    ----------
    template
        What is in it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder}: is there already and not empty; name another folder")
    if not folder.absolute().parent.is_dir():
        raise Refused(f"{folder}: there is no folder {folder.absolute().parent}")
    names = _write(template, folder)
    flags.answer({"folder": folder, "files": names}, f"{folder}: {', '.join(names)}; begin with its README.md")


def _write(template: str, folder: Path) -> list[str]:
    """All files of a template, or none."""
    made, written = not folder.exists(), []
    folder.mkdir(exist_ok=True)
    try:
        for source in sorted((files("bitnet_cli") / "templates" / template).iterdir(), key=lambda file: file.name):
            if source.is_file():
                written.append(source.name)
                (folder / source.name).write_bytes(source.read_bytes())
    except BaseException:
        for name in written:
            (folder / name).unlink(missing_ok=True)
        if made:
            folder.rmdir()
        raise
    return written
