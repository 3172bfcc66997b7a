"""A cache is copied to another database: all of it, while it is in use, killed and gone on with."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

import ibidem
from ibidem import Answer, Document, Example, InvalidInput, Request, StorageError
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app
from ibidem.cli.doctor import _copies
from ibidem.storage import tables
from ibidem.storage.copying import plan
from ibidem.storage.copying.changes import ChangeLog
from ibidem.storage.copying.copier import Copied, Copy, give_up, patiently
from ibidem.storage.copying.marks import request_cut_over
from ibidem.storage.copying.rows import snapshot
from ibidem.storage.deletion import delete_entries
from ibidem.storage.engine import writing
from ibidem.storage.entries import entry_row, put_related
from ibidem.storage.logs import JudgementRow
from ibidem.storage.store import Store
from ibidem.storage.turns import AnsweredTurn
from ibidem.types import namespace_of
from tests.embedders import BagOfWords
from tests.helpers import Child, answer, eventually, question, reworded, rounds
from tests.servers import running_postgres

NAMESPACES = ("", "shop", namespace_of("shop", user="ann"), "shop%2F", "bank")
WAYS = pytest.mark.parametrize(
    "there", [False, pytest.param(True, marks=pytest.mark.thorough)], ids=["to postgres", "from postgres"]
)
PAYLOAD = '{"é": "\\u2028"}'
COMMAND = "import sys; from ibidem.cli.commands import app; app(sys.argv[1:])"
_LEFT_COLUMNS = {"entry_vectors": {"indexed_in"}, "embedders": {"until", "state"}, "answered_turns": {"id"}}


def opened(url: str, **settings: Any) -> SemanticCache:
    return ibidem.open(database=url, embedder=BagOfWords(), min_similarity=0.8, **settings)


def document(n: int) -> Document:
    return Document(f"file{n % 9}#1", f"text {n % 9}", source=f"file{n % 9}")


def request(n: int, *, asked: str | None = None) -> Request:
    """The n-th request: over a document or none, by meaning or word for word."""
    documents = (document(n),) if n % 3 else ()
    text = question(n) if asked is None else asked
    return Request(text, documents=documents, namespace=NAMESPACES[n % 5], semantic=n % 4 != 3)


def fill(cache: SemanticCache, draw: random.Random, count: int) -> list[int]:
    """Use a cache in every way that leaves something in its database; return what it has to answer."""
    store, alive = cache._runtime.store, dict[int, str]()
    for n in range(count):
        said = Answer(answer(n), payload=PAYLOAD, model=f"m{n % 2}", input_tokens=n, output_tokens=7)
        kept = cache.store(request(n), said, tags=("t", f"tag{n % 4}"), ttl=1e6 if n % 2 else None)
        assert kept
        alive[n] = kept.entry_id
    for n in draw.sample(range(count), count // 3):
        cache.lookup(request(n))
    pinned = draw.sample(range(count), 12)
    for n in pinned:
        assert cache.correct(alive[n], Answer(f"corrected {n}", payload=PAYLOAD))
    for n in draw.sample(sorted(alive), 4):
        cache.feedback(alive[n], good=n % 2 == 0)
        if n % 2:
            del alive[n]
    gone = draw.sample(range(9), 2)
    for n in gone:
        cache.invalidate(document=f"file{n}")
    cache.announce([f"file{draw.randrange(9)}", "new"], namespace=draw.choice(["shop", None]))
    for n in range(7):
        cache.examples.add(Example(question(n), answer(n), namespace=NAMESPACES[n % 5], tags=("x",)))
    row = JudgementRow(1.5, "shop", "s", "e", "asked", "stored", 0.91, 0.7, "scorer", True, "audit")
    store.judgements.add([row] * 3)
    store.turns.add([AnsweredTurn(f"c{n}", f"s{n}", alive[min(alive)], "shop") for n in range(5)])
    store.meta.set("threshold:abc", '{"kept": true}')
    store.meta.set("redacted:abc:lookups", "12")  # of this database alone
    assert cache.flush()
    return [n for n in alive if not (n % 3 and n % 9 in gone)]


def content(store: Store, namespace: str | None = None) -> dict[str, Counter[str]]:
    """The rows of all tables, without what is each database's own."""
    found = {}
    for table in tables.metadata.sorted_tables:
        if table.name in plan.LEFT:
            continue
        left = set(_LEFT_COLUMNS.get(table.name, ()))
        if table.name in ("lookups", "examples", "judgements", "invalidations"):
            left.add("id")
        columns = [column for column in table.c if column.name not in left]
        query = sa.select(*columns)
        if namespace is not None and "namespace" in table.c:
            query = query.where(table.c.namespace == namespace)
        with store.engine.connect() as db:
            rows = [row for row in db.execute(query) if table.name != "meta" or plan.is_carried(row[0])]
        found[table.name] = Counter(repr(tuple(row)) for row in rows)
    return found


def copy(
    source: Store,
    target: Store,
    namespace: str | None = None,
    *,
    when: str = "",
    do: Callable[[], object] = lambda: None,
    **how: bool,
) -> Copied:
    """Copy, and do something as soon as a copy shows that it is at `when`."""
    done = set[str]()

    def show(what: str, *_: int) -> None:
        if what == when and what not in done:
            done.add(what)
            do()

    copied = Copy(source, target, namespace, show).run(**how)
    assert done or not when
    return copied


class Killed(BaseException):
    """Ends a copy as SIGKILL does: nothing catches it."""


def killed(*_: object) -> None:
    raise Killed


@contextmanager
def stores(*urls: str) -> Iterator[list[Store]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Store(url))) for url in urls]


@pytest.fixture
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


def file(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / f'{name}.sqlite3'}"


def test_every_table_is_decided() -> None:
    """Whoever adds a table says here whether it is copied, and how."""
    copied = [table.name for part in plan.PARTS for table, _ in part.tables]

    assert sorted([*copied, *plan.LEFT]) == sorted(tables.metadata.tables)


@pytest.mark.parametrize("seed", range(rounds(2, 12)))
def test_a_copy_is_equal_and_so_is_its_copy(tmp_path: Path, postgres: str, seed: int) -> None:
    """From SQLite to PostgreSQL and back; all are used alike afterwards."""
    urls = [file(tmp_path, "a"), postgres, file(tmp_path, "b")]
    with opened(urls[0]) as cache:
        alive = fill(cache, random.Random(seed), 90)
    with stores(*urls) as (a, p, b):
        for one, other in ((a, p), (p, b)):
            done = copy(one, other)
            assert done.same
            assert (done.left_out, done.kept, [one.foreign for one in done.checked]) == (0, 0, [0] * 14)
            assert content(one) == content(other)
            assert not sa.inspect(one.engine).has_table("copied_changes")
            assert not sa.inspect(other.engine).has_table("copied_numbers")
            assert one.id != other.id
        assert sum(map(len, content(a).values())) > 300
    for url in urls[1:]:
        with opened(url) as cache:
            assert cache.flush()
            for n in range(90):
                found = cache.lookup(request(n))
                assert bool(found) == (n in alive), (n, found)
                if found and n % 4 != 3:
                    again = cache.lookup(request(n, asked=reworded(n)))
                    assert again.answer == found.answer
            old = Request("old", documents=(document(_invalidated(alive)),), made=time.time() - 600)
            assert cache.store(old, Answer("a")).reason == "invalidated"


def _invalidated(alive: list[int]) -> int:
    return next(n for n in range(90) if n % 3 and n % 9 not in {one % 9 for one in alive if one % 3})


@WAYS
def test_killed_it_goes_on(tmp_path: Path, postgres: str, *, there: bool) -> None:
    """Several times, in whatever it does; meanwhile the cache is used."""
    urls = (file(tmp_path, "a"), postgres)[:: -1 if there else 1]
    with opened(urls[0]) as cache, stores(*urls) as (source, target):
        fill(cache, random.Random(1), 300)
        for kill in range(rounds(3, 12)):
            before = _rows(target)
            child = Child(COMMAND, "copy", *urls)
            assert eventually(partial(_has_grown, target, before, child), 60, 0.01)
            time.sleep(random.Random(kill).uniform(0.0, 0.3))
            child.kill()
            if target.meta.get("copy:from") is None:  # too late
                target.clear()
            cache.store(Request(f"between {kill}"), Answer("new"))
            cache.invalidate(document=f"file{kill}")
        assert cache.flush()
        ended(Child(COMMAND, "copy", *urls, "--json"))
        assert content(source) == content(target)


def ended(*children: Child) -> None:
    """Wait until they end well."""
    for child in children:
        code = child.process.wait(100)
        said = child.said()
        child.end()
        assert code == 0, said


def _has_grown(store: Store, before: int, child: Child) -> bool:
    return _rows(store) > before or child.process.poll() is not None


def _rows(store: Store) -> int:
    with store.engine.connect() as db:
        return sum(
            db.scalar(sa.select(sa.func.count()).select_from(one)) or 0
            for one in (tables.entries, tables.examples, tables.lookups)
        )


@WAYS
def test_followed_until_the_cut_over(tmp_path: Path, postgres: str, *, there: bool) -> None:
    """While others store and invalidate: what was acknowledged is there, and nothing that is invalid."""
    urls = (file(tmp_path, "a"), postgres)[:: -1 if there else 1]
    with opened(urls[0]) as cache:
        fill(cache, random.Random(2), 120)
        seen = Acknowledged(cache)
        with seen:
            with stores(urls[1]) as (target,):
                killed = Child(COMMAND, "copy", *urls, "--follow")
                assert eventually(lambda: _rows(target) > 150, 60)
                killed.kill()
                follower, before = Child(COMMAND, "copy", *urls, "--follow"), _rows(target)
                assert eventually(lambda: _rows(target) > before + 20, 60)
            ended(Child(COMMAND, "copy", *urls, "--cut-over"), follower)
            assert eventually(lambda: seen.refused["moved"] > 4)
        assert cache.lookup(request(0)) or cache.lookup(request(1))
        assert cache.stats().rejected["moved"] == seen.refused["moved"]
        for call in (lambda: cache.invalidate(tag="t"), lambda: cache.announce("x"), lambda: cache.clear()):
            with pytest.raises(StorageError, match="was moved to"):
                call()
    with opened(urls[1]) as cache:
        assert cache.flush()
        found = {n: bool(cache.lookup(seen.request(n))) for n in seen.stored}
    assert [n for n in seen.stored if not found[n] and not seen.may_be_gone(n)] == []
    assert [n for n in seen.stored if found[n] and seen.is_invalid(n)] == []
    assert sum(found.values()) > 20
    assert seen.invalidated


class Acknowledged:
    """Uses a cache in three threads, and remembers what it has acknowledged and when."""

    def __init__(self, cache: SemanticCache) -> None:
        self._cache, self._stop = cache, threading.Event()
        self.stored: dict[int, tuple[float, float]] = {}  # when each store began and ended
        self.invalidated: list[tuple[str, float, float]] = []  # the source
        self.refused = Counter[str]()
        self._threads = [threading.Thread(target=one) for one in (self._store, self._store, self._invalidate)]
        self._numbers = iter(range(10_000, 10**6))

    def request(self, n: int) -> Request:
        """The request that is stored; its document is of one of many files."""
        source = f"of{n % 60}"
        return Request(question(n), documents=(Document(f"{source}#1", f"text {source}", source=source),))

    def _store(self) -> None:
        while not self._stop.is_set():
            n, began = next(self._numbers), time.time()
            result = self._cache.store(self.request(n), Answer(answer(n)))
            if result:
                self.stored[n] = began, time.time()
            else:
                self.refused[result.reason] += 1
            time.sleep(0.02)

    def _invalidate(self) -> None:
        draw = random.Random(5)
        while not self._stop.is_set():
            source, began = f"of{draw.randrange(60)}", time.time()
            try:
                self._cache.invalidate(document=source)
            except StorageError:
                return
            self.invalidated.append((source, began, time.time()))
            time.sleep(0.2)

    def may_be_gone(self, n: int) -> bool:
        """Whether something was invalidated while or after it was stored."""
        return any(
            source == f"of{n % 60}" and end >= self.stored[n][0] for source, _, end in self.invalidated
        )

    def is_invalid(self, n: int) -> bool:
        """Whether it must be gone: what it rests on was invalidated after it was stored."""
        stored = self.stored[n][1]
        return any(source == f"of{n % 60}" and began > stored for source, began, _ in self.invalidated)

    def __enter__(self) -> Acknowledged:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


def test_what_is_there_is_not_mixed(tmp_path: Path) -> None:
    """It is refused; one namespace goes to others, once, and leaves them as they were."""
    urls = [file(tmp_path, name) for name in "abc"]
    for url in urls[:2]:
        with opened(url) as cache:
            fill(cache, random.Random(3), 60)
    with stores(*urls) as (a, b, c):
        before = content(b)
        with pytest.raises(InvalidInput, match=r"holds rows of its own \(.* in entries"):
            copy(a, b)
        with pytest.raises(InvalidInput, match="has the namespace 'bank' already"):
            copy(a, b, "bank")
        assert content(b) == before
        b.clear("bank")
        others = [content(b, name) for name in NAMESPACES[:4]]
        assert copy(a, b, "bank").same
        assert content(b, "bank")["entries"] == content(a, "bank")["entries"]
        assert content(b, "bank")["examples"] == content(a, "bank")["examples"]
        for name, other in zip(NAMESPACES, others, strict=False):
            for table in ("entries", "examples", "lookups", "judgements", "answered_turns", "withdrawn"):
                assert content(b, name)[table] == other[table]
        assert copy(a, c, "shop", cut_over=True).same
        assert sorted(content(c)["entries"]) == sorted(
            row for name in NAMESPACES[1:3] for row in content(a, name)["entries"]
        )


def test_a_namespace_moves_and_the_others_stay(tmp_path: Path) -> None:
    """What concerns it alone is refused there, its users' too; the others go on."""
    a, b = file(tmp_path, "a"), file(tmp_path, "b")
    with opened(a) as cache, stores(a, b) as (source, target):
        fill(cache, random.Random(4), 60)
        assert copy(source, target, "shop", cut_over=True).moved
        reasons = {}
        for name in NAMESPACES:
            result = cache.store(Request("new", namespace=name), Answer("a"))
            reasons[name] = "" if result else result.reason
        assert [name for name in NAMESPACES if reasons[name] == "moved"] == list(NAMESPACES[1:3])
        assert set(reasons.values()) == {"moved", ""}
        for call in (cache.invalidate, cache.clear, partial(cache.announce, "x")):
            with pytest.raises(StorageError, match="the namespace 'shop' was moved to .*b.sqlite3"):
                call(namespace="shop")
            call(namespace="bank")
        cache.invalidate(tag="t")
        with (
            stores(file(tmp_path, "c")) as (other,),
            pytest.raises(InvalidInput, match="'shop' was moved to"),
        ):
            copy(source, other)
        give_up(source, target, "shop")
        assert cache.store(Request("new", namespace="shop"), Answer("a"))


def test_the_same_cache_is_refused(tmp_path: Path) -> None:
    """Itself, and another copy of a cache that is being copied."""
    a, b, c = (file(tmp_path, name) for name in "abc")
    with stores(a, b, c) as (one, two, three):
        one.turns.add([AnsweredTurn("c", "s", "e", "")])
        with pytest.raises(InvalidInput, match="itself, or a backup"):
            copy(one, one)
        begun = Copy(one, two, None, lambda *_: None)
        begun._begin()
        with pytest.raises(InvalidInput, match="another copy to .* is not finished"):
            copy(one, three)
        with pytest.raises(InvalidInput, match="another copy from .* is not finished"):
            copy(three, two)
        assert [found.text.partition(" sqlite")[0] for found in (*_copies(one), *_copies(two))] == [
            "is copied to",
            "the copy from",
        ]
        give_up(one, two)
        assert copy(one, three, cut_over=True).moved
        assert [(found.ok, found.check) for found in _copies(one)] == [(False, "copy")]
        with pytest.raises(InvalidInput, match="was moved to .*c.sqlite3"):
            copy(one, two)
        give_up(one, None)
        one.require_here("")


def test_a_row_that_the_other_refuses_is_left_out(tmp_path: Path, postgres: str) -> None:
    """The rows beside it are copied."""
    with opened(file(tmp_path, "a")) as cache:
        for n in range(40):
            cache.store(Request(question(n)), Answer(answer(n)))
    with stores(file(tmp_path, "a"), postgres) as (source, target):
        with source.engine.begin() as db:
            db.exec_driver_sql(
                "UPDATE entries SET model = 'x' || char(0) || 'y' WHERE id = (SELECT min(id) FROM entries)"
            )
        done = copy(source, target)

        assert (done.left_out, done.same) == (1, False)
        assert target.evictor.size()[0] == 39


def test_another_embedder_there_gets_its_vectors(tmp_path: Path) -> None:
    """A program that has the target open already finds by meaning what was copied, by its own embedder."""
    a, b = file(tmp_path, "a"), file(tmp_path, "b")
    with opened(a) as cache:
        for n in range(5):
            cache.store(Request(question(n)), Answer(answer(n)))
    other = ibidem.open(database=b, embedder=BagOfWords(64), min_similarity=0.8)
    with other, stores(a, b) as (source, target):
        assert copy(source, target).same
        assert eventually(lambda: bool(other.lookup(Request(reworded(3)))), 60)


def test_newer_answers_and_invalidations_of_the_target_stay(tmp_path: Path) -> None:
    """Programs use both places before the cut-over."""
    a, b = file(tmp_path, "a"), file(tmp_path, "b")
    resting = Request(question(1), documents=(document(1),))
    with opened(a) as cache:
        for one in (Request(question(0)), resting, Request(question(2))):
            cache.store(one, Answer("of FROM"))
        cache.announce("told")
    with opened(a) as cache, opened(b) as there, stores(a, b) as (source, target):
        begun = Copy(source, target, None, lambda *_: None)
        begun._begin()
        there.store(Request(question(0)), Answer("of TO"))
        there.invalidate(document="file1")
        there.announce("told")
        told = content(target)["told_documents"]
        done = begun.run(cut_over=True)
        assert [bool(there.lookup(one)) for one in (resting, Request(question(2)))] == [False, True]
        assert there.lookup(Request(question(0))).answer.text == "of TO"
        assert (done.kept, done.same) == (1, True)
        assert content(target)["told_documents"] == told
        assert cache.store(Request("q"), Answer("a")).reason == "moved"


@pytest.mark.parametrize("when", ["embedders", "entries"], ids=["before", "after"])
def test_what_the_target_has_of_its_own_stays(tmp_path: Path, when: str) -> None:
    """Vetted, asked again after an invalidation, or gone in FROM: before or after FROM's was copied."""
    a, b = file(tmp_path, "a"), file(tmp_path, "b")
    asked = [Request(question(n), documents=(document(1),) if n == 1 else ()) for n in range(4)]
    with opened(a) as cache, opened(b) as there, stores(a, b) as (source, target):
        for one in asked:
            assert cache.store(one, Answer("of FROM"))

        def meanwhile() -> None:
            there.store(asked[0], Answer("not vetted"))
            assert there.correct(asked[0].key, "vetted")
            assert cache.store(asked[0], Answer("later, of FROM"))
            there.invalidate(document="file1")
            assert there.store(asked_now(asked[1]), Answer("of TO"))
            assert there.store(asked[2], Answer("of TO"))
            with writing(source.engine) as db:  # as an eviction does
                delete_entries(db, tables.entries.c.id.in_([asked[2].key, asked[3].key]))

        assert copy(source, target, when=when, do=meanwhile).same
        found = [there.lookup(one) for one in asked]
    assert [one.answer.text if one else "" for one in found] == ["vetted", "of TO", "of TO", ""]


def asked_now(asked: Request) -> Request:
    """The same, asked now."""
    return Request(asked.question, documents=asked.documents, made=time.time())


def test_other_namespaces_of_the_target_stay(tmp_path: Path) -> None:
    """Whatever is stored, invalidated or deleted in theirs in FROM while one is copied."""
    a, b = file(tmp_path, "a"), file(tmp_path, "b")
    for url in (a, b):
        with opened(url) as cache:
            fill(cache, random.Random(3), 60)
    with opened(a) as cache, stores(a, b) as (source, target):
        target.clear("shop")

        def meanwhile() -> None:
            for n in range(60):
                cache.store(request(n), Answer("of FROM"))
            cache.invalidate(tag="t")
            cache.clear("bank")

        others = [content(target, name) for name in ("", "shop%2F", "bank")]
        assert copy(source, target, "shop", when="embedders", do=meanwhile).same
        for name, before in zip(("", "shop%2F", "bank"), others, strict=True):
            after = content(target, name)
            for table in ("entries", "withdrawn", "answered_turns", "examples", "judgements"):
                assert after[table] == before[table], (name, table)


def test_an_embedder_that_comes_along_is_made_for_what_is_there(tmp_path: Path) -> None:
    """The answers of other namespaces are found by meaning by a program that uses FROM's embedder in TO."""
    a, b = file(tmp_path, "a"), file(tmp_path, "b")
    with opened(a) as cache:
        cache.store(Request(question(1), namespace="shop"), Answer(answer(1)))
    with ibidem.open(database=b, embedder=BagOfWords(64), min_similarity=0.8) as other:
        other.store(Request(question(2), namespace="bank"), Answer(answer(2)))
    with stores(a, b) as (source, target):
        copy(source, target, "shop")
    with opened(b) as cache:
        assert eventually(lambda: cache.lookup(Request(reworded(2), namespace="bank")))
        assert cache.lookup(Request(reworded(1), namespace="shop"))


def test_two_sources_are_not_mixed(tmp_path: Path) -> None:
    """Of two that begin at the same moment, one is refused."""
    for n in range(rounds(5, 50)):
        names = [f"{name}{n}" for name in ("a", "b", "c")]
        with stores(*(file(tmp_path, name) for name in names)) as (a, b, target):
            for one in (a, b):
                one.turns.add([AnsweredTurn(one.id, "s", "e", "")])
            at_once, refused = threading.Barrier(2), list[str]()

            def begin(
                source: Store, target: Store = target, at_once: Any = at_once, r: Any = refused
            ) -> None:
                at_once.wait(10)
                try:
                    copy(source, target)
                except InvalidInput as error:
                    r.append(str(error))

            threads = [threading.Thread(target=begin, args=(one,)) for one in (a, b)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert len(refused) == 1


def test_killed_at_its_end_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes it for another copy, or for a cut-over that never was."""
    a, b = file(tmp_path, "a"), file(tmp_path, "b")
    with stores(a, b) as (source, target):
        source.turns.add([AnsweredTurn("c", "s", "e", "shop")])
        for namespace, cut_over, said in (
            ("shop", False, "another copy to .* is not finished"),
            (None, True, "holds rows of its own"),
            (None, False, ""),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(ChangeLog, "end", killed)
                with pytest.raises(Killed):
                    copy(source, target)
            if said:
                with pytest.raises(InvalidInput, match=said):
                    copy(source, target, namespace, cut_over=cut_over)
                give_up(source, target)
                target.clear()
            else:
                assert copy(source, target).same
            assert [*_copies(source), *_copies(target)] == []


def test_giving_up_and_cutting_over_concern_the_copy_that_is_named(tmp_path: Path) -> None:
    """Not one of another namespace, nor one from another place; TO need not be there any more."""
    a, b, c = (file(tmp_path, name) for name in "abc")
    with stores(a, b, c) as (one, target, other):
        one.turns.add([AnsweredTurn("c", "s", "e", "shop")])
        one.embedders.register("e")
        with pytest.raises(Killed):
            copy(one, target, "shop", when="embedders", do=killed)
        assert not request_cut_over(one, target, None)
        assert not request_cut_over(one, other, "shop")
        give_up(other, target)
        assert copy(one, target, "shop").same
        one.clear()
        with pytest.raises(Killed):
            copy(one, other, when="embedders", do=killed)
    gone = "postgresql+psycopg://nobody@127.0.0.1:9/none"
    said = CliRunner().invoke(app, ["copy", a, gone, "--give-up"])
    assert said.exit_code == 0, said.output
    with stores(a) as (one,):
        assert not sa.inspect(one.engine).has_table("copied_changes")


def test_a_row_is_read_with_what_belongs_to_it(postgres: str) -> None:
    """All as it was at one moment, whatever is committed meanwhile."""
    count = sa.select(sa.func.count()).select_from(tables.meta)
    with stores(postgres) as (store,), snapshot(store.engine) as db:
        before = db.scalar(count)
        store.meta.set("new", "value")
        assert db.scalar(count) == before


def test_ending_the_triggers_refuses_no_store(postgres: str) -> None:
    """A store that has read a table writes to it while the triggers wait to be dropped."""
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with stores(postgres) as (store,):
        log = ChangeLog(store.engine, plan.PARTS)
        log.begin()
        with writing(store.engine) as db:
            db.execute(sa.select(tables.embedders)).all()
            ending = threading.Thread(target=patiently, args=(log.end,))
            ending.start()
            with store.engine.connect() as other:
                assert eventually(lambda: other.scalar(waiting))
            db.execute(sa.insert(tables.embedders).values(id=1, fingerprint="e", until=0.0, state="used"))
        ending.join(30)
        assert not sa.inspect(store.engine).has_table("copied_changes")
        assert list(store.embedders.registered()) == ["e"]


def test_a_program_with_a_role_of_its_own_goes_on(postgres: str) -> None:
    """It may write rows and owns nothing: the triggers note what it does nevertheless."""
    with stores(postgres) as (store,):
        log = ChangeLog(store.engine, plan.PARTS)
        log.begin()
        with store.engine.connect() as db:
            names = ", ".join(table for table in tables.metadata.tables)
            for statement in (
                "CREATE ROLE plain_writer LOGIN",
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON {names} TO plain_writer",
            ):
                db.exec_driver_sql(statement)
        try:
            with closing(Store(postgres.replace("ibidem@", "plain_writer@"))) as program:
                program.told.add(["file"], None, 1.0)
            assert [change.part for change in log.read(9)] == ["told_documents"]
        finally:
            with store.engine.connect() as db:
                db.exec_driver_sql("DROP OWNED BY plain_writer; DROP ROLE plain_writer")


def test_an_invalidation_waits_for_a_store_in_the_target(tmp_path: Path, postgres: str) -> None:
    """One that has looked for invalidations already would store what they forbid."""
    asked, copied = Request(question(1), documents=(document(1),)), threading.Event()
    with opened(file(tmp_path, "a")) as cache:
        time.sleep(0.01)
        cache.invalidate(document="file1")
    with opened(file(tmp_path, "x")) as cache, stores(file(tmp_path, "x")) as (aside,):
        cache.store(asked, Answer("outdated"))
        kept = replace(aside.entries.of_ids([asked.key])[0], requested=1.0)
    locks = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with stores(file(tmp_path, "a"), postgres) as (source, target):
        copying = threading.Thread(target=lambda: (copy(source, target), copied.set()))
        with writing(target.engine) as db:
            assert not target.invalidations.rejects(db, kept, kept.requested)
            copying.start()
            with target.engine.connect() as other:
                assert eventually(lambda: copied.is_set() or other.scalar(locks))
            db.execute(sa.insert(tables.entries).values(entry_row(kept)))
            put_related(db, replace(kept, semantic=False), "")
        copying.join(60)
        assert target.entries.get(asked.key) is None
