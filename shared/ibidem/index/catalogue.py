"""Which collection of the index is in use, and which is being filled to replace it; kept in the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ibidem.storage.columns import sound
from ibidem.storage.embedders import FORGOTTEN
from ibidem.storage.records import Records


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
