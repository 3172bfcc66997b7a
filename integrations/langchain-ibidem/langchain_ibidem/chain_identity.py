"""A chain by all that its answers depend on beside its input and what it retrieves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

from langchain_core.indexing import RecordManager
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.prompts import BasePromptTemplate
from langchain_core.prompts.message import BaseMessagePromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.vectorstores import VectorStore

from ibidem.adapter.model_state import state_of, values_of
from ibidem.errors import InvalidInput
from langchain_ibidem.messages import of_messages
from langchain_ibidem.model_identity import OPERATIONAL, RULES

_OF_CONFIGS = frozenset(("run_name", "run_id", "max_concurrency", "recursion_limit"))
_RULES = RULES._replace(
    operational=OPERATIONAL | _OF_CONFIGS,
    by_attributes=(Runnable, BaseMessagePromptTemplate),
    by_identity=(VectorStore, RecordManager),
    configs=frozenset(("config",)),
)
_ELSEWHERE = "put answer_first around the chain inside of it, which retrieves and answers, and give that the "


def describe_chain(chain: Runnable[Any, Any], *, named: bool) -> str:
    """Describe a chain: prompts, models, parameters, settings of retrievers, and code of the program.

    Args:
        chain: The chain.
        named: Whether somebody vouches for what can only be compared by identity.

    Raises:
        NotCacheable: It is nested too deeply.
    """
    return state_of(chain, _RULES, lenient=named)


def _parts_of(program: Any) -> Iterator[Any]:
    """Yield the runnables and templates of a program, itself included, but not what a model holds."""
    left, seen = [program], set[int]()
    while left:
        one = left.pop()
        if id(one) in seen or not _is_part(cast(Any, type(one))):
            continue
        seen.add(id(one))
        if isinstance(one, (list, tuple)):
            left += one
        elif isinstance(one, Mapping):
            left += one.values()
        else:
            yield one
            left += () if isinstance(one, BaseLanguageModel) else vars(one).values()
            left += one.deps if isinstance(one, RunnableLambda) else ()


@lru_cache(1024)
def _is_part(kind: type) -> bool:
    """Whether objects of this class are parts of a program, or may hold some."""
    return issubclass(kind, (list, tuple, Mapping, Runnable, BaseMessagePromptTemplate))


def require_stateless(chain: object) -> None:
    """Raise `InvalidInput` unless the answers of the chain depend on its input, and on what it retrieves."""
    if not isinstance(chain, Runnable):
        raise InvalidInput(f"chain must be a runnable of LangChain, not {type(chain).__name__}")
    for part in _parts_of(chain):
        names = {base.__name__ for base in type(part).__mro__}
        if "AnswerFirst" in names:
            raise InvalidInput("answer_first is around this chain, or a part of it, already")
        remembers = hasattr(getattr(part, "memory", None), "load_memory_variables")
        if remembers or "RunnableWithMessageHistory" in names:
            raise InvalidInput(
                f"a {type(part).__name__} keeps a conversation, which is not known before it runs; "
                f"{_ELSEWHERE}history as an input"
            )
        if type(part).__module__.startswith("langgraph."):
            raise InvalidInput(
                "an agent or graph acts and keeps a state, which is not known before it runs; "
                f"{_ELSEWHERE}question as its input, or use IbidemMiddleware"
            )


def filled_in(chain: Any) -> dict[str, Any]:
    """Return what functions fill into the prompts of the chain now, such as the date."""
    templates = [part for part in _parts_of(chain) if isinstance(part, BasePromptTemplate)]
    return {
        f"{number} {name}": value()
        for number, template in enumerate(templates)
        for name, value in template.partial_variables.items()
        if callable(value)
    }


def described(values: Mapping[str, Any]) -> str:
    """Describe inputs; of messages what a model sees of them."""
    return json.dumps(values_of(cast(Any, _without_bookkeeping(dict(values)))))


def _without_bookkeeping(value: Any) -> Any:
    if isinstance(value, BaseMessage):
        value = [value]
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, BaseMessage) for each in value):
        prompt = of_messages(value)
        return [prompt.frame, [segment.text for segment in prompt.segments]]
    if isinstance(value, Mapping):
        return {key: _without_bookkeeping(inner) for key, inner in value.items()}
    return value
