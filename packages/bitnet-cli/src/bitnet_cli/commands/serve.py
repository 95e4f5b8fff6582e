"""`bitnet serve`: models over HTTP."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from .. import models
from ..console import FLAGS, Flags
from ..failures import Refused
from ..serving import Access, Conduct, Loading

if TYPE_CHECKING:
    from bitnet_inference.server import Source


def serve(
    *model: Annotated[str, Parameter(help="Folders, GGUF files or names on the hub; NAME=MODEL names one.")],
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 8000,
    adapter: tuple[str, ...] = (),
    loading: Loading = Loading(),  # noqa: B008  # frozen
    access: Access = Access(),  # noqa: B008
    conduct: Conduct = Conduct(),  # noqa: B008
    flags: Flags = FLAGS,
) -> None:
    """Models over HTTP, as clients of OpenAI, Anthropic and Ollama speak to them, with a page to talk to.

    Parameters
    ----------
    host
        The address; any but this machine's own needs keys.
    port
        The port; 0 takes a free one.
    adapter
        MODEL:NAME=FOLDER, a LoRA adapter that requests name as MODEL:NAME.
    """
    models.backend(loading.backend)
    try:
        from bitnet_inference import server  # noqa: PLC0415  # half a second, and an extra
    except ImportError as error:
        raise Refused(f"serve: {error.name} is missing: pip install 'bitnet-inference[server]'") from error
    sources = _sources(model, adapter, loading, flags)
    found = server.Models(sources, memory=loading.memory, idle_s=loading.idle)
    if sys.stderr.isatty():  # whoever reads the log has its first line
        flags.remark(f"http://{host}:{port}/ serves {', '.join(found.names)}")
    server.serve(
        found,
        host=host,
        port=port,
        keys=access.keys,
        api_key=access.api_key,
        verifier=access.verifier(),
        audit=conduct.audit,
        log_file=conduct.log,
        limit=conduct.connections,
        log_level="warning" if flags.quiet else "info",
        **conduct.settings(),
    )


def _sources(given: tuple[str, ...], adapters: tuple[str, ...], loading: Loading, flags: Flags) -> dict[str, Source]:
    """The models by the names that requests call them; the built-in one where none is given."""
    from bitnet_inference.server import Source  # noqa: PLC0415

    paths: dict[str, str | None] = {}
    for text in given:
        name, mark, path = text.partition("=")
        name, path = (name, path) if mark else (Path(text).name if models.is_local(text) else text, text)
        if name in paths:
            raise Refused(f"serve: two models are called {name}; NAME=MODEL calls one otherwise")
        paths[name] = str(models.find(path, flags))
    paths = paths or {models.BUILT_IN: None}
    found: dict[str, dict[str, str]] = {name: {} for name in paths}
    for text in adapters:
        where, mark, folder = text.partition("=")
        name, colon, called = where.rpartition(":")
        if not mark or not colon or name not in found:
            raise Refused(f"--adapter: expected MODEL:NAME=FOLDER of a model that is served, got '{text}'")
        found[name][called] = folder
    options = loading.options()
    return {name: Source(model=path, adapters=found[name], options=options) for name, path in paths.items()}
