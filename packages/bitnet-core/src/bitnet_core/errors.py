"""Every error that the stack raises on purpose.

    BitNetError
    +-- FormatError          a file, or a field in it, is not what it must be
    |   +-- TemplateError    a chat template is wrong, or asks for too much
    +-- UnsupportedError     honest input that this version cannot handle
    +-- BackendUnavailable   a backend is unknown, or cannot run here
    +-- HubError             a model could not be fetched
    |   +-- NotFound         no such model, revision or file
    |   +-- Ambiguous        several files of a model could be meant
    |   +-- Offline          it is not on this machine, and the network is off
    +-- OutOfMemory          a memory pool would pass its limit
    +-- IllConditioned       a matrix is too near to singular for the answer to mean anything

A message says where, what, what was expected against what was found, and the remedy, in one line.
"""

from __future__ import annotations

import os
import unicodedata

_VALUE_LIMIT = 80
_MESSAGE_LIMIT = 500


def printable(value: object, limit: int = _VALUE_LIMIT) -> str:
    """`value` as one short line: control characters escaped, cut at `limit` characters."""
    text = value if isinstance(value, str) else str(value)
    shown = "".join(_escape(c) for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _escape(character: str) -> str:
    # "C" holds control, format (right-to-left marks), surrogate and private characters.
    if unicodedata.category(character)[0] == "C" or character in "\u2028\u2029":
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character


class BitNetError(Exception):
    """The root: `except BitNetError` catches all that the stack raises on purpose."""


class FormatError(BitNetError, ValueError):
    """A file is not what it must be; the parts of the message are attributes."""

    def __init__(
        self,
        file: str | os.PathLike[str],
        field: str,
        expected: object,
        got: object,
        *,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.file = os.fspath(file)
        self.field = field
        self.expected = str(expected)
        self.got = str(got)
        self.offset = offset
        self.hint = hint
        where = f" (byte {offset})" if offset is not None else ""
        remedy = f"; {hint}" if hint else ""
        # A long path must not push the finding out of the line: its end is what tells files apart.
        name = printable(self.file, 4096)
        name = name if len(name) <= 120 else "..." + name[-117:]
        message = (
            f"{name}: {printable(field, 100)}: expected {printable(expected, 140)}, "
            f"got {printable(got)}{where}{printable(remedy, 160)}"
        )
        super().__init__(printable(message, _MESSAGE_LIMIT))

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own pickling would call __init__ with the finished message alone.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[FormatError], args: tuple[object, ...], state: dict[str, object]) -> FormatError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class TemplateError(FormatError):
    """A chat template does not compile, fails on these messages, or passes its limits."""


class UnsupportedError(BitNetError):
    """The input is honest, and this version does not handle it; the message says what does."""


class BackendUnavailable(BitNetError):
    """No such backend, or it cannot run on this machine; the message says what is missing."""


class HubError(BitNetError):
    """A model could not be fetched; the message says from where, and what to try."""


class NotFound(HubError):
    """The hub answered that there is no such model, revision or file."""


class Ambiguous(HubError):
    """Several files of a model could be meant; the message and `choices` list them."""

    def __init__(self, message: str, choices: tuple[str, ...]) -> None:
        super().__init__(message)
        self.choices = choices

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.choices)


class Offline(HubError):
    """The files are not on this machine, and the network may not be used or does not answer."""


class OutOfMemory(BitNetError, MemoryError):
    """A pool would pass its limit; the message says how much was asked for, and how much is left."""


class IllConditioned(BitNetError, ArithmeticError):
    """A matrix is too near to singular; the message gives its condition and the bound."""
