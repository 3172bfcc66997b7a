"""LangChain's record managers: what they hold, and what the cache is told of when they change."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.indexing import RecordManager

from ibidem._util.concurrency import in_thread

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


def invalidating(record_manager: RecordManager, cache: SemanticCache) -> RecordManager:
    """Wrap a record manager: what rests on the documents it deletes is invalidated in the cache.

    `index(documents, invalidating(record_manager, cache), vector_store, cleanup="incremental", ...)`: what a
    changed document said before is deleted, and so are the answers that rest on it. What is new is announced:
    answers made before are not repeated where it is retrieved. The vector store must return documents with
    their ids, as LangChain's standard tests demand.

    Args:
        record_manager: Yours.
        cache: The cache, the same as the program's or another on the same database.
    """
    return _Invalidating(record_manager, cache)


def _delegated(name: str) -> Any:
    """Return a method of this name that calls the program's record manager."""

    def call(self: _Invalidating, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._theirs, name)(*args, **kwargs)

    return call


class _Invalidating(RecordManager):
    """Delegates to the program's record manager, and tells the cache of keys before it adds or deletes them.

    If that fails `index` can be run again: it still knows what there is to do.
    """

    create_schema, acreate_schema = _delegated("create_schema"), _delegated("acreate_schema")
    get_time, aget_time = _delegated("get_time"), _delegated("aget_time")
    exists, aexists = _delegated("exists"), _delegated("aexists")
    list_keys, alist_keys = _delegated("list_keys"), _delegated("alist_keys")

    def __init__(self, record_manager: RecordManager, cache: SemanticCache) -> None:
        super().__init__(record_manager.namespace)
        self._theirs, self._cache = record_manager, cache

    def update(self, keys: Sequence[str], **kwargs: Any) -> None:
        if new := _unknown(keys, self._theirs.exists(keys)):
            self._cache.announce(new)
        self._theirs.update(keys, **kwargs)

    async def aupdate(self, keys: Sequence[str], **kwargs: Any) -> None:
        if new := _unknown(keys, await self._theirs.aexists(keys)):
            await in_thread(partial(self._cache.announce, new))
        await self._theirs.aupdate(keys, **kwargs)

    def delete_keys(self, keys: Sequence[str]) -> None:
        if keys:
            self._cache.invalidate(document=list(keys))
        self._theirs.delete_keys(keys)

    async def adelete_keys(self, keys: Sequence[str]) -> None:
        if keys:
            await in_thread(partial(self._cache.invalidate, document=list(keys)))
        await self._theirs.adelete_keys(keys)


def _unknown(keys: Sequence[str], known: Sequence[bool]) -> list[str]:
    """Return the keys that the record manager does not know yet: those of new documents."""
    return [key for key, is_known in zip(keys, known, strict=True) if not is_known]


def record_keys(records: RecordManager) -> dict[str, str]:
    """Return the keys of a record manager: digests of what the documents say, so a change is another key."""
    inner, query = _key_query(records)
    if query is None:
        return dict.fromkeys(inner.list_keys(), "")
    with inner.engine.connect() as connection:
        return dict.fromkeys(connection.execute(query).scalars(), "")


async def arecord_keys(records: RecordManager) -> dict[str, str]:
    """As `record_keys`, also of one that has async methods only."""
    inner, query = _key_query(records)
    if query is not None and hasattr(inner.engine, "sync_engine"):
        async with inner.engine.connect() as connection:
            return dict.fromkeys((await connection.execute(query)).scalars(), "")
    try:
        return await in_thread(record_keys, records)
    except (AssertionError, NotImplementedError):
        return dict.fromkeys(await records.alist_keys(), "")


def _key_query(records: RecordManager) -> tuple[Any, Any]:
    """Return the record manager without a wrapper of ours, and of one in SQL the query of its keys.

    Its own method makes an object of each row: 80 ms for 10,000, where the keys alone take 12.
    """
    while isinstance(records, _Invalidating):
        records = records._theirs
    modules = (sys.modules.get(base.__module__) for base in type(records).__mro__)
    table = next((row.__table__ for each in modules if (row := getattr(each, "UpsertionRecord", None))), None)
    if table is None or not hasattr(records, "engine"):
        return records, None
    query = table.select().with_only_columns(table.c.key).where(table.c.namespace == records.namespace)
    return records, query
