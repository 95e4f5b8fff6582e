"""What ends a run before its last step."""

from __future__ import annotations

from bitnet_core import BitNetError


class TrainingStopped(BitNetError):
    """A run cannot begin or go on; the message says why, and what of it is safe."""
