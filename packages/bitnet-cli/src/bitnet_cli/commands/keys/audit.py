"""`bitnet keys audit`: whether an audit log is whole."""

from __future__ import annotations

from pathlib import Path

from ...console import FLAGS, Flags


def audit(file: Path, *, flags: Flags = FLAGS) -> None:
    """Whether every line of an audit log follows from the one before; the last hash, kept elsewhere, proves the rest.

    Parameters
    ----------
    file
        The log that bitnet serve --audit writes.
    """
    from bitnet_inference.server.audit import verify  # noqa: PLC0415

    head = verify(file)
    flags.answer(head, f"{head.lines} lines, whole; the last hash is {head.hash}")
