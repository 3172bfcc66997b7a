"""Examples on their way to the log. One answer may be told of twice; it is written once.

A cache that stores an answer and a handler that follows the program tell of the same answer within moments,
and neither knows of the other: what the two say is joined by namespace, question and answer.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ibidem.bounded import BoundedDict
from ibidem.examples.example import Example
from ibidem.locks import ForkSafeLock
from ibidem.request import digest, normalise
from ibidem.scoping import is_of
from ibidem.storage.rows import EmbeddedExample

if TYPE_CHECKING:
    from ibidem.storage.example_table import ExampleTable

TWICE_SECONDS = 10.0  # between the two, at most
FORGET_SECONDS = 60.0  # how often the old are looked for, while in use
_REMEMBERED = 4096
_UNKNOWN = (None, "", ())


@dataclass(slots=True)
class _Told:
    """An example that only one of the two has told of yet, and its number in the queue."""

    number: int
    stored: bool
    entry_id: str | None
    at: float


class ExampleQueue:
    """What waits to be written. Thread-safe."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._waiting: collections.OrderedDict[int, EmbeddedExample] = collections.OrderedDict()
        self._told_once: BoundedDict[str, list[_Told]] = BoundedDict(_REMEMBERED)
        self._next = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, given: EmbeddedExample, *, stored: bool) -> None:
        """Append an example; one that the other has told of as well only adds what it knows more.

        `stored` if a cache tells of it that has stored the answer, else somebody who followed the program.
        """
        key, example, now = _key(given.example), given.example, time.monotonic()
        with self._lock:
            told = [one for one in self._told_once.get(key) or () if now - one.at < TWICE_SECONDS]
            other = next((one for one in told if _is_same(one, example.entry_id, stored)), None)
            if other is None:
                self._next += 1
                self._waiting[self._next] = given
                told.append(_Told(self._next, stored, example.entry_id, now))
            else:
                told.remove(other)
                if (first := self._waiting.get(other.number)) is not None:
                    self._waiting[other.number] = _joined(first, given)
            self._told_once.put(key, told)

    def take(self, limit: int) -> list[tuple[int, EmbeddedExample]]:
        """The first that wait, which then do not any more, with their numbers."""
        with self._lock:
            return [self._waiting.popitem(last=False) for _ in range(min(limit, len(self._waiting)))]

    def put_back(self, taken: Sequence[tuple[int, EmbeddedExample]]) -> None:
        """Let them wait again, in their place."""
        with self._lock:
            for number, one in reversed(taken):
                self._waiting[number] = one
                self._waiting.move_to_end(number, last=False)

    def drop(self, namespace: str | None = None) -> None:
        """Forget those of a namespace, or all."""
        with self._lock:
            self._told_once.clear()
            for number, one in tuple(self._waiting.items()):
                if namespace is None or is_of(one.example.namespace, namespace):
                    del self._waiting[number]

    def forget_told(self) -> None:
        """Some of what was written may be deleted: who tells of it now tells of another answer."""
        with self._lock:
            self._told_once.clear()


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


def _is_same(one: _Told, entry_id: str | None, stored: bool) -> bool:
    return one.stored != stored and (None in (one.entry_id, entry_id) or one.entry_id == entry_id)


def _joined(first: EmbeddedExample, then: EmbeddedExample) -> EmbeddedExample:
    """What both say; where they differ, the first."""
    one, other = first.example, then.example
    names = "model documents input_tokens output_tokens seconds entry_id scope feedback".split()
    known = {name: getattr(other, name) for name in names if getattr(one, name) in _UNKNOWN}
    tags = tuple(dict.fromkeys((*one.tags, *other.tags)))
    example = replace(one, **known, tags=tags, streamed=one.streamed or other.streamed)
    told = min(first.told, then.told)
    return replace(first if first.vector is not None else then, example=example, told=told)
