"""What can be a teacher: a callable, a chat model of LangChain or LlamaIndex, or the name of one.

Its answers come from the model itself: caches that the program has set are passed by.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ibidem.errors import ConfigurationError, InvalidInput, MissingExtra
from ibidem.scope import bypassing

Teacher = Callable[[str], str]

ACCEPTED = (
    "a name such as 'openai:gpt-4.1-mini', a callable that takes a prompt and returns a text, a LangChain "
    "chat model, or a LlamaIndex LLM"
)


def resolve_teacher(spec: object) -> tuple[Teacher, str]:
    """What asks the teacher that `spec` stands for, and a name for it.

    Args:
        spec: See `ACCEPTED`. A name goes to `init_chat_model` of LangChain; the model's own defaults stay.

    Raises:
        InvalidInput: `spec` is none of these.
        MissingExtra: A name, and LangChain is not installed.
        ConfigurationError: There is no such provider, its package or its key is missing.
    """
    if isinstance(spec, str):
        return _of_langchain(_by_name(spec)), spec
    if _has(spec, "complete", "chat", "acomplete"):
        return _of_llama_index(spec), _name_of(spec)
    if _has(spec, "invoke", "ainvoke"):
        return _of_langchain(spec), _name_of(spec)
    if callable(spec) and not isinstance(spec, type):
        return _apart(spec), str(getattr(spec, "__name__", type(spec).__name__))
    raise InvalidInput(f"teacher is {type(spec).__name__}; it must be {ACCEPTED}")


def _has(spec: object, *names: str) -> bool:
    return not isinstance(spec, type) and all(callable(getattr(spec, name, None)) for name in names)


def _name_of(model: Any) -> str:
    """What the model is called by itself, else its class."""
    named = [getattr(model, name, None) for name in ("model_name", "model", "model_id")]
    return next((name for name in named if isinstance(name, str) and name), type(model).__name__)


def _apart(ask: Callable[[str], Any]) -> Teacher:
    def teacher(prompt: str) -> str:
        with bypassing():
            said = ask(prompt)
        if not isinstance(said, str):
            raise InvalidInput(f"the teacher must return a text, not {type(said).__name__}")
        return said

    return teacher


def _by_name(name: str) -> Any:
    """A LangChain chat model; the framework is only loaded because somebody named one of its models."""
    provider, _, model = name.partition(":")
    if not provider or not model:
        raise ConfigurationError(f"--teacher is PROVIDER:MODEL, such as openai:gpt-4.1-mini, not {name!r}")
    try:
        make = importlib.import_module("langchain.chat_models").init_chat_model
    except ImportError:
        raise MissingExtra("a teacher by name", "teach") from None
    try:
        return make(name)
    except ImportError as error:
        raise ConfigurationError(f"the teacher {name!r} needs its provider's package: {error}") from None
    except Exception as error:
        raise ConfigurationError(f"cannot use the teacher {name!r}: {error}") from None


def _of_langchain(model: Any) -> Teacher:
    uncached = _uncached(model)
    return _apart(lambda prompt: _text(uncached.invoke(prompt)))


def _uncached(model: Any) -> Any:
    """A copy that asks no LangChain cache: a label must be the model's own, also the second time."""
    if not _has(model, "model_copy"):
        raise InvalidInput(f"teacher is {type(model).__name__}; of LangChain, give the chat model itself")
    fields = type(model).model_fields
    if "cache" in fields:
        return model.model_copy(update={"cache": False})
    if "bound" in fields:  # a model with arguments, retries or the like
        return model.model_copy(update={"bound": _uncached(model.bound)})
    raise InvalidInput(f"teacher is {type(model).__name__}; of LangChain, give the chat model itself")


def _text(message: Any) -> str:
    content = getattr(message, "content", message)
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part if isinstance(part, str) else part.get("text", "") for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _of_llama_index(model: Any) -> Teacher:
    return _apart(lambda prompt: str(model.complete(prompt).text))
