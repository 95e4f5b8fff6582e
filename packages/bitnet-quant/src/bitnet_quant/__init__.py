"""Ternary models made, converted, measured and run fast: ternarization, conversion, reports, and the cpu backend."""

from .conversion import Conversion, convert, digest
from .quality import report
from .recipe import Recipe, Rule
from .ternarization import Method, Ternarized, ternarize
from .verification import verify

__version__ = "0.1.0"

__all__ = [
    "Conversion",
    "Method",
    "Recipe",
    "Rule",
    "Ternarized",
    "convert",
    "digest",
    "report",
    "ternarize",
    "verify",
]
