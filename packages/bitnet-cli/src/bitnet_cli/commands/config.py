"""`bitnet config`: a config of training to begin with, or a look at one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..console import FLAGS, Flags
from ..failures import Failed, Refused


def config(
    file: Annotated[Path | None, Parameter(help="A config to check; without one, a template is printed.")] = None,
    *,
    change: Annotated[tuple[str, ...], Parameter(name="--set", metavar="KEY=VALUE", n_tokens=1)] = (),
    flags: Flags = FLAGS,
) -> None:
    """Every setting of a training run with its default and what it is for; or what a config comes to, checked.

    Parameters
    ----------
    change
        A setting that is another than the file says, as data.batch=8.
    """
    if file is None and change:
        raise Refused("--set changes a config: name its file")
    if file is not None and not file.is_file():
        raise Refused(f"{file}: expected a config, got {'a folder' if file.is_dir() else 'no such file'}")
    try:
        from bitnet_training import config as configs  # noqa: PLC0415
        from bitnet_training import options  # noqa: PLC0415
    except ImportError as error:
        raise Failed(f"training needs bitnet-training ({error}): pip install bitnet-training") from error
    found = configs.template() if file is None else options.toml(configs.load(file, change))
    if flags.json:
        import tomllib  # noqa: PLC0415

        flags.answer(tomllib.loads(found))
    else:
        sys.stdout.write(found)
