"""One damaged row costs one row: of every table, in every column, with all that SQLite can hold there."""

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
# Of `meta`: what each says is known from somewhere else, or is made again.
NOTES = (
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
    return ibidem.open(path, embedder=BagOfWords(), threshold=0.8, max_entries=10_000)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with many rows in every table."""
    path = tmp_path_factory.mktemp("damaged") / "cache"
    with open_cache(path) as cache:
        for n in range(MANY):
            told = ibidem.Answer(
                answer(n), payload="{}", model="m", input_tokens=3, output_tokens=4, seconds=1.0
            )
            cache.store(request(n), told, tags=[f"t{n}"])
            cache.lookup(request(n))
        judged = ("asked", "stored", 0.9, 0.9, "scorer", True, "audit")
        rows = [JudgementRow(float(n), "", "s", f"e{n}", *judged) for n in range(MANY)]  # type: ignore[arg-type]
        cache._runtime.store.judgements.add(rows)
        for n in range(4):
            cache.invalidate(document=f"nothing{n}")
        cache.flush()
    return path


def damage(path: Path, value: str) -> dict[str, int]:
    """In each table, one row for each column; returns how many of the first rows that are, by table."""
    spoilt = {}
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
            spoilt[table.name] = min(len(rows), len(table.c))
        db.commit()
    return spoilt


@pytest.mark.parametrize("kind", DAMAGE)
def test_all_other_rows_are_there(filled: Path, tmp_path: Path, kind: str) -> None:
    """Answers are found as before, exactly and by meaning; logs are read; what is new is kept."""
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    spoilt = damage(path, DAMAGE[kind])
    with open_cache(path) as cache:
        whole = range(spoilt["entries"], MANY)
        assert [n for n in whole if not isinstance(cache.lookup(request(n)), Hit)] == []
        near = [cache.lookup(ibidem.Request(reworded(n), documents=request(n).documents)) for n in whole]
        assert [one.answer.text if one else None for one in near] == [answer(n) for n in whole]
        texts = {one.question for one in cache.examples.recent(1000)}
        assert {question(n) for n in range(spoilt["examples"], MANY)} <= texts
        assert len(cache.recent(1000)) >= MANY - spoilt["lookups"]
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
def test_a_damaged_note_is_made_anew(filled: Path, tmp_path: Path, kind: str) -> None:
    """All of them at once, as after a disk's fault."""
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    value = DAMAGE.get(kind) or f"'{kind}'"
    with contextlib.closing(sqlite3.connect(path / "ibidem.sqlite3")) as db:
        held = {row[0] for row in db.execute("SELECT key FROM meta")}
        keys = {key for key in held if key.startswith(NOTES)} | {note for note in NOTES if note[-1] != ":"}
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


def test_a_version_that_cannot_be_read_over_other_tables(filled: Path, tmp_path: Path) -> None:
    """Is refused: it may be a newer one, and nothing is written to that."""
    path = tmp_path / "cache"
    shutil.copytree(filled, path)
    with contextlib.closing(sqlite3.connect(path / "ibidem.sqlite3")) as db:
        db.execute("UPDATE meta SET value = 'five' WHERE key = 'schema_version'")
        db.execute("ALTER TABLE lookups RENAME COLUMN reason TO cause")
        db.commit()
    with pytest.raises(StorageError, match="schema version cannot be read"):
        open_cache(path)


@pytest.mark.parametrize("raw", [b"\0" * 512, b"\xff" * 512, b"\x00\x7c" * 256, b"x", b"\0\x3c" * 2, b""])
def test_bytes_that_are_no_vector_are_refused(raw: bytes) -> None:
    """A NaN would pass for a similarity of 1."""
    with pytest.raises(ValueError, match="unit vector|multiple"):
        to_vector(raw)


def test_a_vector_is_read_as_it_was_written() -> None:
    """In half precision."""
    vector = BagOfWords().embed([question(1)])[0]
    assert abs(to_vector(to_bytes(vector)) - vector).max() < 1e-3
