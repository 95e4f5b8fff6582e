"""So much a minute: buckets that fill as time goes by, whatever the wall clock says."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

Clock = Callable[[], float]  # seconds that never go back


class Bucket:
    """Holds what a minute brings, so in t seconds it gives at most `per_minute * (1 + t / 60)`. Callers lock.

    Without a rate there is always enough in it.
    """

    __slots__ = ("_at", "_clock", "_level", "per_minute")

    def __init__(self, per_minute: float | None, clock: Clock = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute or 0)
        self._at = clock()

    def take(self, count: float) -> float:
        """Take it out, or say in how many seconds it could be; 0.0 if it was taken."""
        if self.per_minute is None:
            return 0.0
        self._fill(self.per_minute)
        missing = count - self._level
        if missing <= 0:
            self._level -= count
            return 0.0
        return missing * 60 / self.per_minute

    def give(self, count: float) -> None:
        """Put back what was not used; less than nothing is owed, and filled up first."""
        if self.per_minute is not None:
            self._fill(self.per_minute)
            self._level = min(self.per_minute, self._level + count)

    def resize(self, per_minute: float | None) -> None:
        """Another rate from now on; what is missing stays missing."""
        if per_minute == self.per_minute:
            return
        if self.per_minute is None or per_minute is None:
            self._level, self._at = float(per_minute or 0), self._clock()
        else:
            self._fill(self.per_minute)
            self._level += per_minute - self.per_minute
        self.per_minute = per_minute

    @property
    def full(self) -> bool:
        """Whether it remembers nothing."""
        return self.per_minute is None or self.left >= self.per_minute

    @property
    def left(self) -> float:
        """What is in it, where there is a rate."""
        self._fill(self.per_minute or 0)
        return self._level

    def _fill(self, per_minute: float) -> None:
        now = self._clock()
        self._level = min(per_minute, self._level + (now - self._at) * per_minute / 60)
        self._at = now


class Failures:
    """Wrong keys by the address that they came from; of IPv6, the network that one customer has."""

    def __init__(self, per_minute: float = 30, clock: Clock = time.monotonic, addresses: int = 10_000) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._most = addresses
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def add(self, address: str) -> bool:
        """One more; False if there were so many that nobody needs to be told."""
        network = _network(address)
        bucket = self._buckets.pop(network, None) or Bucket(self._per_minute, self._clock)
        self._buckets[network] = bucket
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return bucket.take(1) == 0.0

    def some(self, address: str) -> bool:
        """Whether more than half as many as may be came from there of late."""
        bucket = self._buckets.get(_network(address))
        return bucket is not None and bucket.left < self._per_minute / 2

    def many(self, address: str) -> bool:
        """Whether so many came from there that nothing costly is done for it."""
        bucket = self._buckets.get(_network(address))
        if bucket is None or bucket.take(1) > 0:
            return bucket is not None
        bucket.give(1)
        return False


def _network(address: str) -> str:
    return ":".join(address.split(":")[:4]) if address.count(":") > 1 else address
