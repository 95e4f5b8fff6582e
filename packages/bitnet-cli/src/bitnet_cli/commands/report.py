"""`bitnet report`: what quantization cost, as a table or a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import models
from ..console import FLAGS, Flags
from ..failures import Refused
from ..models import ModelName, Window, Windows


def report(  # noqa: PLR0913  # each is a flag
    model: ModelName,
    master: Annotated[str, Parameter(help="The model that it was made of.")],
    *,
    text: str | None = None,
    windows: Windows = 16,
    window: Window = 256,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    title: str | None = None,
    backend: str = "auto",
    force: Annotated[bool, Parameter(name=["--force", "-f"])] = False,
    flags: Flags = FLAGS,
) -> None:
    """What quantization cost: each weight against its master's, and with a text what both say about it.

    Parameters
    ----------
    text
        A text that both models are asked about.
    output
        Write one HTML page here, that needs nothing else.
    title
        The title of the page.
    backend
        What runs both models, where there is a text.
    force
        Write over a page that is there.
    """
    import json  # noqa: PLC0415

    import bitnet_quant  # noqa: PLC0415
    from bitnet_core.durable import replacing  # noqa: PLC0415

    if output is not None and output.exists() and not force:
        raise Refused(f"{output}: is there already; --force writes over it")
    found, original = models.load(model, flags), models.load(master, flags)
    texts = models.windows(found, text, window, windows)
    flags.remark("comparing every weight")
    made = bitnet_quant.report(found, original, texts, backend=models.backend(backend))
    if output is not None:
        with replacing(output) as stream:
            stream.write(made.html(title or f"{Path(model).name} against {Path(master).name}").encode())
    record = json.loads(made.json()) | {"page": output}
    flags.answer(record, made.table().rstrip("\n") if output is None else f"{output}: {len(made.weights)} weights")
