"""Invalidate answers when a document is indexed anew or deleted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


@contextmanager
def invalidating(docstore: BaseDocumentStore, cache: SemanticCache) -> Iterator[None]:
    """Invalidate the answers that rest on documents which change within the block, also if the block fails.

    What is new at its end is announced: answers made before are not repeated where it is retrieved.

    `with invalidating(index.docstore, cache): index.refresh_ref_docs(documents)`, or around
    `pipeline.run(...)`. A document has changed if the document store has another hash for its id, or none:
    `delete_ref_doc` only removes the hash with `delete_from_docstore=True`.

    Args:
        docstore: The document store of the index.
        cache: The program's cache, or another one of the same database.

    Raises:
        IbidemError: The cache could not be changed; its answers may be out of date.
    """
    before = document_hashes(docstore)
    try:
        yield
    finally:
        after = document_hashes(docstore)
        changed = [id_ for id_, hash_ in before.items() if after.get(id_) != hash_]
        added = [id_ for id_, hash_ in after.items() if before.get(id_) != hash_]
        if added:
            cache.announce(added)
        if changed:
            cache.invalidate(document=changed)


def document_hashes(docstore: BaseDocumentStore) -> dict[str, str]:
    """Return the hashes of all documents and nodes by their ids.

    `get_all_document_hashes` gives ids by hash: of documents that say the same it names one.
    """
    if not isinstance(docstore, KVDocumentStore):
        return {id_: hash_ for hash_, id_ in docstore.get_all_document_hashes().items()}
    return {id_: hash_ for id_, told in _metadata(docstore).items() if (hash_ := told.get("doc_hash"))}


def nodes_of_documents(docstore: BaseDocumentStore) -> set[str]:
    """Return the ids of the nodes that were cut from documents."""
    if not isinstance(docstore, KVDocumentStore):
        found = (docstore.get_all_ref_doc_info() or {}).values()
        return {id_ for info in found for id_ in info.node_ids}
    return {id_ for id_, told in _metadata(docstore).items() if told.get("ref_doc_id")}


def _metadata(docstore: KVDocumentStore) -> dict[str, dict[str, str]]:
    return docstore._kvstore.get_all(collection=docstore._metadata_collection)
