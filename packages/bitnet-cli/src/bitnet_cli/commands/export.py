"""`bitnet export`: the model of a finished run in a form that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..console import FLAGS, Flags
from ..failures import Refused
from .convert import Layout, convert


def export(
    run: Annotated[Path, Parameter(help="The folder of a run that is finished.")],
    target: Annotated[Path, Parameter(help="A file that ends in .gguf, or a folder for Hugging Face's form.")],
    *,
    to: Annotated[Layout | None, Parameter(name=["--to", "-t"])] = None,
    lossy: bool = False,
    force: Annotated[bool, Parameter(name=["--force", "-f"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """The model of a finished run in a form that others read, trit for trit.

    Parameters
    ----------
    to
        The layout: bitnet.cpp reads i2_s, llama.cpp tq1_0, tq2_0 and q2_0; hf_* are folders.
    lossy
        Accept that scales or floats are rounded.
    force
        Write over what is there.
    """
    if not (run / "model" / "config.json").is_file():
        hint = "it has an adapter: bitnet merge rounds it in" if (run / "adapter").is_dir() else "is it finished?"
        raise Refused(f"{run}: expected a run with a model, got none; {hint}")
    convert(str(run / "model"), target, to=to, lossy=lossy, force=force, flags=flags)
