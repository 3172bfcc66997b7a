"""What the truth holds, summed up in SQL: how much, how old, of which models."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from ibidem.storage.engine import reading
from ibidem.storage.tables import entries as _entries


@dataclass(frozen=True, slots=True)
class Holdings:
    """The stored answers: how many, their bytes, how many were never served, when the first was stored.

    `models` counts them by model, of those with most.
    """

    entries: int
    bytes: int
    unused: int
    oldest: float
    models: dict[str, int]


class HoldingsTable:
    """Sums over the entries of one database. Every method raises `StorageError` when the database fails."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def totals(self, namespace: str | None, limit: int) -> Holdings:
        """Of all namespaces or of one; of the `limit` commonest models."""
        c, mine = _entries.c, _within(namespace)
        count = sa.func.count()
        unused = sa.func.sum(sa.case((c.hits == 0, 1), else_=0))
        sums = sa.select(count, sa.func.sum(c.size), unused, sa.func.min(c.created)).where(mine)
        models = sa.select(c.model, count).where(mine).group_by(c.model)
        with reading(self._engine) as db:
            entries, size, never, oldest = db.execute(sums).one()
            found = db.execute(models.order_by(count.desc(), c.model).limit(limit)).all()
        by_model = {row[0]: int(row[1]) for row in found}
        return Holdings(entries, int(size or 0), int(never or 0), oldest or 0.0, by_model)

    def ages(self, now: float, edges: tuple[float, ...], namespace: str | None) -> list[tuple[int, int]]:
        """How many entries are so old: for each age from one edge to the next all, and those never served.

        The edges are seconds and rise; the last age has no end.
        """
        c = _entries.c
        age = sa.case(
            *((c.created > now - edge, at) for at, edge in enumerate(edges[1:])), else_=len(edges) - 1
        )
        mine = sa.select(age.label("age"), c.hits).where(_within(namespace)).subquery()
        unused = sa.func.sum(sa.case((mine.c.hits == 0, 1), else_=0))
        with reading(self._engine) as db:
            rows = db.execute(sa.select(mine.c.age, sa.func.count(), unused).group_by(mine.c.age)).all()
        counts = {row[0]: (int(row[1]), int(row[2])) for row in rows}
        return [counts.get(at, (0, 0)) for at in range(len(edges))]


def _within(namespace: str | None) -> sa.ColumnElement[bool]:
    return sa.true() if namespace is None else _entries.c.namespace == namespace
