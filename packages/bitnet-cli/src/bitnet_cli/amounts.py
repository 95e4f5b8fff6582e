"""Numbers as people write and read them: 10k, 2GiB, 5.3 MiB, 3 days ago."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Any

from cyclopts import Parameter, Token, validators

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(i?)(b?)", re.IGNORECASE | re.ASCII)
_PARTS = ((3600.0, 60, 1, "min", "s"), (172800.0, 3600, 60, "h", "min"), (float("inf"), 86400, 3600, "d", "h"))
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_size(text: str) -> int:
    """Bytes: kB, MB, GB and TB are powers of 1000, KiB and so on of 1024, as are K, M, G and T alone."""
    return _parse(text, "4096, 64MB or 2GiB", plain=1024)


def parse_count(text: str) -> int:
    """How many: k, M, G and T are powers of 1000, Ki, Mi, Gi and Ti of 1024."""
    return _parse(text, "4096, 10k or 8Ki", plain=1000)


def _parse(text: str, such: str, *, plain: int) -> int:
    match = _NUMBER.fullmatch(text.strip().replace("_", ""))
    if not match or (match[4] and plain == 1000) or (match[3] and not match[2]):
        raise ValueError(f"expected a number such as {such}, got '{text[:80]}'")
    digits, letter, binary, byte = match.groups()
    unit = 1024 if binary else 1000 if byte else plain
    value = Fraction(digits) * unit ** _POWERS[letter.lower()]
    if value.denominator != 1:
        raise ValueError(f"expected a whole number, got '{text}'")
    return int(value)


def parse_span(text: str) -> float:
    """Seconds, of 90s, 15m, 12h, 30d or 2w."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhdw])", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"expected a time such as 12h, 30d or 2w, got '{text[:80]}'")
    return float(match[1]) * _SPANS[match[2].lower()]


def _convert_size(_: Any, tokens: Sequence[Token]) -> int:
    return parse_size(tokens[0].value)


def _convert_count(_: Any, tokens: Sequence[Token]) -> int:
    return parse_count(tokens[0].value)


def _convert_counts(_: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    found = tuple(parse_count(part) for token in tokens for part in token.value.split(",") if part)
    if not found:  # it would pass for a flag that was not given
        raise ValueError(f"expected numbers such as 1,2,4, got '{','.join(token.value for token in tokens)}'")
    return found


def _convert_span(_: Any, tokens: Sequence[Token]) -> float:
    return parse_span(tokens[0].value)


def _span(seconds: float | None) -> str | None:
    """A time as it is written on the command line."""
    if not seconds:
        return None
    unit = max((unit for unit in _SPANS if seconds % _SPANS[unit] == 0), key=_SPANS.__getitem__, default="s")
    return f"{seconds / _SPANS[unit]:g}{unit}"


def _within(low: int, high: int) -> validators.Number:
    return validators.Number(gte=low, lte=high)


Count = Annotated[int, Parameter(converter=_convert_count, validator=_within(1, 1 << 24), metavar="N")]
Counts = Annotated[
    tuple[int, ...], Parameter(converter=_convert_counts, validator=_within(1, 1 << 24), metavar="N,N...", n_tokens=1)
]
Amount = Annotated[int, Parameter(converter=_convert_count, validator=_within(1, 1 << 53), metavar="N")]
Threads = Annotated[int, Parameter(converter=_convert_count, validator=_within(1, 1024), metavar="N")]
Size = Annotated[int, Parameter(converter=_convert_size, validator=_within(1, 1 << 60), metavar="SIZE")]
Span = Annotated[float, Parameter(converter=_convert_span, metavar="TIME", show_default=_span)]


def size(nbytes: float | None) -> str:
    """Bytes in binary units."""
    if nbytes is None:
        return "unknown"
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def amount(count: float, digits: int = 2) -> str:
    """How many, in thousands, millions and billions."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if count >= limit:
            return f"{count / (1e3 if unit == 'k' else limit):.{digits}f} {unit}"
    return f"{count:,.0f}"


def ago(when: float) -> str:
    """How long ago a time was."""
    seconds = max(0.0, time.time() - when)
    for limit, unit in ((86400 * 60, 86400 * 30), (86400 * 2, 86400), (7200, 3600), (120, 60)):
        if seconds >= limit:
            word = {86400 * 30: "months", 86400: "days", 3600: "hours", 60: "minutes"}[unit]
            return f"{seconds / unit:.0f} {word} ago"
    return "just now"


def duration(seconds: float) -> str:
    """How long something took: 0.4 ms, 31 ms, 1.83 s, 4 min 10 s, 3 h 5 min, 12 d 4 h."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.00995 else f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    _, large, small, unit, part = next(row for row in _PARTS if seconds < row[0])
    count, rest = divmod(round(seconds / small), large // small)
    return f"{count:,} {unit} {rest} {part}" if rest else f"{count:,} {unit}"
