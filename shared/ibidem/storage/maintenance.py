"""Background expiry and eviction: keeps the database within its bounds."""

from __future__ import annotations

import time
from collections.abc import Callable

from ibidem._util.concurrency import ForkSafeLock
from ibidem.errors import ConfigurationError
from ibidem.lifecycle.rules import Bounds, Lifetime
from ibidem.storage.deletion import BATCH, Evictor

PURGE_SECONDS = 60.0  # between deletions of expired entries, while in use
# Delay of deletion after expiry, so that an entry that is replaced keeps its eviction rank.
LATE_SECONDS = 3_600.0
RECOUNT_SECONDS = 60.0  # how often entries are counted, as other processes store and delete too
SLACK = 0.01  # share of a bound freed in addition, so as not to evict at every store


class Housekeeping:
    """Evicts and expires the entries of one location. Thread-safe.

    Args:
        evictor: Deletes entries.
        bounds: Limits on its size.
        lifetime: Whether lifetimes restart with every hit, and `stale_while_revalidate`.
        clock: Seconds since the epoch.
    """

    def __init__(
        self, evictor: Evictor, bounds: Bounds, lifetime: Lifetime, clock: Callable[[], float]
    ) -> None:
        self._evictor, self._clock = evictor, clock
        self._lock = ForkSafeLock()
        self.bounds, self.lifetime, self.floor = bounds, lifetime, evictor.floor()
        self.ranking = evictor.ranking()  # ranks as the entries are ranked
        self.evicted = self.expired = 0  # entries deleted by this process
        self._entries = self._bytes = 0
        self._stores = self._stored_bytes = 0  # so far
        self._counted = 0  # stores as of the last count
        self._purge_at = self._count_at = 0.0

    def tighten(self, bounds: Bounds, sliding: bool) -> None:
        """Apply the stricter bounds when another cache opens this location.

        Raises:
            ConfigurationError: It has another rule of eviction or expiry; a location has one.
        """
        with self._lock:
            if (bounds.eviction, sliding) != (self.bounds.eviction, self.lifetime.sliding):
                raise ConfigurationError(
                    f"eviction={bounds.eviction!r}, sliding={sliding}: a cache that is open on this place "
                    f"has eviction={self.bounds.eviction!r}, sliding={self.lifetime.sliding}; use the same"
                )
            self.bounds = self.bounds.tightened(bounds)

    def grown(self, size: int) -> None:
        """Count a stored entry of this size, which may have replaced another."""
        with self._lock:
            self._stores, self._stored_bytes = self._stores + 1, self._stored_bytes + size
            self._entries, self._bytes = self._entries + 1, self._bytes + size

    def work(self) -> bool:
        """Delete one batch; return whether there may be more."""
        now = time.monotonic()
        if now >= self._purge_at:
            gone = self._evictor.delete_expired(self._clock() - LATE_SECONDS)
            self.expired += gone
            if gone >= BATCH:
                return True
            self._purge_at = now + PURGE_SECONDS
        return self._evict(now)

    def _evict(self, now: float) -> bool:
        bounds = self.bounds
        if now >= self._count_at:
            self._recount(now)
        if not bounds.limited:
            return False
        if self.ranking.ranking != bounds.ranking:
            self.floor = self._evictor.rerank(bounds)
            self.ranking = bounds
        if any(self._too_much()) and self._counted != self._stores:
            self._recount(now)  # others may have replaced, cleared or deleted entries
        entries, size = self._too_much()
        if not entries and not size:
            return False
        gone, freed, floor = self._evictor.evict(entries, size)
        with self._lock:
            self._entries, self._bytes = self._entries - gone, self._bytes - freed
            self.evicted += gone
            self.floor = max(self.floor, floor)
        if not gone:  # others deleted them
            self._recount(now)
        return gone > 0

    def _too_much(self) -> tuple[int, int]:
        """Return the entries and bytes to evict."""
        bounds = self.bounds
        return _excess(self._entries, bounds.max_entries), _excess(self._bytes, bounds.max_bytes)

    def _recount(self, now: float) -> None:
        self.ranking = self._evictor.ranking()  # another process may have other bounds
        if not self.bounds.limited:
            self._count_at = now + RECOUNT_SECONDS
            return
        with self._lock:
            stores, stored_bytes = self._stores, self._stored_bytes
        entries, size = self._evictor.size()
        floor = self._evictor.floor()
        with self._lock:
            # The count may lack what was stored meanwhile. Counting it twice is corrected before anything is
            # evicted; lacking it would exceed the bound until the next count.
            self._entries = entries + self._stores - stores
            self._bytes = size + self._stored_bytes - stored_bytes
            self._counted = stores
            self.floor = max(self.floor, floor)  # other processes evict, too
            self._count_at = now + RECOUNT_SECONDS


def _excess(held: int, bound: int | None) -> int:
    """Return how much to evict."""
    return 0 if bound is None or held <= bound else held - max(1, int(bound * (1.0 - SLACK)))
