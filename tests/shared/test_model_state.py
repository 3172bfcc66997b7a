"""What is remembered of models that were read: nothing that keeps them alive for ever."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from pydantic import BaseModel

from ibidem.adapter import model_state
from ibidem.adapter.model_state import Rules, state_of
from ibidem.errors import NotCacheable

RULES = Rules(frozenset({"callbacks"}))


class Model(BaseModel):
    """With a field that does not count, as frameworks have for those who listen."""

    name: str = "one"
    callbacks: Any = None
    to_prompt: Any = None

    def format(self, text: str) -> str:
        return f"{self.name}: {text}"


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


def test_a_model_may_hold_itself() -> None:
    """By a bound method, or within a list; what it holds beside counts as ever."""
    states = []
    for name, held in (("one", False), ("one", True), ("two", True)):
        model = Model(name=name)
        model.to_prompt = [model.format, model] if held else None
        states.append(state_of(model, RULES))
        assert state_of(model, RULES) == states[-1]
        again = Model(name=name)
        again.to_prompt = [again.format, again] if held else None
        assert state_of(again, RULES) == states[-1], "another object of the same state"

    assert len(set(states)) == 3


def test_which_holder_is_held_counts() -> None:
    """The model itself, or the list in which it is."""
    states = []
    for place in (0, 1):
        model, inner = Model(), Model(name="inner")
        inner.to_prompt = (model, inner)[place]
        model.to_prompt = inner
        states.append(state_of(model, RULES))

    assert len(set(states)) == 2


def test_a_nest_without_end_is_refused() -> None:
    """By a reason, not by a RecursionError."""
    nest: Any = "end"
    for _ in range(150):
        nest = [nest]
    with pytest.raises(NotCacheable, match="in another"):
        state_of(Model(to_prompt=nest), RULES)
