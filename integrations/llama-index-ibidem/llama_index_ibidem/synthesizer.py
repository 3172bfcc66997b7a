"""`CachedSynthesizer`: one stored answer per question, however many calls of the model it took."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.schema import NodeWithScore
from llama_index.core.types import RESPONSE_TEXT_TYPE
from pydantic import BaseModel

from ibidem._util.concurrency import in_thread
from ibidem.adapter.call import Desk, Inquiry
from ibidem.adapter.options import open_or_use
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.scope import require_scope
from ibidem.types import Answer, Hit, Request, require_bool, require_name, require_text
from llama_index_ibidem import calls, spans
from llama_index_ibidem.description import asks_no_model, description, is_for_programs
from llama_index_ibidem.facts import shown_as
from llama_index_ibidem.origin import comes_from, tell
from llama_index_ibidem.replay import astream_of, stream_of
from llama_index_ibidem.stream_scopes import STREAMS
from llama_index_ibidem.streams import apassed_on, passed_on
from llama_index_ibidem.wrapping import itself

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_OF_THE_BASE = (
    "_prompt_helper",
    "_chat_prompt_helper",
    "_streaming",
    "_output_cls",
    "_empty_response",
    "_multimodal",
)  # What a synthesizer's own `synthesize` calls.
_OURS = (
    "get_response",
    "aget_response",
    "get_response_from_messages",
    "aget_response_from_messages",
    "_prepare_response_output",
)
_FORM, _TEXT = "form", "text"  # synthesizers that are given a form may still answer in words


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question on its way, and the id of its synthesis."""

    inquiry: Inquiry[str | BaseModel]
    synthesis: str | None
    started: float


class CachedSynthesizer(BaseSynthesizer):
    """A response synthesizer that only synthesises what it has not answered before.

    It compares the question by meaning, and exactly: the model, the kind of synthesizer, its templates and
    settings. The nodes count by the cache's context rule. So `refine` over ten nodes is one entry, not ten.

    `CachedSynthesizer(get_response_synthesizer(), cache)` goes where the synthesizer went.

    Args:
        synthesizer: The synthesizer.
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: Tenant or application: what one has stored is never served in another (`ibidem.scope`).
        model_id: Names the model and its settings, where its fields do not (the log says so).
        semantic: False to repeat answers to identical questions only.
        require_namespace: True to cache only what is asked within `ibidem.scope(namespace=...)`.
        **options: For `ibidem.open`: `path`, `threshold`, `embedder`, ...

    Raises:
        InvalidInput: `synthesizer` is none, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """

    def __init__(
        self,
        synthesizer: BaseSynthesizer,
        cache: SemanticCache | None = None,
        *,
        namespace: str = "",
        model_id: str = "",
        semantic: bool = True,
        require_namespace: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(synthesizer, BaseSynthesizer):
            kind = type(synthesizer).__name__
            raise InvalidInput(f"synthesizer must be a LlamaIndex response synthesizer, not {kind}")
        if isinstance(synthesizer, CachedSynthesizer):
            raise InvalidInput("this synthesizer is cached already")
        # Some of them came with later versions of LlamaIndex.
        known = [name for name in _OF_THE_BASE if hasattr(synthesizer, name)]
        shared = {name.lstrip("_"): getattr(synthesizer, name) for name in known}
        self._synthesizer = synthesizer
        super().__init__(llm=synthesizer._llm, callback_manager=synthesizer.callback_manager, **shared)
        self._namespace, self._semantic = require_name("namespace", namespace), semantic
        require_bool("require_namespace", require_namespace)
        self._required = require_namespace
        self._model_id = require_text("model_id", model_id)
        self._owned = cache is None
        self._desk = Desk(open_or_use(cache, options, type(self).__name__), "LlamaIndex")
        calls.watch()
        STREAMS.hold(self._desk)

    @property
    def cache(self) -> SemanticCache:
        """The cache that is asked."""
        return self._desk.cache

    def faults(self) -> dict[str, int]:
        """How often a question was not cached or a failure was swallowed, by cause."""
        return self._desk.faults.counts()

    def close(self) -> None:
        """Close the cache that was opened here; one that was passed in stays open."""
        if self._owned:
            self.cache.close()
            STREAMS.release(self._desk)

    def __copy__(self) -> CachedSynthesizer:
        return _with_state(self, vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedSynthesizer:
        return _with_state(self, deepcopy(vars(self), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process, it is the synthesizer alone: an open cache does not travel."""
        return itself, (self._synthesizer,)

    def synthesize(self, *args: Any, **given: Any) -> RESPONSE_TYPE:
        """As the synthesizer does: some, like `generation`, have a way of their own."""
        if not _overrides(self._synthesizer, "synthesize"):
            return super().synthesize(*args, **given)
        return self._view().synthesize(*args, **given)

    async def asynthesize(self, *args: Any, **given: Any) -> RESPONSE_TYPE:
        """As `synthesize`."""
        if not _overrides(self._synthesizer, "asynthesize"):
            return await super().asynthesize(*args, **given)
        return await self._view().asynthesize(*args, **given)

    def get_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """The stored answer to this question over these texts, or the synthesizer's."""
        asked = self._ask(spans.surroundings(), query_str, text_chunks, response_kwargs)
        if (found := _serve(asked, asked.inquiry.find())) is not None:
            return stream_of(found) if self._streaming and isinstance(found, str) else found
        with asked.inquiry:
            answer = self._synthesizer.get_response(query_str, text_chunks, **response_kwargs)
            if isinstance(answer, (str, BaseModel)):
                self._keep(asked, answer)
                comes_from(asked.inquiry.stored)
                return answer
            stream = cast("Iterator[str]", answer)
            return passed_on(stream, asked.synthesis, asked.inquiry, partial(self._keep, asked))

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """As `get_response`; the cache is asked in a thread."""
        asked = self._ask(spans.surroundings(), query_str, text_chunks, response_kwargs)
        if (found := _serve(asked, await asked.inquiry.afind())) is not None:
            return astream_of(found) if self._streaming and isinstance(found, str) else found
        with asked.inquiry:
            answer = await self._synthesizer.aget_response(query_str, text_chunks, **response_kwargs)
            if isinstance(answer, (str, BaseModel)):
                await in_thread(self._keep, asked, answer)
                comes_from(asked.inquiry.stored)
                return answer
            stream = cast("AsyncIterator[str]", answer)
            return apassed_on(stream, asked.synthesis, asked.inquiry, partial(self._keep, asked))

    def get_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """The synthesizer's: images and the like are not compared here, but by `CachedLLM`."""
        comes_from(None)
        return self._synthesizer.get_response_from_messages(query_str, message_chunks, **response_kwargs)

    async def aget_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """As `get_response_from_messages`."""
        comes_from(None)
        return await self._synthesizer.aget_response_from_messages(
            query_str, message_chunks, **response_kwargs
        )

    @property
    def callback_manager(self) -> CallbackManager:
        """Whom to tell what happens."""
        return self._callback_manager

    @callback_manager.setter
    def callback_manager(self, callback_manager: CallbackManager) -> None:
        self._callback_manager = self._synthesizer.callback_manager = callback_manager

    # LlamaIndex's chat engines switch it.

    @property
    def _streaming(self) -> bool:
        return self._synthesizer._streaming

    @_streaming.setter
    def _streaming(self, streaming: bool) -> None:
        self._synthesizer._streaming = streaming

    def _view(self) -> BaseSynthesizer:
        """The synthesizer as it is, but for the text: that is asked of us."""
        view = copy(self._synthesizer)
        for name in _OURS:
            setattr(view, name, getattr(self, name))
        return view

    def _get_prompts(self) -> dict[str, BasePromptTemplate]:
        return self._synthesizer._get_prompts()

    def _get_prompt_modules(self) -> dict[str, Any]:
        return self._synthesizer._get_prompt_modules()

    def _update_prompts(self, prompts: dict[str, BasePromptTemplate]) -> None:
        self._synthesizer._update_prompts(prompts)

    def _prepare_response_output(
        self, response_str: RESPONSE_TEXT_TYPE | None, source_nodes: list[NodeWithScore]
    ) -> RESPONSE_TYPE:
        """LlamaIndex's response; a repeated one says so in `metadata["ibidem"]`."""
        return tell(super()._prepare_response_output(response_str, source_nodes))

    def _ask(
        self, around: spans.Surroundings, question: str, texts: Sequence[str], given: dict[str, Any]
    ) -> _Asked:
        build = partial(self._request, around, question, texts, given)
        read = partial(self._desk.faults.attempt, "read a stored answer")
        inquiry = Inquiry[str | BaseModel](self._desk, build, lambda hit: read(lambda: self._read(hit)))
        return _Asked(inquiry, around.synthesis.id if around.synthesis else None, time.perf_counter())

    def _read(self, hit: Hit) -> str | BaseModel:
        text = hit.answer.text
        if self._output_cls is None or hit.answer.payload == _TEXT:
            return text
        return self._output_cls.model_validate_json(text)

    def _keep(self, asked: _Asked, answer: str | BaseModel) -> None:
        """Store it; not under a new wording what a `CachedLLM` repeated for another: it would drift away."""
        behind = calls.behind(asked.synthesis or "")
        if behind.by_meaning:
            asked.inquiry.refuse()
        else:
            asked.inquiry.keep(partial(self._answer, asked, answer, behind))

    def _answer(self, asked: _Asked, given: str | BaseModel, behind: calls.Calls) -> Answer:
        form = isinstance(given, BaseModel) or isinstance(self._llm, StructuredLLM)
        return Answer(
            given.model_dump_json() if isinstance(given, BaseModel) else given,
            payload=_FORM if isinstance(given, BaseModel) else _TEXT,
            model=behind.model,
            input_tokens=behind.input_tokens,
            output_tokens=behind.output_tokens,
            finish_reason=behind.cut,
            seconds=time.perf_counter() - asked.started,
            semantic=not form,
        )

    def _request(
        self, around: spans.Surroundings, question: str, texts: Sequence[str], given: dict[str, Any]
    ) -> Request | None:
        if asks_no_model(self._synthesizer):
            return None
        if not question.strip():
            raise NotCacheable("no_question", "the question is empty")
        if around.synthesis is None:
            raise NotCacheable("no_synthesis", "get_response was called directly; call synthesize")
        scope = require_scope(required=self._required)
        described = ["llama_index/1", "synthesizer", description(self._synthesizer, self._model_id, given)]
        return Request(
            question,
            scope=json.dumps(described),
            namespace=scope.name(self._namespace),
            scope_context=scope,
            documents=shown_as(texts, around.synthesis.documents),
            semantic=self._semantic and not is_for_programs(self._synthesizer) and not around.judged,
            example=not around.judged,
            temperature=getattr(self._llm, "temperature", None),
        )


def _serve(asked: _Asked, found: str | BaseModel | None) -> str | BaseModel | None:
    """What was found; LlamaIndex's response will tell of the hit."""
    comes_from(asked.inquiry.hit if found is not None else None)
    return found


def _with_state(synthesizer: CachedSynthesizer, state: dict[str, Any]) -> CachedSynthesizer:
    other = object.__new__(type(synthesizer))
    vars(other).update(state)
    return other


def _overrides(synthesizer: BaseSynthesizer, name: str) -> bool:
    return inspect.getattr_static(type(synthesizer), name) is not vars(BaseSynthesizer)[name]
