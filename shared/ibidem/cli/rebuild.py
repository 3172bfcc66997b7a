"""`ibidem rebuild`: fill a new vector index from the database."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from ibidem._util.faults import Faults
from ibidem.active_model import active_embedder
from ibidem.cli.doctor import index_holder
from ibidem.cli.output import (
    DatabaseOption,
    PathOption,
    fail,
    out,
    progress,
    require_cache,
    sentences,
    text_option,
)
from ibidem.errors import IndexInUse, IndexUnavailable
from ibidem.index import search
from ibidem.index.base import Compactable, QuestionSearch
from ibidem.index.compaction import CollectionRegistry
from ibidem.index.memory import InMemoryIndex
from ibidem.runtime import build_semantic_index, open_store, registry_of
from ibidem.settings import Settings, read_settings

ChromaOption = Annotated[str | None, text_option("--chroma", help="URL of a Chroma server.")]
EmbedderOption = Annotated[
    str | None,
    text_option(
        "--embedder",
        help="Name or directory of the embedding model, if not the default.",
    ),
]


def rebuild_index(
    path: PathOption = None,
    database: DatabaseOption = None,
    chroma: ChromaOption = None,
    embedder: EmbedderOption = None,
) -> None:
    """Fill a new vector index from the database and put it in place of the old one.

    A small embedded cache (10,000 vectors) has none: they are searched in memory. In PostgreSQL with pgvector
    what is lacking is entered, and the HNSW index built anew.
    """
    with sentences():
        settings = read_settings(path=path, database=database, chroma=chroma, embedder=embedder)
        require_cache(settings)
        try:
            count = _rebuilt(settings)
        except IndexInUse:
            whose = f"another process{index_holder(settings)} is using the index in {settings.path}"
            fail(f"{whose}; stop it and try again")
    out.print(f"The index holds {count:,} {'vector' if count == 1 else 'vectors'}.")


def _rebuilt(settings: Settings) -> int:
    store, faults = open_store(settings, create=False), Faults()
    try:
        built = build_semantic_index(settings, store, active_embedder(settings, store), faults, lambda: None)
        vectors, registry = built.vectors, registry_of(settings, built.fingerprint, store)
        with progress("Indexing") as show:
            try:
                return _replaced(vectors, registry, partial(show, "Indexing"))
            finally:
                vectors.close()
    finally:
        store.close()


def _replaced(vectors: QuestionSearch, registry: CollectionRegistry, show: Callable[[int, int], None]) -> int:
    """Replace the index at once; `show` is told how many vectors of how many it has. Returns how many.

    Raises:
        IndexUnavailable: It belongs to another process, is down, or is being replaced by another process.
    """
    old = vectors.open()
    if isinstance(old, InMemoryIndex) and vectors.table.count() > search.EXACT_LIMIT:
        raise IndexInUse("another process is using the vector index")
    while vectors.index_batch():
        pass
    if not isinstance(old, Compactable):
        vectors.compact(wanted=True)
        return vectors.table.count()
    total = vectors.table.count_indexed(old.generation, registry.read().generation)
    more = vectors.compact(wanted=True)
    while isinstance(index := vectors.open(), Compactable) and index.name == old.name:
        if not more:
            raise IndexUnavailable("the index is being replaced already; try again in a minute")
        show(total - vectors.table.count_indexed(index.generation), total)
        more = vectors.compact()
    vectors.compact()  # deletes the old one
    return index.count() if isinstance(index, Compactable) else vectors.table.count()
