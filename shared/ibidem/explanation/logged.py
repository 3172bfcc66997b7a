"""The lookup log for people: with the text of the nearest question, and in what an empty scope is new."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ibidem.storage.logs import LookupRow
from ibidem.types import differing_parts, read_parts

if TYPE_CHECKING:
    from ibidem.storage.entries import StoredScope
    from ibidem.storage.store import Store

SCOPES = 1_000  # of a namespace, those stored in last, among which the most similar one is looked for


@dataclass(frozen=True, slots=True)
class LoggedLookup:
    """A lookup of the log.

    Attributes:
        row: What was logged.
        nearest: The question that its entry was stored for; None without one, or if it is deleted.
        differs: If its scope held no answer yet: the parts in which the most similar scope of the namespace
            that did differs from it, of those with an answer to the same question if there were any; none if
            there was no such scope, or its parts are not known.
    """

    row: LookupRow
    nearest: str | None = None
    differs: tuple[str, ...] = ()


def explain_log(store: Store, rows: Sequence[LookupRow]) -> list[LoggedLookup]:
    """Add what is known today of the entries and scopes of some lookups. Raises `StorageError`."""
    questions = store.entries.questions(list({row.entry_id for row in rows if row.entry_id}))
    spaces: dict[str, set[str]] = {}
    for row in rows:
        if row.reason == "empty" and row.scope_parts:
            spaces.setdefault(row.namespace, set()).add(row.question or "")
    scopes = {namespace: store.entries.scopes(namespace, SCOPES) for namespace in spaces}
    holding = {name: store.entries.scopes_of(name, sorted(asked)) for name, asked in spaces.items()}
    return [
        LoggedLookup(
            row,
            questions.get(row.entry_id or ""),
            _differing(
                row,
                holding.get(row.namespace, {}).get(row.question or "", ()),
                scopes.get(row.namespace, ()),
            ),
        )
        for row in rows
    ]


def _differing(
    row: LookupRow, holding: Iterable[StoredScope], scopes: Iterable[StoredScope]
) -> tuple[str, ...]:
    """Name the parts in which the most similar other scope differs that had an answer at that time.

    Of those that had one to the same question (`holding`), if there are any: the scope that is alike in most
    parts may be another program's.
    """
    if row.reason != "empty":
        return ()
    parts = read_parts(row.scope_parts)
    for some in (holding, scopes):
        others = [one for one in some if one.scope != row.scope and one.since <= row.at]
        if others:
            found = (differing_parts(parts, read_parts(one.parts)) for one in others)
            return min(found, key=lambda names: len(names) or math.inf)
    return ()
