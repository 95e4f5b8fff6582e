"""How a command fails: one line that says where, what and what helps, and an exit code."""

from __future__ import annotations

import errno
import os
from types import MappingProxyType

FAILED, REFUSED, INTERRUPTED = 1, 2, 130
_LINE_LIMIT = 600  # characters: a message quotes what was wrong, and an argument may be any length
# What libraries advise to their callers, as it is said to the command.
_FLAGS = MappingProxyType(
    {"lossy=True": "--lossy", "replace=True": "--force", "i2_s_group=": "--group ", "folder (out)": "folder (--out)"}
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)


class Refused(Exception):
    """The command was asked for what it cannot be asked for: exit code 2."""


class Failed(Exception):
    """The command was right, and what it tried did not work: exit code 1."""


def exit_code(error: BaseException) -> int:
    """2 where other input helps, 130 where the user broke off, and 1 for all else."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return REFUSED if _is_input(error) else FAILED


def _is_input(error: BaseException) -> bool:
    from cyclopts import CycloptsError  # noqa: PLC0415  # only failures need all of this

    from bitnet_core import Ambiguous, FormatError, NotFound, UnsupportedError  # noqa: PLC0415

    wrong = (Refused, CycloptsError, FormatError, UnsupportedError, NotFound, Ambiguous, ValueError, *_MISSING)
    return isinstance(error, wrong) and not isinstance(error, UnicodeError)


def one_line(error: BaseException) -> str:
    """What stderr shows of an error."""
    return f"bitnet: error: {shown(_said(error), _LINE_LIMIT)}"


def _said(error: BaseException) -> str:
    from cyclopts import UnusedCliTokensError  # noqa: PLC0415

    from bitnet_core import BitNetError  # noqa: PLC0415

    if isinstance(error, UnusedCliTokensError):
        return f"nothing takes '{' '.join(error.unused_tokens or ())}'; a text of several words stands in quotes"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, BitNetError):
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        helps = "; make room (bitnet du, bitnet rm --unused-for 30d), or write elsewhere"
        return ": ".join([*names, error.strerror.lower()]) + (helps if error.errno in _FULL else "")
    if isinstance(error, MemoryError) and not str(error):
        return "not enough memory"
    if _is_expected(error):
        said = str(error) + _nearest(error)
        for option, flag in _FLAGS.items():
            said = said.replace(option, flag)
        return said
    return f"{type(error).__name__}: {error}; this is a fault of bitnet: --debug shows where it comes from"


def _nearest(error: BaseException) -> str:
    """The key that was meant in a file of settings; for the command line cyclopts says it."""
    import difflib  # noqa: PLC0415

    from cyclopts.exceptions import UnknownOptionError  # noqa: PLC0415

    if not isinstance(error, UnknownOptionError) or not (error.token.keyword or "").startswith("["):
        return ""
    known = {name.lstrip("-") for argument in error.argument_collection for name in argument.names}
    near = difflib.get_close_matches((error.token.keyword or "").strip("[]").replace("_", "-"), known, n=1)
    return f" Did you mean {near[0]}?" if near else f" There are {', '.join(sorted(known))}."


def _is_expected(error: BaseException) -> bool:
    from cyclopts import CycloptsError  # noqa: PLC0415

    from bitnet_core import BitNetError  # noqa: PLC0415

    return isinstance(error, Refused | Failed | BitNetError | CycloptsError | ValueError)


def shown(text: str, limit: int) -> str:
    """A text as a part of one line: spaces for line ends, escapes for what does not print, its middle cut out."""
    line = " ".join(text.split())
    if len(line) > limit:
        line = f"{line[: limit * 2 // 3]} ... {line[-limit // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
