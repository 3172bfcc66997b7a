"""The example log: what was answered is kept, by whoever answered, and nothing else."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ibidem
from ibidem import CacheClosed, Document, Example, InvalidInput, StorageError
from ibidem.example import DocumentRef
from ibidem.storage.store import Store
from tests.helpers import Child

SECRET = "the merger closes on Friday"
MEMO = Document("memo-7", SECRET)

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
spoken = text.filter(lambda value: value.strip())
number = st.none() | st.integers(0, 10**14 - 1)
examples = st.builds(
    Example,
    spoken,
    spoken,
    at=st.floats(1, 1e12),
    namespace=text,
    model=text,
    documents=st.lists(st.builds(Document, text, text), max_size=3),
    input_tokens=number,
    output_tokens=number,
    seconds=st.none() | st.floats(0, 1e6),
    streamed=st.booleans(),
    entry_id=st.none() | text,
    scope=st.sampled_from(["", "0123456789abcdef" * 2]),
    feedback=st.none() | st.booleans(),
    tags=st.lists(spoken, max_size=3).map(tuple),
)


def questions(cache: ibidem.SemanticCache, namespace: str | None = None) -> list[str]:
    """The questions of the log, newest first."""
    return [example.question for example in cache.examples.recent(10**6, namespace)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(example=examples)
def test_an_example_comes_back_as_it_went_in(tmp_path: Path, example: Example) -> None:
    """Every field, for any text a database can hold."""
    store = Store(f"sqlite:///{tmp_path / 'store.sqlite3'}")
    store.examples.add([example])

    (kept,) = store.examples.recent(1)
    assert kept == example
    assert example.id is None
    assert kept.id == store.examples.count()
    store.close()


def test_the_newest_come_first(cache) -> None:
    """In the order they were added, whenever the answer was given; without a time, it is now."""
    before = time.time()
    for n in range(3):
        cache.examples.add(Example(f"q{n}", "a"))
    cache.examples.add(Example("an old one", "a", at=5.0))

    assert questions(cache) == ["an old one", "q2", "q1", "q0"]
    assert [example.at for example in cache.examples.recent(1)] == [5.0]
    assert all(before <= example.at <= time.time() for example in cache.examples.recent(9)[1:])
    assert [len(cache.examples.recent(limit)) for limit in (0, 2, 9)] == [0, 2, 4]


def test_the_texts_of_documents_are_not_kept(cache, tmp_path: Path) -> None:
    """Neither on disk nor in the example; ids and digests are, in their order."""
    example = Example("when", "soon", documents=(one for one in (MEMO, Document("b", "other"))))
    cache.examples.add(example)
    cache.flush()

    assert example.documents[0] == DocumentRef("memo-7", MEMO.digest)
    assert cache.examples.recent()[0].documents == example.documents
    assert SECRET not in repr(example)
    files = [file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert any(b"memo-7" in file for file in files)
    assert not any(SECRET.encode() in file for file in files)


def test_examples_outlive_entries_and_need_none(open_cache) -> None:
    """A cache whose answers have expired, or that refuses them, still has its examples after reopening."""
    first = open_cache()
    first.examples.add(Example("q", "a streamed answer", streamed=True))
    first.close()
    again = open_cache()

    assert (questions(again), again.stats().entries) == (["q"], 0)


def test_only_the_newest_are_kept(cache, monkeypatch) -> None:
    """The log is bounded."""
    monkeypatch.setattr("ibidem.storage.examples.EXAMPLE_LIMIT", 10)
    for n in range(25):
        cache.examples.add(Example(f"q{n}", "a"))
        if n % 4 == 0:
            cache.flush()

    assert questions(cache) == [f"q{n}" for n in range(24, 14, -1)]
    assert cache.examples.count() == 10


def test_namespaces_are_apart(cache) -> None:
    """One that cannot be stored holds nothing."""
    for n in range(6):
        cache.examples.add(Example(f"q{n}", "a", namespace="ab"[n % 2]))

    assert (questions(cache, "a"), questions(cache, "b")) == (["q4", "q2", "q0"], ["q5", "q3", "q1"])
    assert [cache.examples.count(name) for name in ("a", "", "c")] == [3, 0, 0]


@pytest.mark.parametrize("wait", [True, False])
def test_clear_forgets_the_examples_of_a_tenant(cache, wait: bool) -> None:
    """Also those that wait to be written; the number it returns is that of the answers."""
    for namespace in ("a", "b"):
        cache.examples.add(Example("q", "a", namespace=namespace))
        cache.lookup(ibidem.Request("q", namespace=namespace))
    if wait:
        cache.flush()
    assert cache.clear("a") == 0
    assert [example.namespace for example in cache.examples.recent()] == ["b"]
    assert [row.namespace for row in cache.recent()] == ["b"]
    cache.examples.add(Example("q", "a", namespace="c"))
    cache.clear()
    assert (cache.examples.count(), cache.recent()) == (0, [])


def test_a_tenant_cleared_while_others_write_is_gone(cache) -> None:
    """What was added before `clear` does not come back, and nothing of the others is lost."""
    done = threading.Event()

    def write() -> int:
        n = 0
        while not done.is_set() and n < 5_000:
            n += cache.examples.add(Example(f"q{n}", "a", namespace="other"))
        return n

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write)
        for _ in range(20):
            for n in range(30):
                cache.examples.add(Example(f"t{n}", "a", namespace="tenant"))
            cache.clear("tenant")
            assert cache.examples.count("tenant") == 0
        done.set()

    assert sorted(questions(cache, "other")) == sorted(f"q{n}" for n in range(written.result()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": " \n"}, "Example.question is empty"),
        ({"answer": ""}, "Example.answer is empty"),
        ({"question": None}, "Example.question must be a str, not NoneType"),
        ({"answer": b"a"}, "Example.answer must be a str, not bytes"),
        ({"namespace": None}, "Example.namespace must be a str"),
        ({"model": 4}, "Example.model must be a str"),
        ({"at": None}, "Example.at must be a number, not NoneType"),
        ({"at": "now"}, "Example.at must be a number, not str"),
        ({"seconds": "1"}, "Example.seconds must be a number or None, not str"),
        ({"input_tokens": 1.0}, "Example.input_tokens must be an int or None, not float"),
        ({"output_tokens": True}, "Example.output_tokens must be an int or None, not bool"),
        ({"streamed": 1}, "Example.streamed must be a bool"),
        ({"entry_id": 7}, "Example.entry_id must be a str"),
        ({"scope": "shop"}, "Example.scope must be a digest"),
        ({"scope": None}, "Example.scope must be a str"),
        ({"feedback": 1}, "Example.feedback must be a bool, not int"),
        ({"tags": "news"}, "tags must be a list of names"),
        ({"tags": [" "]}, "tags must be a list of names"),
        ({"id": "7"}, "Example.id must be an int or None, not str"),
        ({"documents": MEMO}, "must be a sequence of ibidem.Document"),
        ({"documents": [SECRET]}, "must be a sequence of ibidem.Document"),
        ({"documents": SECRET}, "must be a sequence of ibidem.Document"),
        ({"documents": None}, "must be a sequence of ibidem.Document"),
    ],
)
def test_misuse_is_an_error(fields: dict[str, object], message: str) -> None:
    """A wrong type is a bug of the caller; the message does not quote the text."""
    with pytest.raises(InvalidInput, match=message) as raised:
        Example(**{"question": "q", "answer": "a", **fields})

    assert SECRET not in str(raised.value)


def test_misuse_of_the_log_is_an_error(cache) -> None:
    """As of `lookup` and `store`."""
    with pytest.raises(InvalidInput, match=r"expected an ibidem.Example, not tuple"):
        cache.examples.add(("q", "a"))
    for limit in (-1, 1.5, True, None):
        with pytest.raises(InvalidInput, match="limit must be"):
            cache.examples.recent(limit)
    for ask in (cache.examples.recent, cache.examples.count):
        with pytest.raises(InvalidInput, match="namespace must be a str"):
            ask(namespace=7)


def test_a_closed_cache_says_so(cache) -> None:
    """Of each method."""
    cache.close()
    for use in (lambda: cache.examples.add(Example("q", "a")), cache.examples.recent, cache.examples.count):
        with pytest.raises(CacheClosed, match="was closed"):
            use()


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "a\ud800"},
        {"answer": "a\0b"},
        {"namespace": "\0"},
        {"model": "\udfff"},
        {"entry_id": "\0"},
        {"documents": (Document("a\ud800", ""),)},
        {"at": float("nan")},
        {"seconds": float("inf")},
        {"seconds": 10**400},
        {"input_tokens": 10**14},
        {"output_tokens": -1},
    ],
)
def test_what_no_database_holds_is_refused_and_counted(cache, fields: dict[str, object]) -> None:
    """And spoils nothing beside it."""
    cache.examples.add(Example("before", "a"))
    assert cache.examples.add(Example(**{"question": "q", "answer": "a", **fields})) is False
    cache.examples.add(Example("after", "a"))

    assert questions(cache) == ["after", "before"]
    assert cache.stats().faults == {"keep examples: invalid": 1}


def test_a_database_that_fails_is_counted_not_raised(cache, monkeypatch, caplog) -> None:
    """What is added when it works again is kept; asking for the log of a broken database is an error."""
    table = cache._runtime.store.examples
    with monkeypatch.context() as broken:

        def fail(*_: object) -> None:
            raise StorageError("disk I/O error")

        broken.setattr(table, "add", fail)
        broken.setattr(table, "count", fail)
        assert cache.examples.add(Example("q", SECRET))
        with pytest.raises(StorageError, match="disk I/O error"):
            cache.examples.count()
    cache.examples.add(Example("later", "a"))

    assert questions(cache) == ["later"]
    assert cache.stats().faults == {"keep examples: StorageError": 1}
    assert "disk I/O error" in caplog.text
    assert SECRET not in caplog.text


def test_a_slow_database_fills_no_memory(cache, monkeypatch) -> None:
    """While too many wait, more are refused, and counted."""
    monkeypatch.setattr("ibidem.examples.log.QUEUE_LIMIT", 5)
    written, go = cache._runtime.store.examples.add, threading.Event()
    monkeypatch.setattr(cache._runtime.store.examples, "add", lambda rows: go.wait(10) and written(rows))
    added = [cache.examples.add(Example(f"q{n}", "a")) for n in range(50)]
    go.set()

    assert added[:5] == [True] * 5
    assert 5 <= sum(added) <= 10  # five may have been taken for writing
    assert cache.examples.count() == sum(added)
    assert cache.stats().faults == {"keep examples: too many wait": 50 - sum(added)}


def test_threads_lose_nothing(cache) -> None:
    """Eight add at once, each in its order."""

    def work(worker: int) -> list[bool]:
        return [cache.examples.add(Example(f"{worker}.{n}", "a", namespace=str(worker))) for n in range(200)]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(added) for added in pool.map(work, range(8)))

    assert cache.examples.count() == 1600
    for worker in range(8):
        assert questions(cache, str(worker)) == [f"{worker}.{n}" for n in range(199, -1, -1)]
    assert cache.stats().faults == {}


ADDS = """
import sys
import ibidem
from tests.embedders import BagOfWords

cache = ibidem.open(sys.argv[1], embedder=BagOfWords())
print("ready", flush=True)
sys.stdin.readline()
for n in range(300):
    assert cache.examples.add(ibidem.Example(f"{sys.argv[2]}.{n}", "a", namespace=sys.argv[2]))
"""


def test_two_processes_write_one_log(open_cache, tmp_path: Path) -> None:
    """Both end without closing, at once after adding; a third process sees what each added, in its order."""
    cache = open_cache()
    with Child(ADDS, tmp_path / "cache", "x") as one, Child(ADDS, tmp_path / "cache", "y") as two:
        for child in (one, two):
            assert child.line() == "ready"
        for child in (one, two):
            child.tell()
        assert (one.end(), two.end()) == (0, 0)

    assert cache.examples.count() == 600
    for name in ("x", "y"):
        assert questions(cache, name) == [f"{name}.{n}" for n in range(299, -1, -1)]


FORKS = """
import os, sys
import ibidem
from tests.embedders import BagOfWords

cache = ibidem.open(sys.argv[1], embedder=BagOfWords())
for n in range(50):
    cache.examples.add(ibidem.Example(f"parent {n}", "a"))
if os.fork() == 0:
    for n in range(50):
        cache.examples.add(ibidem.Example(f"child {n}", "a"))
    sys.exit()
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_writes_each_example_once(open_cache, tmp_path: Path) -> None:
    """What waits in the parent is the parent's; the child writes its own at its exit."""
    with Child(FORKS, tmp_path / "cache") as child:
        assert child.end() == 0
    found = questions(open_cache())

    assert sorted(found) == sorted(f"{who} {n}" for who in ("parent", "child") for n in range(50))
