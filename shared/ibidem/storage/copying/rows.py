"""Rows of two databases are compared, and what differs is written to one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import sqlalchemy as sa

from ibidem.storage import tables
from ibidem.storage.copying.plan import ANSWERS, EMBEDDERS, META, TOLD, TOMBSTONES, Part, is_carried
from ibidem.storage.copying.tombstones import KnownTombstones
from ibidem.storage.deletion import delete_entries, of_namespace
from ibidem.storage.engine import fetch_column, insert_into, reading, writing
from ibidem.storage.vectors import MISSING, PENDING, RETENTION_SECONDS

AT_ONCE = 500  # units in one statement: databases bound the number of parameters
_numbers = sa.Table(  # of the rows of logs: what they were in the one database, and are in the other
    "copied_numbers",
    sa.MetaData(),
    sa.Column("part", sa.String(32), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("copied", sa.BigInteger, nullable=False),
)
_vectors, _entries = tables.entry_vectors, tables.entries

Row = dict[str, Any]
Unit = dict[tuple[Any, ...], Row]  # rows by the name of their table and their key
Units = dict[Any, Unit]
InTransaction = Callable[[sa.Connection], None]


@dataclass
class Sums:
    """Rows of one table in both databases, and the sums of their digests."""

    source: int = 0
    target: int = 0
    source_sum: int = 0
    target_sum: int = 0

    def add(self, other: Sums) -> None:
        """Add those of other rows."""
        self.source, self.target = self.source + other.source, self.target + other.target
        self.source_sum += other.source_sum
        self.target_sum += other.target_sum


@dataclass
class Compared:
    """What was compared, by table; and the units that differ."""

    sums: dict[str, Sums]
    differing: list[Any] = field(default_factory=list)


class RowCopier:
    """Copies rows from one database to another. Every method raises `StorageError` when one fails.

    Args:
        source: The database that is copied.
        target: The one that it is copied to.
        namespace: Only this namespace and its users; None for all.
    """

    def __init__(self, source: sa.Engine, target: sa.Engine, namespace: str | None) -> None:
        self._source, self._target, self._namespace = source, target, namespace
        self._tombstones = KnownTombstones()
        self._embedders: list[int] = []  # whose vectors are copied
        self.kept = set[str]()  # newer answers of the target, which stay

    def prepare(self) -> None:
        """Make the table of numbers, and look which embedders there are."""
        with writing(self._target) as db:
            db.execute(sa.schema.CreateTable(_numbers, if_not_exists=True))
        self._find_embedders()

    def clean_up(self) -> None:
        """Drop the table of numbers."""
        with writing(self._target) as db:
            db.execute(sa.schema.DropTable(_numbers, if_exists=True))

    def _find_embedders(self) -> None:
        c = tables.embedders.c
        self._embedders = list(fetch_column(self._source, sa.select(c.id).where(c.state != "retired")))

    def count(self, part: Part) -> int:
        """Count the rows that are to be copied."""
        query = self._chosen(sa.select(sa.func.count()).select_from(part.table), part)
        return int(fetch_column(self._source, query)[0])

    def page(self, part: Part, after: Any, limit: int) -> list[Any]:
        """Return the next units of the source, in order; nothing at the end."""
        return self._page(self._source, part, after, limit)

    def foreign(self, part: Part) -> int:
        """Count the units that the target has and the source has not."""
        if part.kind == "log" or part in (EMBEDDERS, META):
            return 0
        count, column = 0, part.table.c[part.unit]
        for units in each_page(lambda after: self._page(self._target, part, after, AT_ONCE), None):
            with reading(self._source) as db:
                count += len(set(units) - set(db.scalars(sa.select(column).where(column.in_(units)))))
        return count

    def _page(self, engine: sa.Engine, part: Part, after: Any, limit: int) -> list[Any]:
        column = part.table.c[part.unit]
        query = sa.select(column).distinct().order_by(column).limit(limit)
        query = query if after is None else query.where(column > after)
        found = fetch_column(engine, self._chosen(query, part))
        return [unit for unit in found if unit != "" or after is None]  # as a damaged key is read

    def _chosen(self, query: sa.Select[Any], part: Part) -> sa.Select[Any]:
        if part is EMBEDDERS:
            return query.where(tables.embedders.c.state != "retired")
        if self._namespace is None or part.everywhere:
            return query
        return query.where(of_namespace(self._source, part.table, self._namespace))

    # Writing.

    def write(self, part: Part, units: Sequence[Any], also: InTransaction = lambda _: None) -> int:
        """Make these units in the target what they are in the source; return how many were not.

        Args:
            part: Their table.
            units: Values of its column `unit`; those that the source lacks are deleted.
            also: Called in the transaction that writes.
        """
        if part is EMBEDDERS:
            self._find_embedders()
        units = sorted(set(filter(is_carried, units)) if part is META else set(units))
        mine = self._read_source(part, units)
        with writing(self._target) as db:
            put = self._put_log if part.kind == "log" else self._put
            changed = put(db, part, units, mine)
            also(db)
        return changed

    def _put(self, db: sa.Connection, part: Part, units: Sequence[Any], mine: Units) -> int:
        if part is ANSWERS:
            self._tombstones.read(db)  # and so none begins before this transaction ends
        theirs = self._read(db, part, units, units)
        gone, removed, added = list[Any](), Unit(), Unit()
        for unit in units:
            here, there = self._settled(part, mine.get(unit, {}), theirs.get(unit, {}))
            if not here:
                gone += [unit] if there else []
                continue
            differing = {key for key in here.keys() & there.keys() if here[key] != there[key]}
            removed |= {key: there[key] for key in there if key not in here or key in differing}
            added |= {key: here[key] for key in here if key not in there or key in differing}
        self._delete(db, part, gone)
        self._replace(db, part, removed, added)
        if part is ANSWERS:
            self._enqueue(db, [key[1] for key in added if key[0] == _entries.name])
        return len(gone) + len({key[1] for key in (*removed, *added)})

    def _delete(self, db: sa.Connection, part: Part, gone: Sequence[Any]) -> None:
        if not gone or part is EMBEDDERS:  # one that is not used goes by itself
            return
        if part is ANSWERS:
            delete_entries(db, _entries.c.id.in_(gone))
        else:
            db.execute(sa.delete(part.table).where(part.table.c[part.unit].in_(gone)))

    def _replace(self, db: sa.Connection, part: Part, removed: Unit, added: Unit) -> None:
        for table, _ in part.tables:
            keys = [key[1:] for key in removed if key[0] == table.name]
            columns = _key_columns(part, table)
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                where = sa.tuple_(*columns).in_(some)
                if table is _vectors:
                    _bury(db, where)
                db.execute(sa.delete(table).where(where))
            rows = [_filled(table, row) for key, row in added.items() if key[0] == table.name]
            if rows:
                db.execute(sa.insert(table), rows)

    def _enqueue(self, db: sa.Connection, ids: Sequence[str]) -> None:
        """Have the vectors made that embedders of the target need and the source does not have."""
        if not ids:
            return
        e, m = _entries.c, tables.embedders.c
        others = (m.state != "retired", m.id.not_in(self._embedders))
        wanted = sa.select(e.id, m.id, sa.literal(MISSING, sa.String))
        wanted = wanted.select_from(_entries.join(tables.embedders, sa.and_(*others)))
        wanted = wanted.where(e.id.in_(ids), e.semantic)
        insert = insert_into(db.dialect.name)(_vectors)
        db.execute(
            insert.from_select(["entry_id", "embedder", "indexed_in"], wanted).on_conflict_do_nothing()
        )

    def _put_log(self, db: sa.Connection, part: Part, units: Sequence[int], mine: Units) -> int:
        if part is TOMBSTONES:
            _adopt_tombstones(db, mine)
        numbers, id_ = _numbers_of(db, part, units), part.table.c[part.unit]
        theirs = self._read(db, part, list(numbers.values()), ())
        new = [unit for unit in units if unit in mine and unit not in numbers]
        if new:
            insert = sa.insert(part.table).returning(id_, sort_by_parameter_order=True)
            given = db.scalars(insert, [_log_row(part, mine[unit]) for unit in new]).all()
            _note_numbers(db, part, dict(zip(new, given, strict=True)))
        known = [unit for unit in units if unit in mine and numbers.get(unit) in theirs]
        rows = {unit: _log_row(part, mine[unit]) for unit in known}
        changed = [unit for unit in known if rows[unit] != _log_row(part, theirs[numbers[unit]])]
        for unit in changed:
            db.execute(sa.update(part.table).where(id_ == numbers[unit]).values(rows[unit]))
        # What was invalidated stays so, though the source forgets it after a while.
        gone = [unit for unit in numbers if unit not in mine] if part is not TOMBSTONES else []
        if gone:
            db.execute(sa.delete(part.table).where(id_.in_([numbers[unit] for unit in gone])))
            db.execute(sa.delete(_numbers).where(_numbers.c.part == part.name, _numbers.c.number.in_(gone)))
        return len(new) + len(changed) + len(gone)

    def refuse_invalidated(self) -> int:
        """Delete from the target what its tombstones refuse; return how many answers."""
        with writing(self._target) as db:
            self._tombstones.read(db)
            return self._tombstones.delete_refused(db)

    # Reading and comparing.

    def compare(self, part: Part, units: Sequence[Any]) -> Compared:
        """Compare these units as they are in both databases."""
        units = list(filter(is_carried, units)) if part is META else list(units)
        mine, found = (
            self._read_source(part, units),
            Compared({table.name: Sums() for table, _ in part.tables}),
        )
        with reading(self._target) as db:
            if part is ANSWERS:
                self._tombstones.read(db)
            theirs = self._read_target(db, part, units)
        for unit in units:
            here, there = self._settled(part, mine.get(unit, {}), theirs.get(unit, {}))
            same = True
            for name, sums in found.sums.items():
                one, other = (_digests(part, rows, name) for rows in (here, there))
                sums.add(Sums(len(one), len(other), sum(one), sum(other)))
                same = same and sorted(one) == sorted(other)
            found.differing += [] if same else [unit]
        return found

    def _read_target(self, db: sa.Connection, part: Part, units: Sequence[Any]) -> Units:
        if part.kind == "rows":
            return self._read(db, part, units, units)
        numbers = _numbers_of(db, part, units)
        rows = self._read(db, part, list(numbers.values()), ())
        return {unit: rows[copied] for unit, copied in numbers.items() if copied in rows}

    def _read_source(self, part: Part, units: Sequence[Any]) -> Units:
        with _snapshot(self._source) as db:
            return self._read(db, part, units, None)

    def _read(self, db: sa.Connection, part: Part, units: Sequence[Any], of: Sequence[Any] | None) -> Units:
        """Read units; related rows of the units `of`, by default of those that were found."""
        found: Units = {}
        for table, unit in part.tables:
            columns, keys = part.columns(table), [column.name for column in _key_columns(part, table)]
            names = [column.name for column in columns]
            wanted = list(units) if table is part.table else list(found if of is None else of)
            for start in range(0, len(wanted), AT_ONCE):
                some = table.c[unit].in_(wanted[start : start + AT_ONCE])
                query: Any = sa.select(*columns).where(some)
                if table is part.table and of is None:
                    query = self._chosen(query, part)
                if table is _vectors:
                    query = query.where(_vectors.c.embedder.in_(self._embedders))
                for values in db.execute(query):
                    row = dict(zip(names, values, strict=True))
                    key = (table.name, *(row[name] for name in keys))
                    found.setdefault(row[unit], {})[key] = row
        return found

    def _settled(self, part: Part, mine: Unit, theirs: Unit) -> tuple[Unit, Unit]:
        """Return a unit as it is to be in the target, and as it is, without what need not be the same."""
        if part is TOLD:  # what was told last holds
            later = {key: row for key, row in theirs.items() if key in mine and row["at"] > mine[key]["at"]}
            return {**mine, **later}, theirs
        return self._settled_answer(mine, theirs) if part is ANSWERS else (mine, theirs)

    def _settled_answer(self, mine: Unit, theirs: Unit) -> tuple[Unit, Unit]:
        here = next((row for key, row in mine.items() if key[0] == _entries.name), None)
        there = next((row for key, row in theirs.items() if key[0] == _entries.name), None)
        if here is None or self._tombstones.refuse(here, mine):
            return {}, theirs
        if there is not None and _is_newer(there, here):
            self.kept.add(here["id"])
            return theirs, theirs
        mine, theirs = dict(mine), dict(theirs)
        for key in [key for key in {*mine, *theirs} if key[0] == _vectors.name]:
            one, other = mine.get(key), theirs.get(key)
            if one is not None and one["vector"] is None and other is not None:
                mine[key] = other  # the target has made it meanwhile, or makes it, too
            elif one is None and other is not None and other["vector"] is None:
                del theirs[key]
        return mine, theirs


@contextmanager
def _snapshot(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a connection that sees the database as it is now."""
    with reading(engine) as db:
        if db.dialect.name == "sqlite":
            db.exec_driver_sql("BEGIN")
        else:
            db.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield db


def _key_columns(part: Part, table: sa.Table) -> list[sa.Column[Any]]:
    unit = dict(part.tables)[table]
    keys = [column for column in table.primary_key if column.name not in part.own]
    return sorted(keys, key=lambda column: column.name != unit) or [table.c[unit]]


def _numbers_of(db: sa.Connection, part: Part, units: Sequence[int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for start in range(0, len(units), AT_ONCE):
        some = _numbers.c.number.in_(units[start : start + AT_ONCE])
        query = sa.select(_numbers.c.number, _numbers.c.copied).where(_numbers.c.part == part.name, some)
        found.update({row.number: row.copied for row in db.execute(query)})
    return found


def _note_numbers(db: sa.Connection, part: Part, copied: Mapping[int, int]) -> None:
    rows = [{"part": part.name, "number": number, "copied": other} for number, other in copied.items()]
    if rows:
        db.execute(sa.insert(_numbers), rows)


def _adopt_tombstones(db: sa.Connection, mine: Units) -> None:
    """Know again what an earlier copy, that was given up or emptied, has left in the target."""
    numbers, c = _numbers_of(db, TOMBSTONES, list(mine)), tables.invalidations.c
    new = {unit: _log_row(TOMBSTONES, rows) for unit, rows in mine.items() if unit not in numbers}
    some = c.at.in_({row["at"] for row in new.values()})
    known = {
        (row.at, row.criteria): row.id for row in db.execute(sa.select(c.id, c.at, c.criteria).where(some))
    }
    found = {unit: known.get((row["at"], row["criteria"])) for unit, row in new.items()}
    _note_numbers(db, TOMBSTONES, {unit: number for unit, number in found.items() if number is not None})


def _log_row(part: Part, unit: Unit) -> Row:
    """Return the one row of a log, without its number."""
    row = next(iter(unit.values()))
    return {name: value for name, value in row.items() if name != part.unit}


def _digests(part: Part, unit: Unit, name: str) -> list[int]:
    """Return digests of the rows of one table, without numbers of logs, and without what use changes."""
    left = {*part.used, part.unit} if part.kind == "log" else part.used
    return [
        _digest([value for column, value in row.items() if column not in left])
        for key, row in unit.items()
        if key[0] == name
    ]


def _digest(values: Sequence[Any]) -> int:
    return int.from_bytes(blake2b(repr(values).encode(), digest_size=12).digest(), "big")


def _is_newer(there: Row, here: Row) -> bool:
    """Return whether the target's answer stays: a later one, unless only the source's is vetted."""
    return bool(there["created"] > here["created"] and (there["pinned"] or not here["pinned"]))


def _filled(table: sa.Table, row: Row) -> Row:
    """Return a row with the columns that each database fills itself."""
    if table is _vectors:
        return {**row, "indexed_in": MISSING if row["vector"] is None else PENDING}
    if table is tables.embedders:
        return {**row, "until": time.time() + RETENTION_SECONDS, "state": "used"}
    return row


def _bury(db: sa.Connection, where: sa.ColumnElement[bool]) -> None:
    """Record the points of vectors that are about to go as dead."""
    c = _vectors.c
    points = sa.select(c.embedder, c.point).where(where, c.point.is_not(None)).distinct()
    dead: Any = insert_into(db.dialect.name)(tables.dead_points)
    db.execute(dead.from_select(["embedder", "point"], points).on_conflict_do_nothing())


def each_page(pages: Callable[[Any], Sequence[Any]], first: Any) -> Iterable[Sequence[Any]]:
    """Yield pages of units, each after the last unit of the one before."""
    while units := pages(first):
        yield units
        first = units[-1]
