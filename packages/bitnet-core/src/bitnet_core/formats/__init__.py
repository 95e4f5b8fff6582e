"""Model files of every kind, opened by one function."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import FormatError
from ..model import Adapter, Model, ModelSpec


def load(name: str | os.PathLike[str], *, progress: Callable[[Any], None] | None = None, **options: Any) -> Model:
    """The model at a path, or of a name on the hub: "org/model", "org/model@revision", "org/model:file.gguf".

    Options go to the reader of what is found: `formats.gguf.load` or `formats.huggingface.load`.
    """
    from ..hub import resolve  # noqa: PLC0415  # looking at a local file should not pay for the hub's client

    path = resolve(os.fspath(name), progress=progress)
    if path.is_dir():
        files = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
        if len(files) > 1 and not all("-of-" in file.name for file in files):
            raise FormatError(path, "folder", "config.json or one GGUF file", f"{len(files)} of them; name one")
        if not files:
            from .huggingface import load as load_folder  # noqa: PLC0415  # only the format at hand is imported

            return load_folder(path, **options)
        path = files[0]
    from .gguf import load as load_gguf  # noqa: PLC0415

    if path.suffix == ".safetensors":
        raise FormatError(
            path, "file", "a GGUF file, or the folder of config.json", "safetensors alone; name its folder"
        )
    return load_gguf(path, **options)


def load_adapter(path: str | os.PathLike[str], spec: ModelSpec, name: str | None = None) -> Adapter:
    """The adapter in PEFT's folder or in llama.cpp's GGUF file, for a model of this spec."""
    if Path(path).suffix == ".safetensors":
        raise FormatError(
            path, "file", "a GGUF file, or the folder of adapter_config.json", "safetensors alone; name its folder"
        )
    if Path(path).is_file():
        from .gguf import load_adapter as load_file  # noqa: PLC0415  # only the format at hand is imported

        return load_file(path, spec, name)
    from .huggingface import load_adapter as load_folder  # noqa: PLC0415

    return load_folder(path, spec, name)


def save_adapter(adapter: Adapter, folder: str | os.PathLike[str], spec: ModelSpec) -> None:
    """Write an adapter of a model of this spec as PEFT reads it."""
    from .huggingface import save_adapter as save  # noqa: PLC0415  # as above

    save(adapter, folder, spec)
