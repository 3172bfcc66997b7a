"""One damaged row costs one row: in every table and column, for any value that SQLite can hold there."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

import ibidem
import ibidem_lab
from ibidem.cache import SemanticCache
from ibidem.errors import StorageError
from ibidem.storage import tables
from ibidem.storage.logs import JudgementRow
from ibidem.types import Hit, to_bytes, to_vector
from tests.embedders import BagOfWords
from tests.helpers import answer, question, reworded

MANY = 36  # entries: more than a table has columns
DAMAGE = {
    "text": "'x'",
    "bytes": "x'ff00fe'",
    "no UTF-8": "CAST(x'e28228' AS TEXT)",
    "negative": "-1",
    "infinite": "9e999",
    "huge": "9223372036854775807",
    "empty": "''",
}
# Keys of `meta` whose values are known from elsewhere, or are made again.
KEYS = (
    "schema_version",
    "dimension:",
    "promotion",
    "index:",
    "eviction_floor",
    "eviction_ranking",
    "scorer:",
)


def request(n: int) -> ibidem.Request:
    return ibidem.Request(question(n), documents=[ibidem.Document(f"d{n}", f"Text {n}.")])


def open_cache(path: Path) -> SemanticCache:
    return ibidem.open(path, embedder=BagOfWords(), min_similarity=0.8, max_entries=10_000)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with many rows in every table."""
    path = tmp_path_factory.mktemp("damaged") / "cache"
    with open_cache(path) as cache:
        for n in range(MANY):
            stored = ibidem.Answer(
                answer(n), payload="{}", model="m", input_tokens=3, output_tokens=4, seconds=1.0
            )
            cache.store(request(n), stored, tags=[f"t{n}"])
            cache.lookup(request(n))
        judged = ("asked", "stored", 0.9, 0.9, "scorer", True, "audit")
        rows = [JudgementRow(float(n), "", "s", f"e{n}", *judged) for n in range(MANY)]  # type: ignore[arg-type]
        cache._runtime.store.judgements.add(rows)
        for n in range(4):
            cache.invalidate(document=f"nothing{n}")
        cache.flush()
    return path


def damage(path: Path, value: str) -> dict[str, int]:
    """Damage one row for each column of each table; return how many rows from the first, by table."""
    damaged = {}
    with contextlib.closing(sqlite3.connect(path / "ibidem.sqlite3")) as db:
        for table in tables.metadata.sorted_tables:
            if table.name == "meta":
                continue
            rows = [row[0] for row in db.execute(f"SELECT rowid FROM {table.name} ORDER BY rowid")]
            for row, column in zip(rows, table.c, strict=False):
                if column.name == "id" and table.dialect_options["sqlite"]["autoincrement"]:
                    continue  # after the largest id there is none for SQLite to give
                with contextlib.suppress(sqlite3.IntegrityError):  # of ids, which hold numbers only
                    db.execute(f'UPDATE {table.name} SET "{column.name}" = {value} WHERE rowid = ?', (row,))
            damaged[table.name] = min(len(rows), len(table.c))
        db.commit()
    return damaged


@pytest.mark.parametrize("kind", DAMAGE)
def test_other_rows_survive(filled: Path, tmp_path: Path, kind: str) -> None:
    """Other answers are found, exactly and by meaning; logs are read; new answers are stored."""
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    damaged = damage(path, DAMAGE[kind])
    with open_cache(path) as cache:
        whole = range(damaged["entries"], MANY)
        assert [n for n in whole if not isinstance(cache.lookup(request(n)), Hit)] == []
        near = [cache.lookup(ibidem.Request(reworded(n), documents=request(n).documents)) for n in whole]
        assert [one.answer.text if one else None for one in near] == [answer(n) for n in whole]
        texts = {one.question for one in cache.examples.recent(1000)}
        assert {question(n) for n in range(damaged["examples"], MANY)} <= texts
        assert len(cache.recent(1000)) >= MANY - damaged["lookups"]
        cache.judgements(1000)
        cache.examples.select(question(MANY - 1), 3)
        ibidem_lab.pairs(cache)
        assert cache.store(ibidem.Request("What is new?"), ibidem.Answer("This."))
        assert cache.lookup(ibidem.Request("What is new?")).answer.text == "This."
        cache.invalidate(document=f"d{MANY - 1}")
        assert not cache.lookup(request(MANY - 1))
        assert cache.flush()
        if kind not in ("huge", "infinite"):  # whose sums no database gives
            cache.stats()
        assert not [
            cause for cause in cache._runtime.faults.counts() if "look up" in cause or "search" in cause
        ]


@pytest.mark.parametrize("kind", [*DAMAGE, "{", "[]", '{"current": 1, "previous": 2, "at": "x"}', "nan", "0"])
def test_damaged_meta_values_are_restored(filled: Path, tmp_path: Path, kind: str) -> None:
    """All of them at once, as after a disk failure."""
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    value = DAMAGE.get(kind) or f"'{kind}'"
    with contextlib.closing(sqlite3.connect(path / "ibidem.sqlite3")) as db:
        held = {row[0] for row in db.execute("SELECT key FROM meta")}
        keys = {key for key in held if key.startswith(KEYS)} | {key for key in KEYS if key[-1] != ":"}
        for key in keys | {"index:ibidem-x"}:
            db.execute(f"INSERT OR REPLACE INTO meta VALUES (?, {value})", (key,))
        db.commit()
    for _ in range(2):
        with open_cache(path) as cache:
            assert [n for n in range(MANY) if not isinstance(cache.lookup(request(n)), Hit)] == []
            near = [
                cache.lookup(ibidem.Request(reworded(n), documents=request(n).documents)) for n in range(MANY)
            ]
            assert all(near)
            assert cache.store(ibidem.Request("What is new?"), ibidem.Answer("This."))
            assert cache.flush()
            assert cache.stats().faults == {}


def test_an_unreadable_version_of_other_tables_is_rejected(filled: Path, tmp_path: Path) -> None:
    """It may be a newer schema, to which nothing is written."""
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    with contextlib.closing(sqlite3.connect(path / "ibidem.sqlite3")) as db:
        db.execute("UPDATE meta SET value = 'five' WHERE key = 'schema_version'")
        db.execute("ALTER TABLE lookups RENAME COLUMN reason TO cause")
        db.commit()
    with pytest.raises(StorageError, match="schema version cannot be read"):
        open_cache(path)


@pytest.mark.parametrize("raw", [b"\0" * 512, b"\xff" * 512, b"\x00\x7c" * 256, b"x", b"\0\x3c" * 2, b""])
def test_damaged_vectors_are_rejected(raw: bytes) -> None:
    """A NaN would pass for a similarity of 1."""
    with pytest.raises(ValueError, match="unit vector|multiple"):
        to_vector(raw)


def test_vector_round_trip() -> None:
    """In half precision."""
    vector = BagOfWords().embed([question(1)])[0]
    assert abs(to_vector(to_bytes(vector)) - vector).max() < 1e-3
