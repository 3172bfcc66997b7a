"""Answers in a given form: the schema is part of the key, and an answer that no longer fits is asked anew."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import PydanticOutputParser
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

import ibidem
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from tests.contracts.langchain import CountingChat
from tests.openai_server import OpenAIServer

ASKED = "What is the capital of France?"
REWORDED = "What is the capital city of France, please?"


@pytest.fixture
def adapter(cache: SemanticCache) -> Iterator[IbidemCache]:
    made = IbidemCache(cache)
    set_llm_cache(made)
    yield made
    set_llm_cache(None)


@pytest.fixture
def model(server: OpenAIServer, adapter: IbidemCache) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="sk-test", max_retries=0)


class City(BaseModel):
    """A city."""

    name: str


class CityDict(TypedDict):
    """A city."""

    name: str


def city_with(kind: Any = str, *, doc: str = "A city.", name: str = "City", **more: Any) -> type[BaseModel]:
    """A class called as another, with other fields."""
    fields = {"name": kind, **more}
    return type(name, (BaseModel,), {"__annotations__": fields, "__doc__": doc, "__module__": __name__})


SCHEMA = {
    "title": "City",
    "description": "A city.",
    **{k: City.model_json_schema()[k] for k in ("type", "properties", "required")},
}
ROWS = [
    (schema, method)
    for schema in (City, CityDict, SCHEMA)
    for method in ("function_calling", "json_schema", "json_mode")
]


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize(
    ("schema", "method"), ROWS, ids=lambda x: x if isinstance(x, str) else getattr(x, "__name__", "schema")
)
def test_the_very_same_request_is_answered_once(
    server: OpenAIServer, model: ChatOpenAI, adapter: IbidemCache, schema: Any, method: str, include_raw: bool
) -> None:
    """Never a reworded one: a program reads the answer."""
    if method == "json_mode":
        server.say = lambda body: json.dumps({"name": f"answer {server.count}"})
    structured = model.with_structured_output(schema, method=method, include_raw=include_raw)

    def ask(question: str) -> Any:
        found = structured.invoke(question)
        return found["parsed"] if include_raw else found

    first = ask(ASKED)
    assert ask(ASKED) == first
    assert (asyncio.run(structured.ainvoke(ASKED))["parsed"] if include_raw else ask(ASKED)) == first
    assert server.count == 1
    ask(REWORDED)
    assert server.count == 2
    assert adapter.faults() == {}


@pytest.mark.parametrize(
    "other",
    [
        city_with(name="Town"),
        city_with(doc="A town."),
        city_with(country=str),
        city_with(int),
        type(
            "City",
            (BaseModel,),
            {"__annotations__": {"name": str}, "name": Field(max_length=9), "__doc__": "A city."},
        ),
    ],
    ids=["name", "description", "field", "type", "constraint"],
)
def test_another_schema_is_another_request(
    server: OpenAIServer, model: ChatOpenAI, other: type[BaseModel]
) -> None:
    """Also of a class of the same name: a program is deployed anew with one field more."""
    for schema in (City, other, City, city_with(), other):
        model.with_structured_output(schema).invoke(ASKED)
    assert server.count == 2


def test_the_order_of_fields_counts(server: OpenAIServer, model: ChatOpenAI) -> None:
    """Models write them in that order."""
    for schema in (city_with(country=str), city_with(str, country=str)):
        model.with_structured_output(schema).invoke(ASKED)
    assert server.count == 1
    fields = {"country": str, "name": str}
    turned = type(
        "City", (BaseModel,), {"__annotations__": fields, "__doc__": "A city.", "__module__": __name__}
    )
    model.with_structured_output(turned).invoke(ASKED)
    assert server.count == 2


def picky(limit: int) -> type[BaseModel]:
    """A class whose schema does not show what its validator refuses."""

    class City(BaseModel):
        """A city."""

        name: str

        @field_validator("name")
        @classmethod
        def check(cls, name: str) -> str:
            assert int(name.split()[-1]) >= limit
            return name

    return City


@pytest.mark.parametrize("call", ["invoke", "ainvoke"])
def test_an_answer_that_no_longer_fits_is_asked_anew(
    server: OpenAIServer, model: ChatOpenAI, adapter: IbidemCache, call: str
) -> None:
    """Its validators changed, its schema did not. The new answer takes the place of the old one."""

    def ask(limit: int) -> str:
        structured = model.with_structured_output(picky(limit))
        found = structured.invoke(ASKED) if call == "invoke" else asyncio.run(structured.ainvoke(ASKED))
        return found.name

    assert [ask(1), ask(1)] == ["answer 1"] * 2
    assert [ask(2), ask(2), ask(1)] == ["answer 2"] * 3
    assert server.count == 2
    adapter.cache.flush()
    assert [row.reason for row in adapter.cache.recent()] == [
        "",
        "",
        "answer_invalid",
        "",
        "question_unknown",
    ]
    assert adapter.cache.stats().entries == 1


def test_an_answer_that_does_not_fit_is_not_stored(adapter: IbidemCache) -> None:
    """Asking again, as `with_retry` does, must reach the model."""
    model = CountingChat(say=(AIMessage("no JSON"), AIMessage('{"name": "Paris"}')))
    asked = model.bind(response_format=City)
    assert [asked.invoke(ASKED).content for _ in range(3)] == ["no JSON", *['{"name": "Paris"}'] * 2]
    assert (model.calls, adapter.faults()) == (2, {"answer_invalid": 1})


def test_what_cannot_show_its_schema_is_compared_by_identity(adapter: IbidemCache) -> None:
    class Opaque:
        """No class of pydantic's."""

    for parameter in (Opaque, Opaque(), {"schema": Opaque()}, [lambda: None]):
        asked = CountingChat().bind(response_format=parameter)
        assert asked.invoke(ASKED).content == asked.invoke(ASKED).content
    asked = CountingChat()
    said = [asked.bind(response_format=Opaque()).invoke(ASKED).content for _ in range(2)]
    assert said == ["answer 1", "answer 2"]
    assert adapter.faults() == {}


@pytest.mark.slow
def test_a_form_without_a_title_is_the_same_in_another_process(server: OpenAIServer, tmp_path: Path) -> None:
    """LangChain gives its tool another name in each agent, which finds its own in the repeated answer."""
    program = str(Path(__file__).with_name("untitled_form.py"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for count in (2, 2):  # of the middleware and of the global cache, which two agents share
        done = subprocess.run(
            [sys.executable, "-W", "ignore", program, str(tmp_path), server.url],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stdout == "France\n" * 3
        assert server.count == count


def test_a_parser_that_fails_can_reach_the_model_again(adapter: IbidemCache) -> None:
    """The cache knows of no form here; a retry needs `forget`, for a fresh answer as for a stored one."""
    model = CountingChat(say=(AIMessage("no JSON"), AIMessage('{"name": "Paris"}')))
    parser = PydanticOutputParser(pydantic_object=City)

    def ask() -> City:
        for _ in range(3):
            message = model.invoke(ASKED)
            try:
                return parser.invoke(message)
            except ValueError:
                assert ibidem.forget(message)
        raise AssertionError("never a usable answer")

    assert (ask().name, ask().name, model.calls) == ("Paris", "Paris", 2)
