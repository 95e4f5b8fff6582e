"""How long a hub is waited for, and what is tried again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import HubError

T = TypeVar("T")
_ENOUGH_PROGRESS = 16 << 20  # bytes; a transfer that has come this much further has earned new retries


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a hub is waited for, and how often it is asked again; seconds and bytes a second."""

    connect_s: float = 10.0
    stall_s: float = 30.0  # no answer for so long, or less than `least_rate` over so long, is a stall
    least_rate: float = 1024.0
    retries: int = 5
    backoff_s: float = 0.5  # doubled with every retry, and taken at random between half and the whole
    longest_wait_s: float = 60.0  # a server that asks for more is not waited for
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if not (0 < self.stall_s <= 60 and 0 <= self.retries <= 5):
            raise ValueError(f"stall_s must be in 0..60 and retries in 0..5, not {self.stall_s} and {self.retries}")

    def persist(self, attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
        """Calls `attempt` until it succeeds, fails for good, or has failed too often without getting further."""
        failures, mark = 0, reached()
        while True:
            try:
                return attempt()
            except Passing as passing:
                failure = passing
            if reached() - mark >= _ENOUGH_PROGRESS:
                failures, mark = 0, reached()
            failures += 1
            if failures > self.retries or failure.wait_s > self.longest_wait_s:
                raise failure.error
            longest = self.backoff_s * 2.0 ** (failures - 1)
            self.pause(max(failure.wait_s, random.uniform(longest / 2, longest)))  # noqa: S311


PATIENCE = Patience()


class Passing(Exception):
    """A failure that may pass by itself: what to raise when it does not, and how long the server asks to wait."""

    def __init__(self, error: HubError, wait_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s
