"""Lead models through the cache of the handler that their callback manager has.

LlamaIndex ignores what its handlers return, so a handler cannot answer by itself. The endpoints of all model
classes are wrapped instead, as long as a handler that serves is there. Each call looks whether the manager of
its model has one now; if not, it is the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index_instrumentation import get_dispatcher

from ibidem._util.faults import Faults
from ibidem.adapter.method_wrappers import MethodWrappers
from ibidem.adapter.streams import keep_scope
from llama_index_ibidem.delegation import DelegatingLLM, is_native_view
from llama_index_ibidem.endpoints import CachedEndpoints, EndpointCall, is_asking, is_nested, with_formatted
from llama_index_ibidem.replay import Replay
from llama_index_ibidem.spans import ENDPOINTS

# Generators: they ask the model with their first step, in the context of their reader.
_STRUCTURED_STREAMS = frozenset(("stream_structured_predict", "astream_structured_predict"))
# They have a cache of their own, or pass each call on to a model that is led itself.
_NOT_LED = (DelegatingLLM, StructuredLLM)

Method = Callable[..., Any]


class ServingHandler(BaseCallbackHandler):
    """A callback handler whose cache answers for the models that carry it.

    Attributes:
        endpoints: The endpoints as its cache answers them; None if it only listens.
    """

    endpoints: CachedEndpoints | None = None


def _around(name: str, method: Method, llm: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    """Answer a call of a method in place of the model, if a handler is there for it."""
    if (endpoints := _endpoints_for(llm)) is None:
        return method(*args, **given)
    if name in _STRUCTURED_STREAMS:
        return keep_scope(method(*args, **given))
    try:
        call = _call_of(name, method, llm, args, given)
    except Exception as error:
        endpoints.adapter.faults.note("understand a call of a model", error)
        call = None
    return method(*args, **given) if call is None else endpoints.answer(call)


LED = MethodWrappers({LLM: ENDPOINTS | _STRUCTURED_STREAMS}, _around)  # for all handlers of the process


def _endpoints_for(llm: Any) -> CachedEndpoints | None:
    """Return what answers for a model now; None if nothing does, or a model is being asked already."""
    if is_asking() or not isinstance(llm, LLM) or isinstance(llm, _NOT_LED):
        return None
    try:
        for handler in getattr(getattr(llm, "callback_manager", None), "handlers", ()):
            if isinstance(handler, ServingHandler) and handler.endpoints is not None:
                return None if is_native_view(llm) else handler.endpoints
    except Exception as error:  # of a manager of the program's own
        _faults.note("look for the handler of a model", error)
    return None


def _call_of(
    name: str, method: Method, llm: LLM, args: tuple[Any, ...], given: dict[str, Any]
) -> EndpointCall | None:
    """Return the call; None if it is the model's own, or the method is not what its name says."""
    if inspect.iscoroutinefunction(method) is not name.startswith("a"):
        return None
    asked, others = (_of_chat if "chat" in name else _of_completion)(*args, **given)
    replay = partial(Replay, llm.callback_manager, llm, span=partial(_in_span_of, method, llm, args, given))
    call = EndpointCall(name, llm, asked, others, partial(method, *args, **given), replay)
    return None if is_nested(call) else call


def _of_chat(messages: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
    return messages, given


def _of_completion(prompt: Any, formatted: bool = False, **given: Any) -> tuple[Any, dict[str, Any]]:
    return prompt, with_formatted(formatted, given)


def _in_span_of(
    method: Method, llm: LLM, args: tuple[Any, ...], given: dict[str, Any], repeat: Method
) -> Method:
    """Wrap what repeats an answer in a span as LlamaIndex opens for the method with these arguments."""

    def repeated(asked: Any, **others: Any) -> Any:
        try:
            endpoint = _spanned(method, llm, partial(repeat, asked, **others))
        except Exception as error:  # then without a span
            _faults.note("open a span for a repeated answer", error)
            return repeat(asked, **others)
        return endpoint(*args, **given)

    return repeated


def _spanned(method: Method, llm: LLM, repeat: Method) -> Method:
    """Return a method of the model that is called like another one, in a span, and repeats an answer."""

    def endpoint(self: LLM, *_: Any, **__: Any) -> Any:
        return repeat()

    async def aendpoint(self: LLM, *_: Any, **__: Any) -> Any:
        return await repeat()

    like: Any = aendpoint if inspect.iscoroutinefunction(repeat) else endpoint
    parameters = inspect.signature(method).parameters.values()
    like.__signature__ = inspect.Signature([_SELF, *parameters])
    like.__name__, like.__qualname__ = method.__name__, method.__qualname__
    spanned: Any = get_dispatcher(type(llm).__module__).span(like)
    bound: Method = spanned.__get__(llm, type(llm))
    return bound


_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
_faults = Faults()
