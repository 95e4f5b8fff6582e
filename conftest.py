"""What the tests of all packages share."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Interrupts are heard here and in what tests start, though whoever began them had them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
