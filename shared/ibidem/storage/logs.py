"""The logs of lookups and judgements: appended to, except that people may correct a judgement."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ibidem._util.faults import Faults
from ibidem.errors import StorageUnavailable
from ibidem.lifecycle.rules import UNBOUNDED, Bounds, Lifetime
from ibidem.storage import tables
from ibidem.storage.engine import fetch_all, fetch_value, in_namespace, reading, sql_min, writing
from ibidem.storage.meta import get_meta, set_meta
from ibidem.storage.tables import MAX_NUMBER
from ibidem.types import (
    SECOND_OPINION,
    Entry,
    Hit,
    Miss,
    Request,
    is_in_namespace,
    parts_text,
    storable,
)

LOG_LIMIT = 100_000  # lookups kept; the oldest are deleted
JUDGEMENT_LIMIT = 100_000  # judgements kept
REDACTION_BATCH = 200  # rows that are redacted in one transaction
REVIEW = "review"
PEOPLE = ("feedback", REVIEW)  # sources of judgements that people made
OPINION, NO_OPINION = "opinion", "no_opinion"  # of a small model, which could tell or could not
OPINIONS = (OPINION, NO_OPINION)
CORRECTED = "judgements_corrected"  # a meta key; its value changes when a person corrects an audit
QUEUE_LIMIT = 10_000  # lookups that wait to be written, so that a slow database fills no memory
BATCH = 500  # lookups written in one transaction

_entries, _lookups = tables.entries, tables.lookups
_judgements = tables.judgements
# What people and small models said does not crowd out what was measured.
_AUDITED = _judgements.c.source.not_in((*PEOPLE, *OPINIONS))
_REDACTED_COLUMNS = {
    tables.judgements: ("asked", "stored"),
    tables.lookups: ("question",),
    tables.examples: ("question", "answer"),
}


@dataclass(frozen=True, slots=True)
class LookupRow:
    """One line of the lookup log; the columns of the table `lookups`.

    `entry_id`, `similarity` and `score` are of the answer served, or of the nearest; None if there was none,
    or it had no score. `threshold` is the least score that was served then, None if no scores counted, or if
    audits let nothing be served. `scope_parts`, as in `Entry`, are kept of a miss for the reason `empty`. The
    `reason` of a hit is `second_opinion` if it needed one, else empty.
    """

    at: float
    namespace: str
    scope: str
    question: str | None
    tier: str
    reason: str
    entry_id: str | None
    similarity: float | None
    seconds: float
    tokens_saved: int
    score: float | None = None
    threshold: float | None = None
    scope_parts: str = ""


@dataclass(frozen=True, slots=True)
class JudgementRow:
    """Whether a stored answer would have been right for a question; the columns of the table `judgements`.

    `entry_id` is the entry whose answer, given to the question `stored`, was compared with the model's to
    `asked`. `source` is `audit` if it would have been served, `probe` if not, `fit` for the label of a pair
    to which a fit gave a new score, `feedback` for a user's feedback, `review` for a reviewer's judgement,
    `opinion` for a second opinion, `no_opinion` where the small model could not tell (then `right` means
    nothing); `scorer` names what gave the `score`. `model` is the small model, with its tokens if known.
    """

    at: float
    namespace: str
    scope: str
    entry_id: str
    asked: str
    stored: str
    similarity: float
    score: float
    scorer: str
    right: bool
    source: str
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class LookupCounts:
    """Sums over the lookup log: hits by tier, misses by reason, and hits that needed a second opinion."""

    hits: dict[str, int]
    misses: dict[str, int]
    second_opinions: int = 0


def lookup_row(request: Request, question: str, result: Hit | Miss, at: float) -> LookupRow:
    """Return the log line of a lookup at this time, with the question as it may be shown.

    Text that cannot be stored is left out.
    """
    reason, least = _reason(result), result.threshold
    return LookupRow(
        at=at,
        namespace=request.namespace if storable(request.namespace) else "",
        scope=request.scope_digest,
        question=question if request.semantic and storable(question) else None,
        tier=result.tier if isinstance(result, Hit) else "",
        reason=reason,
        entry_id=result.entry_id,
        similarity=result.similarity,
        seconds=result.seconds,
        tokens_saved=result.answer.tokens if isinstance(result, Hit) else 0,
        score=None if least is None or result.score is None else float(result.score),
        threshold=least if least is not None and math.isfinite(least) else None,
        scope_parts=parts_text(request.scope_parts) if reason == "empty" else "",
    )


def _reason(result: Hit | Miss) -> str:
    if isinstance(result, Miss):
        return result.reason
    return SECOND_OPINION if result.second_opinion else ""


def feedback_row(
    entry: Entry, good: bool, asked: str = "", marker: Mapping[str, Any] | None = None
) -> JudgementRow:
    """Build the judgement of feedback; `marker` is the hit's, with its similarity and score."""
    similarity, score = (_number((marker or {}).get(name)) for name in ("similarity", "score"))
    return JudgementRow(
        at=0.0,
        namespace=entry.namespace,
        scope=entry.scope,
        entry_id=entry.id,
        asked=asked or entry.question or "",
        stored=entry.question or "",
        similarity=similarity,
        score=score,
        scorer="",
        right=good,
        source="feedback",
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else 1.0


class LookupTable:
    """The lookup log of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(
        self,
        rows: Sequence[LookupRow],
        bounds: Bounds = UNBOUNDED,
        floor: float = 0.0,
        *,
        life: Lifetime | None = None,
    ) -> None:
        """Append lookups; count the hits of the entries served and rank these anew.

        If `life` is sliding, their lifetime restarts, except for those served stale: they will be refreshed.
        """
        hits = Counter(row.entry_id for row in rows if row.tier and row.entry_id)
        last = {row.entry_id: row.at for row in rows if row.tier}
        served = [{"entry": entry_id, "n": n, "at": last[entry_id]} for entry_id, n in sorted(hits.items())]
        names = LookupRow.__slots__
        with writing(self._engine) as db:
            db.execute(sa.insert(_lookups), [{name: getattr(row, name) for name in names} for row in rows])
            if served:
                db.execute(_count_hits(bounds, floor, life), served)
            delete_oldest(db, _lookups, LOG_LIMIT)

    def recent(
        self, limit: int = 20, namespace: str | None = None, reason: str | None = None
    ) -> list[LookupRow]:
        """Return the last lookups, newest first: all, or of one namespace, or misses for one reason.

        The reason `guard` stands for all guards.
        """
        query = sa.select(*(_lookups.c[name] for name in LookupRow.__slots__))
        query = in_namespace(query, _lookups.c.namespace, namespace)
        if reason == "guard":
            query = query.where(_lookups.c.reason.startswith("guard:"))
        elif reason is not None:
            query = query.where(_lookups.c.reason == reason)
        rows = fetch_all(self._engine, query.order_by(_lookups.c.id.desc()).limit(limit))
        return [LookupRow(*row) for row in rows]

    def counts(self) -> LookupCounts:
        """Count the lookups that are still in the log."""
        outcome = (_lookups.c.tier, _lookups.c.reason)
        rows = fetch_all(self._engine, sa.select(*outcome, sa.func.count()).group_by(*outcome))
        hits = Counter[str]()
        for tier, _, n in rows:
            hits[tier] += n
        misses = {reason: n for tier, reason, n in rows if not tier}
        doubted = sum(n for tier, reason, n in rows if tier and reason == SECOND_OPINION)
        return LookupCounts({tier: n for tier, n in hits.items() if tier}, misses, doubted)


def _count_hits(bounds: Bounds, floor: float, life: Lifetime | None) -> sa.Update:
    """Add `n` hits to an entry, the last one `at`."""
    c, at = _entries.c, sa.bindparam("at", type_=sa.Float)
    hits = c.hits + sa.bindparam("n", type_=sa.Integer)
    # By number and not by column: on PostgreSQL all right sides are those before the update.
    changes = {"hits": hits, "used": at, "rank": bounds.rank(floor, hits, c.cost, c.size, at, sql_min)}
    if life is not None and life.sliding:
        alive = sa.or_(c.expires.is_(None), at < c.expires - life.stale_while_revalidate)
        changes["used"] = sa.case((alive, at), else_=c.used)
        changes["expires"] = sa.case((alive, c.expires + (at - c.used)), else_=c.expires)
    return sa.update(_entries).where(c.id == sa.bindparam("entry")).values(changes)


def delete_oldest(db: sa.Connection, log: sa.Table, limit: int) -> None:
    """Delete all rows of a log but the last `limit`, in the caller's transaction."""
    # By id and not by rank, which would read as many rows as are kept: fewer stay after a `clear`.
    # A damaged id, larger than any, must not be what the others are compared with.
    newest = sa.select(sa.func.max(log.c.id)).where(log.c.id < int(MAX_NUMBER)).scalar_subquery()
    db.execute(sa.delete(log).where(sa.or_(log.c.id <= newest - limit, log.c.id >= int(MAX_NUMBER))))


class LookupQueue:
    """Lookups that wait to be written to the log. Thread-safe.

    Args:
        table: The log.
        faults: Counts what is dropped.
    """

    def __init__(self, table: LookupTable, faults: Faults) -> None:
        self._table, self._faults = table, faults
        self._rows = deque[LookupRow]()

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, row: LookupRow) -> None:
        """Append a lookup; beyond the limit the oldest one is dropped and counted."""
        self._rows.append(row)
        if len(self._rows) <= QUEUE_LIMIT:
            return
        with contextlib.suppress(IndexError):  # the background may have written them all just now
            self._rows.popleft()
            limit = f"{QUEUE_LIMIT:,} wait to be written"
            self._faults.count("write the lookup log: too many wait", f"dropped a lookup: {limit}")

    def write(self, bounds: Bounds, floor: float, life: Lifetime) -> bool:
        """Write a batch and return whether there is more; raises `StorageError`."""
        rows = [self._rows.popleft() for _ in range(min(BATCH, len(self._rows)))]
        try:
            if rows:
                self._table.add(rows, bounds=bounds, floor=floor, life=life)
        except StorageUnavailable:  # put them back in their order
            self._rows.extendleft(reversed(rows))
            raise
        return len(self._rows) > 0

    def drop(self, namespace: str | None = None) -> None:
        """Drop the lookups of a namespace, or all of them, while others append."""
        for _ in range(len(self._rows)):
            row = self._rows.popleft()
            if namespace is not None and not is_in_namespace(row.namespace, namespace):
                self._rows.append(row)


class JudgementTable:
    """The judgements of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._columns = [_judgements.c[name] for name in JudgementRow.__slots__]

    def add(self, rows: Sequence[JudgementRow]) -> None:
        """Append judgements."""
        names = JudgementRow.__slots__
        with writing(self._engine) as db:
            db.execute(sa.insert(_judgements), [{name: getattr(row, name) for name in names} for row in rows])
            delete_oldest(db, _judgements, JUDGEMENT_LIMIT)

    def recent(self, limit: int = 20, namespace: str | None = None) -> list[JudgementRow]:
        """Return the last judgements, newest first; all or those of one namespace."""
        query = sa.select(*self._columns).order_by(_judgements.c.id.desc()).limit(limit)
        query = in_namespace(query, _judgements.c.namespace, namespace)
        return [JudgementRow(*row) for row in fetch_all(self._engine, query)]

    def newest(self, limit: int, namespace: str, scorer: str) -> list[tuple[int, JudgementRow]]:
        """Return the last audits of a namespace scored by this scorer, with ids, oldest first."""
        c = _judgements.c
        query = sa.select(c.id, *self._columns).where(c.namespace == namespace, c.scorer == scorer, _AUDITED)
        rows = fetch_all(self._engine, query.order_by(c.id.desc()).limit(limit))
        return [(row[0], JudgementRow(*row[1:])) for row in reversed(rows)]

    def after(self, last: int, limit: int) -> list[tuple[int, JudgementRow]]:
        """Return judgements with an id above `last`, with ids, oldest first."""
        c = _judgements.c
        query = sa.select(c.id, *self._columns).where(c.id > last)
        rows = fetch_all(self._engine, query.order_by(c.id).limit(limit))
        return [(row[0], JudgementRow(*row[1:])) for row in rows]

    def opinion(self, entry_id: str, asked: str, since: float) -> JudgementRow | None:
        """Return what was said of a question and the answer that an entry has had since then.

        The last second opinion, or a reviewer's judgement, which goes before.
        """
        c = _judgements.c
        query = sa.select(*self._columns).where(c.entry_id == entry_id, c.asked == asked, c.at >= since)
        query = query.where(c.source.in_((*OPINIONS, REVIEW)))
        query = query.order_by((c.source == REVIEW).desc(), c.id.desc()).limit(1)
        return next((JudgementRow(*row) for row in fetch_all(self._engine, query)), None)

    def last_id(self) -> int:
        """Return the id of the newest judgement, 0 if there is none."""
        return fetch_value(self._engine, sa.select(sa.func.max(_judgements.c.id))) or 0

    def corrected(self) -> str:
        """Return a mark that changes when a person corrects an audit."""
        with reading(self._engine) as db:
            return get_meta(db, CORRECTED) or ""

    def namespaces(
        self, limit: int, namespace: str | None = None, scorers: Collection[str] | None = None
    ) -> list[tuple[str, str]]:
        """Return the namespaces audited last, each with the scorer of its newest audit, last first.

        All of them or this one; where `scorers` are given, only their judgements count.
        """
        c = _judgements.c
        audited = sa.select(sa.func.max(c.id).label("id")).where(_AUDITED)
        if scorers is not None:
            audited = audited.where(c.scorer.in_(list(scorers)))
        newest = in_namespace(audited, c.namespace, namespace).group_by(c.namespace).subquery()
        query = sa.select(c.namespace, c.scorer).join(newest, c.id == newest.c.id)
        rows = fetch_all(self._engine, query.order_by(c.id.desc()).limit(limit))
        return [(namespace, scorer) for namespace, scorer in rows]

    def audits(self) -> tuple[int, int]:
        """Return how many judgements come from audits, and how many of these were wrong."""
        query = sa.select(_judgements.c.right, sa.func.count()).where(_judgements.c.source == "audit")
        rows = fetch_all(self._engine, query.group_by(_judgements.c.right))
        counts = {bool(right): int(count) for right, count in rows}
        return sum(counts.values()), counts.get(False, 0)


class LogRedactor:
    """Redacts logs that were written before `redact` was set, or by a process without it.

    Every method raises `StorageError` when the database fails.

    Args:
        engine: The database.
        redact: Returns a text as it may be kept; None if it cannot say. Then the row stays as it is, and is
            tried again when a cache is opened next: an error of `redact` must cost no example.
        name: Names `redact`: what was redacted under this name is not scanned again. "" names none.
    """

    def __init__(self, engine: sa.Engine, redact: Callable[[str], str | None], name: str) -> None:
        self._engine, self._redact, self._name = engine, redact, name
        self._scanned: dict[str, int] = {}  # ids, by table
        self._failed: set[str] = set()  # tables with a row that could not be redacted

    def step(self) -> bool:
        """Redact one batch; return whether there may be more."""
        return any(self._step(table, names) for table, names in _REDACTED_COLUMNS.items())

    def _step(self, table: sa.Table, names: tuple[str, ...]) -> bool:
        key = f"redacted:{self._name}:{table.name}"
        with reading(self._engine) as db:
            last = self._scanned.get(key, int(get_meta(db, key) or 0) if self._name else 0)
            columns = [table.c.id, *(table.c[name] for name in names)]
            query = sa.select(*columns).where(table.c.id > last).order_by(table.c.id)
            rows = db.execute(query.limit(REDACTION_BATCH)).all()
        if not rows:
            return False
        changed, done = [], last
        for row in rows:
            redacted = {name: self._redact(text) for name, text in zip(names, row[1:], strict=True) if text}
            if None in redacted.values():
                self._failed.add(key)
            elif any(redacted[name] != getattr(row, name) for name in redacted):
                changed.append((row.id, redacted))
            done = done if key in self._failed else row.id
        stale = {"vector": None, "embedder": ""} if table is tables.examples else {}  # of the text in clear
        with writing(self._engine) as db:
            for row_id, redacted in changed:
                db.execute(sa.update(table).where(table.c.id == row_id).values({**redacted, **stale}))
            if self._name and done > last:
                set_meta(db, key, str(done))
        self._scanned[key] = rows[-1].id
        return True
