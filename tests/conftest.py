"""Fixtures that all tests share."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ibidem
from ibidem.cache import SemanticCache
from ibidem.embedding import is_default
from tests.embedders import BagOfWords

OpenCache = Callable[..., SemanticCache]


def pytest_collection_finish() -> None:
    """What the imports left is in use until the end: a test that collects garbage need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that tests start, also where this one was begun in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _event_loop_of_the_main_thread() -> Iterator[None]:
    """Set an event loop, and close it at the end.

    LlamaIndex counts tokens with `asyncio.get_event_loop()`, which makes one where none was ever set. Nobody
    would close that one, and the garbage collector would complain of it in any later test.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A developer's own IBIDEM_* variables and caches stay out of the tests."""
    import os

    for name in tuple(os.environ):
        if name.startswith("IBIDEM_") and name != "IBIDEM_MODEL_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("IBIDEM_PATH", str(tmp_path / "default"))


@pytest.fixture
def wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints is not wrapped."""
    from ibidem.cli.output import out

    monkeypatch.setattr(out, "_width", 200)


@pytest.fixture
def open_cache(tmp_path: Path) -> Iterator[OpenCache]:
    """Opens caches in a fresh directory with the bag-of-words embedder; closes them afterwards."""
    opened: list[SemanticCache] = []

    def open_one(**settings: Any) -> SemanticCache:
        chosen = {"path": tmp_path / "cache", "embedder": BagOfWords(), **settings}
        if not {"min_similarity", "min_probability"} & chosen.keys():
            cosines = not is_default(chosen["embedder"]) and chosen.get("verifier", "default") == "default"
            chosen["min_similarity" if cosines else "min_probability"] = 0.8
        opened.append(ibidem.open(**chosen))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache: OpenCache) -> SemanticCache:
    """An empty cache."""
    return open_cache()
