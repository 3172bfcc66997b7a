"""How long an answer may be repeated. Pure: no clock, no I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ibidem.entry import Entry
from ibidem.scoping import tenant_of

DAYS = 86_400.0
# Entries from further in the future than this are not believed: the clock was set back since, and they would
# outlive their time.
CLOCK_SKEW = 3_600.0
_IDS = float(2**32)

State = Literal["alive", "stale", "expired"]


@dataclass(frozen=True, slots=True)
class Lifetime:
    """The rules of one cache. An entry lives the shortest of what its storing and its reading caches say.

    Args:
        ttl: Seconds an answer lives.
        namespace_ttl: The same for single namespaces, and for the users in them.
        jitter: Share of its life (0 to 1) by which an answer may die earlier, by its id, so that those
            stored together do not expire together.
        sliding: Whether the life begins anew whenever the answer is served.
        grace: Seconds after its life in which an answer is still served, except to one caller at a time,
            whose miss refreshes it.
    """

    ttl: float = 30 * DAYS
    namespace_ttl: Mapping[str, float] = field(default_factory=dict)
    jitter: float = 0.0
    sliding: bool = False
    grace: float = 0.0

    def of(self, namespace: str, ttl: float | None = None) -> float:
        """Seconds that an answer lives here; `ttl` is what its storing call asks for."""
        rules = self.namespace_ttl
        own = rules[namespace] if namespace in rules else rules.get(tenant_of(namespace), self.ttl)
        return own if ttl is None else min(own, ttl)

    def expires(self, life: float, now: float) -> float | None:
        """When an entry of this life that is stored or served now can be deleted, None for never."""
        return None if math.isinf(life) else now + life + self.grace

    def state(self, entry: Entry, now: float, max_age: float | None = None) -> State:
        """Whether the entry may be served at `now`; none is that is older than `max_age` seconds."""
        age = now - entry.created
        if age < -CLOCK_SKEW or (max_age is not None and age > max_age):
            return "expired"
        since = max(entry.created, entry.used) if self.sliding else entry.created
        life = self.of(entry.namespace, entry.ttl)
        if self.jitter:
            life *= 1.0 - self.jitter * int(entry.id[:8], 16) / _IDS
        if now < since + life:
            return "alive"
        return "stale" if now < since + life + self.grace else "expired"
