"""The tables of the truth."""

from __future__ import annotations

import sqlalchemy as sa

from ibidem.storage.columns import BigInteger, Float, Integer, LargeBinary, String, Text, UnitVector

# Raised whenever a table changes; an older Ibidem refuses a newer database instead of damaging it.
SCHEMA_VERSION = 5

metadata = sa.MetaData()


def _number() -> sa.Column[int]:
    """The id of a row that is appended: SQLite counts up only what is exactly an INTEGER PRIMARY KEY."""
    return sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True)


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
    # When it is deleted, whoever asks; and the lifetime that its caller asked for, if any.
    sa.Column("expires", Float(), index=True),
    sa.Column("ttl", Float()),
    sa.Column("hits", Integer(0), nullable=False),
    # When it was stored or last served; bytes it takes; what it cost; the lowest rank is evicted first.
    sa.Column("used", Float(0.0), nullable=False, server_default="0"),
    sa.Column("size", Integer(0), nullable=False, server_default="0"),
    sa.Column("cost", Float(0.0), nullable=False, server_default="0"),
    sa.Column("rank", Float(0.0), nullable=False, server_default="0"),
    sa.Index("ix_entries_scope", "namespace", "scope"),
    sa.Index("ix_entries_rank", "rank", "used"),  # of the same rank the one unused the longest goes first
)

# Who makes vectors here. Each entry that can be found by meaning has a row in entry_vectors for each of them.
embedders = sa.Table(
    "embedders",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),  # drawn from the fingerprint
    sa.Column("fingerprint", Text(""), nullable=False),
    # Until when its vectors are kept though it is not the model in use or the one before.
    sa.Column("until", Float(0.0), nullable=False),
    # "new" until every entry has its row, then "used", "retired" while its vectors are being deleted.
    sa.Column("state", String(8, ""), nullable=False),
)

entry_vectors = sa.Table(
    "entry_vectors",
    metadata,
    sa.Column("entry_id", String(32, ""), primary_key=True),
    sa.Column("embedder", sa.BigInteger, primary_key=True, autoincrement=False),
    # The question's embedding in half precision (cosines stay right to 1e-3); NULL is still to be made.
    sa.Column("vector", UnitVector()),
    # Its point in the vector index; entries with the same vector and scope share one.
    sa.Column("point", String(32)),
    # The index generation that holds the vector; "" waits for indexing, "zz" for a vector.
    sa.Column("indexed_in", String(32, ""), nullable=False),
    sa.Index("ix_entry_vectors_point", "embedder", "point"),
    sa.Index("ix_entry_vectors_indexed_in", "embedder", "indexed_in"),
)

# Promoted models, in pieces: whoever opens the database has them, on whichever host. The manifest comes last.
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
    # The id of what the document was cut from, such as a file; empty if that is not known.
    sa.Column("source", Text(""), nullable=False, server_default="", index=True),
)

entry_tags = sa.Table(
    "entry_tags",
    metadata,
    sa.Column("entry_id", String(32, ""), primary_key=True),
    sa.Column("tag", Text(""), primary_key=True, index=True),
)

# What was invalidated, so that answers that were being made meanwhile are not stored either.
invalidations = sa.Table(
    "invalidations",
    metadata,
    _number(),
    sa.Column("at", Float(0.0), nullable=False, index=True),
    # The criteria as JSON: they are only ever read as a whole.
    sa.Column("criteria", Text(""), nullable=False),
)

# Points of the vector index that deleted entries left behind, until the index has deleted them too.
dead_points = sa.Table(
    "dead_points",
    metadata,
    sa.Column("embedder", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("point", String(32, ""), primary_key=True),
)

lookups = sa.Table(
    "lookups",
    metadata,
    _number(),
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
)

examples = sa.Table(
    "examples",
    metadata,
    _number(),
    sa.Column("at", Float(0.0), nullable=False),
    sa.Column("namespace", Text(""), nullable=False),
    sa.Column("question", Text(""), nullable=False),
    sa.Column("answer", Text(""), nullable=False),
    sa.Column("model", Text(""), nullable=False),
    # As JSON, `[["id", "digest", "source"], ...]`: they are only ever read with their example.
    sa.Column("documents", Text(""), nullable=False),
    sa.Column("input_tokens", BigInteger()),
    sa.Column("output_tokens", BigInteger()),
    sa.Column("seconds", Float()),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("entry_id", Text()),
    sa.Column("scope", String(32, ""), nullable=False, server_default=""),
    sa.Column("feedback", sa.Boolean),  # NULL: nobody said
    sa.Column("tags", Text(""), nullable=False, server_default="[]"),  # JSON, as of documents
    # The question's embedding, as of entries; who made it, "" while nobody has. No vector: too long for it.
    sa.Column("embedder", Text(""), nullable=False, server_default=""),
    sa.Column("vector", UnitVector()),
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
    sa.Column("at", Float(0.0), nullable=False),
    sa.Column("namespace", Text(""), nullable=False),
    sa.Column("scope", String(32, ""), nullable=False),
    sa.Column("entry_id", String(32, ""), nullable=False),
    sa.Column("asked", Text(""), nullable=False),
    sa.Column("stored", Text(""), nullable=False),
    sa.Column("similarity", Float(0.0), nullable=False),
    sa.Column("score", Float(0.0), nullable=False),
    # Who gave the score: embedder and weights. Scores of different ones are never compared.
    sa.Column("scorer", String(32, ""), nullable=False),
    sa.Column("right", sa.Boolean, nullable=False),
    sa.Column("source", String(16, ""), nullable=False),
    sa.Index("ix_judgements_namespace", "namespace", "id"),
    # An id is never given again: other processes learn what is newer than the last one they saw.
    sqlite_autoincrement=True,
)

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", String(64, ""), primary_key=True),
    sa.Column("value", Text(""), nullable=False),
)
