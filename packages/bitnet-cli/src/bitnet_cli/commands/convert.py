"""`bitnet convert`: write a model in another form, without loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from .. import amounts, models
from ..console import FLAGS, Flags, mark, pairs, table
from ..models import ModelName

if TYPE_CHECKING:
    from bitnet_quant import Conversion
    from bitnet_quant.conversion import Progress

Layout = Literal[
    "i2_s", "i2_s_64", "tq1_0", "tq2_0", "q2_0", "hf_multiply", "hf_divide", "hf_floats"
]  # fmt: skip
_FULL = {"i2_s": "i2_s_128", "q2_0": "q2_0_64"}


def convert(
    source: ModelName,
    target: Annotated[Path, Parameter(help="A file that ends in .gguf, or a folder for Hugging Face's form.")],
    *,
    to: Annotated[Layout | None, Parameter(name=["--to", "-t"])] = None,
    lossy: bool = False,
    force: Annotated[bool, Parameter(name=["--force", "-f"])] = False,
    group: Literal[64, 128] | None = None,
    flags: Flags = FLAGS,
) -> None:
    """Write a model in another form; the trits stay, proven by a digest of what was written.

    Parameters
    ----------
    to
        The layout: bitnet.cpp reads i2_s, llama.cpp tq1_0, tq2_0 and q2_0; hf_* are folders.
    lossy
        Accept that scales or floats are rounded.
    force
        Write over what is there.
    group
        The group of an I2_S source, where bitnet.cpp made it on Arm: 64.
    """
    import bitnet_quant  # noqa: PLC0415

    path = models.find(source, flags)
    options: dict[str, Any] = {} if group is None else {"i2_s_group": group}
    with flags.progress("converting") as tell:
        done = bitnet_quant.convert(
            path, target, layout=full_name(to), lossy=lossy, replace=force, progress=telling(tell), **options
        )
    answer(flags, done)


def full_name(layout: str | None) -> str | None:
    """A layout as the library calls it."""
    return None if layout is None else _FULL.get(layout, layout)


def telling(tell: Any) -> Any:
    """What hears the stages of a conversion."""

    def said(now: Progress) -> None:
        tell(now.done, now.total, f"{now.stage} {now.weight}")

    return said


def answer(flags: Flags, done: Conversion) -> None:
    """What a conversion has done."""
    rounded = table("rounded", "by", "", numbers=(1,))
    for one in done.rounded[:20]:
        rounded.add_row(one.name, f"{one.error:.1e}", one.what)
    said = {
        "target": done.target,
        "layout": done.layout,
        "size": amounts.size(done.nbytes),
        "weights": f"{done.weights} in {done.seconds:.1f} s",
        "trits": mark(done.before == done.after, f"as in the source, sha256 {done.after[:16]}..."),
        "rounded": f"{len(done.rounded)} weights" if done.rounded else "nothing",
    }
    flags.answer(done, pairs(said), *([rounded] if done.rounded else []))
