"""The `bitnet` command: it parses and prints, and everything else is done by the packages below."""

__version__ = "0.1.0"

__all__: list[str] = []
