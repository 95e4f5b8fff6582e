"""`bitnet bench quality`: perplexity, agreement and divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ... import models
from ...console import FLAGS, Flags, pairs
from ...failures import Refused
from ...models import ModelName, Window, Windows
from .kept import KEEPING, Backend, Keeping

if TYPE_CHECKING:
    from bitnet_benchmarks.quality import Quality


def quality(  # each is a flag
    model: ModelName,
    text: Annotated[str, Parameter(help='A file with ordinary text, "-" for stdin.')],
    *,
    against: str | None = None,
    backend: Backend = "auto",
    windows: Windows = 32,
    window: Window = 256,
    keeping: Keeping = KEEPING,
    flags: Flags = FLAGS,
) -> None:
    """Perplexity on a text; agreement with the reference backend, or with another model.

    Parameters
    ----------
    against
        Another model of the same tokens, as the master of this one.
    """
    keeping.check()
    from bitnet_benchmarks import quality as measured  # noqa: PLC0415
    from bitnet_benchmarks import record  # noqa: PLC0415

    path = models.find(model, flags)
    found = models.load(str(path), flags)
    if found.tokenizer is None:
        raise Refused(f"{model}: this model has no tokenizer")
    if window > found.spec.context:
        raise Refused(f"--window: expected at most {found.spec.context}, the model's context, got {window}")
    pieces = measured.windows_of(found.tokenizer, models.read_text(text, "text"), size=window, count=windows)
    other = None if against is None else models.load(against, flags)
    if other is not None and other.spec.vocab_size != found.spec.vocab_size:
        raise Refused(f"--against: expected a model of {found.spec.vocab_size} tokens, got {other.spec.vocab_size}")
    with flags.progress("reading") as tell:
        said = measured.measure(found, pieces, models.backend(backend), other=other, progress=tell)
    made = record.make("quality", said, model=path, windows=windows, window=window, against=against)
    keeping.keep(made, flags)
    flags.answer(made.figures[0], pairs(_lines(said, against or "the reference")))


def _lines(said: Quality, whom: str) -> dict[str, str | None]:
    return {
        "perplexity": f"{said.perplexity:.4f}",
        "bits a byte": f"{said.bits_per_byte:.4f}",
        "nats a token": f"{said.nll:.4f} ± {said.error:.4f}",
        "tokens": f"{said.tokens:,} in {said.windows} window{'' if said.windows == 1 else 's'}",
        f"as {whom}": None if said.agreement is None else f"{said.agreement:.2%} of likeliest tokens",
        "divergence": None if said.divergence is None else f"{said.divergence:.2e} nats a token",
        "its perplexity": None if said.other_perplexity is None else f"{said.other_perplexity:.4f}",
    }
