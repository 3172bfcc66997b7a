"""Models, chains and agents with a cache of their own are copied and sent away like any others."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate
from langchain_core.runnables import RunnableLambda

import ibidem
from ibidem.errors import InvalidInput
from langchain_ibidem import IbidemCache, IbidemExampleSelector, IbidemMiddleware
from tests.conftest import OpenCache
from tests.embedders import BagOfWords

cloudpickle = pytest.importorskip("cloudpickle")  # joblib brings it

ASKED = "What is the capital of France?"
TEMPLATE = ChatPromptTemplate.from_messages([("human", "{question}")])


class Model(FakeListChatModel):
    """An agent may give it tools."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def model(cache: Any, kind: Any = Model) -> Any:
    return kind(responses=["Paris.", "asked again"], cache=cache)


# What holds a cache, and how it is asked.
HOLDERS: dict[str, Callable[[IbidemCache], Any]] = {
    "chat": model,
    "completion": lambda cache: model(cache, FakeListLLM),
    "bound": lambda cache: model(cache).bind(stop=["."]),
    "configured": lambda cache: model(cache).with_config(tags=["a"]),
    "retried": lambda cache: model(cache).with_retry(),
    "with fallbacks": lambda cache: model(cache).with_fallbacks([model(cache)]),
    "chain": lambda cache: RunnableLambda(question) | TEMPLATE | model(cache),
    "map": lambda cache: {"a": model(cache)} | RunnableLambda(first),
}
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda held: pickle.loads(pickle.dumps(held)),
    "oldest pickle": lambda held: pickle.loads(pickle.dumps(held, protocol=2)),
    "cloudpickle": lambda held: pickle.loads(cloudpickle.dumps(held)),
}


def question(asked: str) -> dict[str, str]:
    return {"question": asked}


def first(said: dict[str, Any]) -> Any:
    return said["a"]


def told(answer: Any) -> str:
    return answer if isinstance(answer, str) else str(answer.content)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HOLDERS)
def test_a_copy_is_answered_from_the_same_place(name: str, way: str, open_cache: OpenCache) -> None:
    cache = open_cache()
    held = HOLDERS[name](IbidemCache(cache, namespace="acme"))
    assert told(held.invoke(ASKED)) == "Paris."
    copied = WAYS[way](held)
    assert told(copied.invoke(ASKED)) == "Paris."
    assert [row.tier for row in cache.recent(2)] == ["exact", ""]
    assert {row.namespace for row in cache.recent(2)} == {"acme"}
    (copied if name == "chat" else held).invoke("Who wrote Hamlet?")
    assert told(held.invoke("Who wrote Hamlet?")) == told(copied.invoke("Who wrote Hamlet?"))


@pytest.mark.parametrize("way", ["deepcopy", "model_copy", "model_copy_deep"])
def test_copies_hold_the_very_cache(way: str, open_cache: OpenCache) -> None:
    original = model(IbidemCache(open_cache()))
    ways = {
        "deepcopy": copy.deepcopy,
        "model_copy": lambda one: one.model_copy(),
        "model_copy_deep": lambda one: one.model_copy(deep=True),
    }
    assert ways[way](original).cache is original.cache


def test_what_is_under_way_does_not_travel(open_cache: OpenCache) -> None:
    """Questions, and what failed, are of the process that asked."""
    cache = IbidemCache(open_cache(), namespace="acme", question_keys=["ask"], model_id="m")
    model(cache).invoke("A question of somebody, with a name")
    cache._adapter.faults.count("something", "failed")
    raw = pickle.dumps(cache)
    assert b"somebody" not in raw
    other = pickle.loads(raw)
    assert (other.namespace, other.faults()) == ("acme", {})
    assert other._requests._tracker is cache._requests._tracker, "the tracker's of the process"
    other.close()


def test_what_was_opened_here_is_closed_with_its_copy(tmp_path: Path) -> None:
    """A cache that was handed in is not, there neither."""
    with IbidemCache(path=tmp_path, embedder=BagOfWords()) as cache:
        owned = pickle.loads(pickle.dumps(cache))
        assert told(model(owned).invoke(ASKED)) == "Paris."
        lent = pickle.loads(pickle.dumps(IbidemCache(cache.cache)))
        assert told(model(lent).invoke(ASKED)) == "Paris."
        assert cache.cache._runtime.users == 3
        owned.close()
        lent.close()
        assert cache.cache._runtime.users == 2
        lent.cache.close()


def test_a_middleware_and_its_agent(open_cache: OpenCache) -> None:
    cache = open_cache()
    middleware = IbidemMiddleware(cache, volatile=["now"])
    assert copy.deepcopy(middleware) is middleware
    agent = create_agent(model(False), [], middleware=[middleware])
    given = {"messages": [("user", ASKED)]}
    agent.invoke(given)
    sent = pickle.loads(pickle.dumps(middleware))
    assert sent._volatile == {"now"}
    for copied in (copy.copy(agent), create_agent(model(False), [], middleware=[sent])):
        assert copied.invoke(given)["messages"][-1].content == "Paris."
    assert [row.tier for row in cache.recent(3)] == ["exact", "exact", ""]


def test_a_template_that_selects_examples(open_cache: OpenCache) -> None:
    cache = open_cache()
    cache.examples.add(ibidem.Example("What is the capital of Peru?", "Lima."))
    cache.flush()
    template = FewShotChatMessagePromptTemplate(
        input_variables=["question"],
        example_prompt=ChatPromptTemplate.from_messages([("human", "{question}"), ("ai", "{answer}")]),
        example_selector=IbidemExampleSelector(cache),
    )
    for copied in (copy.deepcopy(template), pickle.loads(pickle.dumps(template))):
        assert [m.content for m in copied.format_messages(question=ASKED)][1] == "Lima."


def test_a_cache_that_cannot_travel_says_what_to_do(open_cache: OpenCache) -> None:
    with pytest.raises(InvalidInput, match="with this compare.*open the cache in the other process"):
        pickle.dumps(model(IbidemCache(open_cache(compare=Unsendable()))))


class Unsendable:
    """A judge with a connection."""

    def __call__(self, *texts: str) -> bool:
        return True

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle a connection")


WORKER = """
import pickle, sys

model = pickle.load(open(sys.argv[1], "rb"))
answer = model.invoke("What is the capital of France?")
print(answer.content, answer.response_metadata["ibidem"]["tier"])
"""


def test_a_worker_is_answered_from_the_cache(tmp_path: Path) -> None:
    """Two processes share the database; the embedded index is only one's, and the same words need none."""
    root = Path(__file__).parents[2]
    places = [root, root / "shared", root / "integrations/langchain-ibidem"]
    env = {"PYTHONPATH": ":".join(map(str, places)), "PATH": "", "HOME": str(tmp_path)}
    with ibidem.open(tmp_path / "cache", embedder=BagOfWords()) as cache:
        asked = model(IbidemCache(cache, namespace="acme"), FakeListChatModel)
        asked.invoke(ASKED)
        (tmp_path / "raw").write_bytes(pickle.dumps(asked))
        worker = [sys.executable, "-W", "ignore", "-c", WORKER, tmp_path / "raw"]
        done = subprocess.run(worker, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.stdout == "Paris. exact\n", done.stderr
