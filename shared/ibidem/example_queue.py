"""Examples on their way to the log. One answer may be told of twice; it is written once.

A cache that stores an answer and a handler that follows the program tell of the same answer within moments,
and neither knows of the other: what both say is joined by namespace, question and answer.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from ibidem.bounded import BoundedDict
from ibidem.entry import Vector
from ibidem.examples import Example
from ibidem.locks import ForkSafeLock
from ibidem.request import digest, normalise
from ibidem.rows import EmbeddedExample

if TYPE_CHECKING:
    from ibidem.example_table import ExampleTable

TWICE_SECONDS = 10.0  # within which the same answer is taken for one that was told of before
FORGET_SECONDS = 60.0  # how often the old are looked for, while in use
_REMEMBERED = 4096
_UNKNOWN = (None, "", ())


class ExampleQueue:
    """What waits to be written. Thread-safe."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._waiting: collections.OrderedDict[str, EmbeddedExample] = collections.OrderedDict()
        # When, and of which entry: two entries may hold one text.
        self._written: BoundedDict[str, tuple[float, str | None]] = BoundedDict(_REMEMBERED)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, example: Example, vector: Vector | None, embedder: str) -> None:
        """Append an example, unless it is one that waits, which then knows more, or was just written."""
        key = _key(example)
        with self._lock:
            known = self._waiting.get(key)
            if known is not None and _same(known.example.entry_id, example.entry_id):
                joined = _joined(known.example, example)
                vector = known.vector if known.vector is not None else vector
                self._waiting[key] = EmbeddedExample(joined, vector, embedder)
                return
            at, entry_id = self._written.get(key) or (-TWICE_SECONDS, None)
            if time.monotonic() - at < TWICE_SECONDS and _same(entry_id, example.entry_id):
                return
            if known is not None:
                key = digest(key, example.entry_id or "")
            self._waiting[key] = EmbeddedExample(example, vector, embedder)

    def take(self, limit: int) -> list[EmbeddedExample]:
        """The first that wait, which then do not any more."""
        with self._lock:
            taken = [self._waiting.popitem(last=False)[1] for _ in range(min(limit, len(self._waiting)))]
            now = time.monotonic()
            for one in taken:
                self._written.put(_key(one.example), (now, one.example.entry_id))
        return taken

    def put_back(self, taken: Iterable[EmbeddedExample]) -> None:
        """Let them wait again, in their place."""
        with self._lock:
            for one in reversed([*taken]):
                key = _key(one.example)
                key = digest(key, one.example.entry_id or "") if key in self._waiting else key
                self._waiting[key] = one
                self._waiting.move_to_end(key, last=False)

    def drop(self, namespace: str | None = None) -> None:
        """Forget those of a namespace, or all."""
        with self._lock:
            self._written.clear()
            for key, one in tuple(self._waiting.items()):
                if namespace is None or one.example.namespace == namespace:
                    del self._waiting[key]

    def forget_written(self) -> None:
        """Some of what was written may be deleted: the same answer is an example again."""
        with self._lock:
            self._written.clear()


class Forgetting:
    """Deletes examples that are older than they may be.

    Args:
        table: The example log.
        ttl: Seconds that an example is kept; infinite for ever.
        clock: Seconds since the epoch.
    """

    def __init__(self, table: ExampleTable, ttl: float, clock: Callable[[], float]) -> None:
        self._table, self._ttl, self._clock, self._next_at = table, ttl, clock, 0.0

    def tighten(self, ttl: float) -> None:
        """Another cache is opened on this place: the shorter time holds for both."""
        self._ttl = min(self._ttl, ttl)

    def work(self) -> bool:
        """Delete what is too old; False, as nothing is left then."""
        if math.isfinite(self._ttl) and time.monotonic() >= self._next_at:
            self._table.forget_before(self._clock() - self._ttl)
            self._next_at = time.monotonic() + FORGET_SECONDS
        return False


def _key(example: Example) -> str:
    return digest(example.namespace, normalise(example.question), example.answer)


def _same(one: str | None, other: str | None) -> bool:
    return one is None or other is None or one == other


def _joined(first: Example, then: Example) -> Example:
    """What both say; where they differ, the first."""
    names = "model documents input_tokens output_tokens seconds entry_id scope feedback".split()
    known = {name: getattr(then, name) for name in names if getattr(first, name) in _UNKNOWN}
    tags = tuple(dict.fromkeys((*first.tags, *then.tags)))
    return replace(first, **known, tags=tags, streamed=first.streamed or then.streamed)
