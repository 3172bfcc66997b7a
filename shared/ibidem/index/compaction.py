"""The index follows the truth: forgets what was deleted there, and is replaced before it decays.

Chroma marks what is deleted and passes it in every search. When more is marked than alive, a new collection
is filled, a few vectors at a time; each entry's `indexed_in` tells in which of the two it was put last. Then
the new one takes the place of the old one.
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

from ibidem.index.base import VectorIndex, coded
from ibidem.index.memory import Memory, SmallIndex
from ibidem.storage.columns import sound
from ibidem.storage.entries import Records
from ibidem.storage.vectors import FORGOTTEN, VectorTable

BATCH = 50  # vectors copied or deleted at a time: Chroma holds the GIL meanwhile, 50 to 100 ms
LEAST_STALE = 1_000  # fewer stale points are not worth a new collection
DEAD_LIMIT = 100_000  # points noted for an index that nobody opens
LEASE_SECONDS = 60.0  # how long others wait for the process that fills the new collection
RETIRED_SECONDS = 30.0  # how long a replaced collection is left to processes that have not noticed
LOOK_SECONDS = 10.0  # how often it is asked whether a new collection is due


class Upkeep:
    """Deletes dead points and replaces the collection. Used by one thread at a time.

    Args:
        table: The vectors that are indexed.
        catalogue: Says which collection is in use.
        alone: Whether no other process can use the index.
    """

    def __init__(self, table: VectorTable, catalogue: Catalogue, *, alone: bool) -> None:
        self._table, self._catalogue, self._alone = table, catalogue, alone
        self._me = uuid.uuid4().hex
        self.forget()

    def forget(self) -> None:
        """The index was closed: whoever opens it goes on with the collection that is being filled."""
        self._next: VectorIndex | None = None
        self._orphans = 0  # points in the index that the truth did not have when it was opened
        self._look_at = self._cap_at = 0.0

    def opened(self, index: VectorIndex) -> None:
        """Look at an index just opened; if it lacks what it should hold, it is emptied, to be filled anew."""
        if isinstance(index, SmallIndex):
            return
        other = self._catalogue.read().generation
        before = self._table.count_indexed(index.generation, other)
        held = index.count()
        # Counted twice, as others may store and delete meanwhile.
        wanted = min(before, self._table.count_indexed(index.generation, other))
        self._orphans = max(0, held - wanted - self._table.count_dead())
        if held < wanted:
            index.reset()
            self.emptied()

    def emptied(self) -> None:
        """The collection in use is a new, empty one: what is noted about the old one is void."""
        self._next, self._orphans = None, 0
        self._catalogue.change(lambda now: replace(_without_next(now), dead=0))
        self._table.forget_dead()

    def bury(self, index: VectorIndex, memory: Memory, adding: threading.RLock) -> bool:
        """Forget one batch of dead points; returns whether there may be more.

        Nothing can be added while `adding` is held: what is stored again before that is alive, what is stored
        again later is added after it was removed. Done twice, it does the same.
        """
        small = isinstance(index, SmallIndex)
        if not small and self._catalogue.read().next and self._next is None:
            return False  # whoever fills the new collection deletes from it
        table = self._table
        dead = table.dead_points(BATCH)
        if not dead:
            return False
        with adding:
            alive = table.alive_points(dead)
            gone = [point for point in dead if point not in alive]
            memory.remove(gone)
        if gone:  # what is being replaced need not be tidy
            (self._next or index).delete(gone)
        # Another process may have stored, and indexed, one of them again before it was deleted here.
        alive = table.alive_points(dead)
        if lost := alive - index.held(list(alive)):
            self._table.index_again(list(lost))
        table.bury(dead)
        if gone and not small:
            self._catalogue.change(lambda now: replace(now, dead=now.dead + len(gone)))
        return len(dead) == BATCH

    def put(self, index: VectorIndex, points: Sequence[str], rows: NDArray[np.float32]) -> str:
        """Add vectors to the index, and to the one being filled; returns the generation that holds them."""
        index.upsert(points, rows)
        if self._next is None or not self._still_mine():
            return index.generation
        self._next.upsert(points, rows)
        return self._next.generation

    def cap(self) -> None:
        """Keep the notes for an index that nobody opens from growing: it will be compared when it is."""
        if time.monotonic() >= self._cap_at:
            self._cap_at = time.monotonic() + LEASE_SECONDS
            if self._table.count_dead() > DEAD_LIMIT:
                self._table.forget_dead()

    @property
    def busy(self) -> bool:
        """Whether a new collection is being filled by this process."""
        return self._next is not None

    def step(self, index: VectorIndex, *, wanted: bool = False) -> VectorIndex | None:
        """Do a little towards a new collection, if one is due or `wanted`; returns it when it is complete."""
        if isinstance(index, SmallIndex):
            return None
        if self._next is None:
            if not wanted and time.monotonic() < self._look_at:
                return None
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._drop_retired(index)
            if wanted or self._due(index):
                self._begin(index)
            return None
        if self._copy(index, self._next):
            return None
        return self._finish(index, self._next)

    def _due(self, index: VectorIndex) -> bool:
        now = self._catalogue.read()
        stale = now.dead + self._orphans
        if now.next:
            return True
        return stale > LEAST_STALE and stale > self._table.count_indexed(index.generation)

    def _begin(self, index: VectorIndex) -> None:
        """Begin to fill a new collection, or go on with one whose process is gone."""
        fresh = uuid.uuid4().hex

        def claim(now: Filling) -> Filling | None:
            if now.name != index.name:
                return None
            until = time.time() + LEASE_SECONDS
            if now.next:
                free = self._alone or now.owner == self._me or now.until < time.time()
                return replace(now, owner=self._me, until=until) if free else None
            name = f"{self._catalogue.base}-{fresh[:12]}"
            return replace(now, next=name, generation=fresh, owner=self._me, until=until)

        if (now := self._catalogue.change(claim)) is None:
            return
        begun = index.beside(now.next, now.generation)
        sound = begun.generation == now.generation
        if sound and begun.count() >= self._table.count_indexed(now.generation):
            self._next = begun
        else:  # it was lost; what is marked as held by it is indexed again
            self._catalogue.change(_without_next)

    def _copy(self, index: VectorIndex, begun: VectorIndex) -> bool:
        """Copy a batch into the new collection; False if there is nothing left."""
        if not self._still_mine():
            self._next = None
            return True
        rows = self._table.indexed(index.generation, BATCH)
        points = {
            row.point: coded(row.vector, row.namespace, row.scope)
            for row in rows
            if row.point is not None and row.vector is not None
        }
        if points:
            begun.upsert(list(points), np.stack(list(points.values())))
            self._table.mark_indexed(list(points), begun.generation)
        return bool(rows)

    def _still_mine(self) -> bool:
        """Whether nobody took over, or emptied the index; prolongs the lease."""
        now, clock = self._catalogue.read(), time.time()
        if now.owner == self._me and now.until > clock + LEASE_SECONDS / 2:
            return True

        def renew(now: Filling) -> Filling | None:
            mine = now.next and now.owner == self._me
            return replace(now, until=clock + LEASE_SECONDS) if mine else None

        return self._catalogue.change(renew) is not None

    def _finish(self, index: VectorIndex, begun: VectorIndex) -> VectorIndex | None:
        self._next = None
        if begun.count() < self._table.count_indexed(begun.generation):
            self._catalogue.change(_without_next)
            return None
        gone_at = time.time() + (0.0 if self._alone else RETIRED_SECONDS)

        def exchange(now: Filling) -> Filling | None:
            if (now.name, now.next, now.owner) != (index.name, begun.name, self._me):
                return None
            return Filling(begun.name, retired=(*now.retired, (index.name, gone_at)))

        done = self._catalogue.change(exchange)
        self._orphans, self._look_at = 0, time.monotonic() + LOOK_SECONDS * (not self._alone)
        return begun if done is not None else None

    def _drop_retired(self, index: VectorIndex) -> None:
        """Delete what was replaced, once nobody can use it any more."""
        for name, at in self._catalogue.read().retired:
            if self._alone or time.time() >= at:
                index.drop(name)
                self._catalogue.change(lambda now, name=name: _without_retired(now, name))  # type: ignore[misc]
        for other in self._catalogue.forgotten():
            for name in other.read().names:
                index.drop(name)
            other.forget()


def _without_next(now: Filling) -> Filling:
    """Give the new collection up; it is dropped with the retired."""
    retired: Sequence[tuple[str, float]] = [(now.next, time.time())] if now.next else []
    return Filling(now.name, now.dead, retired=(*now.retired, *retired))


def _without_retired(now: Filling, name: str) -> Filling:
    return replace(now, retired=tuple(one for one in now.retired if one[0] != name))


@dataclass(frozen=True, slots=True)
class Filling:
    """What every process of a place knows of its index.

    `name` is the collection in use, `dead` how many of its points were deleted since it was filled: Chroma
    marks them only, and passes them in every search. `next` with its `generation` is being filled to replace
    it, by `owner`, who may be taken to be gone at the time `until`. The `retired` go at their times.
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
        """All collections there are."""
        return {self.name, self.next, *(name for name, _ in self.retired)} - {""}


def base_of(embedder: str, place: str) -> str:
    """The name of the first collection for the embedder with this digest of its fingerprint."""
    return f"ibidem-{embedder[:16]}" + (f"-{place[:12]}" if place else "")


class Catalogue:
    """The `Filling` of one index in the truth; changed by one process at a time.

    Args:
        records: The truth.
        base: The name of the first collection, which those of the successors begin with.
        place: What tells the collections of this truth from those of others on the same server.
    """

    def __init__(self, records: Records, base: str, place: str = "") -> None:
        self._records, self.base, self._place, self._key = records, base, place, f"index:{base}"

    def read(self) -> Filling:
        """As it is now."""
        return self._parsed(self._records.meta(self._key))

    def change(self, how: Callable[[Filling], Filling | None]) -> Filling | None:
        """Change it, again if another process was faster; None, and no change, if `how` gives that."""
        while True:
            held = self._records.meta(self._key)
            changed = how(self._parsed(held))
            if changed is None:
                return None
            if self._records.meta_swap(self._key, held, json.dumps(asdict(changed))):
                return changed

    def forgotten(self) -> list[Catalogue]:
        """The catalogues of embedders that nobody uses any more: their collections are to be deleted."""
        bases = (base_of(one, self._place) for one in self._records.meta_keys(FORGOTTEN))
        return [Catalogue(self._records, base, self._place) for base in bases]

    def forget(self) -> None:
        """Its collections are deleted."""
        self._records.set_meta(self._key, None)
        for one in self._records.meta_keys(FORGOTTEN):
            if base_of(one, self._place) == self.base:
                self._records.set_meta(FORGOTTEN + one, None)

    def _parsed(self, held: str | None) -> Filling:
        # A damaged note is as good as none: the collection is then filled from the truth, as a new one is.
        return next(sound(_to_filling, [] if held is None else [held]), Filling(self.base))


def _to_filling(held: str) -> Filling:
    known = json.loads(held)
    found = Filling(**{**known, "retired": tuple((str(name), float(at)) for name, at in known["retired"])})
    texts, numbers = (found.name, found.next, found.generation, found.owner), (found.dead, found.until)
    if not (found.name and all(isinstance(one, str) for one in texts) and all(map(math.isfinite, numbers))):
        raise ValueError("damaged")
    return found
