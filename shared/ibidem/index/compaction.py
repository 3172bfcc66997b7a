"""The index follows the database: deletions reach it, and it is replaced before it decays.

Chroma only marks what is deleted and passes it in every search. When more is marked than alive, a new
collection is filled, a few vectors at a time; the `indexed_in` of an entry says in which of the two it was
put last. Then the new one takes the place of the old one.
"""

from __future__ import annotations

import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ibidem.index.base import Compactable, VectorIndex, generation_of
from ibidem.index.memory import VectorBuffer, with_scope_code
from ibidem.storage.engine import valid_rows
from ibidem.storage.store import Store
from ibidem.storage.vectors import RETIRED_KEY, VectorTable

BATCH = 50  # vectors copied or deleted at a time: Chroma holds the GIL meanwhile, 50 to 100 ms
LEAST_STALE = 1_000  # fewer stale points are not worth a new collection
DEAD_LIMIT = 100_000  # dead points kept for an index that nobody opens
LEASE_SECONDS = 60.0  # how long others wait for the process that fills the new collection
RETIRED_SECONDS = 30.0  # how long a replaced collection is left to processes that have not noticed
LOOK_SECONDS = 10.0  # how often to check whether a new collection is due


class IndexCompactor:
    """Deletes dead points, and replaces a collection that has too many. Used by one thread at a time.

    Args:
        table: The vectors that are indexed.
        registry: Names the collection in use.
        alone: Whether no other process can use the index.
    """

    def __init__(self, table: VectorTable, registry: CollectionRegistry, *, alone: bool) -> None:
        self._table, self._registry, self._alone = table, registry, alone
        self._me = uuid.uuid4().hex
        self.forget()

    def forget(self) -> None:
        """Drop the state of an index that was closed; the next open resumes a half-filled collection."""
        self._next: Compactable | None = None
        self._orphans = 0  # points in the index that the database did not have when it was opened
        self._look_at = self._limit_at = 0.0

    def on_open(self, index: VectorIndex) -> None:
        """Compare an index just opened with the database; refill it if it lacks points."""
        generation, other = generation_of(index), self._registry.read().generation
        before = self._table.count_indexed(generation, other)
        present = index.count()
        # Counted twice, as others may store and delete meanwhile.
        wanted = min(before, self._table.count_indexed(generation, other))
        self._orphans = max(0, present - wanted - self._table.count_dead())
        if present >= wanted:
            return
        if isinstance(index, Compactable):
            index.reset()
            self.on_reset()
        else:  # what it holds is put there once more
            self._table.mark_all_unindexed(generation)

    def on_reset(self) -> None:
        """Void what was recorded about the collection that was emptied."""
        self._next, self._orphans = None, 0
        self._registry.change(lambda now: replace(_without_next(now), dead=0))
        self._table.delete_all_dead()

    def delete_stale(self, index: VectorIndex, buffer: VectorBuffer, adding: threading.RLock) -> bool:
        """Delete one batch of dead points; returns whether there may be more. Idempotent.

        Nothing can be added while `adding` is held: what is stored again before that is alive, what is stored
        again later is added after it was removed.
        """
        if self._registry.read().next and self._next is None:
            return False  # the process that fills the new collection deletes from it
        table = self._table
        dead = table.dead_points(BATCH)
        if not dead:
            return False
        with adding:
            alive = table.live_points(dead)
            gone = [point for point in dead if point not in alive]
            buffer.remove(gone)
        if gone:  # what is being replaced need not be tidy
            (self._next or index).delete(gone)
        self._index_lost_again(index, table.live_points(dead))
        table.delete_dead(dead)
        if gone:
            self._registry.change(lambda now: replace(now, dead=now.dead + len(gone)))
        return len(dead) == BATCH

    def _index_lost_again(self, index: VectorIndex, alive: set[str]) -> None:
        """Requeue points that another process stored, and indexed, again before they were deleted here."""
        present = index.present(list(alive)) if isinstance(index, Compactable) else set()
        if lost := alive - present:
            self._table.mark_unindexed(list(lost))

    def put(self, index: VectorIndex, points: Sequence[str], rows: NDArray[np.float32]) -> str:
        """Add vectors to the index, and to the one being filled; returns the generation that holds them."""
        index.upsert(points, rows)
        if self._next is None or not self._extend_lease():
            return generation_of(index)
        self._next.upsert(points, rows)
        return self._next.generation

    def drop_dead(self) -> None:
        """Drop all dead points: there is no index that could hold one."""
        if self._table.count_dead():
            self._table.delete_all_dead()

    def limit_backlog(self) -> None:
        """Drop the dead points of an index that nobody opens: it is compared with the database when it is."""
        if time.monotonic() >= self._limit_at:
            self._limit_at = time.monotonic() + LEASE_SECONDS
            if self._table.count_dead() > DEAD_LIMIT:
                self._table.delete_all_dead()

    @property
    def busy(self) -> bool:
        """Whether this process is filling a new collection."""
        return self._next is not None

    def step(self, index: VectorIndex, *, wanted: bool = False) -> VectorIndex | None:
        """Do one step towards a new collection, if one is due or `wanted`; returns it when it is complete."""
        if not isinstance(index, Compactable):
            return None
        if self._next is None:
            if not wanted and time.monotonic() < self._look_at:
                return None
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._drop_retired(index)
            if wanted or self._is_due(index):
                self._begin(index)
            return None
        if self._copy(index, self._next):
            return None
        return self._finish(index, self._next)

    def _is_due(self, index: Compactable) -> bool:
        now = self._registry.read()
        stale = now.dead + self._orphans
        if now.next:
            return True
        return stale > LEAST_STALE and stale > self._table.count_indexed(index.generation)

    def _begin(self, index: Compactable) -> None:
        """Begin to fill a new collection, or take over one whose process is gone."""
        fresh = uuid.uuid4().hex

        def claim(now: CollectionState) -> CollectionState | None:
            if now.name != index.name:
                return None
            until = time.time() + LEASE_SECONDS
            if now.next:
                free = self._alone or now.owner == self._me or now.until < time.time()
                return replace(now, owner=self._me, until=until) if free else None
            name = f"{self._registry.base}-{fresh[:12]}"
            return replace(now, next=name, generation=fresh, owner=self._me, until=until)

        if (now := self._registry.change(claim)) is None:
            return
        begun = index.sibling(now.next, now.generation)
        intact = begun.generation == now.generation
        if intact and begun.count() >= self._table.count_indexed(now.generation):
            self._next = begun
        else:  # it was lost; what is marked as held by it is indexed again
            self._registry.change(_without_next)

    def _copy(self, index: Compactable, begun: Compactable) -> bool:
        """Copy a batch into the new collection; False if there is nothing left."""
        if not self._extend_lease():
            self._next = None
            return True
        rows = self._table.indexed(index.generation, BATCH)
        points = {
            row.point: with_scope_code(row.vector, row.namespace, row.scope, row.base)
            for row in rows
            if row.point is not None and row.vector is not None
        }
        if points:
            begun.upsert(list(points), np.stack(list(points.values())))
            self._table.mark_indexed(list(points), begun.generation)
        return bool(rows)

    def _extend_lease(self) -> bool:
        """Extend the lease on the new collection; False if it was taken over, or the index was emptied."""
        now, clock = self._registry.read(), time.time()
        if now.owner == self._me and now.until > clock + LEASE_SECONDS / 2:
            return True

        def extend(now: CollectionState) -> CollectionState | None:
            mine = now.next and now.owner == self._me
            return replace(now, until=clock + LEASE_SECONDS) if mine else None

        return self._registry.change(extend) is not None

    def _finish(self, index: Compactable, begun: Compactable) -> Compactable | None:
        self._next = None
        if begun.count() < self._table.count_indexed(begun.generation):
            self._registry.change(_without_next)
            return None
        gone_at = time.time() + (0.0 if self._alone else RETIRED_SECONDS)

        def swap(now: CollectionState) -> CollectionState | None:
            if (now.name, now.next, now.owner) != (index.name, begun.name, self._me):
                return None
            return CollectionState(begun.name, retired=(*now.retired, (index.name, gone_at)))

        done = self._registry.change(swap)
        self._orphans, self._look_at = 0, time.monotonic() + LOOK_SECONDS * (not self._alone)
        return begun if done is not None else None

    def _drop_retired(self, index: Compactable) -> None:
        """Delete replaced collections, once nobody can use them any more."""
        for name, at in self._registry.read().retired:
            if self._alone or time.time() >= at:
                index.drop(name)
                self._registry.change(lambda now, name=name: _without_retired(now, name))  # type: ignore[misc]
        for other in self._registry.forgotten():
            for name in other.read().names:
                index.drop(name)
            other.forget()


def _without_next(now: CollectionState) -> CollectionState:
    """Give the new collection up; it is dropped with the retired ones."""
    retired: Sequence[tuple[str, float]] = [(now.next, time.time())] if now.next else []
    return CollectionState(now.name, now.dead, retired=(*now.retired, *retired))


def _without_retired(now: CollectionState, name: str) -> CollectionState:
    return replace(now, retired=tuple(one for one in now.retired if one[0] != name))


@dataclass(frozen=True, slots=True)
class CollectionState:
    """The collections of one index, as all processes see them.

    `name` is the collection in use, `dead` the number of its points that were deleted since it was filled:
    Chroma only marks them, and passes them in every search. `next` with its `generation` is being filled to
    replace it, by `owner`, whose lease ends at `until`. The `retired` are deleted at their times.
    """

    name: str
    dead: int = 0
    next: str = ""
    generation: str = ""
    owner: str = ""
    until: float = 0.0
    retired: tuple[tuple[str, float], ...] = ()

    @property
    def names(self) -> set[str]:
        """Return the names of all existing collections."""
        return {self.name, self.next, *(name for name, _ in self.retired)} - {""}


def collection_name(embedder: str, cache_id: str) -> str:
    """Name of the first collection for the embedder with this digest of its fingerprint."""
    return f"ibidem-{embedder[:16]}" + (f"-{cache_id[:12]}" if cache_id else "")


class CollectionRegistry:
    """The `CollectionState` of one index in the database, changed by one process at a time.

    Args:
        store: The database.
        base: Name of the first collection, and prefix of the names of its successors.
        cache_id: Tells the collections of this database from those of others on the same server.
    """

    def __init__(self, store: Store, base: str, cache_id: str = "") -> None:
        self._store, self.base, self._cache_id = store, base, cache_id
        self._key = f"index:{base}"

    def read(self) -> CollectionState:
        """Read the current state."""
        return self._parsed(self._store.meta.get(self._key))

    def change(self, update: Callable[[CollectionState], CollectionState | None]) -> CollectionState | None:
        """Apply an update, repeated if another process was faster; no change if it returns None."""
        while True:
            stored = self._store.meta.get(self._key)
            changed = update(self._parsed(stored))
            if changed is None:
                return None
            if self._store.meta.compare_and_set(self._key, stored, json.dumps(asdict(changed))):
                return changed

    def forgotten(self) -> list[CollectionRegistry]:
        """List the registries of embedders that nobody uses any more, whose collections are to be deleted."""
        bases = (collection_name(one, self._cache_id) for one in self._store.meta.suffixes(RETIRED_KEY))
        return [CollectionRegistry(self._store, base, self._cache_id) for base in bases]

    def forget(self) -> None:
        """Delete the registry, after its collections."""
        self._store.meta.set(self._key, None)
        for one in self._store.meta.suffixes(RETIRED_KEY):
            if collection_name(one, self._cache_id) == self.base:
                self._store.meta.set(RETIRED_KEY + one, None)

    def _parsed(self, stored: str | None) -> CollectionState:
        # A damaged state is as good as none: the collection is then filled from the database like a new one.
        return next(valid_rows(_to_state, [] if stored is None else [stored]), CollectionState(self.base))


def _to_state(stored: str) -> CollectionState:
    fields = json.loads(stored)
    retired = tuple((str(name), float(at)) for name, at in fields["retired"])
    state = CollectionState(**{**fields, "retired": retired})
    texts, numbers = (state.name, state.next, state.generation, state.owner), (state.dead, state.until)
    if not (state.name and all(isinstance(one, str) for one in texts) and all(map(math.isfinite, numbers))):
        raise ValueError("damaged")
    return state
