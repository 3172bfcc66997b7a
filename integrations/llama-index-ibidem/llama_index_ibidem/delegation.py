"""Delegate everything but a model's endpoints to another model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.tools import BaseTool
from pydantic import Field, PrivateAttr, SerializeAsAny

from ibidem.adapter.streams import keep_scope
from ibidem.errors import InvalidInput

Wrapped = TypeVar("Wrapped")

_SYNC = ("chat", "stream_chat", "complete", "stream_complete")
_ASYNC = ("achat", "astream_chat", "acomplete", "astream_complete")
# Prompt settings that the program or LlamaIndex sets on the wrapper.
_PROMPT_SETTINGS = (
    "callback_manager",
    "system_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
    "output_parser",
    "query_wrapper_prompt",
)
# What `predict` and the like use of a model before they call its endpoints.
_COPIED_SETTINGS = (*_PROMPT_SETTINGS, "pydantic_program_mode", "rate_limiter")


_VIEW = "__ibidem_view__"  # in the classes of copies; pydantic takes a shorter name for a field


class NativeView:
    """Makes copies of a wrapped model whose endpoints lead back to the wrapper.

    Some models have their own way to structured output: OpenAI's sends a JSON schema and calls `self.chat`.
    LlamaIndex's general way, which a wrapper inherits, would silently change that to tool calls. So the
    model's own method runs, on a copy of the model whose `chat` is the wrapper's.
    """

    def __init__(self, wrapper: DelegatingLLM) -> None:
        self._wrapper = wrapper
        self._class: type[LLM] | None = None

    def model(self) -> LLM:
        """Return a shallow copy of the model as it is now: it shares clients and settings."""
        model = self._wrapper.llm
        if self._class is None or self._class.__mro__[1] is not type(model):
            self._class = _with_endpoints_of(self._wrapper, type(model))
        view = model.model_copy(update={name: getattr(self._wrapper, name) for name in _PROMPT_SETTINGS})
        object.__setattr__(view, "__class__", self._class)
        return view

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeView:
        return NativeView(memo.get(id(self._wrapper), self._wrapper))


def _with_endpoints_of(wrapper: DelegatingLLM, model: type[LLM]) -> type[LLM]:
    def sync(name: str) -> Any:
        return lambda self, *args, **kwargs: getattr(wrapper, name)(*args, **kwargs)

    def awaited(name: str) -> Any:
        async def endpoint(self: LLM, *args: Any, **kwargs: Any) -> Any:
            return await getattr(wrapper, name)(*args, **kwargs)

        return endpoint

    endpoints = {name: sync(name) for name in _SYNC} | {name: awaited(name) for name in _ASYNC}
    return type(model.__name__, (model,), {"__module__": model.__module__, _VIEW: True, **endpoints})


def is_native_view(llm: LLM) -> bool:
    """Return whether a model is such a copy: its calls return to a wrapper."""
    return hasattr(type(llm), _VIEW)


class DelegatingLLM(FunctionCallingLLM):
    """Behaves like the model it wraps towards engines, agents and handlers; subclasses define the endpoints.

    It is a `FunctionCallingLLM` for every model: LlamaIndex asks `metadata` whether the model calls tools.

    Args:
        llm: The model.

    Raises:
        InvalidInput: `llm` is not a model to wrap.
    """

    llm: SerializeAsAny[LLM] = Field(description="The model that is asked when the cache has no answer.")
    _native: NativeView = PrivateAttr()

    def __init__(self, llm: LLM) -> None:
        _check(llm)
        # Later versions of LlamaIndex added some of them.
        known = [name for name in _COPIED_SETTINGS if name in type(llm).model_fields]
        super().__init__(llm=llm, **{name: getattr(llm, name) for name in known})
        self._native = NativeView(self)

    # Structured output in the model's own way, where it has one; its calls of `chat` return to this object.

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own method; the answer may be stored, for exactly the same prompt."""
        return self._native.model().structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`."""
        return await self._native.model().astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`, streamed; it keeps the scope in which it was called."""
        return keep_scope(self._native.model().stream_structured_predict(*args, **kwargs))

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `stream_structured_predict`."""
        return keep_scope(await self._native.model().astream_structured_predict(*args, **kwargs))

    # The model prepares and parses tool calls: each provider has its own format.

    def _prepare_chat_with_tools(  # LlamaIndex reads the names of the arguments
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if isinstance(self.llm, FunctionCallingLLM):
            return self.llm._prepare_chat_with_tools_compat(
                tools,
                user_msg=user_msg,
                chat_history=chat_history,
                verbose=verbose,
                allow_parallel_tool_calls=allow_parallel_tool_calls,
                tool_required=tool_required,
                **kwargs,
            )
        asked = ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg
        return {"messages": [*(chat_history or ()), *([asked] if asked else ())]}

    def _validate_chat_with_tools_response(self, *args: Any, **kwargs: Any) -> ChatResponse:
        if isinstance(self.llm, FunctionCallingLLM):
            return self.llm._validate_chat_with_tools_response(*args, **kwargs)
        return super()._validate_chat_with_tools_response(*args, **kwargs)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the tool calls in a response; none for a model that does not call tools."""
        if isinstance(self.llm, FunctionCallingLLM):
            return self.llm.get_tool_calls_from_response(
                response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
            )
        if error_on_no_tool_call:
            raise ValueError(f"{type(self.llm).__name__} does not call tools")
        return []

    # Attributes of the model.

    @property
    def metadata(self) -> LLMMetadata:
        """The model's metadata."""
        return self.llm.metadata

    def to_payload(self) -> dict[str, Any]:
        """Describe the model for handlers, without secrets."""
        return self.llm.to_payload()

    def convert_chat_messages(self, messages: Sequence[ChatMessage]) -> list[Any]:
        """Convert messages to the model's own format."""
        return self.llm.convert_chat_messages(messages)

    def __getattr__(self, name: str) -> Any:
        """Read an attribute of the model: `llm.model`, `llm.temperature`."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("__") or "llm" not in self.__dict__:
                raise
            return getattr(self.llm, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the model, unless this object has one of the name: `llm.temperature = 0`."""
        ours = name.startswith("_") or name in type(self).model_fields or hasattr(type(self), name)
        if not ours and hasattr(self.llm, name):
            setattr(self.llm, name, value)
        else:
            super().__setattr__(name, value)

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._native = NativeView(copied)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the model alone: an open cache cannot be pickled."""
        return unpickle, (self.llm,)

    @abstractmethod
    def identity(self, model_id: str = "") -> str:
        """Hash the model with everything that its answers depend on."""

    def _as_prompted(self) -> LLM:
        """Return a shallow copy of the model with the prompt settings of this wrapper."""
        known = [name for name in _PROMPT_SETTINGS if name in type(self.llm).model_fields]
        return self.llm.model_copy(update={name: getattr(self, name) for name in known})

    @property
    def _model(self) -> LLM:
        """The model, with the callback manager and rate limiter that were set on this wrapper since."""
        for name in ("callback_manager", "rate_limiter"):
            mine = getattr(self, name, None)
            if mine is not None and getattr(self.llm, name, None) is not mine:
                with suppress(Exception):  # a frozen model keeps its own
                    setattr(self.llm, name, mine)
        return self.llm


def _check(llm: object) -> None:
    if isinstance(llm, DelegatingLLM):
        raise InvalidInput("this model is cached already")
    if isinstance(llm, StructuredLLM):
        raise InvalidInput(
            "wrap the model inside: CachedLLM(structured.llm, ...).as_structured_llm(structured.output_cls)"
        )
    if not isinstance(llm, LLM):
        raise InvalidInput(
            f"llm must be a LlamaIndex model (llama_index.core.llms.LLM), not {type(llm).__name__}"
        )


def unpickle(wrapped: Wrapped) -> Wrapped:
    """Return what was wrapped: the pickled form of a wrapper."""
    return wrapped
