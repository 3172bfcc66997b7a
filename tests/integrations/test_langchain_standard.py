"""LangChain's own suites for caches, unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_tests.integration_tests import AsyncCacheTestSuite, SyncCacheTestSuite

import ibidem
from langchain_ibidem import IbidemCache
from tests.embedders import BagOfWords


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ibidem.cache.SemanticCache]:
    path: Path = tmp_path_factory.mktemp("standard")
    with ibidem.open(path, embedder=BagOfWords()) as opened:
        yield opened


class TestSync(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, core: ibidem.cache.SemanticCache) -> IbidemCache:
        core.clear()
        return IbidemCache(core)


class TestAsync(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, core: ibidem.cache.SemanticCache) -> IbidemCache:
        core.clear()
        return IbidemCache(core)
