"""Invalidation criteria and tombstones. Pure."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from ibidem._util.concurrency import ForkSafeLock
from ibidem.errors import InvalidInput
from ibidem.example import DocumentRef, Example
from ibidem.types import Document, Entry, Source, digest, require_name

NAMES = 5_000  # documents of one query, each compared twice
CONTENTS = 10_000  # parts of one document in `current=`


@dataclass(frozen=True, slots=True)
class Invalidated:
    """The number of deleted answers; of a dry run, what would be deleted, with the newest as `entries`.

    `examples` is the number of deleted examples; a dry run does not count them.
    """

    count: int
    entries: tuple[Entry, ...] = ()
    examples: int = 0

    def __bool__(self) -> bool:
        return self.count > 0


@dataclass(frozen=True, slots=True)
class Criteria:
    """Criteria of answers to invalidate; an answer must meet all that are given. Made by `criteria_of`.

    `documents` are ids of documents or of their sources, `current` the digests of their present contents,
    `before` is in seconds since the epoch.
    """

    documents: tuple[str, ...] = ()
    current: frozenset[str] | None = None
    tag: str | None = None
    namespace: str | None = None
    model: str | None = None
    entry: str | None = None
    before: float | None = None

    def matches_entry(self, entry: Entry) -> bool:
        """Return whether the entry matches; its sources and tags must be known."""
        return self.matches(
            namespace=entry.namespace,
            model=entry.answer.model,
            entry=entry.id,
            created=entry.created,
            tags=entry.tags,
            documents=entry.sources,
        )

    def matches_example(self, example: Example) -> bool:
        """Return whether the example matches."""
        return self.matches(
            namespace=example.namespace,
            model=example.model,
            entry=example.entry_id,
            created=example.at,
            tags=example.tags,
            documents=example.documents,
        )

    def matches(
        self,
        *,
        namespace: str,
        model: str,
        entry: str | None,
        created: float,
        tags: Collection[str],
        documents: Iterable[Source | DocumentRef | Document],
    ) -> bool:
        """Return whether an answer with these properties matches; `storage.deletion` has it in SQL."""
        wanted = ((self.namespace, namespace), (self.model, model), (self.entry, entry))
        return (
            all(value in (None, actual) for value, actual in wanted)
            and (self.tag is None or self.tag in tags)
            and (self.before is None or created < self.before)
            and (not self.documents or any(map(self._matches_document, documents)))
        )

    def _matches_document(self, document: Source | DocumentRef | Document) -> bool:
        named = document.id in self.documents or document.source in self.documents
        return named and (self.current is None or document.digest not in self.current)

    def parts(self) -> Iterator[Criteria]:
        """Split into criteria small enough for a database."""
        for start in range(0, max(1, len(self.documents)), NAMES):
            yield replace(self, documents=self.documents[start : start + NAMES])

    def as_json(self) -> str:
        """Serialize for `read`."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.current is not None:
            given["current"] = sorted(self.current)
        return json.dumps({name: value for name, value in given.items() if value not in (None, ())})

    @classmethod
    def read(cls, text: str) -> Criteria | None:
        """Deserialize the output of `as_json`; None if this version does not understand it."""
        try:
            given = json.loads(text)
            for name in given.keys() & {"documents", "current"}:
                given[name] = _texts(given[name])
            if "current" in given:
                given["current"] = frozenset(given["current"])
            read = cls(**given)
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None
        texts = (read.tag, read.namespace, read.model, read.entry)
        known = all(value is None or isinstance(value, str) for value in texts)
        number = read.before is None or type(read.before) in (int, float)
        return read if known and number and read != cls() else None


def criteria_of(*, document: object, current: object, before: object, **texts: object) -> Criteria:
    """Create criteria from the arguments of `invalidate`.

    Raises:
        InvalidInput: None is given, or one cannot be used.
    """
    contents = None if current is None else _documents("current", current)
    names = () if document is None else names_of(document)
    if contents is not None and document is None:
        names = tuple({part.id: None for part in contents if isinstance(part, Document)})
        if len(names) != 1 or not all(isinstance(part, Document) for part in contents):
            raise InvalidInput("current says what a document is now: say which one with document=")
    given: dict[str, Any] = {name: _text(name, value) for name, value in texts.items()}
    criteria = Criteria(
        documents=names,
        current=None if contents is None else frozenset(_digests(contents)),
        before=None if before is None else _seconds(before),
        **given,
    )
    if criteria == Criteria():
        raise InvalidInput(
            "say what to invalidate: document=, tag=, namespace=, model=, entry= or before=; "
            "clear() deletes everything"
        )
    return criteria


def names_of(document: object) -> tuple[str, ...]:
    """Return the ids of one document or several.

    Raises:
        InvalidInput: One is no id, or there is none.
    """
    several = [document] if isinstance(document, (str, Document)) else document
    if not isinstance(several, Iterable):
        raise InvalidInput(f"document must be an id or several, not {type(document).__name__}")
    names = [one.id if isinstance(one, Document) else one for one in several]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidInput("document must be an id or several; it holds what is none, or nothing")
    return tuple(dict.fromkeys(str(_text("document", name)) for name in names))


def _documents(name: str, given: object) -> list[str | Document]:
    several = [given] if isinstance(given, (str, Document)) else given
    found: list[Any] = list(several) if isinstance(several, Iterable) else [None]
    if len(found) > CONTENTS or not all(isinstance(one, (str, Document)) for one in found):
        raise InvalidInput(
            f"{name} must be a text, an ibidem.Document, or a list of at most {CONTENTS:,} of them"
        )
    return found


def _digests(contents: Iterable[str | Document]) -> Iterator[str]:
    """Digest contents with and without surrounding blanks, as adapters record texts without them."""
    for content in contents:
        text = content.text if isinstance(content, Document) else content
        yield from (digest(text), digest(text.strip()))


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    return require_name(name, value)


def _seconds(before: object) -> float:
    if isinstance(before, datetime):
        if before.tzinfo is None:
            raise InvalidInput(
                "before has no time zone: use datetime.now(timezone.utc), or .astimezone() for local time"
            )
        return before.timestamp()
    if isinstance(before, bool) or not isinstance(before, (int, float)) or not math.isfinite(before):
        raise InvalidInput(f"before must be seconds since the epoch or a datetime, not {before!r}")
    return float(before)


def _texts(values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("not a list of texts")
    return tuple(values)


KEPT_SECONDS = 3_600.0  # longer than any model takes for an answer: clients give up after 10 minutes
LIMIT = 100_000  # keys of tombstones in memory; of dropped ones only the newest time is kept


@dataclass(frozen=True, slots=True)
class Tombstone:
    """An invalidation; `criteria` is None if written by a newer version: then it rejects any answer."""

    at: float
    criteria: Criteria | None

    def names(self) -> Iterator[str]:
        """List the keys of the tombstone; "" if it may concern any answer."""
        if self.criteria is not None and self.criteria.documents:
            yield from (f"document {name}" for name in self.criteria.documents)
        elif self.criteria is not None and self.criteria.entry is not None:
            yield f"entry {self.criteria.entry}"
        else:
            yield ""

    def refuses(self, entry: Entry, made: float) -> bool:
        """Return whether the answer to a request made at `made` must not be stored."""
        if self.criteria is None:
            return made <= self.at
        if made > self.at and self.criteria.current is None:
            return False
        return self.criteria.matches_entry(replace(entry, created=made))

    def of_document(self, name: str) -> Tombstone:
        """Return what it says of one of its documents."""
        if self.criteria is None:
            return self
        return replace(self, criteria=replace(self.criteria, documents=(name,)))

    def says_current(self, entry: Entry, made: float) -> bool:
        """Return whether it says what the document of such an answer is now, be it this or not."""
        if self.criteria is None or self.criteria.current is None:
            return False
        others = replace(self.criteria, documents=(), current=None)
        return others.matches_entry(replace(entry, created=made))


class Tombstones:
    """The tombstones of one database. Thread-safe.

    `last` is the number of the newest known one.

    Args:
        forget: Whether those that are too old for one answer are forgotten: no older one will be asked for.
    """

    def __init__(self, *, forget: bool = True) -> None:
        self._lock, self._forget = ForkSafeLock(), forget
        self.last = 0
        self._oldest_first: collections.deque[Tombstone] = collections.deque()
        self._by_key: dict[str, collections.deque[Tombstone]] = {}
        self._count = 0
        self._forgotten = 0.0  # requests made until then may have been invalidated

    def add(self, rows: Iterable[tuple[int, float, str]]) -> None:
        """Add tombstones: number, time and criteria of each, ordered by number."""
        with self._lock:
            for number, at, criteria in rows:
                if number <= self.last:  # another thread has added it
                    continue
                self.last = number
                tombstone = Tombstone(at, Criteria.read(criteria))
                self._oldest_first.append(tombstone)
                for key in tombstone.names():
                    self._by_key.setdefault(key, collections.deque()).append(tombstone)
                    self._count += 1
            while self._count > LIMIT:
                self._forgotten = max(self._forgotten, self._oldest_first[0].at)
                self._drop_oldest()

    def refuse(self, entry: Entry, made: float) -> bool:
        """Return whether the answer to a request made at `made` must not be stored as this entry."""
        since = entry.created - KEPT_SECONDS
        with self._lock:
            while self._forget and self._oldest_first and self._oldest_first[0].at < since:
                self._drop_oldest()
            if not self._oldest_first:
                return False
            if made <= self._forgotten:
                return True
            names = {name for source in entry.sources for name in (source.id, source.source)}
            found = [*self._by_key.get("", ()), *self._by_key.get(f"entry {entry.id}", ())]
            of_documents = {name: [*self._by_key.get(f"document {name}", ())] for name in names}
        for name, said in of_documents.items():
            found += _latest([tombstone.of_document(name) for tombstone in said], entry, made)
        return any(one.at >= since and one.refuses(entry, made) for one in found)

    def _drop_oldest(self) -> None:
        dropped = self._oldest_first.popleft()
        for key in dropped.names():
            kept = self._by_key[key]
            kept.popleft()  # the oldest of all is also the oldest of its key
            self._count -= 1
            if not kept:
                del self._by_key[key]


def _latest(tombstones: Sequence[Tombstone], entry: Entry, made: float) -> Iterator[Tombstone]:
    """Leave out what was said of a document's contents before they changed again, be it back."""
    known = False
    for tombstone in reversed(tombstones):
        if tombstone.says_current(entry, made):
            if known:
                continue
            known = True
        yield tombstone
