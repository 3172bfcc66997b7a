"""The logs of the truth in SQL, appended to: lookups and judgements; only people correct a judgement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from ibidem.lifecycle.eviction import UNBOUNDED, Bounds
from ibidem.lifecycle.rules import Lifetime
from ibidem.storage import tables
from ibidem.storage.columns import LARGEST
from ibidem.storage.engine import least, reading, writing
from ibidem.storage.meta import noted
from ibidem.storage.rows import JudgementRow, LookupRow, Outcomes

LOG_LIMIT = 100_000  # lookups kept; the oldest go first
JUDGEMENT_LIMIT = 100_000  # judgements kept

_entries, _lookups = tables.entries, tables.lookups
_judgements = tables.judgements
REVIEW = "review"
PEOPLE = ("feedback", REVIEW)  # judgements of people
CORRECTED = "judgements_corrected"  # a note that changes whenever a person corrects what audits found
_AUDITED = _judgements.c.source.not_in(PEOPLE)  # what people said does not crowd out what was measured


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
        """Append lookups, forget the oldest; count the hits of the entries served and rank them anew.

        If `life` is sliding, theirs begin anew, but for those served stale: they are to be refreshed.
        """
        hits = Counter(row.entry_id for row in rows if row.tier and row.entry_id)
        last = {row.entry_id: row.at for row in rows if row.tier}
        served = [{"entry": entry_id, "n": n, "at": last[entry_id]} for entry_id, n in sorted(hits.items())]
        names = LookupRow.__slots__
        with writing(self._engine) as db:
            db.execute(sa.insert(_lookups), [{name: getattr(row, name) for name in names} for row in rows])
            if served:
                db.execute(_served(bounds, floor, life), served)
            forget_oldest(db, _lookups, LOG_LIMIT)

    def recent(self, limit: int = 20) -> list[LookupRow]:
        """The last lookups, newest first."""
        columns = [_lookups.c[name] for name in LookupRow.__slots__]
        with reading(self._engine) as db:
            rows = db.execute(sa.select(*columns).order_by(_lookups.c.id.desc()).limit(limit)).all()
        return [LookupRow(*row) for row in rows]

    def outcomes(self) -> Outcomes:
        """Counts of the lookups still in the log."""
        outcome = (_lookups.c.tier, _lookups.c.reason)
        with reading(self._engine) as db:
            rows = db.execute(sa.select(*outcome, sa.func.count()).group_by(*outcome)).all()
            saved = db.scalar(sa.select(sa.func.sum(_lookups.c.tokens_saved))) or 0
        hits = {tier: n for tier, _, n in rows if tier}
        misses = {reason: n for tier, reason, n in rows if not tier}
        return Outcomes(hits, misses, int(saved))


class JudgementTable:
    """The judgements of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._columns = [_judgements.c[name] for name in JudgementRow.__slots__]

    def add(self, rows: Sequence[JudgementRow]) -> None:
        """Append judgements, forget the oldest."""
        names = JudgementRow.__slots__
        with writing(self._engine) as db:
            db.execute(sa.insert(_judgements), [{name: getattr(row, name) for name in names} for row in rows])
            forget_oldest(db, _judgements, JUDGEMENT_LIMIT)

    def recent(self, limit: int = 20, namespace: str | None = None) -> list[JudgementRow]:
        """The last judgements, newest first; all or those of one namespace."""
        query = sa.select(*self._columns).order_by(_judgements.c.id.desc()).limit(limit)
        if namespace is not None:
            query = query.where(_judgements.c.namespace == namespace)
        with reading(self._engine) as db:
            return [JudgementRow(*row) for row in db.execute(query)]

    def newest(self, limit: int, namespace: str, scorer: str) -> list[tuple[int, JudgementRow]]:
        """The last audits of a namespace whose scores this scorer gave, with ids, oldest first."""
        c = _judgements.c
        query = sa.select(c.id, *self._columns).where(c.namespace == namespace, c.scorer == scorer, _AUDITED)
        with reading(self._engine) as db:
            rows = db.execute(query.order_by(c.id.desc()).limit(limit)).all()
        return [(row[0], JudgementRow(*row[1:])) for row in reversed(rows)]

    def after(self, last: int, limit: int, scorer: str) -> list[tuple[int, JudgementRow]]:
        """The judgements with an id above `last` whose scores this scorer gave, with ids, oldest first."""
        c = _judgements.c
        query = sa.select(c.id, *self._columns).where(c.id > last, c.scorer == scorer)
        with reading(self._engine) as db:
            rows = db.execute(query.order_by(c.id).limit(limit)).all()
        return [(row[0], JudgementRow(*row[1:])) for row in rows]

    def last_id(self) -> int:
        """The id of the newest judgement, 0 if there is none."""
        with reading(self._engine) as db:
            return db.scalar(sa.select(sa.func.max(_judgements.c.id))) or 0

    def corrected(self) -> str:
        """A mark that is another one after a person has corrected an audit."""
        with reading(self._engine) as db:
            return noted(db, CORRECTED) or ""

    def namespaces(
        self, limit: int, namespace: str | None = None, scorers: Collection[str] | None = None
    ) -> list[tuple[str, str]]:
        """The namespaces audited last, or this one, each with the scorer of its newest audit, last first.

        Where `scorers` are named, only judgements of theirs count.
        """
        c = _judgements.c
        audited = sa.select(sa.func.max(c.id).label("id")).where(_AUDITED)
        if scorers is not None:
            audited = audited.where(c.scorer.in_(list(scorers)))
        if namespace is not None:
            audited = audited.where(c.namespace == namespace)
        newest = audited.group_by(c.namespace).subquery()
        query = sa.select(c.namespace, c.scorer).join(newest, c.id == newest.c.id)
        with reading(self._engine) as db:
            rows = db.execute(query.order_by(c.id.desc()).limit(limit)).all()
        return [(namespace, scorer) for namespace, scorer in rows]

    def audits(self) -> tuple[int, int]:
        """How many judgements come from audits, and how many of these were wrong."""
        query = sa.select(_judgements.c.right, sa.func.count()).where(_judgements.c.source == "audit")
        with reading(self._engine) as db:
            counts: dict[bool, int] = dict(db.execute(query.group_by(_judgements.c.right)).all())
        return sum(counts.values()), counts.get(False, 0)


def _served(bounds: Bounds, floor: float, life: Lifetime | None) -> sa.Update:
    """Count `n` hits of an entry, the last one `at`."""
    c, at = _entries.c, sa.bindparam("at", type_=sa.Float)
    hits = c.hits + sa.bindparam("n", type_=sa.Integer)
    # By number and not by column: on PostgreSQL all right sides are those before the update.
    changes = {"hits": hits, "used": at, "rank": bounds.rank(floor, hits, c.cost, c.size, at, least)}
    if life is not None and life.sliding:
        alive = sa.or_(c.expires.is_(None), at < c.expires - life.stale_while_revalidate)
        changes["used"] = sa.case((alive, at), else_=c.used)
        changes["expires"] = sa.case((alive, c.expires + (at - c.used)), else_=c.expires)
    return sa.update(_entries).where(c.id == sa.bindparam("entry")).values(changes)


def forget_oldest(db: sa.Connection, log: sa.Table, limit: int) -> None:
    """Delete what is more than so many rows old, in the caller's transaction."""
    # By id and not by rank, which would read as many rows as are kept: fewer stay after a `clear`.
    # A damaged id, larger than any, must not be what the others are compared with.
    newest = sa.select(sa.func.max(log.c.id)).where(log.c.id < int(LARGEST)).scalar_subquery()
    db.execute(sa.delete(log).where(sa.or_(log.c.id <= newest - limit, log.c.id >= int(LARGEST))))
