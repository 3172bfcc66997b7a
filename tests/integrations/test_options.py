"""The typed options, by which editors complete, are those of the functions that take them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import ibidem
from ibidem.adapter.options import AdapterOptions
from ibidem.examples.log import ExampleLog
from ibidem.options import CacheOptions, ExampleOptions, OpenOptions, RequestOptions
from langchain_ibidem import IbidemCache, IbidemExampleSelector, IbidemMiddleware, answer_first
from langchain_ibidem import install as install_langchain
from llama_index_ibidem import AnswerFirst, CachedLLM, CachedSynthesizer, IbidemCallbackHandler, few_shot
from llama_index_ibidem import install as install_llama_index

FRONT_DOORS = (
    install_langchain, IbidemCache.__init__, IbidemMiddleware.__init__,
    answer_first, IbidemExampleSelector.__init__, install_llama_index, CachedLLM.__init__,
    CachedSynthesizer.__init__, IbidemCallbackHandler.__init__, AnswerFirst.__init__, few_shot,
)  # fmt: skip


def test_those_of_open_are_its_arguments() -> None:
    """With their types, as they are written."""
    taken = {name: one.annotation for name, one in inspect.signature(ibidem.open).parameters.items()}
    assert {name: hint.__forward_arg__ for name, hint in OpenOptions.__annotations__.items()} == taken
    assert OpenOptions.__annotations__.keys() - CacheOptions.__annotations__.keys() == {"new_documents"}


def test_those_of_adapters_and_examples_exist() -> None:
    """By name."""
    assert set(RequestOptions.__annotations__) == {field.name for field in dataclasses.fields(AdapterOptions)}
    taken = set(inspect.signature(ExampleLog.select).parameters)
    beside = {"self", "question", "k", "namespace", "max_tokens"}
    assert set(ExampleOptions.__annotations__) == taken - beside


@pytest.mark.parametrize("door", FRONT_DOORS, ids=lambda door: door.__qualname__)
def test_no_front_door_takes_just_anything(door: Callable[..., Any]) -> None:
    """What it passes on is typed."""
    (rest,) = (one for one in inspect.signature(door).parameters.values() if one.kind is one.VAR_KEYWORD)
    assert str(rest.annotation).startswith("Unpack[")
