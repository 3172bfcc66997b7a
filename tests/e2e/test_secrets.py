"""What must not be kept is nowhere on disk: every byte of every file is searched."""

from __future__ import annotations

import base64
import logging
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

import ibidem
from ibidem import Answer, Document, Request
from ibidem.index import search as vectors
from tests.embedders import BagOfWords
from tests.helpers import Child

SCOPE_SECRET = "sk-scope-5d41402abc4b2a76b9719d911017c592"
DOCUMENT_SECRET = "the merger with Zorbix closes on Friday at 41.50"
EXACT_SECRET = "passport number Q7731942X of the caller"
QUESTION = "When do the northern geese fly south in a mild year?"
REWORDED = "Please: when do the northern geese fly south in a mild year?"
ANSWER = "They leave in the second week of October, three weeks late."
EXACT_ANSWER = "Noted; the desk will call back."
SECRETS = (SCOPE_SECRET, DOCUMENT_SECRET, EXACT_SECRET)

ASKED = Request(
    QUESTION,
    scope=f"You are helpful. Authorization: Bearer {SCOPE_SECRET}",
    namespace="tenant-a",
    documents=(Document("memo-7", DOCUMENT_SECRET), Document("geese", "geese leave in October, late")),
)
AGAIN = Request(
    REWORDED,
    scope=f"You are helpful. Authorization: Bearer {SCOPE_SECRET}",
    namespace="tenant-a",
    documents=ASKED.documents,
)
EXACT = Request(f"Store this: {EXACT_SECRET}", scope=SCOPE_SECRET, semantic=False)


def forms(text: str) -> dict[str, bytes]:
    """The text as it may lie in a file: two encodings, either case of base64's three phases, hex."""
    raw = text.encode()
    found = {"utf-8": raw, "utf-16": text.encode("utf-16-le"), "hex": raw.hex().encode()}
    for shift in range(3):
        encoded = base64.b64encode(b"x" * shift + raw)
        found[f"base64+{shift}"] = encoded[4:-4]
    return found


def where(text: str, directory: Path) -> list[str]:
    """Files below the directory whose bytes hold the text in any of its forms, any part of 12 letters too."""
    parts = [text, *(text[at : at + 12] for at in range(0, len(text) - 12, 6))]
    needles = [form for part in parts for form in forms(part).values() if len(form) >= 8]
    hits = []
    for file in sorted(directory.rglob("*")):
        if file.is_file():
            raw = file.read_bytes()
            if any(needle in raw for needle in needles):
                hits.append(file.name)
    return hits


def use(cache: ibidem.SemanticCache) -> None:
    """Miss, store, exact hit, semantic hit, near misses of every kind; with secrets everywhere."""
    cache.lookup(ASKED)
    assert cache.store(ASKED, Answer(ANSWER))
    assert cache.lookup(ASKED).tier == "exact"
    assert cache.lookup(AGAIN).tier == "semantic"
    cache.lookup(EXACT)
    assert cache.store(EXACT, Answer(EXACT_ANSWER))
    assert cache.lookup(EXACT).answer.text == EXACT_ANSWER
    changed = (Document("memo-7", f"{DOCUMENT_SECRET}, or later"), Document("geese", "geese stay"))
    assert not cache.lookup(Request(REWORDED, scope=SCOPE_SECRET, documents=changed))
    other = Request(REWORDED, scope=f"You are helpful. Authorization: Bearer {SCOPE_SECRET}",
                    namespace="tenant-a", documents=changed)  # fmt: skip
    assert cache.lookup(other).reason == "documents_changed"
    refused = Answer("cut off", finish_reason="length")
    assert not cache.store(Request(EXACT_SECRET, scope=SCOPE_SECRET, semantic=False), refused)


def check(path: Path) -> None:
    """No secret in any file; the question and the answers are there, so the search can fail."""
    for secret in SECRETS:
        assert where(secret, path) == [], f"{secret!r} is on disk"
    for kept in (QUESTION, ANSWER, EXACT_ANSWER):
        assert any("ibidem.sqlite3" in name for name in where(kept, path)), f"{kept!r} is not on disk"


@pytest.mark.parametrize("exact_limit", [10_000, 0], ids=["in memory", "in the index"])
def test_no_secret_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact_limit: int) -> None:
    """While open (write-ahead log included), after flush, after close, after reopening and after clear."""
    monkeypatch.setattr(vectors, "EXACT_LIMIT", exact_limit)
    path = tmp_path / "c"
    with ibidem.open(path, embedder=BagOfWords(), min_similarity=0.9) as cache:
        use(cache)
        check(path)
        assert cache.flush()
        assert (path / "ibidem.sqlite3-wal").exists()
        check(path)
    check(path)
    with ibidem.open(path, embedder=BagOfWords(), min_similarity=0.9) as cache:
        use(cache)
        assert cache.flush()
        check(path)
        cache.clear()
        for secret in SECRETS:
            assert where(secret, path) == []


KILLED = """
import sys
import ibidem
from tests.embedders import BagOfWords
from tests.e2e.test_secrets import use

cache = ibidem.open(sys.argv[1], embedder=BagOfWords(), min_similarity=0.9)
use(cache)
cache.flush()
print("used", flush=True)
sys.stdin.read()
"""


def test_no_secret_is_left_by_a_killed_process(tmp_path: Path) -> None:
    """Nor in what is found after a kill: write-ahead log, marks and locks."""
    with Child(KILLED, tmp_path / "c") as child:
        assert child.line() == "used"
        child.kill()
    check(tmp_path / "c")


def test_no_secret_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not at debug level, not when the database or the embedder fails with the secret at hand."""

    class Talkative(BagOfWords):
        def embed(self, texts):
            raise RuntimeError("model is down")

    path = tmp_path / "c"
    with caplog.at_level(logging.DEBUG, logger="ibidem"):
        with ibidem.open(path, embedder=BagOfWords(), min_similarity=0.9) as cache:
            use(cache)
            assert cache.flush()
            with closing(sqlite3.connect(path / "ibidem.sqlite3")) as other:
                other.execute("DROP TABLE entries")
                other.commit()
            assert cache.store(EXACT, Answer(f"the answer repeats {EXACT_SECRET}")).reason == "error"
            assert cache.store(ASKED, Answer(ANSWER)).reason == "error"
            assert cache.lookup(ASKED).reason == "error"
            repr(cache)
        with ibidem.open(tmp_path / "d", embedder=Talkative(), min_similarity=0.9) as cache:
            cache.lookup(ASKED)
            cache.store(ASKED, Answer(ANSWER))
    assert caplog.records
    written = "\n".join(logging.Formatter("%(message)s").format(record) for record in caplog.records)
    for secret in SECRETS:
        assert secret not in written
    assert ANSWER not in written
    assert QUESTION not in written


def test_values_do_not_show_secrets() -> None:
    """`repr` of a request, as a debugger or a log shows it, holds no scope and no document text."""
    shown = repr(ASKED) + repr(EXACT) + str(ASKED)
    assert SCOPE_SECRET not in shown
    assert DOCUMENT_SECRET not in shown


def test_nobody_else_may_read_the_files_of_a_cache(tmp_path: Path) -> None:
    """Also in a directory that existed, and was open to all; whatever the umask lets through."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    before = os.umask(0o022)
    try:
        for path in (shared, tmp_path / "new" / "own"):
            with ibidem.open(path, embedder=BagOfWords()) as cache:
                cache.store(ASKED, Answer(ANSWER))
                cache.flush()
                modes = {
                    file.name: stat.S_IMODE(file.stat().st_mode) for file in path.glob("ibidem.sqlite3*")
                }
                assert modes == dict.fromkeys(modes, 0o600)
                assert len(modes) == 3  # the write-ahead log and its index too
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "own").stat().st_mode) == 0o700
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755


def test_a_cache_that_is_shared_with_a_group_stays_so(tmp_path: Path) -> None:
    """Who gave the database file another mode meant it."""
    with ibidem.open(tmp_path, embedder=BagOfWords()):
        (tmp_path / "ibidem.sqlite3").chmod(0o660)
    with ibidem.open(tmp_path, embedder=BagOfWords()) as cache:
        cache.store(ASKED, Answer(ANSWER))

    assert stat.S_IMODE((tmp_path / "ibidem.sqlite3").stat().st_mode) == 0o660
