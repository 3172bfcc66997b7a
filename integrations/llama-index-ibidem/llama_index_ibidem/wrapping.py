"""A model that leaves everything but its endpoints to the model it wraps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.llms.structured_llm import StructuredLLM
from pydantic import Field, PrivateAttr, SerializeAsAny

from ibidem.errors import InvalidInput
from llama_index_ibidem.native import NativeView

# What `predict` and the like use of a model before they call its endpoints.
_PROMPTING = (
    "callback_manager",
    "system_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
    "output_parser",
    "pydantic_program_mode",
    "query_wrapper_prompt",
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
        super().__init__(llm=llm, **{name: getattr(llm, name) for name in _PROMPTING})
        self._native = NativeView(self)

    # Structured output in the model's own way, where it has one; its calls of `chat` come back to us.

    def structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's, whose answer may be stored for the very same prompt."""
        return self._native.model().structured_predict(*args, **kwargs)

    async def astructured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`."""
        return await self._native.model().astructured_predict(*args, **kwargs)

    def stream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`, in pieces."""
        return self._native.model().stream_structured_predict(*args, **kwargs)

    async def astream_structured_predict(self, *args: Any, **kwargs: Any) -> Any:
        """As `structured_predict`, in pieces."""
        return await self._native.model().astream_structured_predict(*args, **kwargs)

    # Tools are prepared and read by the model: each provider has its own form for them.

    def _prepare_chat_with_tools(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return cast("dict[str, Any]", self._calling._prepare_chat_with_tools_compat(*args, **kwargs))

    def _validate_chat_with_tools_response(self, *args: Any, **kwargs: Any) -> ChatResponse:
        return cast(ChatResponse, self._calling._validate_chat_with_tools_response(*args, **kwargs))

    def get_tool_calls_from_response(self, *args: Any, **kwargs: Any) -> list[ToolSelection]:
        """The tool calls in a response."""
        return cast("list[ToolSelection]", self._calling.get_tool_calls_from_response(*args, **kwargs))

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it is the model alone: an open cache does not travel."""
        return _itself, (self.llm,)

    @property
    def _model(self) -> LLM:
        """The model, telling the handlers that LlamaIndex has given to us since."""
        self.llm.callback_manager = self.callback_manager
        return self.llm

    @property
    def _calling(self) -> Any:
        """The model as one that calls tools; callers have asked `metadata` whether it is."""
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


def _itself(llm: LLM) -> LLM:
    return llm
