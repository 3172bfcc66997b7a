"""Invalidate answers when LangChain's indexing deletes the documents they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from langchain_core.indexing import RecordManager

from ibidem._util.concurrency import in_thread

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


def invalidating(record_manager: RecordManager, cache: SemanticCache) -> RecordManager:
    """Wrap a record manager: what rests on the documents it deletes is invalidated in the cache.

    `index(documents, invalidating(record_manager, cache), vector_store, cleanup="incremental", ...)`: what a
    changed document said before is deleted, and so are the answers that rest on it. The vector store must
    return documents with their ids, as LangChain's standard tests demand.

    Args:
        record_manager: Yours.
        cache: The cache, the same as the program's or another on the same database.
    """
    return _Invalidating(record_manager, cache)


class _Invalidating(RecordManager):
    """Delegates to the program's record manager, and invalidates keys before they are deleted.

    If that fails `index` can be run again: it still knows of them.
    """

    def __init__(self, record_manager: RecordManager, cache: SemanticCache) -> None:
        super().__init__(record_manager.namespace)
        self._theirs, self._cache = record_manager, cache

    def delete_keys(self, keys: Sequence[str]) -> None:
        if keys:
            self._cache.invalidate(document=list(keys))
        self._theirs.delete_keys(keys)

    async def adelete_keys(self, keys: Sequence[str]) -> None:
        if keys:
            await in_thread(partial(self._cache.invalidate, document=list(keys)))
        await self._theirs.adelete_keys(keys)

    def create_schema(self) -> None:
        self._theirs.create_schema()

    async def acreate_schema(self) -> None:
        await self._theirs.acreate_schema()

    def get_time(self) -> float:
        return self._theirs.get_time()

    async def aget_time(self) -> float:
        return await self._theirs.aget_time()

    def update(
        self,
        keys: Sequence[str],
        *,
        group_ids: Sequence[str | None] | None = None,
        time_at_least: float | None = None,
    ) -> None:
        self._theirs.update(keys, group_ids=group_ids, time_at_least=time_at_least)

    async def aupdate(
        self,
        keys: Sequence[str],
        *,
        group_ids: Sequence[str | None] | None = None,
        time_at_least: float | None = None,
    ) -> None:
        await self._theirs.aupdate(keys, group_ids=group_ids, time_at_least=time_at_least)

    def exists(self, keys: Sequence[str]) -> list[bool]:
        return self._theirs.exists(keys)

    async def aexists(self, keys: Sequence[str]) -> list[bool]:
        return await self._theirs.aexists(keys)

    def list_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        return self._theirs.list_keys(before=before, after=after, group_ids=group_ids, limit=limit)

    async def alist_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        return await self._theirs.alist_keys(before=before, after=after, group_ids=group_ids, limit=limit)
