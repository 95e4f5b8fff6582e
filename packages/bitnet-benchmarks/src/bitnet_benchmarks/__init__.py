"""Ternary models measured: ceilings of the machine, speed, quality, rivals, and the history of all that."""

__version__ = "0.1.0"

__all__: list[str] = []
