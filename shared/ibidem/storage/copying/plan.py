"""What a copy takes of each table. It is decided here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from ibidem.embedding.onnx_model import TELEMETRY_KEY
from ibidem.storage import tables
from ibidem.storage.meta import COPY_FROM, COPY_TO, ID_KEY, MOVED_KEY
from ibidem.storage.vectors import RETIRED_KEY


@dataclass(frozen=True, slots=True)
class Part:
    """One table that is copied, with those that belong to its rows.

    The rows with the same value in the column `unit` are compared and written together, those of `related`
    tables (by their own column) among them. Of a `log` the rows get the next numbers of the database that
    they are copied to, as it may count its own; all others are known by their keys.

    `own` columns are filled by each database itself. `used` ones change whenever an answer is served: they
    are copied, but a difference is no fault. `everywhere` are rows that belong to all namespaces.
    """

    table: sa.Table
    unit: str
    kind: Literal["rows", "log"] = "rows"
    related: tuple[tuple[sa.Table, str], ...] = ()
    own: frozenset[str] = frozenset()
    used: frozenset[str] = frozenset()
    everywhere: bool = False

    @property
    def name(self) -> str:
        """The name of the table."""
        return str(self.table.name)

    @property
    def tables(self) -> tuple[tuple[sa.Table, str], ...]:
        """All tables, each with the column of the unit."""
        return (self.table, self.unit), *self.related

    def columns(self, table: sa.Table) -> list[sa.Column[object]]:
        """The columns that are copied."""
        return [column for column in table.c if column.name not in self.own]


_OF_ENTRIES = (tables.entry_documents, tables.entry_tags, tables.entry_vectors)
ANSWERS = Part(
    tables.entries,
    "id",
    related=tuple((table, "entry_id") for table in _OF_ENTRIES),
    own=frozenset({"indexed_in"}),  # the index is built anew from the vectors
    used=frozenset({"hits", "used", "rank", "expires"}),
)
EMBEDDERS = Part(tables.embedders, "id", own=frozenset({"until", "state"}), everywhere=True)
TOMBSTONES = Part(tables.invalidations, "id", kind="log", everywhere=True)
TOLD = Part(tables.told_documents, "key", everywhere=True)
MODELS = Part(tables.model_files, "model", everywhere=True)
META = Part(tables.meta, "key", everywhere=True)

# In this order: what rejects or explains answers comes before them, what names others after these.
PARTS = (
    EMBEDDERS,
    TOMBSTONES,
    TOLD,
    ANSWERS,
    Part(tables.withdrawn, "id"),
    Part(tables.answered_turns, "conversation", own=frozenset({"id"})),
    Part(tables.judgements, "id", kind="log"),
    Part(tables.examples, "id", kind="log"),
    Part(tables.lookups, "id", kind="log"),
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
