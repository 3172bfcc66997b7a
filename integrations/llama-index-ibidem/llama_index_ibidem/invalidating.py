"""What rests on a document is forgotten when the document is indexed anew, or deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llama_index.core.storage.docstore import BaseDocumentStore

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


@contextmanager
def invalidating(docstore: BaseDocumentStore, cache: SemanticCache) -> Iterator[None]:
    """Invalidate in the cache, at the end of the block, what rests on documents that changed inside.

    `with invalidating(index.docstore, cache): index.refresh_ref_docs(documents)`, or around
    `pipeline.run(...)`. A document has changed if the document store has another hash for its id, or none:
    `delete_ref_doc` only removes that with `delete_from_docstore=True`. Also if the block fails half way.

    Args:
        docstore: Where LlamaIndex keeps what it has indexed.
        cache: The cache, the same as the program's or another on the same database.

    Raises:
        IbidemError: The cache could not be changed; what is in it may be out of date.
    """
    before = docstore.get_all_document_hashes()  # ids by hash
    try:
        yield
    finally:
        after = docstore.get_all_document_hashes()
        changed = [id_ for hash_, id_ in before.items() if after.get(hash_) != id_]
        if changed:
            cache.invalidate(document=changed)
