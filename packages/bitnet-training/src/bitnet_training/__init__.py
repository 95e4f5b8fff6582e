"""Ternary models trained: from random numbers, from pretrained floats, and on top of a ternary base.

Each module is a door of its own, so that a run's settings can be read without torch, and a layer without transformers.
"""

__version__ = "0.1.0"

__all__: list[str] = []
