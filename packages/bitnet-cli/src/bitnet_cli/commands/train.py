"""`bitnet train`: train as a config says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import trainings
from ..console import FLAGS, Flags
from ..failures import Refused


def train(
    file: Annotated[Path, Parameter(help="A TOML file; bitnet config prints one to begin with.")],
    *,
    change: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE", n_tokens=1)] = (),
    resume: bool = False,
    flags: Flags = FLAGS,
) -> int:
    """Train as a config says; Ctrl-C ends a run after its step, whole, with exit code 130.

    Parameters
    ----------
    change
        A setting that is another than the file says, as data.batch=8.
    resume
        Go on from the newest whole checkpoint.
    """
    if not file.is_file():
        raise Refused(f"{file}: expected a config, got {'a folder' if file.is_dir() else 'no such file'}")
    trainings.require()
    from bitnet_training import config  # noqa: PLC0415

    return trainings.do(config.load(file, change), flags, resume=resume)
