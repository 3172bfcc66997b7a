"""The logs of the truth in SQL, appended to and never changed: lookups, examples, judgements of audits."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from ibidem import database
from ibidem.database import reading, writing
from ibidem.examples import Example
from ibidem.rows import JudgementRow, LookupRow, Outcomes, example_row, to_example

LOG_LIMIT = 100_000  # lookups kept; the oldest go first
EXAMPLE_LIMIT = 100_000  # examples kept
JUDGEMENT_LIMIT = 100_000  # judgements kept

_entries, _lookups, _examples = database.entries, database.lookups, database.examples
_judgements = database.judgements


class LookupTable:
    """The lookup log of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, rows: Sequence[LookupRow]) -> None:
        """Append lookups, count the hits of the entries served, forget the oldest lookups."""
        served: dict[str, int] = {}
        for row in rows:
            if row.tier and row.entry_id:
                served[row.entry_id] = served.get(row.entry_id, 0) + 1
        names = LookupRow.__slots__
        with writing(self._engine) as db:
            db.execute(sa.insert(_lookups), [{name: getattr(row, name) for name in names} for row in rows])
            for entry_id, hits in served.items():
                db.execute(
                    sa.update(_entries).where(_entries.c.id == entry_id).values(hits=_entries.c.hits + hits)
                )
            _forget_oldest(db, _lookups, LOG_LIMIT)

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


class ExampleTable:
    """The example log of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, examples: Sequence[Example]) -> None:
        """Append examples, forget the oldest."""
        with writing(self._engine) as db:
            db.execute(sa.insert(_examples), [example_row(example) for example in examples])
            _forget_oldest(db, _examples, EXAMPLE_LIMIT)

    def recent(self, limit: int = 20, namespace: str | None = None) -> list[Example]:
        """The last examples added, newest first; all or those of one namespace."""
        query = sa.select(_examples).order_by(_examples.c.id.desc()).limit(limit)
        if namespace is not None:
            query = query.where(_examples.c.namespace == namespace)
        with reading(self._engine) as db:
            rows = db.execute(query).all()
        return [to_example(row._mapping) for row in rows]

    def count(self, namespace: str | None = None) -> int:
        """How many there are, in all or of one namespace."""
        query = sa.select(sa.func.count()).select_from(_examples)
        if namespace is not None:
            query = query.where(_examples.c.namespace == namespace)
        with reading(self._engine) as db:
            return db.scalar(query) or 0


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
            _forget_oldest(db, _judgements, JUDGEMENT_LIMIT)

    def recent(self, limit: int = 20, namespace: str | None = None) -> list[JudgementRow]:
        """The last judgements, newest first; all or those of one namespace."""
        query = sa.select(*self._columns).order_by(_judgements.c.id.desc()).limit(limit)
        if namespace is not None:
            query = query.where(_judgements.c.namespace == namespace)
        with reading(self._engine) as db:
            return [JudgementRow(*row) for row in db.execute(query)]

    def newest(self, limit: int, namespace: str, scorer: str) -> list[tuple[int, JudgementRow]]:
        """The last judgements of a namespace whose scores this scorer gave, with ids, oldest first."""
        c = _judgements.c
        query = sa.select(c.id, *self._columns).where(c.namespace == namespace, c.scorer == scorer)
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

    def namespaces(self, limit: int) -> list[tuple[str, str]]:
        """The namespaces judged last, the last first, each with the scorer of its newest judgement."""
        c = _judgements.c
        newest = sa.select(sa.func.max(c.id).label("id")).group_by(c.namespace).subquery()
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


def _forget_oldest(db: sa.Connection, log: sa.Table, limit: int) -> None:
    # By id and not by rank, which would read as many rows as are kept: fewer stay after a `clear`.
    newest = sa.select(sa.func.max(log.c.id)).scalar_subquery()
    db.execute(sa.delete(log).where(log.c.id <= newest - limit))
