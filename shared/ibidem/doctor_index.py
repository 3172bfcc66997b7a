"""Does the vector index hold what the database says? What `ibidem doctor` looks at there."""

from __future__ import annotations

import os

from ibidem.index.base import Compactable
from ibidem.index.compaction import CollectionRegistry
from ibidem.settings import Settings
from ibidem.storage.vectors import VectorTable

PAGE = 5_000


def compare(index: Compactable, table: VectorTable, registry: CollectionRegistry) -> tuple[bool, str]:
    """Whether the index is sound, and a sentence with what was counted and what to do."""
    now = registry.read()
    generations = {index.generation, now.generation} - {""}
    held = _ids(index)
    wanted, known = _points(table, generations)
    missing, orphans = len(wanted - held), len(held - known)
    waiting = len(table.unindexed(index.generation, 100_000, now.generation))
    lacking, dead = table.count_missing(), table.count_dead()
    notes = [
        (missing, f"{missing:,} vectors are missing"),
        (orphans, f"{orphans:,} belong to no entry"),
        (now.dead, f"{now.dead:,} deleted ones are still passed in searches"),
        (lacking, f"{lacking:,} are still to be made, which happens when the cache is used"),
        (dead, f"{dead:,} wait to be deleted"),
        (int(bool(now.next)), "it is being replaced by a fresh one"),
    ]
    told = "; ".join(note for count, note in notes if count)
    text = f"{len(held):,} vectors, {waiting:,} waiting to be indexed" + (f"; {told}" if told else "")
    return not missing, f"{text}; run `ibidem rebuild`" if missing else text


def _ids(index: Compactable) -> set[str]:
    held: set[str] = set()
    while page := index.ids(len(held), PAGE):
        before = len(held)
        held.update(page)
        if len(held) == before:
            break
    return held


def _points(table: VectorTable, generations: set[str]) -> tuple[set[str], set[str]]:
    """The points that an index of these generations should hold, and all points."""
    wanted: set[str] = set()
    known: set[str] = set()
    after = ""
    while page := table.points(after, PAGE):
        after = page[-1][0]
        known.update(point for point, _ in page)
        wanted.update(point for point, generation in page if generation in generations)
    return wanted, known


def holder(settings: Settings) -> str:
    """The process that has the embedded index open, as far as it can be told."""
    try:
        mark = settings.path / "index.in-use"
        number = int(mark.read_text("utf-8") if mark.is_file() else "")
        if os.name == "posix":  # elsewhere signal 0 would end the process
            os.kill(number, 0)
    except PermissionError:
        return f" (process {number}, of another user)"
    except (OSError, ValueError):
        return ""
    return f" (process {number})"
