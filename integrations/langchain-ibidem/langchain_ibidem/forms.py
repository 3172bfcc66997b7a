"""Answers that must fit a class: its schema is part of the key, its validators are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.outputs import ChatGeneration, Generation
from pydantic import BaseModel

from ibidem.errors import NotCacheable
from ibidem.types import Hit
from langchain_ibidem.codec import decode


def form_of(parameters: Mapping[str, Any]) -> type[BaseModel] | None:
    """The class that the answer to a call with these parameters must fit, if they hold one."""
    form = parameters.get("response_format")
    return form if isinstance(form, type) and issubclass(form, BaseModel) else None


def objection_to(form: type[BaseModel] | None) -> Callable[[Hit], str] | None:
    """Why a stored answer is of no use: a validator may have changed, and its schema does not show that."""
    if form is None:
        return None
    return lambda hit: "" if all(_fits(form, one) for one in decode(hit)) else "answer_invalid"


def require_form(form: type[BaseModel] | None, generations: Sequence[Generation]) -> None:
    """Raise `NotCacheable` if an answer does not fit: the program will ask again."""
    if form is not None and not all(_fits(form, generation) for generation in generations):
        raise NotCacheable("answer_invalid", f"the answer does not fit {form.__name__}")


def _fits(form: type[BaseModel], generation: Generation) -> bool:
    if isinstance(generation, ChatGeneration):
        message = generation.message
        if getattr(message, "tool_calls", None) or message.additional_kwargs.get("refusal"):
            return True  # not the answer in its form
    try:
        form.model_validate_json(generation.text)
    except Exception:  # validators are the program's own code
        return False
    return True
