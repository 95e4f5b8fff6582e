"""GGUF files: read without trust and without copying, and written so that llama.cpp and bitnet.cpp read them."""

from .adapters import load_adapter
from .container import File, Tensor
from .export import save
from .model import load
from .strings import Strings
from .types import KINDS, Kind
from .verify import Finding, verify
from .writer import Blob, blob, write

__all__ = [
    "KINDS",
    "Blob",
    "File",
    "Finding",
    "Kind",
    "Strings",
    "Tensor",
    "blob",
    "load",
    "load_adapter",
    "save",
    "verify",
    "write",
]
