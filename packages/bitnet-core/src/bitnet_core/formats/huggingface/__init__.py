"""Hugging Face folders: config.json, safetensors and a tokenizer's files."""

from .adapters import load_adapter, save_adapter
from .reader import load
from .writer import save

__all__ = ["load", "load_adapter", "save", "save_adapter"]
