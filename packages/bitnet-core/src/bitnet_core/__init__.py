"""The ground floor of the BitNet stack: types, files, tokenizers, memory, and the backend that is always right."""

__version__ = "0.1.0"
