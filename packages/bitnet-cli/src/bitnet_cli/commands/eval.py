"""`bitnet eval`: questions with answers, and how many a model gets right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import questions
from ..amounts import Count
from ..console import FLAGS, Flags, table
from ..models import ModelName
from ..writers import RUNNING, Running


def eval(  # noqa: A001  # the command's name
    model: ModelName,
    files: Annotated[tuple[str, ...], Parameter(help="JSONL files of questions.", n_tokens=1)],
    *,
    limit: Annotated[Count | None, Parameter(name=["--limit", "-l"])] = None,
    running: Running = RUNNING,
    flags: Flags = FLAGS,
) -> None:
    """Questions with answers: how many a model gets right, by which text it holds likeliest.

    A line has query, choices and gold; or context_options, continuation and gold; or context and continuation.

    Parameters
    ----------
    limit
        No more than so many questions of each file.
    """
    asked = {file: questions.read(file, limit) for file in files}
    with running.opened(model, flags) as llm, flags.progress("answering") as tell:
        adapter = None if running.adapter is None else running.adapter.name
        marks = []
        for place, (file, listed) in enumerate(asked.items()):
            tell(place, len(asked), Path(file).name)
            marks.append(questions.answer(llm, file, listed, adapter))
        name = llm.name
    shown = table("questions", "number", "right", "±", "by length", "chance", numbers=(1, 2, 3, 4, 5))
    for mark in marks:
        shown.add_row(
            Path(mark.file).stem,
            str(mark.questions),
            f"{mark.accuracy:.1%}",
            f"{mark.error:.1%}",
            f"{mark.by_length:.1%}",
            f"{mark.chance:.1%}",
        )
    flags.answer({"model": name, "marks": marks}, shown)
