"""A copy from its begin to its end: begun once, gone on with after a kill, followed, cut over, checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from typing import Any, TypeVar

import sqlalchemy as sa

from ibidem.errors import InvalidInput, OtherCache, StorageError, StorageUnavailable
from ibidem.storage import tables
from ibidem.storage.copying.changes import AT_ONCE, ChangeLog
from ibidem.storage.copying.marks import (
    Mark,
    close_source,
    forget_moves,
    read_mark,
    read_moves,
    to_mark,
    was_moved,
)
from ibidem.storage.copying.plan import PARTS, PARTS_OF_NAMESPACE, Part
from ibidem.storage.copying.rows import Checked, RowCopier, drop_numbers, make_numbers
from ibidem.storage.deletion import of_namespace
from ibidem.storage.engine import exclusive
from ibidem.storage.meta import COPY_FROM, COPY_TO, get_meta, set_meta
from ibidem.storage.store import Store

T = TypeVar("T")

POLL_SECONDS = 0.2  # between two looks at what has changed
QUIET_SECONDS = 1.0  # how long nothing may have changed in what was cut over, before it is checked
LAST_SECONDS = 10.0  # and how long that is waited for: what is logged later is not copied
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # while one of the servers does not answer
BATCH = 250  # units written in one transaction: others wait for it, some 50 ms
CHECKED_AGAIN = 6  # times, as hits of the answers are counted meanwhile, every half second
CHANGES, FEW = 5_000, 1_000  # changes read at a time; so few are copied in a second or two


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

    def __init__(
        self, source: Store, target: Store, namespace: str | None, show: Callable[[str, int, int], None]
    ) -> None:
        self._source, self._target, self._namespace, self._show = source, target, namespace, show
        self._parts = PARTS if namespace is None else PARTS_OF_NAMESPACE
        self._log = ChangeLog(source.engine, self._parts)
        self._rows = RowCopier(source.engine, target.engine, namespace)
        self._reached = Mark(source.id, source.url, time.time(), namespace, part=self._parts[0].name)
        self._left_out = set[tuple[str, Any]]()
        self._result = Copied()

    def run(self, *, follow: bool = False, cut_over: bool = False) -> Copied:
        """Copy all; go on where a killed one stopped.

        Args:
            follow: Go on copying what changes until `request_cut_over`, from whatever process.
            cut_over: Cut over as soon as all is copied.

        Raises:
            InvalidInput: These two databases cannot be copied so, or `give_up` has ended the copy.
        """
        began = time.monotonic()
        complete = self._was_complete()
        if complete:  # but for what a kill has left in the source
            self._finish()
        if not complete or ((follow or cut_over) and not self._is_moved()):
            self._begin()
            self._copy()
            if follow and not cut_over:
                self._follow()
            if cut_over or patiently(self._is_cut_over_wanted):
                self._cut_over()
            self._check()
            self._finish()
        self._result.kept, self._result.left_out = len(self._rows.kept), len(self._left_out)
        self._result.moved, self._result.seconds = self._is_moved(), time.monotonic() - began
        return self._result

    def _is_moved(self) -> bool:
        return was_moved(self._source, self._target, self._namespace)

    # Begin and end.

    def _was_complete(self) -> bool:
        mark = read_mark(self._source, COPY_TO)
        mine = mark is not None and mark.is_of(self._target, self._namespace)
        return mine and read_mark(self._target, COPY_FROM) is None

    def _begin(self) -> None:
        source, target = self._source, self._target
        self._require_possible()
        begun = read_mark(source, COPY_TO)
        if begun is not None and not begun.is_of(target, self._namespace):
            raise InvalidInput(_unfinished(f"to {begun.place}", begun))
        self._claim(anew=begun is None)  # else what changed until now was not noted
        if begun is None:
            forget_moves(target, self._namespace)  # of what it held before it was emptied
            self._log.begin()
            source.meta.set(COPY_TO, Mark(target.id, target.url, time.time(), self._namespace).text())
        self._rows.find_embedders()

    def _require_possible(self) -> None:
        source, target = self._source, self._target
        if source.id == target.id:
            raise InvalidInput(f"{target.url} is the cache {source.id[:8]} itself, or a backup of it")
        for moved in read_moves(source):
            if moved.cache != target.id and None in (moved.namespace, self._namespace):
                what = source.url if moved.namespace is None else f"the namespace {moved.namespace!r}"
                raise InvalidInput(f"{what} was moved to {moved.place}: copy from there")

    def _claim(self, *, anew: bool) -> None:
        """Mark the target as that of this copy, in one transaction: others may begin at this moment."""
        with exclusive(self._target.engine) as db:
            mark = to_mark(get_meta(db, COPY_FROM))
            if mark is not None and not mark.is_of(self._source, self._namespace):
                raise InvalidInput(_unfinished(f"from {mark.place}", mark))
            if mark is not None and not anew:
                self._reached = mark
                return
            self._require_empty(db)
            set_meta(db, COPY_FROM, self._reached.text())
            make_numbers(db)

    def _require_empty(self, db: sa.Connection) -> None:
        """Raise `InvalidInput` if the target holds what must not be mixed with what is copied."""
        held = []
        for table in (part.table for part in self._parts if not part.everywhere):
            mine = of_namespace(self._target.engine, table, self._namespace)
            if count := db.scalar(sa.select(sa.func.count()).select_from(table).where(mine)):
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
        """Remove what the copy needed; the mark in the source last, as a killed copy does this again."""
        _release(self._target)
        patiently(self._log.end)
        self._source.meta.set(COPY_TO, None)

    # Copying.

    def _copy(self) -> None:
        """Copy all, but what was copied the last time; then what has changed meanwhile."""
        for part in dropwhile(lambda part: part.name != self._reached.part, self._parts):
            if part.name != self._reached.part:
                self._reached = replace(self._reached, part=part.name, unit=None)
            done, total = 0, self._rows.count(part)
            while units := patiently(self._rows.page, part, self._reached.unit, BATCH):
                self._reached = replace(self._reached, unit=units[-1])
                self._write(part, units, {}, self._reached)
                done += len(units)
                self._show(part.name, done, total)
        self._catch_up()

    def _write(
        self, part: Part, units: Sequence[Any], deleted: Mapping[Any, float], reached: Mark | None = None
    ) -> None:
        """Write units, by halves where the target refuses one: what it takes of them is copied."""
        names = {(part.name, unit) for unit in units}
        try:
            self._result.written += patiently(self._rows.write, part, units, deleted, reached)
            self._left_out -= names
        except StorageUnavailable:
            raise
        except StorageError:
            if len(units) == 1:
                self._left_out |= names
                return
            half = len(units) // 2
            self._write(part, units[:half], deleted)
            self._write(part, units[half:], deleted, reached)

    def _catch_up(self) -> int:
        """Copy what has changed, until little has changed meanwhile; return how many changes there were."""
        total, more = 0, True
        while more:
            changes = patiently(self._log.read, CHANGES)
            more = len(changes) > FEW
            for part in self._parts:
                found = [change for change in changes if change.part == part.name]
                deleted: dict[Any, float] = {}
                for change in found:
                    if change.deleted is not None:
                        deleted[change.unit] = max(change.deleted, deleted.get(change.unit, 0.0))
                units = list(dict.fromkeys(change.unit for change in found))
                for start in range(0, len(units), AT_ONCE):
                    self._write(part, units[start : start + AT_ONCE], deleted)
            patiently(self._log.forget, changes)
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
        return mark.cut_over or self._is_moved()  # a killed one may have been cut over already

    def _cut_over(self) -> None:
        """Let the source take nothing any more, and copy the last that it took."""
        self._show("cut over", 0, 0)
        patiently(close_source, self._source, self._target, self._namespace)
        until, quiet_since = time.monotonic() + LAST_SECONDS, time.monotonic()
        while time.monotonic() < min(until, quiet_since + QUIET_SECONDS):
            if self._catch_up():
                quiet_since = time.monotonic()
            time.sleep(POLL_SECONDS / 4)

    # Checking.

    def _check(self) -> None:
        """Compare all rows."""
        self._rows.kept.clear()  # those that are newer now are found again
        for part in self._parts:
            checked = [Checked(table.name) for table, _ in part.tables]
            done, total, last = 0, self._rows.count(part), None
            while units := patiently(self._rows.page, part, last, AT_ONCE):
                for one, found in zip(checked, self._compare(part, units), strict=True):
                    one.add(found)
                done, last = done + len(units), units[-1]
                self._show(f"check {part.name}", done, total)
            checked[0].foreign = patiently(self._rows.foreign, part)
            self._result.checked += checked
        self._catch_up()

    def _compare(self, part: Part, units: Sequence[Any]) -> list[Checked]:
        """Compare units; what differs has changed while it was compared, and is copied again."""
        checked, differing = patiently(self._rows.compare, part, units)
        for _ in range(CHECKED_AGAIN):
            if differing:
                self._catch_up()
                self._write(part, differing, {})
                checked, differing = patiently(self._rows.compare, part, units)
        return checked


def give_up(source: Store, target: Store | None, namespace: str | None = None) -> None:
    """End a copy that is not finished, or let a cache or namespace that was moved take answers again.

    The target keeps what it has, if it is still there; its marks, if they are of another copy.
    """
    source.meta.set(COPY_TO, None)  # first: without its triggers a copy cannot be gone on with
    patiently(ChangeLog(source.engine, PARTS).end)
    forget_moves(source, namespace)
    if target is None:
        return
    mark = read_mark(target, COPY_FROM)
    if mark is not None and mark.cache == source.id:
        _release(target)


def _release(target: Store) -> None:
    with exclusive(target.engine) as db:
        db.execute(sa.delete(tables.meta).where(tables.meta.c.key == COPY_FROM))
        drop_numbers(db)


def _unfinished(way: str, mark: Mark) -> str:
    which = "" if mark.namespace is None else f", namespace {mark.namespace!r},"
    return f"another copy {way}{which} is not finished: go on with it, or end it with --give-up"


def patiently(call: Callable[..., T], *arguments: Any) -> T:
    """Call it, and again, with pauses, while a database does not answer: a minute in all."""
    for pause in PAUSES:
        try:
            return call(*arguments)
        except OtherCache:
            raise
        except StorageUnavailable:
            time.sleep(pause)
    return call(*arguments)
