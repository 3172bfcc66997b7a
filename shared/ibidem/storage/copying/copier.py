"""A copy from its begin to its end: begun once, gone on with after a kill, followed, cut over, checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa

from ibidem.errors import InvalidInput, OtherCache, StorageError, StorageUnavailable
from ibidem.storage import tables
from ibidem.storage.copying.changes import ChangeLog
from ibidem.storage.copying.marks import Mark, read_mark, read_moves, write_moves
from ibidem.storage.copying.plan import PARTS, PARTS_OF_NAMESPACE, TOMBSTONES, Part
from ibidem.storage.copying.rows import AT_ONCE, Compared, RowCopier, Sums, each_page
from ibidem.storage.deletion import of_namespace
from ibidem.storage.engine import exclude_stores, exclusive, fetch_value, reading, writing
from ibidem.storage.meta import COPY_FROM, COPY_TO, MOVED_KEY, set_meta
from ibidem.storage.store import Store

T = TypeVar("T")

POLL_SECONDS = 0.2  # between two looks at what has changed
QUIET_SECONDS = 1.0  # how long nothing may have changed in what was cut over, before it is checked
LAST_SECONDS = 10.0  # and how long that is waited for: what is logged later is not copied
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # while one of the servers does not answer
BATCH = 250  # units written in one transaction: others wait for it, some 50 ms
CHANGES, FEW = 5_000, 1_000  # changes read at a time; so few are copied in a second or two

_progress = sa.Table(
    "copied_progress",
    sa.MetaData(),
    sa.Column("part", sa.String(32), primary_key=True),
    sa.Column("last", sa.Text),  # NULL: nothing yet
    sa.Column("done", sa.Boolean, nullable=False),
)
Show = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Checked:
    """One table as it was compared: rows, and a checksum of them, in both databases.

    `foreign` rows are in the target alone. The checksum leaves out what each database makes itself, and how
    often and when an answer was served last.
    """

    table: str
    source: int
    target: int
    source_sum: str
    target_sum: str
    foreign: int = 0

    @property
    def same(self) -> bool:
        """Whether all that the source holds is in the target."""
        return self.source_sum == self.target_sum


@dataclass(slots=True)
class Copied:
    """What a copy did: rows written, answers that stayed as they are newer in the target, and the check.

    `left_out` counts rows that the target refuses: damaged ones.
    """

    written: int = 0
    kept: int = 0
    left_out: int = 0
    seconds: float = 0.0
    moved: bool = False
    checked: list[Checked] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether all that was copied is the same in both databases."""
        return all(one.same for one in self.checked)


class Copy:
    """A copy of one database to another. Every method raises `StorageError` when one of them fails.

    Args:
        source: What is copied.
        target: Where to.
        namespace: Only this namespace and its users; None for all.
        show: Told of what is being done: rows done, and of how many.
    """

    def __init__(self, source: Store, target: Store, namespace: str | None, show: Show) -> None:
        self._source, self._target, self._namespace, self._show = source, target, namespace, show
        self._parts = PARTS if namespace is None else PARTS_OF_NAMESPACE
        self._by_name = {part.name: part for part in self._parts}
        self._log = ChangeLog(source.engine, self._parts)
        self._rows = RowCopier(source.engine, target.engine, namespace)
        self._left_out = set[tuple[str, Any]]()
        self.result = Copied()

    def run(self, *, follow: bool = False, cut_over: bool = False) -> Copied:
        """Copy all; go on where a killed one stopped.

        Args:
            follow: Go on copying what changes until `request_cut_over`, from whatever process.
            cut_over: Cut over as soon as all is copied.
        """
        began = time.monotonic()
        if not self._is_finished():
            self._begin()
            for part in self._parts:
                self._copy(part)
            self._catch_up()
            if follow and not cut_over:
                self._follow()
            if follow or cut_over or self._was_cut_over():
                self._cut_over()
            self._check()
        self._finish()
        self.result.kept, self.result.left_out = len(self._rows.kept), len(self._left_out)
        self.result.moved, self.result.seconds = self._was_cut_over(), time.monotonic() - began
        return self.result

    def _was_cut_over(self) -> bool:
        return any(one.namespace == self._namespace for one in read_moves(self._source))

    # Begin and end.

    def _is_finished(self) -> bool:
        """Return whether the target was complete before a kill, and only marks are left in the source."""
        of = read_mark(self._source, COPY_TO)
        return of is not None and of.cache == self._target.id and read_mark(self._target, COPY_FROM) is None

    def _begin(self) -> None:
        source, target = self._source, self._target
        begun, other = read_mark(target, COPY_FROM), read_mark(source, COPY_TO)
        self._require_possible(begun, other)
        mine = Mark(source.id, source.url, time.time(), self._namespace)
        if begun is None:
            self._require_empty()
            with writing(target.engine) as db:
                db.execute(sa.schema.CreateTable(_progress, if_not_exists=True))
                set_meta(db, COPY_FROM, mine.text())
            forget_moves(target, self._namespace)  # of what it held before it was emptied
            self._rows.clean_up()
        if other is None:  # what changed until now was not noted
            with writing(target.engine) as db:
                db.execute(sa.delete(_progress))
            self._log.begin()
            mark = Mark(target.id, target.url, time.time(), self._namespace)
            source.meta.set(COPY_TO, mark.text())
        self._rows.prepare()

    def _require_possible(self, begun: Mark | None, other: Mark | None) -> None:
        """Raise `InvalidInput` unless these two databases can be copied, or are being copied, so."""
        source, target = self._source, self._target
        if source.id == target.id:
            raise InvalidInput(f"{target.url} is the cache {source.id[:8]} itself, or a backup of it")
        for moved in read_moves(source):
            if moved.cache != target.id and None in (moved.namespace, self._namespace):
                what = source.url if moved.namespace is None else f"the namespace {moved.namespace!r}"
                raise InvalidInput(f"{what} was moved to {moved.place}: copy from there")
        for mark, store in ((begun, source), (other, target)):
            if mark is not None and (mark.cache, mark.namespace) != (store.id, self._namespace):
                which = "" if mark.namespace is None else f", namespace {mark.namespace!r},"
                way = f"from {mark.place}" if mark is begun else f"to {mark.place}"
                raise InvalidInput(
                    f"another copy {way}{which} is not finished: go on with it, or end it with --give-up"
                )

    def _require_empty(self) -> None:
        """Raise `InvalidInput` if the target holds what must not be mixed with what is copied."""
        held = []
        for table in (*(part.table for part in self._parts if not part.everywhere),):
            query = sa.select(sa.func.count()).select_from(table)
            if self._namespace is not None:
                query = query.where(of_namespace(self._target.engine, table, self._namespace))
            if count := fetch_value(self._target.engine, query):
                held.append(f"{count:,} in {table.name}")
        if held and self._namespace is None:
            raise InvalidInput(
                f"{self._target.url} holds rows of its own ({', '.join(held)}), which are not mixed with "
                "others: copy to an empty place, empty it with ibidem clear, or copy one --namespace"
            )
        if held:
            raise InvalidInput(
                f"{self._target.url} has the namespace {self._namespace!r} already ({', '.join(held)}), and "
                "it is not mixed with another: empty it with ibidem clear --namespace"
            )

    def _finish(self) -> None:
        with exclusive(self._target.engine) as db:
            db.execute(sa.delete(tables.meta).where(tables.meta.c.key == COPY_FROM))
            db.execute(sa.schema.DropTable(_progress, if_exists=True))
        self._rows.clean_up()
        self._log.end()
        self._source.meta.set(COPY_TO, None)

    # Copying.

    def _copy(self, part: Part) -> None:
        """Copy all units of a table, those of the last time left out."""
        with reading(self._target.engine) as db:
            row = db.execute(sa.select(_progress).where(_progress.c.part == part.name)).one_or_none()
        if row is not None and row.done:
            return
        done, total = 0, self._rows.count(part)
        last = None if row is None else _unit_of(part, row.last)
        if last is None:
            self._note(part, None)
        while units := patiently(self._rows.page, part, last, BATCH):
            last = units[-1]
            self._write(part, units, last)
            done += len(units)
            self._show(part.name, done, total)
        self._note(part, last, done=True)

    def _note(self, part: Part, last: Any, *, done: bool = False) -> None:
        with writing(self._target.engine) as db:
            _set_progress(db, part, last, done=done)

    def _write(self, part: Part, units: list[Any], last: Any = None) -> None:
        """Write units, by halves where the target refuses one: what it takes of them is copied."""

        def also(db: sa.Connection) -> None:
            if last is not None:
                _set_progress(db, part, last, done=False)

        try:
            self.result.written += patiently(self._rows.write, part, units, also)
        except StorageUnavailable:
            raise
        except StorageError:
            if len(units) == 1:
                self._left_out.add((part.name, units[0]))
                return
            half = len(units) // 2
            self._write(part, units[:half])
            self._write(part, units[half:], last)

    def _catch_up(self) -> int:
        """Copy what has changed, until little has changed meanwhile; return how many changes there were."""
        total, more = 0, True
        while more:
            changes = patiently(self._log.read, CHANGES)
            more = len(changes) > FEW
            units: dict[str, dict[Any, None]] = {}
            for _, name, unit in changes:
                units.setdefault(name, {})[_unit_of(self._by_name[name], unit)] = None
            for part in self._parts:
                found = list(units.get(part.name, ()))
                for start in range(0, len(found), AT_ONCE):
                    self._write(part, found[start : start + AT_ONCE])
                if part is TOMBSTONES and found:
                    patiently(self._rows.refuse_invalidated)
            patiently(self._log.forget, [number for number, *_ in changes])
            total += len(changes)
        return total

    def _follow(self) -> None:
        """Copy what changes until somebody asks for the cut-over."""
        copied = 0
        while not patiently(self._is_cut_over_wanted):
            copied += self._catch_up()
            self._show("follow", copied, 0)
            time.sleep(POLL_SECONDS)

    def _is_cut_over_wanted(self) -> bool:
        mark = read_mark(self._source, COPY_TO)
        if mark is None:
            raise InvalidInput("this copy was ended by --give-up")
        return mark.cut_over

    def _cut_over(self) -> None:
        """Let the source take nothing any more, and copy the last that it took."""
        self._show("cut over", 0, 0)
        patiently(close_source, self._source, self._target, self._namespace)
        until, quiet_since = time.monotonic() + LAST_SECONDS, time.monotonic()
        while time.monotonic() < min(until, quiet_since + QUIET_SECONDS):
            if self._catch_up():
                quiet_since = time.monotonic()
            time.sleep(POLL_SECONDS / 4)
        patiently(self._rows.refuse_invalidated)

    # Checking.

    def _check(self) -> None:
        """Compare all rows."""
        patiently(self._rows.refuse_invalidated)
        for part in self._parts:
            sums = {table.name: Sums() for table, _ in part.tables}
            done, count = 0, self._rows.count(part)
            for units in each_page(partial(patiently, self._rows.page, part, limit=AT_ONCE), None):
                for name, found in self._compare(part, units).sums.items():
                    sums[name].add(found)
                done += len(units)
                self._show(f"check {part.name}", done, count)
            foreign = self._rows.foreign(part)
            self.result.checked += [
                _checked(name, one, foreign if name == part.name else 0) for name, one in sums.items()
            ]
        self._catch_up()

    def _compare(self, part: Part, units: Sequence[Any]) -> Compared:
        """Compare units; what differs has changed while it was compared, and is copied again."""
        page = patiently(self._rows.compare, part, units)
        for _ in range(2):
            if page.differing:
                self._catch_up()
                self._write(part, page.differing)
                page = patiently(self._rows.compare, part, units)
        return page


def close_source(source: Store, target: Store, namespace: str | None) -> None:
    """Let a cache, or a namespace, take no answers any more. What was taken is there when this returns."""
    moves = [one for one in read_moves(source) if one.namespace != namespace]
    mark = Mark(target.id, target.url, time.time(), namespace)
    with exclusive(source.engine) as db:
        exclude_stores(db, tables.invalidations)  # with what pins and invalidates
        if db.dialect.name == "postgresql":  # with what is told of documents
            db.exec_driver_sql(f"LOCK TABLE {tables.told_documents.name} IN SHARE ROW EXCLUSIVE MODE")
        write_moves(db, [*moves, mark])


def forget_moves(store: Store, namespace: str | None) -> None:
    """Let a namespace take answers again; None: all of them."""
    kept = [one for one in read_moves(store) if namespace not in (None, one.namespace)]
    if not kept:
        store.meta.set(MOVED_KEY, None)
        return
    with writing(store.engine) as db:
        write_moves(db, kept)


def request_cut_over(source: Store, target: Store) -> bool:
    """Ask the process that follows to cut over; return whether there is a copy between these two."""
    text = source.meta.get(COPY_TO)
    mark = read_mark(source, COPY_TO)
    if text is None or mark is None or mark.cache != target.id:
        return False
    wanted = Mark(mark.cache, mark.place, mark.at, mark.namespace, cut_over=True)
    return source.meta.compare_and_set(COPY_TO, text, wanted.text())


def give_up(source: Store, target: Store | None, namespace: str | None = None) -> None:
    """End a copy that is not finished, or let a cache or namespace that was moved take answers again.

    The target, if it is still there, keeps what it has.
    """
    ChangeLog(source.engine, PARTS).end()
    source.meta.set(COPY_TO, None)
    forget_moves(source, namespace)
    if target is None:
        return
    target.meta.set(COPY_FROM, None)
    with exclusive(target.engine) as db:
        db.execute(sa.schema.DropTable(_progress, if_exists=True))
    RowCopier(source.engine, target.engine, None).clean_up()


def patiently(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call it, and again, with pauses, while a database does not answer: a minute in all."""
    for pause in PAUSES:
        try:
            return call(*arguments, **options)
        except OtherCache:
            raise
        except StorageUnavailable:
            time.sleep(pause)
    return call(*arguments, **options)


def _checked(table: str, sums: Sums, foreign: int) -> Checked:
    one, other = (f"{total % 2**96:024x}" for total in (sums.source_sum, sums.target_sum))
    return Checked(table, sums.source, sums.target, one, other, foreign)


def _unit_of(part: Part, text: str | None) -> Any:
    """Return a unit as its column has it, from its text."""
    whole = isinstance(part.table.c[part.unit].type, sa.BigInteger)
    return int(text) if text is not None and whole else text


def _set_progress(db: sa.Connection, part: Part, last: Any, *, done: bool) -> None:
    db.execute(sa.delete(_progress).where(_progress.c.part == part.name))
    values = {"part": part.name, "last": None if last is None else str(last), "done": done}
    db.execute(sa.insert(_progress).values(values))
