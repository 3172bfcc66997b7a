"""What the LlamaIndex demo needs beside the app: an offline model, its documents, Ibidem's embedder."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import LLM, CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.schema import TextNode
from pydantic import PrivateAttr

from common.corpus import Passage
from common.reader import LABEL, estimated_tokens, extract
from ibidem.embedding import Embedder

# How LlamaIndex's own question-answering prompt frames the excerpts and the question.
_PROMPT = re.compile(r"(?s)\n-{21}\n(?P<excerpts>.*)\n-{21}\n.*\nQuery: (?P<question>.*)\nAnswer:")


class LocalEmbedding(BaseEmbedding):
    """Ibidem's own embedder for a LlamaIndex index, so that the demo needs no second model."""

    _embedder: Embedder = PrivateAttr()

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(model_name=embedder.fingerprint, embed_batch_size=16)
        self._embedder = embedder

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embedder.embed(texts).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class OfflineReaderLLM(CustomLLM):
    """Quotes from the excerpts in the prompt what fits the question. See `common.reader`.

    `delay` seconds are slept before an answer, to stand for the time a real model takes.
    """

    delay: float = 0.0

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(delay=delay)

    @property
    def metadata(self) -> LLMMetadata:
        """It is a chat model, as most are."""
        return LLMMetadata(model_name=LABEL, is_chat_model=True)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to the question in a prompt."""
        time.sleep(self.delay)
        found = _PROMPT.search(prompt)
        answer = extract(found["question"], found["excerpts"]) if found else extract("", "")
        asked, said = estimated_tokens(prompt), estimated_tokens(answer)
        usage = {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}
        return CompletionResponse(text=answer, raw={"model": LABEL, "finish_reason": "stop", "usage": usage})

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The same, in one piece."""
        whole = self.complete(prompt, formatted, **kwargs)
        yield whole.model_copy(update={"delta": whole.text})


def choose_model(name: str | None, offline: LLM) -> LLM:
    """The model of OpenAI that is asked for as `openai:NAME`, else the offline one. Others: write it here."""
    if not name:
        return offline
    provider, _, model_name = name.rpartition(":")
    try:
        if provider not in ("", "openai"):
            raise ValueError(
                "only openai:NAME is known here; LlamaIndex has a class for every other provider"
            )
        from llama_index.llms.openai import OpenAI

        model = OpenAI(model_name, temperature=0)
        if model.api_key and model.metadata.model_name:  # the metadata of an unknown model is an error
            return model
        problem = "set OPENAI_API_KEY"
    except ImportError:
        problem = "pip install llama-index-llms-openai"
    except ValueError as error:
        problem = str(error)
    sys.exit(f"--model {name}: {problem}\nWithout --model, the offline reader answers.")


def as_node(passage: Passage) -> TextNode:
    """A passage as LlamaIndex indexes it; its topic is for programs, neither embedded nor in the prompt."""
    metadata = {"topic": passage.topic}
    hidden = {"excluded_embed_metadata_keys": list(metadata), "excluded_llm_metadata_keys": list(metadata)}
    return TextNode(id_=passage.id, text=passage.text, metadata=metadata, **hidden)


class IndexedPassages:
    """The passages in a LlamaIndex index. See `common.demo.Documents`."""

    def __init__(self, index: VectorStoreIndex) -> None:
        self.index = index

    def nearest(self, text: str, count: int) -> list[Passage]:
        """Those that the app would retrieve for a text."""
        found = self.index.as_retriever(similarity_top_k=count).retrieve(text)
        return [Passage(n.node_id, n.metadata["topic"], n.text) for n in found]

    def replace(self, passage: Passage) -> None:
        """Put a passage in the place of the one with its id."""
        self.index.delete_nodes([passage.id], delete_from_docstore=True)
        self.index.insert_nodes([as_node(passage)])
