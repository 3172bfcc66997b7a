"""A place without a cache is refused, and a database that becomes another cache is left alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

import ibidem
from ibidem import Answer, Request, StorageError
from ibidem.runtime import open_store
from ibidem.settings import read_settings
from ibidem.storage.store import Store
from tests.conftest import OpenCache
from tests.embedders import BagOfWords
from tests.servers import running_postgres

ASKED = Request("what is the state")


@pytest.mark.parametrize("what", ["nothing", "an empty directory", "an empty file", "tables of others"])
def test_a_place_without_a_cache_is_refused(tmp_path: Path, what: str) -> None:
    """And stays as it was."""
    place = tmp_path / "cache"
    if what != "nothing":
        place.mkdir()
    if what == "an empty file":
        (place / "ibidem.sqlite3").touch()
    if what == "tables of others":
        with closing(sqlite3.connect(place / "ibidem.sqlite3")) as db:
            db.execute("CREATE TABLE meta (key TEXT, value TEXT)")
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(StorageError, match=r"no cache in .*cache.*create=True"):
        ibidem.open(place, embedder=BagOfWords(), create=False)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_file_is_not_replaced(tmp_path: Path) -> None:
    """By default it is moved aside, and a new cache begun."""
    (tmp_path / "ibidem.sqlite3").write_text("no database at all")

    with pytest.raises(StorageError, match="not a database"):
        ibidem.open(tmp_path, embedder=BagOfWords(), create=False)

    assert [file.name for file in tmp_path.glob("ibidem.sqlite3*")] == ["ibidem.sqlite3"]


@pytest.mark.parametrize("server", [False, True], ids=["sqlite", "postgres"])
def test_an_empty_database_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, server: bool
) -> None:
    """Also by the variable; with a cache in it, it is opened, also one without answers."""
    monkeypatch.setenv("IBIDEM_CREATE", "false")
    file = tmp_path / "absent.sqlite3"
    with running_postgres() if server else nullcontext(f"sqlite:///{file}") as url:
        with pytest.raises(StorageError, match="no cache in"):
            ibidem.open(database=url, embedder=BagOfWords())
        assert not file.exists()
        with ibidem.open(database=url, embedder=BagOfWords(), create=True) as cache:
            made = cache._runtime.store.id
        with ibidem.open(database=url, embedder=BagOfWords()) as cache:
            assert cache._runtime.store.id == made


def test_a_file_of_another_cache_is_left_alone(tmp_path: Path, open_cache: OpenCache) -> None:
    """Put in place of the one that is open: nothing of it is served, nothing is stored in it."""
    cache, other = open_cache(), open_cache(path=tmp_path / "other")
    for one, text in ((cache, "mine"), (other, "another's")):
        assert one.store(ASKED, Answer(text))
        assert one.flush()
    file, store = tmp_path / "cache" / "ibidem.sqlite3", cache._runtime.store
    store._engine.dispose()  # the connections end, as those to a server do
    kept = _moved(file, tmp_path / "kept")
    other.close()
    _moved(tmp_path / "other" / "ibidem.sqlite3", file)

    assert cache.lookup(ASKED).reason == "other_cache"
    assert cache.store(ASKED, Answer("new")).reason == "other_cache"
    assert cache._runtime.faults.counts()["use the database: OtherCache"] == 2

    store._engine.dispose()
    file.unlink()
    _moved(kept, file)
    assert cache.lookup(ASKED).answer.text == "mine"


def _moved(file: Path, to: Path) -> Path:
    for suffix in ("-wal", "-shm"):
        beside = file.with_name(file.name + suffix)
        if beside.exists():
            beside.rename(to.with_name(to.name + suffix))
    return file.rename(to)


def test_a_cache_keeps_its_id(tmp_path: Path) -> None:
    """Two caches have two; a backup of one has the same."""
    ids = []
    for name in ("one", "two"):
        with closing(open_store(read_settings(path=tmp_path / name))) as store:
            ids.append(store.id)
    with closing(sqlite3.connect(tmp_path / "one" / "ibidem.sqlite3")) as db:
        db.execute(f"VACUUM INTO '{tmp_path / 'backup.sqlite3'}'")
    with closing(Store(f"sqlite:///{tmp_path / 'backup.sqlite3'}")) as backup:
        assert [backup.id, len(set(ids))] == [ids[0], 2]
