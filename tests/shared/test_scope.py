"""`ibidem.scope` in the core: whose a request is, on which terms, and what can be forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ibidem
from ibidem import Answer, Hit, InvalidInput, Miss, Rejected, Request, Stored
from ibidem.cache import SemanticCache
from ibidem.pipeline import PendingRequest
from ibidem.scope import current
from ibidem.types import tenant_of
from tests.conftest import OpenCache
from tests.helpers import Clock

ASKED = Request("What is the capital of France?")
PARIS = Answer("Paris.")


def found(cache: SemanticCache, request: Request = ASKED) -> str | None:
    hit = cache.lookup(request)
    return hit.answer.text if isinstance(hit, Hit) else None


# whose it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "others",
    [{"namespace": "globex"}, {"namespace": "acme", "user": "ann"}, {"user": "acme"}, {}],
    ids=str,
)
def test_what_one_has_stored_no_other_gets(cache: SemanticCache, others: dict[str, Any]) -> None:
    with ibidem.scope(namespace="acme"):
        cache.store(ASKED, PARIS)
        assert found(cache) == "Paris."
    with ibidem.scope(**others):
        assert found(cache) is None


def test_a_request_that_names_a_namespace_keeps_it(cache: SemanticCache) -> None:
    named = Request(ASKED.question, namespace="acme")
    with ibidem.scope(namespace="globex"):
        cache.store(named, PARIS)
    assert found(cache, named) == "Paris."
    with ibidem.scope(user="ann"):
        assert found(cache, named) is None, "but a user separates in any namespace"


def test_scopes_inside_one_another_add_up() -> None:
    with ibidem.scope(namespace="acme", max_age=60, tags=("a",)):
        with ibidem.scope(user="ann", max_age=5, ttl=9, tags=("b", "a")):
            here = current()
            assert (here.name(), here.max_age, here.ttl, here.tags) == ("acme/user=ann", 5, 9, ("a", "b"))
        with ibidem.scope(namespace="globex", bypass=True), ibidem.scope():
            assert (current().name(), current().max_age, current().bypass) == ("globex", 60, True)
    assert current().name("own") == "own"


def test_a_scope_ends_though_its_block_fails() -> None:
    with pytest.raises(ZeroDivisionError), ibidem.scope(namespace="acme"):
        raise ZeroDivisionError
    assert current().namespace == ""


def test_a_generator_that_is_closed_elsewhere_ends_in_peace() -> None:
    def stream() -> Iterator[str]:
        with ibidem.scope(namespace="acme"):
            yield current().namespace

    begun = stream()
    assert copy_context().run(next, begun) == "acme"
    copy_context().run(begun.close)
    assert current().namespace == ""


@pytest.mark.parametrize(
    "wrong",
    [
        {"namespace": ""},
        {"namespace": " "},
        {"namespace": None},
        {"user": ""},
        {"namespace": 7},
        {"user": b"ann"},
        {"bypass": "no"},
        {"bypass": None},
        {"max_age": 0},
        {"max_age": True},
        {"max_age": float("nan")},
        {"ttl": "1h"},
        {"tags": "a"},
        {"tags": [1]},
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    """A tenant whose name got lost must not be taken for none."""
    (name,) = wrong
    with pytest.raises(InvalidInput, match=name), ibidem.scope(**wrong):
        pass


NAMES = st.text(st.sampled_from("ab%/=u2F5ser "), max_size=12) | st.sampled_from(
    ["", "a", "a/user=b", "a%2Fuser=b", "/user=", "%", "%25", "user=b", "a/user=b/user=c"]
)


@given(st.lists(st.tuples(NAMES, NAMES), min_size=2, max_size=8))
def test_no_two_pairs_have_one_name(pairs: list[tuple[str, str]]) -> None:
    assert len({ibidem.namespace_of(*pair) for pair in pairs}) == len(set(pairs))


@given(NAMES, NAMES)
def test_the_tenant_is_found_in_the_name(namespace: str, user: str) -> None:
    assert tenant_of(ibidem.namespace_of(namespace, user)) == namespace


def test_names_are_as_people_write_them() -> None:
    assert ibidem.namespace_of("team/a") == "team/a"
    assert ibidem.namespace_of("team/a", "ann@x.org") == "team%2Fa/user=ann@x.org"


def test_a_tenant_is_cleared_with_its_users(cache: SemanticCache) -> None:
    tenants = [("acme", None), ("acme", "ann"), ("acme", "bob"), ("acme2", "ann"), ("ACME", "ann")]
    for namespace, user in tenants:
        with ibidem.scope(namespace=namespace, user=user):
            assert cache.store(ASKED, PARIS)
            cache.lookup(ASKED)
    assert cache.clear(ibidem.namespace_of("acme", "bob")) == 1
    assert cache.clear("acme") == 2
    left = {"acme2/user=ann", "ACME/user=ann"}
    assert {row.namespace for row in cache.recent()} == left
    assert {example.namespace for example in cache.examples.recent()} == left


def test_the_lifetime_of_a_namespace_is_that_of_its_users(open_cache: OpenCache) -> None:
    cache = open_cache(namespace_ttl={"acme": 60})
    clock = Clock(cache)
    for namespace in ("acme", "globex"):
        with ibidem.scope(namespace=namespace, user="ann"):
            cache.store(ASKED, PARIS)
    clock.advance(61)
    with ibidem.scope(namespace="acme", user="ann"):
        assert cache.lookup(ASKED).reason == "expired"
    with ibidem.scope(namespace="globex", user="ann"):
        assert found(cache) == "Paris."


# where it holds ---------------------------------------------------------------------------------------


def test_a_thread_of_ones_own_is_in_no_scope(cache: SemanticCache) -> None:
    seen: list[str | None] = []
    with ibidem.scope(namespace="acme"):
        cache.store(ASKED, PARIS)
        inherited = copy_context()
        for run in (
            lambda: seen.append(found(cache)),
            lambda: seen.append(inherited.run(found, cache)),
        ):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
    assert seen == [None, "Paris."]


async def test_tasks_are_in_the_scope_they_were_begun_in(cache: SemanticCache) -> None:
    async def ask(tenant: str) -> str:
        async def model(_: Request) -> Answer:
            await asyncio.sleep(0)
            return Answer(f"secret of {tenant}")

        with ibidem.scope(namespace=tenant):
            first = await asyncio.create_task(cache.aanswer(ASKED, model))
            again = await asyncio.to_thread(cache.answer, ASKED, lambda _: Answer("asked again"))
            return f"{first.text}, {again.text}"

    tenants = [f"t{number}" for number in range(8)]
    assert await asyncio.gather(*map(ask, tenants)) == [f"secret of {t}, secret of {t}" for t in tenants]


def test_an_answer_is_stored_where_it_was_looked_up(cache: SemanticCache) -> None:
    """A stream may be read outside of the block, or in another tenant's."""
    with ibidem.scope(namespace="acme"):
        inside = PendingRequest(cache.steps, ASKED)
        assert inside.lookup() is None
        assert not inside.wait()
    outside = PendingRequest(cache.steps, Request("How large is Paris?"))
    assert outside.lookup() is None
    with ibidem.scope(namespace="globex"):
        assert inside.store(PARIS)
        assert outside.store(Answer("105 km2."))
        assert found(cache) is None
        assert found(cache, Request("How large is Paris?")) is None
    with ibidem.scope(namespace="acme"):
        assert found(cache) == "Paris."


# terms ------------------------------------------------------------------------------------------------


def test_a_bypass_looks_up_stores_logs_and_waits_for_nothing(open_cache: OpenCache) -> None:
    told: list[Any] = []
    cache = open_cache(on_lookup=lambda *what: told.append(what))
    leader = PendingRequest(cache.steps, ASKED)
    assert leader.lookup() is None
    assert not leader.wait()
    del told[:]
    with ibidem.scope(bypass=True):
        assert cache.answer(ASKED, lambda _: PARIS) == PARIS, "does not wait for the leader"
        assert cache.lookup(ASKED) == Miss("bypassed")
        assert cache.store(ASKED, PARIS) == Rejected("bypassed")
        assert not cache.examples.add(ibidem.Example("Why?", "So."))
        begun = PendingRequest(cache.steps, ASKED)
        assert begun.lookup() is None
    assert begun.store(PARIS) == Rejected("bypassed"), "though it ends outside"
    leader.abort()
    assert (told, cache.stats().entries, cache.stats().misses) == ([], 0, {"empty": 1})


def test_an_answer_that_is_too_old_is_replaced(cache: SemanticCache) -> None:
    clock = Clock(cache)
    cache.store(ASKED, Answer("old"))
    clock.advance(61)
    with ibidem.scope(max_age=60):
        assert cache.lookup(ASKED).reason == "expired"
        assert cache.lookup(Request("What is the capital city of France?")).reason != "error"
        assert isinstance(cache.lookup(ASKED, max_age=3600), Hit), "the argument is nearer"
        assert cache.answer(ASKED, lambda _: Answer("new")).text == "new"
        assert found(cache) == "new"
    assert (found(cache), cache.stats().entries) == ("new", 1)


def test_what_is_stored_gets_the_life_and_the_tags_of_the_scope(cache: SemanticCache) -> None:
    clock = Clock(cache)
    with ibidem.scope(ttl=60, tags=("eu",)):
        cache.store(ASKED, PARIS, tags=("geo",))
        cache.answer(Request("How large is it?"), lambda _: Answer("105 km2."))
    clock.advance(59)
    assert found(cache) == "Paris."
    assert cache.invalidate(tag="geo", dry_run=True).count == 1
    assert cache.invalidate(tag="eu", dry_run=True).count == 2
    clock.advance(2)
    assert found(cache) is None


# forget -----------------------------------------------------------------------------------------------


def test_a_hit_and_what_was_stored_can_be_forgotten(cache: SemanticCache) -> None:
    stored = cache.store(ASKED, PARIS)
    assert ibidem.forget(stored)
    assert found(cache) is None
    asked = Request(ASKED.question)  # made anew: what was asked before is not stored any more
    assert cache.store(asked, PARIS)
    hit = cache.lookup(asked)
    assert ibidem.forget(hit)
    assert not ibidem.forget(hit)
    assert found(cache) is None
    assert cache.examples.recent() == [], "a bad answer is no example"


def test_only_the_cache_that_gave_it_forgets(open_cache: OpenCache, tmp_path: Any) -> None:
    one, other = (open_cache(path=tmp_path / name) for name in ("one", "other"))
    one.store(ASKED, PARIS)
    other.store(ASKED, PARIS)
    hit = one.lookup(ASKED)
    assert isinstance(hit, Hit)
    assert ibidem.forget({"ibidem": hit.provenance()}), "as a message that was stored and read again"
    assert (found(one), found(other)) == (None, "Paris.")
    two = other.lookup(ASKED)
    other.close()
    assert not ibidem.forget(two), "its cache is not open"
    with closing(ibidem.open(path=tmp_path / "other", embedder=one._runtime.embedder)) as again:
        assert ibidem.forget(two)
        assert found(again) is None


@pytest.mark.parametrize(
    "response",
    [None, "Paris.", b"", 7, {}, {"ibidem": 3}, {"ibidem": {"entry_id": "x"}}, [[]], object(), Stored("x")],
)
def test_what_comes_from_no_cache_is_not_forgotten(cache: SemanticCache, response: object) -> None:
    cache.store(ASKED, PARIS)
    assert not ibidem.forget(response)
    assert found(cache) == "Paris."


async def test_forgetting_in_async_code(cache: SemanticCache) -> None:
    cache.store(ASKED, PARIS)
    hit = cache.lookup(ASKED)
    assert await ibidem.aforget(hit)
    assert found(cache) is None


def test_a_hit_that_the_program_cannot_use_is_a_miss(cache: SemanticCache) -> None:
    cache.store(ASKED, PARIS)
    pending = PendingRequest(cache.steps, ASKED)
    assert pending.lookup(lambda hit: "answer_invalid" if hit.answer.text == "Paris." else "") is None
    assert not pending.wait()
    pending.store(Answer("Lutetia."))
    assert [row.reason for row in cache.recent()] == ["answer_invalid"]
    assert found(cache) == "Lutetia."
