"""Fixtures that all tests share."""

from __future__ import annotations

import asyncio
import functools
import gc
import signal
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import certifi
import pytest
import sqlalchemy
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

import ibidem
from ibidem.cache import SemanticCache
from ibidem.embedding import DEFAULT, is_default, onnx_model
from ibidem.storage.migrations import migrate
from tests.embedders import BagOfWords
from tests.servers import end_shared_servers

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


# What thousands of tests would do again, each with a cache of its own, is done once in a process. Children
# that tests start do it all themselves, and so do the tests of each of these.


@pytest.fixture(scope="session", autouse=True)
def _statements_are_compiled_once() -> Iterator[None]:
    """For all databases of a kind: SQLAlchemy compiles them for each engine anew, half the time of a test.

    What was compiled is found by its dialect, which each engine has of its own.
    """
    create, compiled = sqlalchemy.create_engine, sqlalchemy.util.LRUCache[Any, Any](2_000)

    @functools.wraps(create)
    def create_engine(*arguments: Any, **options: Any) -> sqlalchemy.Engine:
        engine = create(*arguments, **options)
        engine._compiled_cache = compiled
        return engine

    with pytest.MonkeyPatch.context() as patch:
        for dialect in (SQLiteDialect_pysqlite, PGDialect_psycopg):
            patch.setattr(dialect, "__eq__", lambda self, other: type(self) is type(other))
            patch.setattr(dialect, "__hash__", lambda self: hash(type(self)))
        patch.setattr(sqlalchemy, "create_engine", create_engine)
        yield


def fill_if_empty(file: Path, made: Path) -> None:
    """Copy one SQLite file to another that is empty, unless a process of the test begins to write to that."""
    with closing(sqlite3.connect(file, timeout=0, isolation_level=None)) as held:
        held.execute("BEGIN EXCLUSIVE")
        if not file.stat().st_size:
            file.write_bytes(made.read_bytes())


@pytest.fixture(scope="session", autouse=True)
def _tables_are_created_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty SQLite file becomes a copy of one that was migrated."""
    made, lock = tmp_path_factory.mktemp("empty") / "ibidem.sqlite3", threading.Lock()

    def copied(engine: sqlalchemy.Engine) -> None:
        file = Path(engine.url.database or "")
        with lock:
            if engine.dialect.name == "sqlite" and file.is_file() and not file.stat().st_size:
                if not made.exists():
                    migrate(blank := sqlalchemy.create_engine(f"sqlite:///{made}"))
                    blank.dispose()
                with suppress(OSError, sqlite3.Error):  # which are for the cache to say
                    fill_if_empty(file, made)
        migrate(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ibidem.storage.store.migrate", copied)
        yield


@pytest.fixture(scope="session", autouse=True)
def _certificates_of_strangers_are_not_read() -> Iterator[None]:
    """No test calls a host that has one; each client of a provider would read them all, for 30 ms."""
    load, public = ssl.SSLContext.load_verify_locations, certifi.where()

    def load_others(context: ssl.SSLContext, cafile: Any = None, *places: Any, **named: Any) -> None:
        if cafile != public:
            load(context, cafile, *places, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl.SSLContext, "load_verify_locations", load_others)
        yield


@pytest.fixture(scope="session", autouse=True)
def _servers_are_started_once() -> Iterator[None]:
    """And ended."""
    yield
    end_shared_servers()


@pytest.fixture(scope="session", autouse=True)
def _the_default_model_stays_loaded() -> Iterator[None]:
    """Once the first test has loaded it: else it goes with the last cache that is open, after each test."""
    load, kept = onnx_model._shared, []

    @functools.wraps(load)
    def shared(files: Any, *how: Any) -> onnx_model.LoadedModel:
        model = load(files, *how)
        if files.fingerprint.startswith(f"{DEFAULT}/"):
            kept[:] = [model]
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_model, "_shared", shared)
        yield


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
