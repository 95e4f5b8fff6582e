"""`bitnet embed`: texts as vectors."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import models
from ..console import FLAGS, Flags, table
from ..failures import Refused
from ..writers import RUNNING, Running

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def embed(
    texts: tuple[str, ...] = (),
    *,
    model: Annotated[str | None, Parameter(name=["--model", "-m"])] = None,
    file: Annotated[str | None, Parameter(name=["--file", "-f"])] = None,
    similar: bool = False,
    running: Running = RUNNING,
    flags: Flags = FLAGS,
) -> None:
    """Texts as vectors of length 1: a line of JSON for each.

    Parameters
    ----------
    texts
        The texts; lines of stdin by default.
    model
        A folder, a GGUF file or a name on the hub; a small one by default.
    file
        A file with a text a line, "-" for stdin.
    similar
        How alike the texts are, as the cosines between them.
    """
    if texts and file is not None:
        raise Refused("the texts are given twice: as arguments and by --file")
    said = list(texts) or [line for line in models.read_text(file, "a text a line").splitlines() if line.strip()]
    if not said:
        raise Refused("there is no text")
    if similar and len(said) > 1000:
        raise Refused(f"--similar: expected at most 1000 texts, got {len(said)}")
    with running.opened(model, flags) as llm:
        adapter = None if running.adapter is None else running.adapter.name
        vectors = llm.embed(said, adapter=adapter)
        record: dict[str, Any] = {"model": llm.name, "size": vectors.shape[1], "embeddings": vectors}
    if similar:
        cosines = vectors @ vectors.T
        flags.answer(record | {"cosines": cosines}, _cosines(said, cosines))
    elif flags.json:
        flags.answer(record)
    else:
        for text, vector in zip(said, vectors.tolist(), strict=True):
            sys.stdout.write(json.dumps({"text": text, "embedding": vector}, ensure_ascii=False) + "\n")


def _cosines(texts: list[str], cosines: npt.NDArray[np.float32]) -> Any:
    from rich.text import Text  # noqa: PLC0415

    names = [str(place + 1) for place in range(len(texts))]
    shown = table("text", *names, numbers=tuple(range(1, len(texts) + 1)))
    for name, text, row in zip(names, texts, cosines, strict=True):
        short = text if len(text) <= 40 else f"{text[:37]}..."
        shown.add_row(Text(f"{name}  {short}"), *(f"{value:.3f}" for value in row))
    return shown
