"""The tables of the truth."""

from __future__ import annotations

import sqlalchemy as sa

# Raised whenever a table changes; an older Ibidem refuses a newer database instead of damaging it.
SCHEMA_VERSION = 5

metadata = sa.MetaData()


def _number() -> sa.Column[int]:
    """The id of a row that is appended: SQLite counts up only what is exactly an INTEGER PRIMARY KEY."""
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)


entries = sa.Table(
    "entries",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("scope", sa.String(32), nullable=False),
    sa.Column("question", sa.Text),
    sa.Column("documents", sa.String(32), nullable=False),
    sa.Column("semantic", sa.Boolean, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("input_tokens", sa.Integer),
    sa.Column("output_tokens", sa.Integer),
    sa.Column("finish_reason", sa.Text, nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Column("created", sa.Float, nullable=False, index=True),
    # When it is deleted, whoever asks; and the lifetime that its caller asked for, if any.
    sa.Column("expires", sa.Float, index=True),
    sa.Column("ttl", sa.Float),
    sa.Column("hits", sa.Integer, nullable=False),
    # When it was stored or last served; bytes it takes; what it cost; the lowest rank is evicted first.
    sa.Column("used", sa.Float, nullable=False, server_default="0"),
    sa.Column("size", sa.Integer, nullable=False, server_default="0"),
    sa.Column("cost", sa.Float, nullable=False, server_default="0"),
    sa.Column("rank", sa.Float, nullable=False, server_default="0"),
    sa.Index("ix_entries_scope", "namespace", "scope"),
    sa.Index("ix_entries_rank", "rank", "used"),  # of the same rank the one unused the longest goes first
)

# Who makes vectors here. Each entry that can be found by meaning has a row in entry_vectors for each of them.
embedders = sa.Table(
    "embedders",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),  # drawn from the fingerprint
    sa.Column("fingerprint", sa.Text, nullable=False),
    # Until when its vectors are kept though it is not the model in use or the one before.
    sa.Column("until", sa.Float, nullable=False),
    # "new" until every entry has its row, then "used", "retired" while its vectors are being deleted.
    sa.Column("state", sa.String(8), nullable=False),
)

entry_vectors = sa.Table(
    "entry_vectors",
    metadata,
    sa.Column("entry_id", sa.String(32), primary_key=True),
    sa.Column("embedder", sa.BigInteger, primary_key=True, autoincrement=False),
    # The question's embedding in half precision (cosines stay right to 1e-3); NULL is still to be made.
    sa.Column("vector", sa.LargeBinary),
    # Its point in the vector index; entries with the same vector and scope share one.
    sa.Column("point", sa.String(32)),
    # The index generation that holds the vector; "" waits for indexing, "zz" for a vector.
    sa.Column("indexed_in", sa.String(32), nullable=False),
    sa.Index("ix_entry_vectors_point", "embedder", "point"),
    sa.Index("ix_entry_vectors_indexed_in", "embedder", "indexed_in"),
)

# Promoted models, in pieces: whoever opens the database has them, on whichever host. The manifest comes last.
model_files = sa.Table(
    "model_files",
    metadata,
    sa.Column("model", sa.String(32), primary_key=True),
    sa.Column("file", sa.String(64), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

entry_documents = sa.Table(
    "entry_documents",
    metadata,
    sa.Column("entry_id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.String(32), primary_key=True),
    # In the key: two documents may have the same text.
    sa.Column("document_id", sa.Text, primary_key=True, index=True),
    sa.Column("supports", sa.Boolean, nullable=False),
    # The id of what the document was cut from, such as a file; empty if that is not known.
    sa.Column("source", sa.Text, nullable=False, server_default="", index=True),
)

entry_tags = sa.Table(
    "entry_tags",
    metadata,
    sa.Column("entry_id", sa.String(32), primary_key=True),
    sa.Column("tag", sa.Text, primary_key=True, index=True),
)

# What was invalidated, so that answers that were being made meanwhile are not stored either.
invalidations = sa.Table(
    "invalidations",
    metadata,
    _number(),
    sa.Column("at", sa.Float, nullable=False, index=True),
    # The criteria as JSON: they are only ever read as a whole.
    sa.Column("criteria", sa.Text, nullable=False),
)

# Points of the vector index that deleted entries left behind, until the index has deleted them too.
dead_points = sa.Table(
    "dead_points",
    metadata,
    sa.Column("embedder", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("point", sa.String(32), primary_key=True),
)

lookups = sa.Table(
    "lookups",
    metadata,
    _number(),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("scope", sa.String(32), nullable=False),
    sa.Column("question", sa.Text),
    sa.Column("tier", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("entry_id", sa.String(32)),
    sa.Column("similarity", sa.Float),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("tokens_saved", sa.Integer, nullable=False),
)

examples = sa.Table(
    "examples",
    metadata,
    _number(),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("question", sa.Text, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    # As JSON, `[["id", "digest", "source"], ...]`: they are only ever read with their example.
    sa.Column("documents", sa.Text, nullable=False),
    sa.Column("input_tokens", sa.BigInteger),
    sa.Column("output_tokens", sa.BigInteger),
    sa.Column("seconds", sa.Float),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("entry_id", sa.Text),
    sa.Column("scope", sa.String(32), nullable=False, server_default=""),
    sa.Column("feedback", sa.Boolean),  # NULL: nobody said
    sa.Column("tags", sa.Text, nullable=False, server_default="[]"),  # JSON, as of documents
    # The question's embedding, as of entries; who made it, "" while nobody has. No vector: too long for it.
    sa.Column("embedder", sa.Text, nullable=False, server_default=""),
    sa.Column("vector", sa.LargeBinary),
    sa.Index("ix_examples_namespace", "namespace", "id"),
    sa.Index("ix_examples_entry", "entry_id"),
    sa.Index("ix_examples_vector", "namespace", "embedder", "id"),
    sa.Index("ix_examples_at", "at"),
    # As of judgements: what was read is only added to.
    sqlite_autoincrement=True,
)

judgements = sa.Table(
    "judgements",
    metadata,
    _number(),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("scope", sa.String(32), nullable=False),
    sa.Column("entry_id", sa.String(32), nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("stored", sa.Text, nullable=False),
    sa.Column("similarity", sa.Float, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    # Who gave the score: embedder and weights. Scores of different ones are never compared.
    sa.Column("scorer", sa.String(32), nullable=False),
    sa.Column("right", sa.Boolean, nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Index("ix_judgements_namespace", "namespace", "id"),
    # An id is never given again: other processes learn what is newer than the last one they saw.
    sqlite_autoincrement=True,
)

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
