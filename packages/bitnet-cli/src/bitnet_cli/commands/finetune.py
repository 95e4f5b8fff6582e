"""`bitnet finetune`: teach a model with texts or conversations."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from .. import models, trainings
from ..amounts import Count
from ..console import FLAGS, Flags
from ..models import ModelName
from ..trainings import LESSON, Lesson


def finetune(
    base: ModelName,
    data: Annotated[tuple[str, ...], Parameter(help="Files of records: .txt, .jsonl, .json, .parquet.", n_tokens=1)],
    *,
    method: Literal["lora", "qlora", "sft", "continue"] = "lora",
    rank: Count = 16,
    learning_rate: float | None = None,
    form: Literal["chat", "text"] | None = None,
    lesson: Lesson = LESSON,
    flags: Flags = FLAGS,
) -> int:
    """Teach a model with texts or conversations: an adapter beside it (lora, qlora), or all of it (sft, continue).

    Parameters
    ----------
    method
        What learns: an adapter, one beside a packed base, all weights from conversations, or all from texts.
    rank
        Of an adapter's changes.
    learning_rate
        The peak; by the method by default.
    form
        What the records are; conversations for sft, texts otherwise.
    """
    lesson.check(data, base)
    rate = learning_rate if learning_rate is not None else 5e-4 if method in ("lora", "qlora") else 5e-5
    settings = [
        f"method={method}",
        f"model.base={models.placed(base)}",
        f"data.form={form or ('chat' if method == 'sft' else 'text')}",
        f"optimizer.learning_rate={rate}",
        f"adapter.rank={rank}",
        *lesson.settings(data),
        *lesson.change,
    ]
    return trainings.do(trainings.made(settings), flags, resume=lesson.resume)
