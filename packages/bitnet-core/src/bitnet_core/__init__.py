"""The ground floor of the BitNet stack: types, files, tokenizers, memory, and the backend that is always right."""

from . import backends
from .decoder import generate
from .errors import (
    Ambiguous,
    BackendUnavailable,
    BitNetError,
    FormatError,
    HubError,
    IllConditioned,
    NotFound,
    Offline,
    OutOfMemory,
    TemplateError,
    UnsupportedError,
)
from .formats import load, load_adapter, save_adapter
from .layouts import LAYOUTS
from .model import Adapter, Backend, Cache, CacheStats, Model, ModelSpec, Reach, Rope, Runner, Step, Weights
from .tensor import TernaryTensor

__version__ = "0.1.0"

__all__ = [
    "LAYOUTS",
    "Adapter",
    "Ambiguous",
    "Backend",
    "BackendUnavailable",
    "BitNetError",
    "Cache",
    "CacheStats",
    "FormatError",
    "HubError",
    "IllConditioned",
    "Model",
    "ModelSpec",
    "NotFound",
    "Offline",
    "OutOfMemory",
    "Reach",
    "Rope",
    "Runner",
    "Step",
    "TemplateError",
    "TernaryTensor",
    "UnsupportedError",
    "Weights",
    "backends",
    "generate",
    "load",
    "load_adapter",
    "save_adapter",
]
