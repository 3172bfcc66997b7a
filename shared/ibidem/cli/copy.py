"""`ibidem copy`: a cache moves to another place, while it is in use."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from ibidem.cli.output import (
    JsonOption,
    err,
    fail,
    out,
    print_json,
    progress,
    sentences,
    styled,
    text_argument,
    text_option,
)
from ibidem.errors import StorageError
from ibidem.runtime import open_store
from ibidem.settings import checked_settings
from ibidem.storage.copying.copier import Copied, Copy, give_up
from ibidem.storage.copying.marks import copying_alone, read_mark, request_cut_over, was_moved
from ibidem.storage.meta import COPY_TO
from ibidem.storage.store import Store

WAIT_SECONDS = 0.3  # between two looks whether the process that follows has ended
STOPPED = 130  # the exit code of a program that Ctrl-C ended

_PLACE = "a directory, or the SQLAlchemy URL of a database"


def copy_cache(
    source: Annotated[str, text_argument(metavar="FROM", help=f"The cache: {_PLACE}.")],
    target: Annotated[str, text_argument(metavar="TO", help=f"Where it goes: {_PLACE}; begun if empty.")],
    namespace: Annotated[
        str | None,
        text_option("--namespace", help="Only this namespace and its users; TO may hold others."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on copying what changes in FROM, until the cut-over.")
    ] = False,
    cut_over: Annotated[
        bool,
        typer.Option(
            "--cut-over", help="Copy the last changes and close FROM, also for a process that follows."
        ),
    ] = False,
    ending: Annotated[
        bool,
        typer.Option(
            "--give-up", help="End an unfinished copy, or have FROM take answers again after a cut-over."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a cache to another place while it is in use: answers, logs, invalidations, all but the index.

    The vector index is built anew from the vectors when TO is used. TO must be empty, or be without the
    --namespace: nothing is mixed with what is there already. Killed or stopped, the same command goes on. At
    the end all rows are compared, and a checksum of each table is shown; the exit code is 1 if one differs.

    With --follow what changes meanwhile is copied, too, and what is invalidated in FROM is in TO. Then
    `ibidem copy FROM TO --cut-over` closes FROM: it refuses answers (reason `moved`), goes on with lookups,
    and all that it took is in TO. Rows of logs get new numbers in TO. The id of an answer holds its
    namespace, so a namespace keeps its name.
    """
    if ending:
        _end(source, target, namespace)
        return
    with sentences(), _opened(source, create=False) as one, _opened(target, create=True) as other:
        try:
            result = _alone(one, other, namespace, follow=follow, cut_over=cut_over)
        except KeyboardInterrupt:
            err.print("Stopped; the same command goes on, --give-up ends it.")
            raise typer.Exit(STOPPED) from None
        _tell(result, one, other, as_json=as_json)


@contextmanager
def _opened(place: str, *, create: bool) -> Iterator[Store]:
    chosen = {"database": place} if "://" in place else {"path": place, "database": None}
    store = open_store(checked_settings(chosen), create=create)
    try:
        yield store
    finally:
        store.close()


def _end(source: str, target: str, namespace: str | None) -> None:
    with sentences(), _opened(source, create=False) as one, copying_alone(one) as alone, ExitStack() as stack:
        if not alone:
            fail(f"another process is copying {one.url}: stop it first")
        other = None
        with suppress(StorageError):  # gone, or its server is: it is not needed
            other = stack.enter_context(_opened(target, create=False))
        give_up(one, other, namespace)
        out.print(f"No copy of {one.url} is under way, and it takes answers.")


def _alone(
    source: Store, target: Store, namespace: str | None, *, follow: bool, cut_over: bool
) -> Copied | None:
    """Copy, as no other process does; None if another has completed it."""
    while True:
        with copying_alone(source) as alone:
            if alone:
                if read_mark(source, COPY_TO) is None and was_moved(source, target, namespace):
                    return None
                return _copy(source, target, namespace, follow=follow, cut_over=cut_over)
        if not cut_over:
            fail(f"another process is copying {source.url}; --cut-over asks it to end")
        request_cut_over(source, target, namespace)  # each time: it may not have begun to the last time
        time.sleep(WAIT_SECONDS)


def _copy(source: Store, target: Store, namespace: str | None, *, follow: bool, cut_over: bool) -> Copied:
    following = False
    with progress("look at both places") as show:

        def tell(what: str, done: int, total: int) -> None:
            nonlocal following
            if what == "follow" and not following:
                following = True
                err.print("All is copied, and so is what changes, until: ibidem copy FROM TO --cut-over")
            show(what, done, total)

        return Copy(source, target, namespace, tell).run(follow=follow, cut_over=cut_over)


def _tell(result: Copied | None, source: Store, target: Store, *, as_json: bool) -> None:
    if result is None:
        out.print(f"{source.url} was moved to {target.url}.")
        return
    if as_json:
        for one in (found := asdict(result))["checked"]:
            one |= {name: _checksum(one[name]) for name in ("source_sum", "target_sum")}
        print_json({**found, "same": result.same})
    else:
        out.print(_table(result))
        rate = result.written / max(result.seconds, 1e-3)
        out.print(f"{result.written:,} rows written in {result.seconds:.1f} s, {rate:,.0f} a second.")
        if result.kept:
            out.print(f"{result.kept:,} answers of {target.url} are newer, and stayed.")
        if result.left_out:
            out.print(styled(f"{result.left_out:,} damaged rows were left out.", "yellow"))
        if result.moved:
            out.print(f"{source.url} takes no answers any more: open {target.url}", soft_wrap=True)
    if not result.same:
        raise typer.Exit(1)


def _table(result: Copied) -> Table:
    table = Table("table", "rows", "in TO", "checksum", "in TO", "in TO alone")
    for one in result.checked:
        mine, there = (_checksum(total)[:12] for total in (one.source_sum, one.target_sum))
        alone = f"{one.foreign:,}" if one.foreign else ""
        same = styled(there, "green" if one.same else "red")
        table.add_row(one.table, f"{one.source:,}", f"{one.target:,}", mine, same, alone)
    return table


def _checksum(total: int) -> str:
    return f"{total:024x}"
