"""Documents that the cache was told of: added, changed or deleted. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from ibidem.lifecycle.invalidation import Criteria
from ibidem.types import Document, digest

KEYS = 8_192  # kept in memory: hashing takes longer than the rest of a lookup with many documents
FORGOTTEN = ""  # the key under which it stands until when what was told may be forgotten


@lru_cache(KEYS)
def name_key(namespace: str | None, name: str) -> str:
    """Return the key of a document, by its id or that of its source; in one namespace, or in all (None)."""
    return digest("all", name) if namespace is None else digest("one", namespace, name)


@lru_cache(KEYS)
def content_key(name: str, content: str) -> str:
    """Return the key of a text, by its digest, in a document with the key `name`; "" for all others in it."""
    return digest(name, content)


@dataclass(frozen=True, slots=True)
class Telling:
    """What one call tells: that documents changed or are new, and what they say now, if that is known.

    `names` are keys of documents of which any text may be new. `contents` are the keys of the present texts
    of a document by its own key: those that it said before too are not new.
    """

    names: frozenset[str] = frozenset()
    contents: Mapping[str, frozenset[str]] = field(default_factory=dict)


def telling_of(criteria: Criteria) -> Telling:
    """Return what an invalidation tells: nothing, if it chooses answers by something else than documents."""
    others = (criteria.tag, criteria.model, criteria.entry, criteria.before)
    if any(one is not None for one in others):
        return Telling()
    names = [name_key(criteria.namespace, name) for name in criteria.documents]
    if criteria.current is None or len(names) != 1:  # of which of several documents a text is is not known
        return Telling(frozenset(names))
    return Telling(contents={names[0]: frozenset(content_key(names[0], one) for one in criteria.current)})


@dataclass(frozen=True, slots=True)
class Told:
    """When documents of one namespace were told of last: seconds since the epoch by key."""

    namespace: str
    times: Mapping[str, float] = field(default_factory=dict)

    def is_new(self, document: Document, requested: float) -> bool:
        """Return whether this text of the document was told of, as new or changed, since a request."""
        found = [self.times.get(FORGOTTEN, 0.0)]
        for name in _names_of(document, self.namespace):
            other = self.times.get(content_key(name, ""), 0.0)
            found += [self.times.get(name, 0.0), self.times.get(content_key(name, document.digest), other)]
        return 0.0 < max(found) >= requested

    def has_id_before(self, document: Document, at: float) -> bool:
        """Return whether the document was told of by its own id, and last before this time."""
        keys = (name_key(None, document.id), name_key(self.namespace, document.id))
        return 0.0 < max(self.times.get(key, 0.0) for key in keys) < at


def keys_of(document: Document, namespace: str) -> Iterator[str]:
    """Yield the keys under which a document of this namespace may have been told of."""
    for name in _names_of(document, namespace):
        yield from (name, content_key(name, document.digest), content_key(name, ""))


def _names_of(document: Document, namespace: str) -> Iterator[str]:
    for name in {document.id, document.source} - {""}:
        yield from (name_key(None, name), name_key(namespace, name))
