"""Both adapters keep the contract that others can inherit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata

from ibidem.adapter.testing import AdapterContract, App, Model
from ibidem.cache import SemanticCache
from langchain_ibidem import IbidemCache
from llama_index_ibidem import CachedLLM


class Chat(BaseChatModel):
    """A chat model of LangChain that answers with a `Model`."""

    answer: Any

    @property
    def _llm_type(self) -> str:
        return "contract"

    def _generate(self, messages: Sequence[BaseMessage], *args: Any, **options: Any) -> ChatResult:
        message = AIMessage(self.answer(messages[-1].content))
        return ChatResult(generations=[ChatGeneration(message=message)])


class TestLangChain(AdapterContract):
    def make_app(self, cache: SemanticCache, model: Model) -> App:
        chat = Chat(answer=model, cache=IbidemCache(cache))
        return App(chat.invoke, lambda message: message.content)


class Completion(CustomLLM):
    """A model of LlamaIndex that answers with a `Model`."""

    answer: Any

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="contract")

    def complete(self, prompt: str, formatted: bool = False, **options: Any) -> CompletionResponse:
        return CompletionResponse(text=self.answer(prompt))

    def stream_complete(
        self, prompt: str, formatted: bool = False, **options: Any
    ) -> Iterator[CompletionResponse]:
        pieces = self.answer(prompt).partition(" ")
        return (
            CompletionResponse(text="".join(pieces[: n + 1]), delta=piece) for n, piece in enumerate(pieces)
        )


class TestLlamaIndex(AdapterContract):
    def make_app(self, cache: SemanticCache, model: Model) -> App:
        llm = CachedLLM(Completion(answer=model), cache)
        return App(
            llm.complete,
            lambda response: response.text,
            lambda question: (str(chunk.delta) for chunk in llm.stream_complete(question)),
        )
