"""What a copy takes of each table. It is decided here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ibidem.embedding.onnx_model import TELEMETRY_KEY
from ibidem.storage import tables
from ibidem.storage.meta import COPY_FROM, COPY_TO, ID_KEY, MOVED_KEY
from ibidem.storage.vectors import RETIRED_KEY


@dataclass(frozen=True, slots=True)
class Part:
    """One table that is copied, with those that belong to its rows.

    The rows with the same value in the column `unit` are compared and written together, those of `related`
    tables (by their own column) among them. Rows of a log get the next numbers of the database that they are
    copied to, as it may count its own; all others are known by their keys.

    Attributes:
        made: The column that says when a row was made: one that the target made later stays.
        own: Columns that each database fills itself.
        used: Columns that change whenever an answer is served: they are copied, but a difference is no fault.
        everywhere: Whether the rows belong to all namespaces.
        deletes: Whether what is deleted in the source is deleted in the target.
    """

    table: sa.Table
    unit: str
    is_log: bool = False
    made: str = ""
    related: tuple[tuple[sa.Table, str], ...] = ()
    own: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    everywhere: bool = False
    deletes: bool = True

    @property
    def name(self) -> str:
        """The name of the table."""
        return str(self.table.name)

    @property
    def tables(self) -> tuple[tuple[sa.Table, str], ...]:
        """All tables, each with the column of the unit."""
        return (self.table, self.unit), *self.related

    def columns(self, table: sa.Table) -> list[str]:
        """The names of the columns that are copied."""
        return [column.name for column in table.c if column.name not in self.own]

    def unit_of(self, text: str) -> Any:
        """Return a unit as its column has it, from its text."""
        return int(text) if isinstance(self.table.c[self.unit].type, sa.BigInteger) else text


_OF_ENTRIES = (tables.entry_documents, tables.entry_tags, tables.entry_vectors)
ANSWERS = Part(
    tables.entries,
    "id",
    made="created",
    related=tuple((table, "entry_id") for table in _OF_ENTRIES),
    own=frozenset({"indexed_in"}),  # the index is built anew from the vectors
    used=frozenset({"hits", "used", "rank", "expires"}),
)
# An embedder that nobody uses goes by itself. An invalidation holds, though the source forgets it some day.
EMBEDDERS = Part(tables.embedders, "id", own=frozenset({"until", "state"}), everywhere=True, deletes=False)
TOMBSTONES = Part(tables.invalidations, "id", is_log=True, everywhere=True, deletes=False)
MODELS = Part(tables.model_files, "model", everywhere=True)
META = Part(tables.meta, "key", everywhere=True)

# In this order: what rejects or explains answers comes before them, what names others after these.
PARTS = (
    EMBEDDERS,
    TOMBSTONES,
    Part(tables.told_documents, "key", made="at", everywhere=True),
    ANSWERS,
    Part(tables.withdrawn, "id", made="at"),
    Part(tables.answered_turns, "conversation", own=frozenset({"id"})),
    Part(tables.judgements, "id", is_log=True),
    Part(tables.examples, "id", is_log=True),
    Part(tables.lookups, "id", is_log=True),
    MODELS,
    META,
)
# Where one namespace goes to others, the model in use, thresholds and the like are those of the others.
PARTS_OF_NAMESPACE = tuple(part for part in PARTS if part not in (MODELS, META))

LEFT = {
    "vector_changes": "tells other processes of the last changes of this database",
    "dead_points": "is what the vector index of this database has still to delete",
}

# Keys of `meta` that say something of this database alone; the others go along.
_OWN_KEYS = frozenset({"schema_version", ID_KEY, MOVED_KEY, COPY_FROM, COPY_TO, TELEMETRY_KEY})
_OWN_PREFIXES = ("index:", RETIRED_KEY, "redacted:")


def is_carried(key: str) -> bool:
    """Return whether this key of `meta` is copied."""
    return key not in _OWN_KEYS and not key.startswith(_OWN_PREFIXES)
