"""`bitnet ppl`: how surprising a model finds a text."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .. import models
from ..amounts import Count
from ..console import FLAGS, Flags, pairs
from ..failures import Refused
from ..models import ModelName
from ..writers import RUNNING, Running

_FILES = 'Files with texts, "-" for stdin, which is the default.'


def ppl(
    model: ModelName,
    files: Annotated[tuple[str, ...], Parameter(help=_FILES)] = (),
    *,
    stride: Count | None = None,
    limit: Count | None = None,
    running: Running = RUNNING,
    flags: Flags = FLAGS,
) -> None:
    """How surprising a model finds texts of any length, each from its beginning.

    Parameters
    ----------
    stride
        Tokens that each window scores anew; half of the context by default, fewer are slower and nearer to the truth.
    limit
        No more than so many characters of each text.
    """
    texts = [models.read_text(file, "text")[:limit] for file in files or (models.STDIN,)]
    if not all(text.strip() for text in texts):
        raise Refused("a text is empty")
    with running.opened(model, flags) as llm:
        if stride is not None and stride > llm.engine.context:
            raise Refused(f"--stride: expected at most {llm.engine.context}, the context, got {stride}")
        adapter = None if running.adapter is None else running.adapter.name
        flags.remark("reading")
        found = llm.perplexity(texts, stride=stride, adapter=adapter)
        record = {
            "model": llm.name,
            "backend": llm.backend.name,
            "perplexity": found.perplexity,
            "bits_per_byte": found.bits_per_byte,
            "nats_per_token": found.nats / max(1, found.tokens),
            "tokens": found.tokens,
            "bytes": found.bytes,
        }
    shown = {
        "perplexity": f"{found.perplexity:.4f}",
        "bits a byte": f"{found.bits_per_byte:.4f}",
        "scored": f"{found.tokens:,} tokens, {found.bytes:,} bytes",
    }
    flags.answer(record, pairs(shown))
