"""Wrong arguments, settings, files, embedders and texts: a clear error, a repair, or a clean refusal."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ibidem
from ibidem.errors import ConfigurationError, EmbedderUnavailable, IbidemError, InvalidInput, StorageError
from ibidem.index import chroma_server
from ibidem.index import search as vectors
from ibidem.settings import read_settings
from ibidem.storage import engine as engines
from tests.embedders import BagOfWords, Broken
from tests.helpers import answer, eventually, question, reworded
from tests.servers import free_port

Request, Answer, Document = ibidem.Request, ibidem.Answer, ibidem.Document


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from outside, and a home of one's own."""
    for name in os.environ:
        if name.startswith("IBIDEM_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def open_cache(path: object, embedder: object = None, **settings: Any) -> ibidem.SemanticCache:
    return ibidem.open(path, embedder=embedder or BagOfWords(), **{"min_similarity": 0.9, **settings})


def store(cache: ibidem.SemanticCache, *numbers: int) -> None:
    for n in numbers:
        assert cache.store(Request(question(n)), Answer(answer(n)))


def works(cache: ibidem.SemanticCache, n: int = 1) -> None:
    """Stores, repeats, and finds by meaning."""
    store(cache, n)
    assert cache.lookup(Request(question(n))).answer.text == answer(n)
    assert cache.lookup(Request(reworded(n))).answer.text == answer(n)


class TestArguments:
    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda: Request(None), "question must be a str"),
            (lambda: Request(b"bytes"), "question must be a str, not bytes"),
            (lambda: Request(""), "question is empty"),
            (lambda: Request(" \n\t\u00a0 "), "question is empty"),
            (lambda: Request("q", scope=5), "scope must be a str"),
            (lambda: Request("q", scope=None), "scope must be a str"),
            (lambda: Request("q", namespace=["a"]), "namespace must be a str"),
            (lambda: Request("q", documents="text"), "documents must be a sequence"),
            (lambda: Request("q", documents=["text"]), "documents must be a sequence"),
            (lambda: Request("q", documents=None), "documents must be a sequence"),
            (lambda: Request("q", documents=7), "documents must be a sequence"),
            (lambda: Request("q", documents=Document("a", "b")), "documents must be a sequence"),
            (lambda: Request("q", semantic="no"), "semantic must be a bool"),
            (lambda: Document(1, "text"), "Document.id must be a str"),
            (lambda: Document("a", None), "Document.text must be a str"),
            (lambda: Answer(None), "Answer.text must be a str"),
            (lambda: Answer(["a"]), "Answer.text must be a str"),
            (lambda: Answer("a", payload={}), "Answer.payload must be a str"),
            (lambda: Answer("a", model=None), "Answer.model must be a str"),
            (lambda: Answer("a", finish_reason=None), "Answer.finish_reason must be a str"),
            (lambda: Answer("a", input_tokens="many"), "Answer.input_tokens must be"),
            (lambda: Answer("a", output_tokens=[]), "Answer.output_tokens must be"),
            (lambda: Answer("a", seconds="long"), "Answer.seconds must be"),
            (lambda: Answer("a", semantic="no"), "Answer.semantic must be a bool"),
        ],
    )
    def test_wrong_values(self, make: Callable[[], object], says: str) -> None:
        """Are refused where they are made, by the name of the argument."""
        with pytest.raises(InvalidInput, match=says):
            make()

    def test_a_generator_of_documents_counts_as_its_documents(self) -> None:
        """They are never consumed by the check and then forgotten: another context would be a hit."""
        documents = (Document("a", "one"), Document("b", "two"))
        made = Request("q", documents=(document for document in documents))
        assert made.documents == documents
        assert made.key == Request("q", documents=documents).key
        assert made.key != Request("q").key

    def test_wrong_objects_in_a_cache(self, tmp_path: Path) -> None:
        """A str in place of a Request or an Answer is refused and harms nothing."""
        with open_cache(tmp_path / "c") as cache:
            for wrong in ("what?", None, 5, Answer("a")):
                with pytest.raises(InvalidInput, match=r"ibidem\.Request"):
                    cache.lookup(wrong)
                with pytest.raises(InvalidInput, match=r"ibidem\.Request"):
                    cache.store(wrong, Answer("a"))
            for wrong in ("text", None, Request("q")):
                with pytest.raises(InvalidInput, match=r"ibidem\.Answer"):
                    cache.store(Request("q"), wrong)
            store(cache, 1)
            with pytest.raises(InvalidInput, match="namespace must be a str"):
                cache.clear(namespace=5)
            assert cache.stats().entries == 1
            works(cache)

    def test_a_closed_cache(self, tmp_path: Path) -> None:
        """Says that it is closed and how to get another; closing twice is fine."""
        cache = open_cache(tmp_path / "c")
        cache.close()
        cache.close()
        uses = (
            lambda: cache.lookup(Request("q")),
            lambda: cache.store(Request("q"), Answer("a")),
            cache.clear,
            cache.stats,
            cache.flush,
        )
        for use in uses:
            with pytest.raises(ibidem.CacheClosed, match=r"closed.*ibidem\.open"):
                use()


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"min_similarity": 0.1}, r"min_similarity: .*0\.5 to 1\.0"),
            ({"min_similarity": 2}, r"min_similarity: .*0\.5 to 1\.0"),
            ({"min_similarity": 95}, r"min_similarity: .*0\.5 to 1\.0"),
            ({"min_similarity": "high"}, "min_similarity: "),
            ({"min_similarity": math.nan}, r"min_similarity: .*0\.5 to 1\.0"),
            ({"min_similarity": []}, "min_similarity: "),
            ({"min_probability": 0.0}, "min_probability: .*above 0 and at most 1"),
            ({"min_probability": 95}, "min_probability: .*above 0 and at most 1"),
            ({"min_probability": "sure"}, "min_probability: "),
            ({"max_error_rate": "lax"}, "max_error_rate: .*strict, default, generous"),
            ({"document_policy": "some"}, "document_policy: .*supporting.*all.*ignore"),
            ({"ttl": 0}, "ttl: .*greater than 0"),
            ({"ttl": -5}, "ttl: .*greater than 0"),
            ({"ttl": math.nan}, "ttl: "),
            ({"ttl": "month"}, "ttl: "),
            ({"path": 5}, "path: must be a str or Path, not int"),
            ({"path": b"bytes"}, "path: must be a str or Path, not bytes"),
            ({"path": "~nobody-of-this-name/c"}, "path"),
            ({"database": 5}, "database: "),
            ({"chroma": 5}, "chroma: "),
            ({"chroma": "localhost:8000"}, r"chroma: must be a URL such as http://localhost:8000"),
            ({"chroma": "not a url"}, "chroma: must be a URL"),
            ({"chroma": "ftp://localhost"}, "chroma: must be a URL"),
            ({"chroma": "http://"}, "chroma: must be a URL"),
            ({"chroma": "http://localhost:high"}, "chroma: must be a URL"),
            ({"chroma": "http://localhost:99999"}, "chroma: must be a URL"),
            ({"embedder": 5}, "embedder is int; it must be"),
            ({"embedder": BagOfWords}, "embedder is type; it must be"),
            ({"embedder": "./no/such/directory"}, "no such directory"),
        ],
        ids=repr,
    )
    def test_wrong_values(self, tmp_path: Path, settings: dict[str, Any], says: str) -> None:
        """Are refused when the cache is opened, by the name of the setting, and make no files."""
        given = {"path": tmp_path / "c", "embedder": BagOfWords(), **settings}
        with pytest.raises(ConfigurationError, match=says):
            ibidem.open(**given).close()
        assert not (tmp_path / "c").exists()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("IBIDEM_MIN_PROBABILITY", "abc"),
            ("IBIDEM_MIN_SIMILARITY", "0.1"),
            ("IBIDEM_TTL", "forever"),
            ("IBIDEM_DOCUMENT_POLICY", "some"),
            ("IBIDEM_CHROMA", "localhost:8000"),
        ],
    )
    def test_wrong_variables(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        """As arguments are, by the name of the setting."""
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=name.removeprefix("IBIDEM_").lower()):
            ibidem.open(tmp_path / "c", embedder=BagOfWords()).close()

    def test_a_home_directory_in_a_variable(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """`~` is expanded there too; no directory of that name appears."""
        monkeypatch.setenv("IBIDEM_PATH", "~/answers")
        with ibidem.open(embedder=BagOfWords()):
            pass
        assert not (tmp_path / "~").exists()
        assert (tmp_path / "home" / "answers" / "ibidem.sqlite3").exists()

    @pytest.mark.parametrize("name", ["PATH", "DATABASE", "CHROMA", "EMBEDDER", "MIN_PROBABILITY", "TTL"])
    def test_an_empty_variable_is_an_unset_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
    ) -> None:
        """As container files write `IBIDEM_CHROMA=` for the default."""
        monkeypatch.setenv(f"IBIDEM_{name}", "")
        given = {"path": tmp_path / "c", "embedder": BagOfWords(), "min_similarity": 0.9}
        given.pop(name.lower(), None)
        chosen = read_settings(**given)
        assert chosen.embedder is None or name != "EMBEDDER"
        assert chosen.path != Path()
        if name not in ("EMBEDDER", "PATH"):
            with ibidem.open(**given) as cache:
                works(cache)


class TestPlaces:
    def test_a_path_below_a_file(self, tmp_path: Path) -> None:
        """Says which path, why, and how to choose another."""
        (tmp_path / "file").write_text("mine")
        with pytest.raises(StorageError, match=r"cannot write to .*file/c.*Not a directory.*IBIDEM_PATH"):
            open_cache(tmp_path / "file" / "c")

    def test_a_path_that_is_a_file(self, tmp_path: Path) -> None:
        """Is refused, and the file stays."""
        (tmp_path / "file").write_text("mine")
        with pytest.raises(StorageError, match=r"cannot write to .*file.*IBIDEM_PATH"):
            open_cache(tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
    def test_a_place_that_takes_no_files(self) -> None:
        """As a read-only disk."""
        with pytest.raises(StorageError, match=r"cannot write to /proc/.*IBIDEM_PATH"):
            open_cache("/proc/ibidem")

    def test_a_path_with_a_nul(self) -> None:
        """Is no path."""
        with pytest.raises(IbidemError, match="path|write"):
            open_cache("a\0b")

    def test_a_name_in_another_script(self, tmp_path: Path) -> None:
        """Blanks, percent, question mark and other scripts in a path are fine."""
        for name in ("mit Leerzeichen", "100%20", "was?mode=ro", "日本語 🎉", "a#b"):
            with open_cache(tmp_path / name) as cache:
                works(cache)
            assert (tmp_path / name / "ibidem.sqlite3").exists()

    def test_a_database_elsewhere(self, tmp_path: Path) -> None:
        """With `database=`, `path` holds the vector index alone and is made for it."""
        url = f"sqlite:///{tmp_path / 'other.db'}"
        with open_cache(tmp_path / "c" / "deep", database=url) as cache:
            works(cache)
            assert cache.stats().faults == {}
        assert (tmp_path / "other.db").exists()


class TestDatabaseFiles:
    def fill(self, path: Path, n: int = 200) -> Path:
        """A cache with n answers; returns its database file."""
        with open_cache(path) as cache:
            store(cache, *range(n))
        return path / "ibidem.sqlite3"

    def test_garbage_in_its_place(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Is kept under another name, said so once, and a new database is begun."""
        file = self.fill(tmp_path / "c")
        file.write_bytes(b"garbage " * 1000)
        with caplog.at_level(logging.WARNING, logger="ibidem"), open_cache(tmp_path / "c") as cache:
            works(cache)
        kept = list((tmp_path / "c").glob("ibidem.sqlite3.damaged-*"))
        assert [f.read_bytes() for f in kept] == [b"garbage " * 1000]
        assert "not a database" in caplog.text
        assert str(kept[0]) in caplog.text

    def test_an_empty_file(self, tmp_path: Path) -> None:
        """Is a new database."""
        self.fill(tmp_path / "c").write_bytes(b"")
        with open_cache(tmp_path / "c") as cache:
            works(cache)

    @pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
    def test_cut_off(self, tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture) -> None:
        """A truncated file: an error that says what to do, or a new database and the old one kept."""
        file = self.fill(tmp_path / "c")
        left = file.read_bytes()[: int(file.stat().st_size * share)]
        file.write_bytes(left)
        try:
            with caplog.at_level(logging.WARNING, logger="ibidem"):
                cache = open_cache(tmp_path / "c")
        except StorageError as error:
            said = str(error)
            helpful = re.search(r"ibidem\.sqlite3.*(another path|move it|delete it|ibidem doctor)", said)
            assert helpful and file.read_bytes() == left, said  # noqa: PT018
            return
        with cache:
            for n in range(200):
                found = cache.lookup(Request(question(n)))
                assert not found or found.answer.text == answer(n)
            works(cache, 1000)
        kept = list((tmp_path / "c").glob("ibidem.sqlite3.damaged-*"))
        assert [f.read_bytes() for f in kept] == [left]
        assert str(kept[0]) in caplog.text

    def test_damaged_in_the_middle(self, tmp_path: Path) -> None:
        """A page overwritten: never a wrong answer, never an exception from a lookup or a store."""
        file = self.fill(tmp_path / "c")
        raw = bytearray(file.read_bytes())
        raw[8192:16384] = b"\xff" * 8192
        file.write_bytes(raw)
        with open_cache(tmp_path / "c") as cache:
            for n in range(200):
                found = cache.lookup(Request(question(n)))
                assert not found or found.answer.text == answer(n)
                cache.store(Request(question(n)), Answer(answer(n)))

    def test_a_newer_schema(self, tmp_path: Path) -> None:
        """Is refused with the way out, and not touched, whatever its tables look like."""
        (tmp_path / "c").mkdir()
        file = tmp_path / "c" / "ibidem.sqlite3"
        with closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE entries (id TEXT PRIMARY KEY, vector_id TEXT)")
            database.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
            database.execute("INSERT INTO meta VALUES ('schema_version', '99')")
            database.commit()
            before = list(database.execute("SELECT sql FROM sqlite_master ORDER BY 1"))
        with pytest.raises(StorageError, match=r"newer Ibidem \(schema 99\).*upgrade"):
            open_cache(tmp_path / "c")
        with closing(sqlite3.connect(file)) as database:
            assert list(database.execute("SELECT sql FROM sqlite_master ORDER BY 1")) == before

    def test_a_database_of_another_program(self, tmp_path: Path) -> None:
        """A sound SQLite file with tables of the same names but other columns: a clear refusal."""
        (tmp_path / "c").mkdir()
        file = tmp_path / "c" / "ibidem.sqlite3"
        with closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE entries (id INTEGER PRIMARY KEY, title TEXT)")
            database.commit()
        with pytest.raises(StorageError, match=r"ibidem\.sqlite3"):
            open_cache(tmp_path / "c")

    def test_a_directory_in_its_place(self, tmp_path: Path) -> None:
        """Says what is there."""
        (tmp_path / "c" / "ibidem.sqlite3").mkdir(parents=True)
        with pytest.raises(StorageError, match=r"ibidem\.sqlite3.*[Dd]irectory"):
            open_cache(tmp_path / "c")

    def test_deleted_while_running(self, tmp_path: Path) -> None:
        """No exception; after reopening it works."""
        with open_cache(tmp_path / "c") as cache:
            store(cache, 1)
            for file in (tmp_path / "c").glob("ibidem.sqlite3*"):
                file.unlink()
            cache.lookup(Request(question(1)))
            cache.store(Request(question(2)), Answer(answer(2)))
        with open_cache(tmp_path / "c") as cache:
            works(cache, 3)

    def test_locked_by_another_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Reads go on, a store is rejected after the timeout, `clear` says that nothing was deleted."""
        monkeypatch.setattr(engines, "BUSY_SECONDS", 1.0)
        with open_cache(tmp_path / "c") as cache:
            store(cache, 1)
            assert cache.flush()
            with closing(sqlite3.connect(tmp_path / "c" / "ibidem.sqlite3")) as other:
                other.execute("BEGIN IMMEDIATE")
                assert cache.lookup(Request(question(1)))
                assert cache.store(Request(question(2)), Answer("two")) == ibidem.Rejected("error")
                with pytest.raises(StorageError, match="locked"):
                    cache.clear()
            assert cache.lookup(Request(question(1)))
            works(cache, 3)


class TestDatabaseUrls:
    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("no url", "database"),
            ("http://localhost/db", "database"),
            ("mysql://user:hunter2@localhost/db", "database"),
            ("oracle://user:hunter2@localhost/db", "database"),
            ("postgresql+psycopg//user:hunter2@localhost/db", "database"),
            ("postgresql+nosuchdriver://user:hunter2@localhost/db", "database"),
        ],
    )
    def test_wrong_urls(self, tmp_path: Path, url: str, says: str) -> None:
        """Say which setting and never repeat the password."""
        with pytest.raises(IbidemError, match=says) as caught:
            open_cache(tmp_path / "c", database=url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None or "hunter2" not in str(caught.value.__cause__)

    @pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
    def test_no_postgresql_driver(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str) -> None:
        """Says what to install."""
        for package in ("psycopg", "psycopg2"):
            monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(IbidemError, match=r"pip install 'ibidem-cache\[postgres\]'") as caught:
            open_cache(tmp_path / "c", database=f"{driver}://app:hunter2@localhost/ibidem")
        assert "hunter2" not in str(caught.value)

    def test_a_file_in_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        """Says which database and why."""
        with pytest.raises(StorageError, match=r"cannot open the database .*x\.db.*unable to open"):
            open_cache(tmp_path / "c", database=f"sqlite:///{tmp_path}/no/x.db")


class TestChromaUrls:
    def test_nothing_listens(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Opening works; misses say `no_index`, one warning says where it was looked for."""
        url = f"http://127.0.0.1:{free_port()}"
        with (
            caplog.at_level(logging.WARNING, logger="ibidem"),
            open_cache(tmp_path / "c", chroma=url) as cache,
        ):
            store(cache, 1)
            assert cache.lookup(Request(question(1))).tier == "exact"
            assert cache.lookup(Request(reworded(1))).reason == "no_index"
            assert url in cache.stats().index
        assert sum(url in record.getMessage() for record in caplog.records) == 1

    def test_something_else_listens(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A port that accepts and says nothing, or nonsense, delays a lookup by the timeout at most."""
        monkeypatch.setattr(chroma_server, "HTTP_SECONDS", 1.0)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            said: list[str] = []

            def ask() -> None:
                with open_cache(tmp_path / "c", chroma=url) as cache:
                    store(cache, 1)
                    said.append(cache.lookup(Request(reworded(1))).reason)
                    said.append(cache.lookup(Request(question(1))).tier)

            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(12)
            in_time = list(said)
        asking.join(12)  # the port is closed now: whatever waited fails
        assert in_time == ["no_index", "exact"]


class Says(BagOfWords):
    """Returns what `answer` makes of the right vectors."""

    def __init__(self, wrong: Callable[[Any, Sequence[str]], Any]) -> None:
        super().__init__()
        self.wrong = wrong

    def embed(self, texts: Sequence[str]) -> Any:
        """What it was told to return."""
        return self.wrong(super().embed(texts), texts)


WRONG_VECTORS = {
    "NaN": lambda right, texts: right * np.nan,
    "infinity": lambda right, texts: right + np.inf,
    "zero": lambda right, texts: right * 0,
    "one dimension": lambda right, texts: right[0],
    "three dimensions": lambda right, texts: right[None],
    "too few": lambda right, texts: right[:0],
    "too many": lambda right, texts: np.concatenate([right, right]),
    "no columns": lambda right, texts: right[:, :0],
    "None": lambda right, texts: None,
    "strings": lambda right, texts: texts,
    "half as long": lambda right, texts: right[:, :100],
}


class TestEmbedders:
    def test_one_that_raises(self, tmp_path: Path) -> None:
        """Answers are stored and repeated exactly; questions are embedded once it works again."""
        broken = Broken()
        with open_cache(tmp_path / "c", broken) as cache:
            store(cache, 1, 2)
            assert cache.lookup(Request(question(1))).tier == "exact"
            assert cache.lookup(Request(reworded(1))).reason == "error"
            assert cache.stats().faults["look up a question: RuntimeError"] == 1
        with open_cache(tmp_path / "c") as cache:
            eventually(lambda: cache.lookup(Request(reworded(1))))
            assert cache.lookup(Request(reworded(2))).answer.text == answer(2)

    def test_one_bad_question_keeps_no_other_waiting(self, tmp_path: Path) -> None:
        """Questions without a vector are embedded later, also those next to one that cannot be."""
        bad = question(2).split()[0]

        def sometimes(right: Any, texts: Sequence[str]) -> Any:
            if any(bad in text for text in texts):
                raise ValueError("refused by the content filter")
            return right

        with open_cache(tmp_path / "c", Broken()) as cache:
            store(cache, 1, 2, 3)
        with open_cache(tmp_path / "c", Says(sometimes)) as cache:
            for n in (1, 3):
                eventually(lambda n=n: cache.lookup(Request(reworded(n))), timeout=8)
                assert cache.lookup(Request(reworded(n))).answer.text == answer(n)
            assert cache.lookup(Request(question(2))).answer.text == answer(2)

    def test_a_langchain_embedding_that_is_down_at_the_start(self, tmp_path: Path) -> None:
        """Its fingerprint may need a probe; the error says that the embedder failed."""

        class Down:
            def embed_query(self, text: str) -> list[float]:
                raise RuntimeError("embedding service is down")

            embed_documents = embed_query

        with pytest.raises(EmbedderUnavailable, match="embedding service is down"):
            open_cache(tmp_path / "c", Down())

    @pytest.mark.parametrize("wrong", WRONG_VECTORS.values(), ids=WRONG_VECTORS)
    def test_wrong_vectors_match_nothing(
        self, tmp_path: Path, wrong: Callable[[Any, Sequence[str]], Any]
    ) -> None:
        """An embedder that went wrong altogether never makes one question's answer another's."""
        with open_cache(tmp_path / "c", Says(wrong)) as cache:
            for n in (1, 2):
                cache.store(Request(question(n)), Answer(answer(n)))
            cache.flush()
            for n in (2, 3, 4):
                found = cache.lookup(Request(reworded(n)))
                assert not found or found.answer.text == answer(n)
            assert cache.lookup(Request(question(1))).answer.text == answer(1)

    @pytest.mark.parametrize("wrong", WRONG_VECTORS.values(), ids=WRONG_VECTORS)
    def test_wrong_vectors(self, tmp_path: Path, wrong: Callable[[Any, Sequence[str]], Any]) -> None:
        """Are no vectors: exact answers only, and no harm to other questions, now or later."""
        bad = question(99).split()[0]

        def sometimes(right: Any, texts: Sequence[str]) -> Any:
            return wrong(right, texts) if any(bad in text for text in texts) else right

        with open_cache(tmp_path / "c", Says(sometimes)) as cache:
            works(cache, 1)
            cache.store(Request(question(99)), Answer(answer(99)))
            assert cache.lookup(Request(question(99))).answer.text == answer(99)
            assert not cache.lookup(Request(reworded(99)))
            store(cache, 2)
            cache.flush()
            assert cache.stats().index == "open"
            assert cache.lookup(Request(reworded(1))).answer.text == answer(1)
            assert cache.lookup(Request(reworded(2))).answer.text == answer(2)
        with open_cache(tmp_path / "c", Says(sometimes)) as cache:
            works(cache, 3)
            assert cache.lookup(Request(reworded(1))).answer.text == answer(1)
        with open_cache(tmp_path / "c") as cache:  # repaired
            eventually(lambda: cache.lookup(Request(reworded(99))))
            assert cache.lookup(Request(reworded(99))).answer.text == answer(99)

    @pytest.mark.parametrize("exact_limit", [10_000, 0], ids=["in memory", "in the index"])
    def test_another_dimension_behind_the_same_fingerprint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_limit: int
    ) -> None:
        """A custom embedder that changed and kept its name: what is stored stays, nothing raises."""
        monkeypatch.setattr(vectors, "EXACT_LIMIT", exact_limit)
        with open_cache(tmp_path / "c") as cache:
            works(cache, 1)
        changed = BagOfWords(128)
        changed.fingerprint = BagOfWords().fingerprint
        with open_cache(tmp_path / "c", changed) as cache:
            assert cache.lookup(Request(question(1))).answer.text == answer(1)
            found = cache.lookup(Request(reworded(1)))
            assert not found or found.answer.text == answer(1)
            store(cache, 2)
            assert cache.lookup(Request(question(2))).answer.text == answer(2)
        with open_cache(tmp_path / "c") as cache:
            assert cache.lookup(Request(reworded(1))).answer.text == answer(1)


class TestTexts:
    @pytest.mark.parametrize("bad", ["lone \ud800 surrogate", "NUL \0 inside"])
    def test_what_a_database_cannot_hold(self, tmp_path: Path, bad: str) -> None:
        """Is not stored and not found, wherever it stands; the log of other lookups is kept."""
        with open_cache(tmp_path / "c") as cache:
            rejected = ibidem.Rejected("invalid_text")
            assert cache.store(Request(bad), Answer("a")) == rejected
            assert cache.store(Request("a question"), Answer(bad)) == rejected
            assert cache.store(Request("a question"), Answer("a", payload=bad)) == rejected
            assert cache.store(Request("a question"), Answer("a", model=bad)) == rejected
            assert cache.store(Request("a question", namespace=bad), Answer("a")) == rejected
            store(cache, 1)
            assert not cache.lookup(Request(bad))
            assert not cache.lookup(Request(bad, semantic=False))
            assert not cache.lookup(Request("a question", namespace=bad))
            assert cache.lookup(Request(question(1)))
            stats = cache.stats()
            assert sum(stats.hits.values()) + sum(stats.misses.values()) >= 2
            assert stats.hits == {"exact": 1}
            assert stats.faults == {}
            works(cache, 2)

    @pytest.mark.parametrize("bad", ["\ud800", "\0"])
    def test_in_documents_and_scope(self, tmp_path: Path, bad: str) -> None:
        """Only digests are kept of scope and content; a document's id is made storable or refused."""
        with open_cache(tmp_path / "c") as cache:
            request = Request("a question", scope=bad, documents=[Document("d", bad)])
            assert cache.store(request, Answer("a"))
            assert cache.lookup(request)
            named = Request("a question", documents=[Document(f"d{bad}", "text")])
            assert cache.store(named, Answer("a")) == ibidem.Rejected("invalid_text")
            assert cache.stats().faults == {}

    def test_a_giant_answer(self, tmp_path: Path) -> None:
        """5 MB go in and come out unchanged, with documents to compare it with."""
        text = "".join(f"Sentence {n} of the answer speaks of ducks. " for n in range(110_000))
        assert len(text) > 4_500_000
        documents = [Document(f"d{n}", f"ducks and other birds {n}") for n in range(5)]
        with open_cache(tmp_path / "c") as cache:
            assert cache.store(Request(question(1), documents=documents), Answer(text, payload=text))
            assert cache.lookup(Request(question(1), documents=documents)).answer.text == text
            assert cache.lookup(Request(reworded(1), documents=documents)).answer.payload == text

    def test_a_giant_question(self, tmp_path: Path) -> None:
        """Longer than the window: repeated exactly, never compared by a part of it."""
        giant = "word " * 20_000
        with open_cache(tmp_path / "c") as cache:
            assert cache.lookup(Request(giant)).reason == "question_too_long"
            assert cache.store(Request(giant), Answer("a"))
            assert cache.lookup(Request(giant)).tier == "exact"
            assert cache.lookup(Request(giant + "more")).reason == "question_too_long"
            assert cache.stats().faults == {}

    def test_ten_thousand_documents(self, tmp_path: Path) -> None:
        """Are compared one by one: a changed one is another context."""
        documents = [Document(f"d{n}", f"content {n} about geese") for n in range(10_000)]
        with open_cache(tmp_path / "c") as cache:
            assert cache.store(Request(question(1), documents=documents), Answer("content 7 about geese"))
            assert cache.lookup(Request(question(1), documents=documents[::-1])).tier == "exact"
            assert cache.lookup(Request(reworded(1), documents=documents)).tier == "semantic"
            changed = [Document("d7", "content seven about swans"), *documents[:7], *documents[8:]]
            assert not cache.lookup(Request(question(1), documents=changed))
            assert cache.stats().faults == {}

    @pytest.mark.parametrize(
        "text",
        [
            "ما هي عاصمة فرنسا؟",
            "מה בירת צרפת",
            "フランスの首都はどこですか",
            "👩‍👩‍👧‍👦 was ist das? 🇫🇷",
            "e\u0301galite\u0301 ou\u0300",
            "\u202eright to left override",
            "\ufeffbyte order mark",
            "z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319alg\u0321\u034co",
            "a\u200bzero\u200dwidth",
            "tab\there\rreturn\x0bvertical \x1b[31m",
            "'; DROP TABLE entries; --",
            "%s %(x)s {0} {x} $1 :name ?",
            "\U0010ffff private \ufffe noncharacter",
            "?",
        ],
    )
    def test_any_script(self, tmp_path: Path, text: str) -> None:
        """Question, answer, namespace and document come back as they were."""
        with open_cache(tmp_path / "c") as cache:
            request = Request(text, namespace=text, scope=text, documents=[Document(text, text)])
            assert cache.store(request, Answer(text, payload=text, model=text))
            hit = cache.lookup(request)
            assert (hit.answer.text, hit.answer.payload, hit.answer.model) == (text, text, text)
            assert hit.question == request.question
            assert not cache.lookup(Request(text, scope=text))
            assert cache.stats().faults == {}
        with open_cache(tmp_path / "c") as cache:
            assert cache.lookup(request).answer.text == text
