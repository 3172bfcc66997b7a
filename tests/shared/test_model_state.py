"""What is remembered of models that were read: nothing that keeps them alive for ever."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from pydantic import BaseModel

from ibidem.adapter import model_state
from ibidem.adapter.model_state import Rules, state_of

RULES = Rules(frozenset({"callbacks"}))


class Model(BaseModel):
    """With a field that does not count, as frameworks have for those who listen."""

    name: str = "one"
    callbacks: Any = None


def test_a_model_that_is_gone_is_forgotten() -> None:
    model = Model()
    state_of(model, RULES)
    number, living = id(model), weakref.ref(model)
    assert number in model_state._read
    del model
    gc.collect()

    assert living() is None
    assert number not in model_state._read


def test_models_that_refer_to_themselves_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as by a callback that knows its model: of any number only the last ones stay."""
    monkeypatch.setattr(model_state, "_read", {})
    monkeypatch.setattr(model_state, "_MOST_READ", 8)
    made = []
    for _ in range(40):
        model = Model()
        model.callbacks = [lambda model=model: model.name]
        state_of(model, RULES)
        made.append(weakref.ref(model))
    del model
    gc.collect()

    assert sum(one() is not None for one in made) <= 8
    assert len(model_state._read) <= 8


def test_what_was_forgotten_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same state."""
    monkeypatch.setattr(model_state, "_read", {})
    monkeypatch.setattr(model_state, "_MOST_READ", 2)
    models = [Model(name=str(number)) for number in range(5)]
    states = [state_of(model, RULES) for model in models]

    assert [state_of(model, RULES) for model in models] == states
    assert len(set(states)) == 5
