"""Which collection of the index is in use, and which is being filled to replace it; kept in the truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ibidem.records import Records


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


class Catalogue:
    """The `Filling` of one index in the truth; changed by one process at a time.

    Args:
        records: The truth.
        base: The name of the first collection, which those of the successors begin with.
    """

    def __init__(self, records: Records, base: str) -> None:
        self._records, self.base, self._key = records, base, f"index:{base}"

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

    def _parsed(self, held: str | None) -> Filling:
        if held is None:
            return Filling(self.base)
        known = json.loads(held)
        return Filling(**{**known, "retired": tuple(map(tuple, known["retired"]))})
