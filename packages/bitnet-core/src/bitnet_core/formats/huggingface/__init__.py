"""Hugging Face folders: config.json, safetensors and a tokenizer's files."""

from .reader import load
from .writer import save

__all__ = ["load", "save"]
