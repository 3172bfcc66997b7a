"""Within `ibidem.scope` no entry and no example of another tenant is reached, by no id and by no reading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ibidem
import ibidem_lab
from ibidem import Answer, Example, Hit, Request, Stored
from ibidem.cache import SemanticCache
from ibidem.types import Scope, namespace_of

ASKED = "How long can I return goods?"
TENANTS: list[dict[str, Any]] = [
    {"namespace": "acme"},
    {"namespace": "acme", "user": "ann"},
    {"namespace": "globex"},
    {"namespace": "globex", "user": "ann"},
    {"namespace": "acme/user=ann"},  # escaped: not ann's
    {},
]
NAMES = [namespace_of(tenant.get("namespace", ""), tenant.get("user", "")) for tenant in TENANTS]


@pytest.fixture
def entries(cache: SemanticCache) -> dict[str, str]:
    """The id of the entry that each tenant has stored, by the name of its namespace."""
    ids = {}
    for tenant, name in zip(TENANTS, NAMES, strict=True):
        with ibidem.scope(**tenant):
            stored = cache.store(Request(ASKED), Answer(f"told to {name}"))
        assert isinstance(stored, Stored)
        ids[name] = stored.entry_id
    return ids


def left(cache: SemanticCache) -> set[str]:
    """Whose entries are still there."""
    found = (cache.lookup(Request(ASKED, namespace=name)) for name in NAMES)
    return {hit.answer.text.removeprefix("told to ") for hit in found if isinstance(hit, Hit)}


# Each is given the id of an entry, and returns whether it had an effect.
BY_ID: dict[str, Callable[[SemanticCache, str], object]] = {
    "invalidate": lambda cache, id_: cache.invalidate(entry=id_),
    "invalidate, and more": lambda cache, id_: cache.invalidate(entry=id_, model="", before=2e10),
    "dry run": lambda cache, id_: cache.invalidate(entry=id_, dry_run=True),
    "bad": lambda cache, id_: cache.feedback(id_, good=False),
    "good": lambda cache, id_: cache.feedback(id_, good=True),
    "feedback by metadata": lambda cache, id_: cache.feedback({"ibidem": {"entry_id": id_}}, good=False),
    "forget": lambda cache, id_: ibidem.forget(Stored(id_, cache._runtime.cache_id)),
}
DELETES = {"invalidate", "invalidate, and more", "bad", "feedback by metadata", "forget"}


@pytest.mark.parametrize("how", BY_ID)
def test_an_id_reaches_only_what_is_in_the_scope(
    cache: SemanticCache, entries: dict[str, str], how: str
) -> None:
    """A namespace holds its users; a user is alone. Nobody learns whether another's entry is there."""
    mine = {"namespace": "acme"}, {"acme", "acme/user=ann"}
    anns = {"namespace": "globex", "user": "ann"}, {"globex/user=ann"}
    for scope, reached in (mine, anns):
        before = left(cache)
        with ibidem.scope(**scope):
            effect = {name for name in sorted(before) if BY_ID[how](cache, entries[name])}
        assert effect == reached
        assert left(cache) == (before - reached if how in DELETES else before)
        told = {row.namespace for row in cache.judgements()}
        assert told <= {"acme", "acme/user=ann", "globex/user=ann"}


@pytest.mark.parametrize("how", BY_ID)
def test_without_a_tenant_all_are_reached(cache: SemanticCache, entries: dict[str, str], how: str) -> None:
    """For operators, and programs with one tenant."""
    with ibidem.scope(tags=("eu",)):
        assert all(BY_ID[how](cache, id_) for id_ in entries.values())
    assert left(cache) == (set() if how in DELETES else set(NAMES))


def test_who_names_a_namespace_means_it(cache: SemanticCache, entries: dict[str, str]) -> None:
    with ibidem.scope(namespace="acme"):
        assert cache.invalidate(entry=entries["globex"], namespace="acme").count == 0
        assert cache.invalidate(entry=entries["globex"], namespace="globex").count == 1


def test_a_changed_document_is_changed_for_all(cache: SemanticCache) -> None:
    """A criterion is no id: what rests on it is wrong for everybody."""
    document = ibidem.Document("terms", "30 days")
    for tenant in ("acme", "globex"):
        with ibidem.scope(namespace=tenant):
            cache.store(Request(ASKED, documents=(document,)), Answer("30 days."))
    with ibidem.scope(namespace="acme"):
        assert cache.invalidate(document="terms").count == 2


TEXTS = st.text(st.sampled_from("ab%/=u2F5ser "), max_size=6)


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_a_scope_covers_what_it_names_and_no_more(one: str, user: str, other: str, another: str) -> None:
    scope, name = Scope(namespace=one, user=user), namespace_of(other, another)
    if one and user:
        assert scope.covers(name) == ((one, user) == (other, another))
    elif one:
        assert scope.covers(name) == (one == other)
    elif user:
        assert scope.covers(name) == (user == another)
    else:
        assert scope.covers(name)


# examples ---------------------------------------------------------------------------------------------


@pytest.fixture
def log(cache: SemanticCache) -> SemanticCache:
    """With an example of each tenant, added in its scope, and one that names its namespace."""
    for number, (tenant, name) in enumerate(zip(TENANTS, NAMES, strict=True)):
        with ibidem.scope(**tenant):
            assert cache.examples.add(Example(f"What may customer {number} do?", f"told to {name}"))
    with ibidem.scope(namespace="acme"):
        assert cache.examples.add(Example("What is initech's?", "told to initech", namespace="initech"))
    cache.flush()
    return cache


READS: dict[str, Callable[[SemanticCache], set[str]]] = {
    "recent": lambda cache: {one.answer for one in cache.examples.recent()},
    "select": lambda cache: {one.answer for one in cache.examples.select("What may a customer do?", 9)},
    "count": lambda cache: {str(cache.examples.count())},
    "stats": lambda cache: set(cache.examples.stats().namespaces),
}


@pytest.mark.parametrize("number", range(5))
def test_examples_are_read_within_the_scope(log: SemanticCache, tmp_path: Path, number: int) -> None:
    name = NAMES[number]
    with ibidem.scope(**TENANTS[number]):
        found = {how: read(log) for how, read in READS.items()}
        said = {"test_share": 0.0, "near": 1.0}
        manifest = ibidem_lab.export(log.examples, tmp_path / "out", **said)  # type: ignore[arg-type]
    told = {f"told to {name}"}
    assert found == {"recent": told, "select": told, "count": {"1"}, "stats": {name}}
    assert f"told to {name}" in (tmp_path / "out" / "train.jsonl").read_text()
    assert (tmp_path / "out" / "train.jsonl").read_text().count("told to") == 1
    assert manifest


def test_without_a_scope_examples_of_all_are_read(log: SemanticCache) -> None:
    """But `select` takes those of no namespace, as a lookup does."""
    assert log.examples.count() == len(log.examples.recent()) == 7
    assert set(log.examples.stats().namespaces) == {*NAMES, "initech"}
    assert {answer.strip() for answer in READS["select"](log)} == {"told to"}


def test_who_names_a_namespace_reads_it(log: SemanticCache) -> None:
    with ibidem.scope(namespace="acme"):
        assert [one.answer for one in log.examples.recent(namespace="globex")] == ["told to globex"]
        assert log.examples.count("initech") == 1


def test_an_example_is_judged_within_the_scope(log: SemanticCache) -> None:
    """Their ids are counted up."""
    ids = {one.namespace: one.id for one in log.examples.recent()}
    for scope, reached in (
        ({"namespace": "acme"}, {"acme", "acme/user=ann"}),
        ({"namespace": "globex", "user": "ann"}, {"globex/user=ann"}),
        ({}, set(ids)),
    ):
        with ibidem.scope(**scope):
            done = {name for name, id_ in ids.items() if log.examples.feedback(id_ or 0, good=False)}
            assert not log.examples.feedback(10**6, good=True)
        assert done == reached
        assert {one.namespace for one in log.examples.recent() if one.feedback is False} >= reached
