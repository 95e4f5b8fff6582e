"""`bitnet merge`: an adapter rounded into the trits of its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import models, trainings
from ..console import FLAGS, Flags, mark, table
from ..failures import Refused
from ..models import ModelName
from .convert import Layout, full_name


def merge(
    base: ModelName,
    adapter: Annotated[Path, Parameter(help="A folder of PEFT's form, or a GGUF file.")],
    target: Annotated[Path, Parameter(help="A file that ends in .gguf, or a folder for Hugging Face's form.")],
    *,
    to: Annotated[Layout | None, Parameter(name=["--to", "-t"])] = None,
    text: str | None = None,
    force: Annotated[bool, Parameter(name=["--force", "-f"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """Round an adapter into the trits of its base, and say how many flipped and what that cost.

    Parameters
    ----------
    to
        The layout of what is written.
    text
        A text on which the merged model is compared with base and adapter.
    force
        Write over what is there.
    """
    if not adapter.exists():
        raise Refused(f"{adapter}: no such adapter")
    found = models.load(base, flags)
    trainings.require()
    import bitnet_quant  # noqa: PLC0415
    from bitnet_core.formats import load_adapter  # noqa: PLC0415
    from bitnet_training import merge as merging  # noqa: PLC0415

    windows = models.windows(found, text, 128, 8)
    flags.remark("rounding base and adapter into new trits")
    made = merging.merge(found, load_adapter(adapter, found.spec), windows, backend=models.backend("auto"))
    done = bitnet_quant.convert(made.model, target, layout=full_name(to), lossy=True, replace=force)
    shown = table("matrix", "trits", "flipped", "", numbers=(1, 2, 3))
    for name, flips in made.flips.items():
        shown.add_row(name, f"{flips.trits:,}", f"{flips.flipped:,}", f"{flips.flipped / flips.trits:.2%}")
    total = sum(flips.flipped for flips in made.flips.values())
    record = {"target": done.target, "layout": done.layout, "flips": made.flips, "quality": made.quality,
              "base_quality": made.base_quality}  # fmt: skip
    flags.answer(record, shown, mark(True, f"{total:,} trits flipped; {done.target}"))
    if not total:
        flags.remark(
            "no trit flipped: the changes are small beside the scales, and only base and adapter together have them"
        )
