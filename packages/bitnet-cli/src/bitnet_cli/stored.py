"""What a model's files hold, as they say it themselves: one view of GGUF files and safetensors folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .failures import Refused


@dataclass(frozen=True, slots=True)
class Listed:
    """A tensor by its name in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Headers alone."""

    format: str
    metadata: Mapping[str, Any]
    tensors: tuple[Listed, ...]


def read(path: Path) -> Stored:
    """The headers of a GGUF file, of a safetensors file, or of all of those in a folder."""
    if not path.exists():
        raise Refused(f"{path}: no such file or folder")
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if files:
            return _safetensors(path, files)
        files = sorted(path.glob("*.gguf"))
        if not files:
            raise Refused(f"{path}: expected safetensors or GGUF files in this folder, got none")
        return _gguf(files[0])
    return _safetensors(path.parent, [path]) if path.suffix == ".safetensors" else _gguf(path)


def _gguf(path: Path) -> Stored:
    from bitnet_core.formats import gguf  # noqa: PLC0415

    with gguf.File(path) as file:
        listed = tuple(Listed(t.name, t.kind.name, tuple(t.shape), t.nbytes) for t in file.tensors.values())
        return Stored(f"GGUF version {file.version}", dict(file.metadata), listed)


def _safetensors(folder: Path, files: list[Path]) -> Stored:
    from bitnet_core.formats.safetensors import SafetensorsFile  # noqa: PLC0415
    from bitnet_core.formats.strictjson import parse_json  # noqa: PLC0415

    listed: list[Listed] = []
    metadata: dict[str, Any] = {}
    for path in files:
        file = SafetensorsFile(path)
        try:
            metadata |= file.metadata
            for name, entry in file.entries.items():
                listed.append(Listed(name, entry.dtype.name, entry.shape, entry.end - entry.start))
        finally:
            file.close()
    config = folder / "config.json"
    if config.is_file() and config.stat().st_size < 1 << 22:
        metadata |= parse_json(config.read_bytes(), str(config))
    many = f"safetensors, {len(files)} files" if len(files) > 1 else "safetensors"
    return Stored(many, metadata, tuple(listed))
