"""A tuned embedder takes the place of another while the cache serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.promotion import PromotionContract, models  # noqa: F401 (a fixture)
from tests.servers import running_chroma, running_postgres


class TestInMemory(PromotionContract):
    """SQLite, and vectors in memory."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> dict[str, Any]:
        return {"path": str(tmp_path / "c")}


class TestInEmbeddedChroma(TestInMemory):
    """SQLite and a Chroma in the process, as in a large cache."""

    limit = 0


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_chroma(tmp_path_factory.mktemp("chroma")) as server:
        yield server.url


class TestOnAChromaServer(PromotionContract):
    """SQLite and a Chroma server."""

    @pytest.fixture
    def place(self, tmp_path: Path, chroma: str) -> dict[str, Any]:
        return {"path": str(tmp_path / "c"), "chroma": chroma}


class TestOnServers(PromotionContract):
    """PostgreSQL and a Chroma server."""

    @pytest.fixture
    def place(self, tmp_path: Path, chroma: str) -> Iterator[dict[str, Any]]:
        with running_postgres() as url:
            yield {"path": str(tmp_path / "c"), "database": url, "chroma": chroma}
