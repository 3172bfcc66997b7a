"""`ibidem invalidate`, `feedback` and `correct`: answers that are out of date, or wrong."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ibidem.cli import tables
from ibidem.cli.output import (
    DatabaseOption,
    IdArgument,
    JsonOption,
    NamespaceOption,
    PathOption,
    YesOption,
    confirmed,
    entry_of,
    err,
    existing_store,
    fail,
    moment,
    out,
    print_json,
    settings_of,
    text_argument,
    text_option,
)
from ibidem.lifecycle.invalidation import Invalidated, criteria_of

Documents = Annotated[
    list[str] | None,
    text_option(
        "--document",
        metavar="ID",
        help="A document, or the source of one; may be repeated.",
    ),
]
Current = Annotated[
    Path | None,
    typer.Option("--current", help="A file with what the document says now: answers that rest on it stay."),
]
Tag = Annotated[str | None, text_option("--tag", help="Answers stored under this name.")]
Model = Annotated[str | None, text_option("--model", help="Answers of this model.")]
EntryId = Annotated[
    str | None,
    text_option("--entry", metavar="ID", help="This answer; the beginning of its id will do."),
]
Before = Annotated[
    str | None,
    typer.Option("--before", metavar="WHEN", help="Older answers: than 2026-01-31T12:00Z, or than 3d, 12h."),
]
NOT_CORRECTED = {
    "unknown_entry": "the entry was just deleted",
    "invalidated": "what the answer rests on has just been invalidated",
    "pins_full": "pinned answers fill max_entries or max_bytes",
}
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be deleted.")]


def invalidate(
    document: Documents = None,
    current: Current = None,
    tag: Tag = None,
    namespace: NamespaceOption = None,
    model: Model = None,
    entry: EntryId = None,
    before: Before = None,
    dry_run: DryRun = False,
    yes: YesOption = False,
    path: PathOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete answers whose documents have changed, or that are unwanted: what fulfils all that is given."""
    with existing_store(path, database) as store:
        criteria = criteria_of(
            document=document or None,
            current=None if current is None else _content(current),
            before=None if before is None else moment("before", before),
            tag=tag,
            namespace=namespace,
            model=model,
            entry=None if entry is None else entry_of(store, entry).id,
        )
        with err.status("Looking for the answers"):
            found = store.preview(criteria)
        if not as_json:
            shown = " `ibidem show ID` names the documents of an answer." if document else ""
            out.print(tables.entries(found.entries) if found else f"No entries.{shown}")
            if found.count > len(found.entries):
                out.print(f"... and {found.count - len(found.entries):,} older ones")
        if not dry_run:
            what = f"{_entries(found.count)} and their examples" if found else "the examples that match"
            if not yes and not confirmed(f"Delete {what}?", on_stderr=True):
                raise typer.Exit(1)
            with err.status("Deleting"):
                ids, examples = store.invalidations.invalidate(criteria, time.time)
            found = Invalidated(len(ids), found.entries, examples)
    if as_json:
        newest = [tables.summary(one) for one in found.entries]
        told = {"count": found.count, "examples": found.examples, "newest": newest, "dry_run": dry_run}
        print_json(told)
    elif not dry_run:
        out.print(f"Deleted {_entries(found.count)}.")


def give_feedback(
    entry_id: IdArgument,
    good: Annotated[bool, typer.Option("--good/--bad", help="Was the answer right?", show_default=False)],
    path: PathOption = None,
    database: DatabaseOption = None,
) -> None:
    """Note that an answer was right, or wrong: then it is deleted."""
    with existing_store(path, database) as store:
        entry = entry_of(store, entry_id)
        store.record_feedback(entry, good)
    out.print("Noted." if good else f"Noted, and deleted entry {entry.id[:8]}.")


def correct(
    entry_id: IdArgument,
    answer: Annotated[str, text_argument(metavar="ANSWER", help="What is said from now on.")],
    path: PathOption = None,
    database: DatabaseOption = None,
) -> None:
    """Put an answer of yours in the place of a stored one, and pin it."""
    with existing_store(path, database) as store:
        entry = entry_of(store, entry_id)
        if reason := store.correct(entry.id, answer, time.time(), settings_of(path, database).bounds):
            fail(f"{NOT_CORRECTED.get(reason, reason)}; nothing was changed")
    out.print(f"Entry {entry.id[:8]} is corrected, and pinned: `ibidem show {entry.id[:8]}`.")


def _entries(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {file} as text: {getattr(error, 'strerror', None) or 'it is not UTF-8'}")
