"""The tables of the database, and column types that survive damaged values.

SQLite keeps any value in any column: a disk, a tool or a crash may leave text where a number belongs. Read as
it is, one such value would end the reading of all rows. These types read it as None, zero or empty text, and
`ibidem.storage.engine.valid_rows` skips the rows that cannot be used even so: one bad row costs one row.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from ibidem.types import to_vector

# Raised whenever a table changes; an older Ibidem refuses a newer database instead of damaging it.
SCHEMA_VERSION = 12
MAX_NUMBER = 1e14  # above it, a number is no time in seconds, no count of tokens or bytes, no score

metadata = sa.MetaData()


class _Checked(sa.types.TypeDecorator[Any]):
    """A type that checks its values when they are read.

    Args:
        neutral: Replaces a value that is not of the type.
        options: Of the database's own type, such as a length.
    """

    impl: Any = sa.types.NullType  # the subclasses have others
    cache_ok = True

    def __init__(self, neutral: Any = None, *options: Any) -> None:
        super().__init__(*options)
        self.neutral = neutral

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return the value, or the neutral one if it is not of the type."""
        return value if value is None or self.is_valid(value) else self.neutral

    def is_valid(self, value: Any) -> bool:
        """Return whether the value is of the type."""
        raise NotImplementedError


class Text(_Checked):
    """Text of any length. Text that is not valid UTF-8 arrives as bytes (`decode_text`)."""

    impl: Any = sa.Text
    cache_ok = True

    def is_valid(self, value: Any) -> bool:
        """Accept text."""
        return isinstance(value, str)


class String(Text):
    """Text of limited length."""

    impl = sa.String
    cache_ok = True

    def __init__(self, length: int, neutral: Any = None) -> None:
        super().__init__(neutral, length)


class Float(_Checked):
    """A finite number of plausible size."""

    impl: Any = sa.Float
    cache_ok = True

    def is_valid(self, value: Any) -> bool:
        """Accept numbers up to `MAX_NUMBER`."""
        return isinstance(value, (int, float, Decimal)) and -MAX_NUMBER < value < MAX_NUMBER


class Integer(Float):
    """A whole number of plausible size."""

    impl = sa.Integer
    cache_ok = True

    def is_valid(self, value: Any) -> bool:
        """Accept whole numbers up to `MAX_NUMBER`."""
        return super().is_valid(value) and value == int(value)


class BigInteger(Integer):
    """A large whole number, such as a sum of others."""

    impl = sa.BigInteger
    cache_ok = True


class LargeBinary(_Checked):
    """Bytes of any length."""

    impl: Any = sa.LargeBinary
    cache_ok = True

    def is_valid(self, value: Any) -> bool:
        """Accept bytes."""
        return isinstance(value, (bytes, memoryview))


class UnitVector(LargeBinary):
    """A vector as `ibidem.types.to_bytes` writes it."""

    cache_ok = True

    def is_valid(self, value: Any) -> bool:
        """Accept half-precision numbers that form a vector of length 1."""
        try:
            return super().is_valid(value) and len(to_vector(value)) > 0
        except ValueError:
            return False


def _row_id() -> sa.Column[int]:
    """Make an id column that counts up; SQLite does so only for exactly INTEGER PRIMARY KEY."""
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)


_PINNED = "pinned <> ''"  # the index holds only these

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("id", String(32, ""), primary_key=True),
    sa.Column("namespace", Text(""), nullable=False),
    sa.Column("scope", String(32, ""), nullable=False),
    sa.Column("question", Text()),
    sa.Column("documents", String(32, ""), nullable=False),
    sa.Column("semantic", sa.Boolean, nullable=False),
    sa.Column("answer", Text(""), nullable=False),
    sa.Column("payload", Text(""), nullable=False),
    sa.Column("model", Text(""), nullable=False),
    sa.Column("input_tokens", Integer()),
    sa.Column("output_tokens", Integer()),
    sa.Column("finish_reason", Text(""), nullable=False),
    sa.Column("seconds", Float()),
    sa.Column("created", Float(0.0), nullable=False, index=True),
    # When it is deleted; and the lifetime that its caller asked for, if any.
    sa.Column("expires", Float(), index=True),
    sa.Column("ttl", Float()),
    sa.Column("hits", Integer(0), nullable=False),
    # When it was stored or last served; bytes it takes; what it cost; the lowest rank is evicted first.
    sa.Column("used", Float(0.0), nullable=False, server_default="0"),
    sa.Column("size", Integer(0), nullable=False, server_default="0"),
    sa.Column("cost", Float(0.0), nullable=False, server_default="0"),
    sa.Column("rank", Float(0.0), nullable=False, server_default="0"),
    # Who vouches for the answer (`ibidem.types.Pin`); "" for a model's.
    sa.Column("pinned", String(16, ""), nullable=False, server_default=""),
    # JSON, digests of the parts of the scope by name: they explain, and are compared in no lookup.
    sa.Column("scope_parts", Text(""), nullable=False, server_default=""),
    # When its request was made: what was told of documents since then, it does not know.
    sa.Column("requested", Float(0.0), nullable=False, server_default="0"),
    # Of a question within a conversation that others are compared with: the scope without the turns before
    # it, and these in JSON; else "".
    sa.Column("base", String(32, ""), nullable=False, server_default=""),
    sa.Column("turns", Text(""), nullable=False, server_default=""),
    sa.Index("ix_entries_scope", "namespace", "scope"),
    sa.Index("ix_entries_pinned", "pinned", sqlite_where=sa.text(_PINNED), postgresql_where=sa.text(_PINNED)),
    sa.Index("ix_entries_rank", "rank", "used"),  # among equal ranks the least recently used goes first
)

# The embedders in use. Each entry that can be found by meaning has a row in entry_vectors for each of them.
embedders = sa.Table(
    "embedders",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),  # a hash of the fingerprint
    sa.Column("fingerprint", Text(""), nullable=False),
    # Until when its vectors are kept, even if it is neither the model in use nor the previous one.
    sa.Column("until", Float(0.0), nullable=False),
    # "new" until every entry has its row, then "used", "retired" while its vectors are being deleted.
    sa.Column("state", String(8, ""), nullable=False),
)

entry_vectors = sa.Table(
    "entry_vectors",
    metadata,
    sa.Column("entry_id", String(32, ""), primary_key=True),
    sa.Column("embedder", sa.BigInteger, primary_key=True, autoincrement=False),
    # The question's embedding in half precision (cosines stay right to 1e-3); NULL while it is missing.
    sa.Column("vector", UnitVector()),
    # Its point in the vector index; entries with the same vector and scope share one.
    sa.Column("point", String(32)),
    # The index generation that holds the vector; "" while it waits for indexing, "zz" while there is none.
    sa.Column("indexed_in", String(32, ""), nullable=False),
    sa.Index("ix_entry_vectors_point", "embedder", "point"),
    sa.Index("ix_entry_vectors_indexed_in", "embedder", "indexed_in"),
)

# The last changes of entry_vectors, for the processes that hold its vectors in memory: they read what is
# newer than what they know. Written by the triggers below on SQLite, and not at all on PostgreSQL. An id is
# never given again, as the newest row stays.
vector_changes = sa.Table(
    "vector_changes",
    metadata,
    _row_id(),
    sa.Column("embedder", sa.BigInteger, nullable=False),
    sa.Column("point", String(32, ""), nullable=False),
    sa.Column("added", sa.Boolean, nullable=False),  # else an entry at this point was deleted
)
KEPT_CHANGES = 1_000  # who is farther behind compares all points

# Files of promoted models, in pieces, so that every host has them. The manifest comes last.
model_files = sa.Table(
    "model_files",
    metadata,
    sa.Column("model", String(32, ""), primary_key=True),
    sa.Column("file", String(64, ""), primary_key=True),
    sa.Column("part", Integer(0), primary_key=True, autoincrement=False),
    sa.Column("data", LargeBinary(b""), nullable=False),
)

entry_documents = sa.Table(
    "entry_documents",
    metadata,
    sa.Column("entry_id", String(32, ""), primary_key=True),
    sa.Column("digest", String(32, ""), primary_key=True),
    # In the key: two documents may have the same text.
    sa.Column("document_id", Text(""), primary_key=True, index=True),
    sa.Column("supports", sa.Boolean, nullable=False),
    # The id of what the document was cut from, such as a file; empty if unknown.
    sa.Column("source", Text(""), nullable=False, server_default="", index=True),
)

entry_tags = sa.Table(
    "entry_tags",
    metadata,
    sa.Column("entry_id", String(32, ""), primary_key=True),
    sa.Column("tag", Text(""), primary_key=True, index=True),
)

# Tombstones: answers requested before an invalidation are not stored after it.
invalidations = sa.Table(
    "invalidations",
    metadata,
    _row_id(),
    sa.Column("at", Float(0.0), nullable=False, index=True),
    # JSON: criteria are only ever read as a whole.
    sa.Column("criteria", Text(""), nullable=False),
)

# Documents that were added or changed, and when that was told; only hashes of their names and texts.
told_documents = sa.Table(
    "told_documents",
    metadata,
    sa.Column("key", String(32, ""), primary_key=True),
    # The key of the document that a text is in; "" for a document itself.
    sa.Column("document", String(32, ""), nullable=False, index=True),
    sa.Column("at", Float(0.0), nullable=False, index=True),
)

# Vetted answers that were invalidated: they are not served, and wait for a person.
withdrawn = sa.Table(
    "withdrawn",
    metadata,
    sa.Column("id", String(32, ""), primary_key=True),
    sa.Column("namespace", Text(""), nullable=False),
    sa.Column("at", Float(0.0), nullable=False),
    # JSON: the criteria of the invalidation; and the rows of the entry, which are only ever read as a whole.
    sa.Column("criteria", Text(""), nullable=False),
    sa.Column("entry", Text(""), nullable=False),
)

# Points that deleted entries left in the vector index, until the index has deleted them too.
dead_points = sa.Table(
    "dead_points",
    metadata,
    sa.Column("embedder", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("point", String(32, ""), primary_key=True),
)

lookups = sa.Table(
    "lookups",
    metadata,
    _row_id(),
    sa.Column("at", Float(0.0), nullable=False),
    sa.Column("namespace", Text(""), nullable=False),
    sa.Column("scope", String(32, ""), nullable=False),
    sa.Column("question", Text()),
    sa.Column("tier", String(16, ""), nullable=False),
    sa.Column("reason", Text(""), nullable=False),
    sa.Column("entry_id", String(32)),
    sa.Column("similarity", Float()),
    sa.Column("seconds", Float(0.0), nullable=False),
    sa.Column("tokens_saved", Integer(0), nullable=False),
    # Of the nearest answer, or of the one served, and the least score that was served then; NULL: none.
    sa.Column("score", Float()),
    sa.Column("threshold", Float()),
    # As in entries, of lookups whose scope held no answer.
    sa.Column("scope_parts", Text(""), nullable=False, server_default=""),
)

examples = sa.Table(
    "examples",
    metadata,
    _row_id(),
    sa.Column("at", Float(0.0), nullable=False),
    sa.Column("namespace", Text(""), nullable=False),
    sa.Column("question", Text(""), nullable=False),
    sa.Column("answer", Text(""), nullable=False),
    sa.Column("model", Text(""), nullable=False),
    # JSON, `[["id", "digest", "source"], ...]`: they are only ever read with their example.
    sa.Column("documents", Text(""), nullable=False),
    sa.Column("input_tokens", BigInteger()),
    sa.Column("output_tokens", BigInteger()),
    sa.Column("seconds", Float()),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("entry_id", Text()),
    sa.Column("scope", String(32, ""), nullable=False, server_default=""),
    sa.Column("feedback", sa.Boolean),  # NULL: no feedback
    sa.Column("tags", Text(""), nullable=False, server_default="[]"),  # a JSON list
    # The question's embedding, and its embedder ("" before it was tried). No vector: too long to embed.
    sa.Column("embedder", Text(""), nullable=False, server_default=""),
    sa.Column("vector", UnitVector()),
    sa.Index("ix_examples_namespace", "namespace", "id"),
    sa.Index("ix_examples_entry", "entry_id"),
    sa.Index("ix_examples_vector", "namespace", "embedder", "id"),
    sa.Index("ix_examples_at", "at"),
    # An id is never given again, as in judgements.
    sqlite_autoincrement=True,
)

judgements = sa.Table(
    "judgements",
    metadata,
    _row_id(),
    sa.Column("at", Float(0.0), nullable=False),
    sa.Column("namespace", Text(""), nullable=False),
    sa.Column("scope", String(32, ""), nullable=False),
    sa.Column("entry_id", String(32, ""), nullable=False),
    sa.Column("asked", Text(""), nullable=False),
    sa.Column("stored", Text(""), nullable=False),
    sa.Column("similarity", Float(0.0), nullable=False),
    sa.Column("score", Float(0.0), nullable=False),
    # Names embedder and weights that gave the score. Scores of different scorers are never compared.
    sa.Column("scorer", String(32, ""), nullable=False),
    sa.Column("right", sa.Boolean, nullable=False),
    sa.Column("source", String(16, ""), nullable=False),
    # The small model of a second opinion, and what it took.
    sa.Column("model", Text(""), nullable=False, server_default=""),
    sa.Column("input_tokens", Integer()),
    sa.Column("output_tokens", Integer()),
    sa.Index("ix_judgements_namespace", "namespace", "id"),
    sa.Index("ix_judgements_entry", "entry_id"),  # a lookup in doubt looks for what was said before
    # An id is never given again: other processes read what is newer than the last one they saw.
    sqlite_autoincrement=True,
)

# Conversations whose last answer came from the cache (`ibidem.storage.turns`): digests only.
answered_turns = sa.Table(
    "answered_turns",
    metadata,
    _row_id(),
    sa.Column("conversation", String(32, ""), nullable=False),
    sa.Column("stored", String(32, ""), nullable=False),
    sa.Column("entry_id", String(32, ""), nullable=False, index=True),
    sa.Column("namespace", Text(""), nullable=False),
    sa.Index("ix_answered_turns_conversation", "conversation", unique=True),
)

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", String(64, ""), primary_key=True),
    sa.Column("value", Text(""), nullable=False),
)


def _record_change(name: str, event: str, row: str, added: int) -> str:
    return f"""
        CREATE TRIGGER IF NOT EXISTS {name} AFTER {event} ON entry_vectors WHEN {row}.point IS NOT NULL
        BEGIN
            INSERT INTO vector_changes (embedder, point, added) VALUES ({row}.embedder, {row}.point, {added});
            DELETE FROM vector_changes WHERE id <= last_insert_rowid() - {KEPT_CHANGES};
        END
    """  # noqa: S608 (of constants)


VECTOR_TRIGGERS = (
    _record_change("vector_inserted", "INSERT", "new", 1),
    _record_change("vector_made", "UPDATE OF point", "new", 1),
    _record_change("vector_deleted", "DELETE", "old", 0),
)
