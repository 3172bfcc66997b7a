"""The names of `PendingRequest` that are still called."""

from __future__ import annotations

from ibidem.pending import LookupCache, PendingRequest


class Asking(PendingRequest):
    """A `PendingRequest` by its old names."""

    __slots__ = ("cache",)

    def __init__(self, cache: LookupCache, request: object) -> None:
        super().__init__(cache, request)  # type: ignore[arg-type]
        self.cache = cache

    look, alook = PendingRequest.lookup, PendingRequest.alookup
    await_turn, keep = PendingRequest.await_, PendingRequest.store
    refuse, end = PendingRequest.reject, PendingRequest.abort
