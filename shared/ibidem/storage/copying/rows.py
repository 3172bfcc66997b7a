"""Rows of two databases are compared, and what differs is written to one of them."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple

import sqlalchemy as sa

from ibidem.lifecycle.invalidation import Criteria, Tombstones
from ibidem.storage import tables
from ibidem.storage.copying.changes import AT_ONCE
from ibidem.storage.copying.marks import Mark
from ibidem.storage.copying.plan import ANSWERS, EMBEDDERS, META, TOMBSTONES, Part, is_carried
from ibidem.storage.deletion import delete_entries, delete_refused, of_namespace
from ibidem.storage.engine import (
    exclude_stores,
    fetch_column,
    insert_into,
    reading,
    valid_rows,
    writing,
)
from ibidem.storage.entries import ENTRY_COLUMNS, to_entry
from ibidem.storage.meta import COPY_FROM, set_meta
from ibidem.storage.vectors import MISSING, PENDING, RETENTION_SECONDS
from ibidem.types import Entry, Source

_numbers = (
    sa.Table(  # in the target, of the rows of logs: what they were in the source, and what they are here
        "copied_numbers",
        sa.MetaData(),
        sa.Column("part", sa.String(32), primary_key=True),
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("copied", sa.BigInteger, nullable=False),
    )
)
_vectors, _entries = tables.entry_vectors, tables.entries
_documents, _tags = tables.entry_documents, tables.entry_tags
_EMBEDDER, _VECTOR = map(ANSWERS.columns(_vectors).index, ("embedder", "vector"))
_NEVER = -math.inf

Unit = dict[sa.Table, frozenset[tuple[Any, ...]]]  # rows by their table


@dataclass(slots=True)
class Checked:
    """One table as it was compared: rows, and a checksum of them, in both databases.

    `foreign` rows are in the target alone. The checksum leaves out what each database makes itself, and how
    often and when an answer was served last.
    """

    table: str
    source: int = 0
    target: int = 0
    source_sum: int = 0
    target_sum: int = 0
    foreign: int = 0

    @property
    def same(self) -> bool:
        """Whether all that the source holds is in the target."""
        return (self.source, self.source_sum) == (self.target, self.target_sum)

    def add(self, other: Checked) -> None:
        """Add what was compared of other rows."""
        self.source, self.target = self.source + other.source, self.target + other.target
        self.source_sum = (self.source_sum + other.source_sum) % 2**96
        self.target_sum = (self.target_sum + other.target_sum) % 2**96


class _Pair(NamedTuple):
    """A unit as it is to be in the target and as it is there, by its key there, None if it has none yet."""

    unit: Any
    key: Any
    wanted: Unit
    found: Unit


class RowCopier:
    """Copies rows from one database to another. Every method raises `StorageError` when one fails.

    Args:
        source: The database that is copied.
        target: The one that it is copied to.
        namespace: Only this namespace and its users; None for all.
    """

    def __init__(self, source: sa.Engine, target: sa.Engine, namespace: str | None) -> None:
        self._source, self._target, self._namespace = source, target, namespace
        self._tombstones = Tombstones(forget=False)  # of the target; answers come in no order
        self._embedders: Sequence[int] = ()  # whose vectors are copied
        self.kept = set[str]()  # answers of the target that stay, as they are newer

    def find_embedders(self) -> None:
        """Look whose vectors there are to copy."""
        c = tables.embedders.c
        self._embedders = fetch_column(self._source, sa.select(c.id).where(c.state != "retired"))

    def count(self, part: Part) -> int:
        """Count the rows that are to be copied."""
        query = sa.select(sa.func.count()).select_from(part.table)
        return int(fetch_column(self._source, self._chosen(self._source, part, query))[0])

    def page(self, part: Part, after: Any, limit: int) -> list[Any]:
        """Return the next units of the source, in order; nothing at the end."""
        return self._page(self._source, part, after, limit)

    def foreign(self, part: Part) -> int:
        """Count the units that the target has and the source has not."""
        if part.is_log or not part.deletes or part is META:
            return 0
        count, last, column = 0, None, part.table.c[part.unit]
        while units := self._page(self._target, part, last, AT_ONCE):
            known = fetch_column(self._source, sa.select(column).where(column.in_(units)))
            count, last = count + len(set(units) - set(known)), units[-1]
        return count

    def _page(self, engine: sa.Engine, part: Part, after: Any, limit: int) -> list[Any]:
        column = part.table.c[part.unit]
        query = sa.select(column).distinct().order_by(column).limit(limit)
        query = query if after is None else query.where(column > after)
        found = fetch_column(engine, self._chosen(engine, part, query))
        return [unit for unit in found if unit != "" or after is None]  # as a damaged key is read

    def _chosen(self, engine: sa.Engine, part: Part, query: sa.Select[Any]) -> sa.Select[Any]:
        if part is EMBEDDERS:
            return query.where(tables.embedders.c.state != "retired")
        everywhere = self._namespace is None or part.everywhere
        return query if everywhere else query.where(of_namespace(engine, part.table, self._namespace))

    # Writing.

    def write(
        self, part: Part, units: Sequence[Any], deleted: Mapping[Any, float], reached: Mark | None
    ) -> int:
        """Make these units in the target what they are in the source; return how many were not.

        Args:
            part: Their table.
            units: Values of its column `unit`, at most `AT_ONCE`.
            deleted: Units of which rows were deleted in the source, and when the last of these was made. All
                that the source lacks but these, and what the target made later, stays in the target.
            reached: How far the copy is when they are written.
        """
        if part is EMBEDDERS:
            self.find_embedders()
        mine = self._read(part, units)
        if part is TOMBSTONES:
            changed = self._invalidate(mine)
        with writing(self._target) as db:
            if part is not TOMBSTONES:
                changed = self._append(db, part, mine) if part.is_log else 0
                changed += self._replace(db, part, self._pairs(db, part, units, mine, deleted))
            if reached is not None:
                set_meta(db, COPY_FROM, reached.text())
        return changed

    def _invalidate(self, mine: Mapping[Any, Unit]) -> int:
        """Invalidate in the target what was in the source; return how many invalidations it did not know."""
        with writing(self._target) as db:
            exclude_stores(db, TOMBSTONES.table)  # they see it, or are found by it
            new = self._append(db, TOMBSTONES, mine)
        for row in (row for rows in mine.values() for row in _dicts(TOMBSTONES, TOMBSTONES.table, rows)):
            if (criteria := Criteria.read(row["criteria"])) is not None:
                delete_refused(self._target, criteria, row["at"], self._namespace)
        return new

    def _append(self, db: sa.Connection, part: Part, mine: Mapping[Any, Unit]) -> int:
        """Append the rows of a log that the target does not have yet, and note the numbers that they get."""
        new = sorted(mine.keys() - _keys(db, part, list(mine), mine).keys())
        if not new:
            return 0
        id_ = part.table.c[part.unit]
        rows = [row for unit in new for row in _dicts(part, part.table, mine[unit])]
        insert = sa.insert(part.table).returning(id_, sort_by_parameter_order=True)
        given = db.scalars(insert, [{k: v for k, v in row.items() if k != part.unit} for row in rows])
        noted = [
            {"part": part.name, "number": number, "copied": copied}
            for number, copied in zip(new, given.all(), strict=True)
        ]
        if part is not TOMBSTONES:
            db.execute(sa.insert(_numbers), noted)
        return len(new)

    def _replace(self, db: sa.Connection, part: Part, pairs: Sequence[_Pair]) -> int:
        """Exchange the rows of the tables in which a unit differs; return how many units do."""
        changed = [one for one in pairs if one.wanted != one.found]
        if part.is_log:  # what the target has deleted of its log stays so
            changed = [one for one in changed if one.found]
        gone = [one for one in changed if not one.wanted]
        if part is ANSWERS and gone:
            delete_entries(db, _entries.c.id.in_([one.key for one in gone]))
        for table, unit in part.tables:
            stale = [one for one in changed if one.wanted.get(table) != one.found.get(table)]
            if not stale:
                continue
            where: sa.ColumnElement[bool] = table.c[unit].in_([one.key for one in stale])
            if table is _vectors:
                where &= _vectors.c.embedder.in_(self._embedders)
                _bury(db, where)
            db.execute(sa.delete(table).where(where))
            if new := [_filled(table, row) for one in stale for row in _dicts(part, table, one.wanted)]:
                db.execute(sa.insert(table), new)
        if part.is_log:  # SQLite may give the number of what is gone again
            numbers = _numbers.c.number.in_([one.unit for one in pairs if not one.wanted])
            db.execute(sa.delete(_numbers).where(_numbers.c.part == part.name, numbers))
        if part is ANSWERS:
            self._enqueue(db, [one.key for one in changed if one.wanted and not one.found])
        return len(changed)

    def _enqueue(self, db: sa.Connection, ids: Sequence[str]) -> None:
        """Have the vectors made that embedders of the target need and the source does not have."""
        if not ids:
            return
        e, m = _entries.c, tables.embedders.c
        others = sa.and_(m.state != "retired", m.id.not_in(self._embedders))
        wanted = sa.select(e.id, m.id, sa.literal(MISSING, sa.String))
        wanted = wanted.select_from(_entries.join(tables.embedders, others)).where(e.id.in_(ids), e.semantic)
        insert = insert_into(db.dialect.name)(_vectors)
        db.execute(
            insert.from_select(["entry_id", "embedder", "indexed_in"], wanted).on_conflict_do_nothing()
        )

    # Reading and comparing.

    def compare(self, part: Part, units: Sequence[Any]) -> tuple[list[Checked], list[Any]]:
        """Compare these units, at most `AT_ONCE`, in both databases; return the tables, and what differs."""
        mine = self._read(part, units)
        with reading(self._target) as db:
            pairs = self._pairs(db, part, units, mine, {})
        checked, differing = [Checked(table.name) for table, _ in part.tables], dict[Any, None]()
        for one in pairs:
            for (table, _), found in zip(part.tables, checked, strict=True):
                here, there = (_digests(part, table, rows) for rows in (one.wanted, one.found))
                found.add(Checked("", len(here), len(there), sum(here), sum(there)))
                if here != there:
                    differing[one.unit] = None
        return checked, list(differing)

    def _read(self, part: Part, units: Collection[Any]) -> dict[Any, Unit]:
        with snapshot(self._source) as db:  # else an answer could come without its documents
            return self._read_in(db, part, units)

    def _read_in(self, db: sa.Connection, part: Part, units: Collection[Any]) -> dict[Any, Unit]:
        found: dict[Any, Unit] = {}
        for table, unit in part.tables:
            names = part.columns(table)
            wanted = units if table is part.table else list(found)
            query: sa.Select[Any] = sa.select(*(table.c[name] for name in names))
            query = query.where(table.c[unit].in_(wanted))
            if table is part.table:
                query = self._chosen(db.engine, part, query)
            elif table is _vectors:
                query = query.where(_vectors.c.embedder.in_(self._embedders))
            for row in db.execute(query) if wanted else ():
                of = found.setdefault(row[names.index(unit)], {})
                of[table] = of.get(table, frozenset()) | {tuple(row)}
        return {unit: rows for unit, rows in found.items() if part is not META or is_carried(unit)}

    def _pairs(
        self,
        db: sa.Connection,
        part: Part,
        units: Sequence[Any],
        mine: Mapping[Any, Unit],
        deleted: Mapping[Any, float],
    ) -> list[_Pair]:
        """Return what these units are to be in the target, and what they are."""
        if part is ANSWERS:  # first in a transaction: what is invalidated later waits for its end
            self._read_tombstones(db)
        keys = _keys(db, part, units, mine)
        theirs = self._read_in(db, part, list(keys.values()))
        pairs = []
        for unit in sorted(set(units)):  # in one order, against deadlocks
            key = keys.get(unit)
            here, there = mine.get(unit, {}), theirs.get(key, {})
            if part.is_log:
                here = {table: frozenset((key, *row[1:]) for row in rows) for table, rows in here.items()}
            pairs.append(_Pair(unit, key, self._wanted(part, here, there, deleted.get(unit, _NEVER)), there))
        return pairs

    def _wanted(self, part: Part, here: Unit, there: Unit, deleted: float) -> Unit:
        """Return what a unit is to be in the target."""
        stays = there if _made(part, there) > deleted else {}  # else it is what the source has deleted
        if not here:
            return stays
        if stays and _rank(part, stays) > _rank(part, here):
            self.kept |= {row[0] for row in stays[_entries]} if part is ANSWERS else set()
            return stays
        if part is not ANSWERS:
            return here
        return stays if self._is_refused(here) else _with_vectors(here, there)

    def _read_tombstones(self, db: sa.Connection) -> None:
        c = tables.invalidations.c
        query = sa.select(c.id, c.at, c.criteria).where(c.id > self._tombstones.last).order_by(c.id)
        self._tombstones.add((row.id, row.at, row.criteria) for row in db.execute(query))

    def _is_refused(self, unit: Unit) -> bool:
        """Return whether an answer was asked for before something that it rests on was invalidated."""
        if not self._tombstones.last:
            return False
        return any(self._tombstones.refuse(one, one.requested) for one in valid_rows(_to_entry, [unit]))


@contextmanager
def snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a connection to read with that sees all as it is at its first statement."""
    mode = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with reading(engine.execution_options(**mode)) as db:
        if db.dialect.name == "sqlite":
            db.exec_driver_sql("BEGIN")
        yield db


def _dicts(part: Part, table: sa.Table, unit: Unit) -> Iterator[dict[str, Any]]:
    """Yield the rows of a unit in one table, by the names of their columns."""
    names = part.columns(table)
    return (dict(zip(names, row, strict=True)) for row in unit.get(table, ()))


def _made(part: Part, unit: Unit) -> float:
    """Return when a unit was made; 0.0 if it does not say so."""
    rows = _dicts(part, part.table, unit) if part.made else ()
    return max((float(row[part.made]) for row in rows), default=0.0)


def _rank(part: Part, unit: Unit) -> tuple[bool, float]:
    """Return what decides which of two stays: one that a person vouches for, else the later one."""
    pinned = part is ANSWERS and any(row["pinned"] for row in _dicts(part, _entries, unit))
    return pinned, _made(part, unit)


def _with_vectors(here: Unit, there: Unit) -> Unit:
    """Add the vectors of the target that the source lacks: the same id means the same question."""
    if not any(row["semantic"] for row in _dicts(ANSWERS, _entries, here)):
        return here
    made = {row[_EMBEDDER]: row for row in there.get(_vectors, ())}
    mine = {row[_EMBEDDER]: row for row in here.get(_vectors, ())}
    made |= {number: row for number, row in mine.items() if row[_VECTOR] is not None or number not in made}
    return {**here, _vectors: frozenset(made.values())} if made else here


def _to_entry(unit: Unit) -> Entry:
    (row,) = _dicts(ANSWERS, _entries, unit)
    sources = (
        Source(one["document_id"], one["digest"], bool(one["supports"]), one["source"])
        for one in _dicts(ANSWERS, _documents, unit)
    )
    tags = tuple(one["tag"] for one in _dicts(ANSWERS, _tags, unit))
    return replace(to_entry([row[column.name] for column in ENTRY_COLUMNS], tuple(sources)), tags=tags)


def _keys(db: sa.Connection, part: Part, units: Collection[Any], mine: Mapping[Any, Unit]) -> dict[Any, Any]:
    """Return the keys that units have in the target; rows of logs that it does not have are missing."""
    if part is TOMBSTONES:  # an earlier copy may have left them
        c = tables.invalidations.c
        at = {unit: row[1:] for unit, rows in mine.items() for row in rows[part.table]}
        query = sa.select(c.id, c.at, c.criteria).where(c.at.in_([when for when, _ in at.values()]))
        known = {tuple(row[1:]): row.id for row in db.execute(query)}
        return {unit: known[what] for unit, what in at.items() if what in known}
    if not part.is_log:
        return {unit: unit for unit in units}
    n = _numbers.c
    query = sa.select(n.number, n.copied).where(n.part == part.name, n.number.in_(units))
    return {row.number: row.copied for row in db.execute(query)}


def _digests(part: Part, table: sa.Table, unit: Unit) -> list[int]:
    """Return digests of the rows of one table, without numbers of logs, and without what use changes."""
    left = {*part.used, part.unit} if part.is_log else part.used
    rows = ([value for name, value in row.items() if name not in left] for row in _dicts(part, table, unit))
    return sorted(int.from_bytes(blake2b(repr(row).encode(), digest_size=12).digest(), "big") for row in rows)


def _filled(table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the columns that each database fills itself."""
    if table is _vectors:
        return {**row, "indexed_in": MISSING if row["vector"] is None else PENDING}
    if table is tables.embedders:  # "new": who uses it has the vectors made of what the target held before
        return {**row, "until": time.time() + RETENTION_SECONDS, "state": "new"}
    return row


def _bury(db: sa.Connection, where: sa.ColumnElement[bool]) -> None:
    """Record the points of vectors that are about to go as dead."""
    c = _vectors.c
    points = sa.select(c.embedder, c.point).where(where, c.point.is_not(None)).distinct()
    dead: Any = insert_into(db.dialect.name)(tables.dead_points)
    db.execute(dead.from_select(["embedder", "point"], points).on_conflict_do_nothing())


def make_numbers(db: sa.Connection) -> None:
    """Make the table of numbers anew."""
    drop_numbers(db)
    db.execute(sa.schema.CreateTable(_numbers))


def drop_numbers(db: sa.Connection) -> None:
    """Drop the table of numbers."""
    db.execute(sa.schema.DropTable(_numbers, if_exists=True))
