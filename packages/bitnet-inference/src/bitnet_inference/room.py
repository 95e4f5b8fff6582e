"""How many pages caches may take, and who must give some back when there are too few."""

from __future__ import annotations

from bitnet_core.memory import Pool
from bitnet_core.model import CacheStats, Runner


class Room:
    """The pages of one runner under two limits: that of its memory, and that of the engine."""

    def __init__(self, runner: Runner, pool: Pool | None, limit: int) -> None:
        self._runner = runner
        self._pool = pool
        self.limit = limit  # bytes of keys and values

    def stats(self) -> CacheStats:
        """The account of the runner."""
        return self._runner.cache_stats()

    def left(self) -> int:
        """Pages that can still be taken."""
        stats = self.stats()
        left = self.limit // stats.page_bytes - stats.used
        if self._pool is not None and self._pool.limit is not None:
            account = self._pool.stats()
            slabs = max(0, self._pool.limit - account.mapped - account.reserved) // (stats.slab * stats.page_bytes)
            left = min(left, stats.free + slabs * stats.slab)
        return left

    def capacity(self) -> int:
        """Positions that one sequence can have if it is alone."""
        stats = self.stats()
        return max(0, self.left() + stats.used) * stats.positions
