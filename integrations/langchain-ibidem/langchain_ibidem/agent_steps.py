"""Read an agent's model call from the request and response of LangChain's middleware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langchain.agents.middleware import ModelRequest, ModelResponse
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import SkipValidation

from ibidem.errors import NotCacheable
from ibidem.prompts.documents import Retrieved
from ibidem.types import Hit
from langchain_ibidem.call import ModelCall
from langchain_ibidem.messages import chat_chunks, decode
from langchain_ibidem.model_identity import ResponseFormat, is_made_up
from langchain_ibidem.tracking import retrieved

# Content blocks of an answer that only say something. Others are about tools of the provider.
_SAYING = frozenset("text output_text refusal reasoning thinking redacted_thinking".split())


def parameters(request: ModelRequest[Any]) -> dict[str, Any]:
    """Return the parameters that the model is given beside messages.

    Raises:
        NotCacheable: The model cannot be described.
    """
    if not isinstance(request.model, BaseChatModel):
        kind = type(request.model).__name__
        raise NotCacheable("model_unknown", f"the agent's model is a {kind}; only chat models are described")
    given: dict[str, Any] = {
        **request.model_settings,
        "ibidem": "agent/1",  # entries of agents are apart from those of calls
        "tools": [_tool(tool) for tool in request.tools],
        "tool_choice": request.tool_choice,
    }
    if request.response_format is not None:
        given["response_format"] = _form(request.response_format)
    return given


def model_call_of(request: ModelRequest[Any], given: Mapping[str, Any]) -> ModelCall:
    """Describe the model call by the run around the step, as LangChain will begin it.

    Args:
        request: The step.
        given: Its parameters.

    Raises:
        NotCacheable: The run is unknown: its context variable was lost, as in a thread without the context.
    """
    config = var_child_runnable_config.get()
    if config is None:
        raise NotCacheable("caller_unreadable", "nothing says whose run the step belongs to")
    parameters = {name: value for name, value in given.items() if name != "stop"}
    return ModelCall.in_config(request.model, config, parameters, given.get("stop"))


def messages_of(request: ModelRequest[Any]) -> list[BaseMessage]:
    """Return the messages that the model is shown, the system prompt first."""
    system = getattr(request, "system_message", None)
    if system is None and request.system_prompt:  # of LangChain 1.0
        system = SystemMessage(request.system_prompt)
    return [*([] if system is None else [system]), *request.messages]


def since_question(messages: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
    """Return the messages since the user's last one: none if this is the agent's first step."""
    last = max((n for n, message in enumerate(messages) if isinstance(message, HumanMessage)), default=-1)
    return messages[last + 1 :]


def documents_in(messages: Sequence[BaseMessage]) -> list[Retrieved]:
    """Return the documents that tools returned beside their text."""
    artifacts = [message.artifact for message in messages if isinstance(message, ToolMessage)]
    lists = [a if isinstance(a, (list, tuple)) else [a] for a in artifacts]
    found = [retrieved(one) for given in lists for one in given if isinstance(one, Document)]
    return [document for document in found if document.text]


def used_at_the_provider(message: AIMessage) -> set[str]:
    """Return the names of the tools that the provider itself used for this answer."""
    blocks = message.content if isinstance(message.content, list) else []
    acts = [block for block in blocks if isinstance(block, dict) and block.get("type") not in _SAYING]
    outputs = message.additional_kwargs.get("tool_outputs") or ()  # where OpenAI's Responses API puts them
    told = (*acts, *(output for output in outputs if isinstance(output, dict)))
    called = {call["id"] for call in message.tool_calls}
    others = (one for one in told if not {one.get("id"), one.get("call_id")} & called)
    return {str(one[key]) for one in others for key in ("type", "name") if one.get(key)}


def require_complete(request: ModelRequest[Any], response: ModelResponse[Any]) -> AIMessage:
    """Return the model's message, if it is what the agent wanted: a tool call, or an answer in its form.

    Raises:
        NotCacheable: It is not.
    """
    first = response.result[0] if response.result else None
    if isinstance(first, AIMessage):
        calls_tools = bool(first.tool_calls) and len(response.result) == 1
        if request.response_format is None or response.structured_response is not None or calls_tools:
            return first
    raise NotCacheable("not_in_form", "the answer has not the form that the agent must answer in")


def form_of(request: ModelRequest[Any]) -> ResponseFormat:
    """Return the form that the answer must have, by the names that LangChain made up for it."""
    specs = getattr(request.response_format, "schema_specs", ())
    return ResponseFormat(names=tuple(one.name for one in specs if is_made_up(one.name)))


class Repeated(BaseChatModel):
    """Repeats an answer in the place of the agent's model, so that the agent treats it as that.

    In chunks where the agent's model would stream, called with the parameters in `given`.
    """

    message: AIMessage
    original: SkipValidation[BaseChatModel]
    given: dict[str, Any]

    @property
    def _llm_type(self) -> str:
        return "ibidem-repeated"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        """It will not call any."""
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.message)])

    def _stream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        return chat_chunks(ChatGeneration(message=self.message))

    def _should_stream(self, **asked: Any) -> bool:
        return self.original._should_stream(**{**self.given, **asked})

    def _should_use_protocol_streaming(self, **asked: Any) -> bool:
        would = getattr(self.original, "_should_use_protocol_streaming", None)
        return would is not None and bool(would(**{**self.given, **asked}))


def repeating(request: ModelRequest[Any], hit: Hit) -> ModelRequest[Any]:
    """Return the request with a model that repeats the stored answer.

    Raises:
        Exception: What was stored is not one message.
    """
    (generation,) = decode(hit, form_of(request).names)
    if not isinstance(generation, ChatGeneration) or not isinstance(generation.message, AIMessage):
        raise TypeError("the stored answer is not a message")
    message, form = generation.message, request.response_format
    given = {**request.model_settings, "tools": request.tools}
    model = Repeated(message=message, original=request.model, given=given, cache=False)
    if form is None or isinstance(form, (ToolStrategy, ProviderStrategy)) or message.tool_calls:
        return request.override(model=model)
    # The agent would choose by the model: what was no tool call came in the provider's own way.
    schema: Any = getattr(form, "schema", form)
    return request.override(model=model, response_format=ProviderStrategy(schema))


def _tool(tool: BaseTool | dict[str, Any]) -> dict[str, Any]:
    if isinstance(tool, dict):
        return tool
    return {**convert_to_openai_tool(tool), "extras": getattr(tool, "extras", None)}


def _form(form: Any) -> list[Any]:
    """Describe the form of the answer. A class counts by its schema."""
    if isinstance(form, ProviderStrategy):
        specs = [form.schema_spec]
    else:
        strategy = form if isinstance(form, ToolStrategy) else ToolStrategy(getattr(form, "schema", form))
        specs = strategy.schema_specs
    kind = type(form).__name__ if isinstance(form, (ToolStrategy, ProviderStrategy)) else "auto"
    return [
        kind,
        *(
            (None if is_made_up(one.name) else one.name, one.description, one.json_schema, one.strict)
            for one in specs
        ),
    ]
