"""A model that leaves everything but its endpoints to the model it wraps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self, TypeVar

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.tools import BaseTool
from pydantic import Field, PrivateAttr, SerializeAsAny

from ibidem.adapter.stream_scope import keep_scope
from ibidem.errors import InvalidInput
from llama_index_ibidem.native import SHARED, NativeView

Wrapped = TypeVar("Wrapped")

# What `predict` and the like use of a model before they call its endpoints.
_PROMPTING = (
    "callback_manager",
    "system_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
    "output_parser",
    "pydantic_program_mode",
    "query_wrapper_prompt",
    "rate_limiter",
)


class WrappingLLM(FunctionCallingLLM):
    """To engines, agents and handlers it is the model it wraps; a subclass brings the eight endpoints.

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
        # Some of them came with later versions of LlamaIndex.
        known = [name for name in _PROMPTING if name in type(llm).model_fields]
        super().__init__(llm=llm, **{name: getattr(llm, name) for name in known})
        self._native = NativeView(self)

    # Structured output in the model's own way, where it has one; its calls of `chat` come back to us.

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, whose answer may be stored for the very same prompt."""
        return self._native.model().structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`."""
        return await self._native.model().astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`, in pieces; in the scope in which it was called."""
        return keep_scope(self._native.model().stream_structured_predict(*args, **kwargs))

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `stream_structured_predict`."""
        return keep_scope(await self._native.model().astream_structured_predict(*args, **kwargs))

    # Tools are prepared and read by the model: each provider has its own form for them.

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
        """The tool calls in a response; a model that calls none gives none."""
        if isinstance(self.llm, FunctionCallingLLM):
            return self.llm.get_tool_calls_from_response(
                response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
            )
        if error_on_no_tool_call:
            raise ValueError(f"{type(self.llm).__name__} does not call tools")
        return []

    # What the model says of itself.

    @property
    def metadata(self) -> LLMMetadata:
        """The model's."""
        return self.llm.metadata

    def to_payload(self) -> dict[str, Any]:
        """What handlers are told of the model; nothing secret."""
        return self.llm.to_payload()

    def convert_chat_messages(self, messages: Sequence[ChatMessage]) -> list[Any]:
        """Messages in the model's own form."""
        return self.llm.convert_chat_messages(messages)

    def __getattr__(self, name: str) -> Any:
        """What is not ours is the model's: `llm.model`, `llm.temperature`."""
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name.startswith("__") or "llm" not in self.__dict__:
                raise
            return getattr(self.llm, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What is not ours is set on the model: `llm.temperature = 0`."""
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
        """Sent to another process, it is the model alone: an open cache does not travel."""
        return itself, (self.llm,)

    def _as_prompted(self) -> LLM:
        """A shallow copy of the model with our settings of prompts."""
        known = [name for name in SHARED if name in type(self.llm).model_fields]
        return self.llm.model_copy(update={name: getattr(self, name) for name in known})

    @property
    def _model(self) -> LLM:
        """The model, with what LlamaIndex and the program have given to us since."""
        for name in ("callback_manager", "rate_limiter"):
            mine = getattr(self, name, None)
            if mine is not None and getattr(self.llm, name, None) is not mine:
                with suppress(Exception):  # a frozen model keeps its own
                    setattr(self.llm, name, mine)
        return self.llm


def _check(llm: object) -> None:
    if isinstance(llm, WrappingLLM):
        raise InvalidInput("this model is cached already")
    if isinstance(llm, StructuredLLM):
        raise InvalidInput(
            "wrap the model inside: CachedLLM(structured.llm, ...).as_structured_llm(structured.output_cls)"
        )
    if not isinstance(llm, LLM):
        raise InvalidInput(
            f"llm must be a LlamaIndex model (llama_index.core.llms.LLM), not {type(llm).__name__}"
        )


def itself(wrapped: Wrapped) -> Wrapped:
    """What was wrapped, for pickle."""
    return wrapped
