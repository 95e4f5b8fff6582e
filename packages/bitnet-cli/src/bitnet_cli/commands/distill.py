"""`bitnet distill`: a model that learns from another's expectations."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .. import models, trainings
from ..console import FLAGS, Flags
from ..trainings import LESSON, Lesson


def distill(
    teacher: Annotated[str, Parameter(help="Whom the model learns from: a folder, or a name on the hub.")],
    data: Annotated[tuple[str, ...], Parameter(help="Files of texts: .txt, .jsonl, .json, .parquet.", n_tokens=1)],
    *,
    student: str | None = None,
    temperature: float = 5.0,
    lesson: Lesson = LESSON,
    flags: Flags = FLAGS,
) -> int:
    """A ternary model that learns what another expects to come next.

    Parameters
    ----------
    student
        A base to begin from; by default the shape that --set model.* says, from random numbers.
    temperature
        Both distributions are softened by it.
    """
    lesson.check(data, *filter(None, (teacher, student)))
    settings = [
        "method=distill",
        f"model.base={models.placed(student) if student else ''}",
        f"teacher.base={models.placed(teacher)}",
        f"teacher.temperature={temperature}",
        f"tokenizer.path={models.placed(teacher)}",
        *lesson.settings(data),
        *lesson.change,
    ]
    return trainings.do(trainings.made(settings), flags, resume=lesson.resume)
