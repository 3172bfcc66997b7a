"""`CachedSynthesizer`: store one answer per question, however many calls of the model it took."""

from __future__ import annotations

import inspect
import json
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from copy import copy, deepcopy
from functools import partial
from itertools import accumulate
from types import MethodType
from typing import TYPE_CHECKING, Any, Unpack, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.llm import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.response_synthesizers import BaseSynthesizer
from llama_index.core.response_synthesizers.context_only import ContextOnly
from llama_index.core.response_synthesizers.no_text import NoText
from llama_index.core.schema import NodeWithScore
from llama_index.core.types import RESPONSE_TEXT_TYPE, BaseOutputParser
from pydantic import BaseModel

from ibidem.adapter.call import AdapterCache, CachedCall, attempt
from ibidem.adapter.options import AdapterOptions
from ibidem.adapter.streams import astep_within, step_within
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.options import OpenOptions
from ibidem.prompts.documents import Retrieved, find_positions
from ibidem.provenance import remember
from ibidem.scope import require_scope
from ibidem.types import Answer, Document, Hit, Request, Stored, digest, renamed
from llama_index_ibidem.calls import call_watcher
from llama_index_ibidem.delegation import DelegatingLLM, unpickle
from llama_index_ibidem.few_shot import selected_by
from llama_index_ibidem.replay import astream_of, stream_of
from llama_index_ibidem.request import identity, parameters
from llama_index_ibidem.responses import MARKER
from llama_index_ibidem.spans import STREAMS, SpanContext, attached_to, span_watcher

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_BASE_SETTINGS = (
    "_prompt_helper",
    "_chat_prompt_helper",
    "_streaming",
    "_output_cls",
    "_empty_response",
    "_multimodal",
)
# Methods that a synthesizer's own `synthesize` calls.
_CACHED_METHODS = (
    "get_response",
    "aget_response",
    "get_response_from_messages",
    "aget_response_from_messages",
    "_prepare_response_output",
)
# Settings of synthesizers that do not change the answer.
_OF_SYNTHESIS = frozenset("use_async verbose streaming empty_response callback_manager llm".split())
_BETWEEN = "\0"  # two texts that are searched at once
_FORM, _TEXT = "form", "text"  # synthesizers with an output class may still answer in words


# What gave the text of the running synthesis: LlamaIndex builds its response from the text alone.
_source: ContextVar[Hit | Stored | None] = ContextVar("ibidem_source", default=None)


class CachedSynthesizer(BaseSynthesizer):
    """Synthesises only what it has not answered before.

    The question is compared by meaning, the nodes by the cache's document policy, and the rest exactly: the
    model, the class of the synthesizer, its templates and settings. So `refine` over ten nodes is one entry,
    not ten.

    `CachedSynthesizer(get_response_synthesizer(), cache)` goes where the synthesizer went.

    Args:
        synthesizer: The synthesizer.
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: Tenant or application: answers stored in one are never served in another (`ibidem.scope`).
        model_id: Identifies the model and its settings, where its fields do not (the log says so).
        semantic: False to repeat answers to identical questions only.
        require_namespace: True to cache only questions within `ibidem.scope(namespace=...)`.
        **options: For `ibidem.open`: `path`, `max_error_rate`, `embedder`, ...

    Raises:
        InvalidInput: `synthesizer` is not a response synthesizer, or an option does not exist.
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
        **options: Unpack[OpenOptions],
    ) -> None:
        if not isinstance(synthesizer, BaseSynthesizer):
            kind = type(synthesizer).__name__
            raise InvalidInput(f"synthesizer must be a LlamaIndex response synthesizer, not {kind}")
        if isinstance(synthesizer, CachedSynthesizer):
            raise InvalidInput("this synthesizer is cached already")
        # Later versions of LlamaIndex added some of them.
        known = [name for name in _BASE_SETTINGS if hasattr(synthesizer, name)]
        shared = {name.lstrip("_"): getattr(synthesizer, name) for name in known}
        self._synthesizer = synthesizer
        super().__init__(llm=synthesizer._llm, callback_manager=synthesizer.callback_manager, **shared)
        self._options = AdapterOptions(
            namespace, model_id=model_id, semantic=semantic, require_namespace=require_namespace
        )
        self._adapter = AdapterCache.of(cache, "LlamaIndex", owner=type(self).__name__, options=options)
        call_watcher.watch()
        STREAMS.hold(self._adapter)

    @property
    def cache(self) -> SemanticCache:
        """The cache in use."""
        return self._adapter.cache

    def faults(self) -> dict[str, int]:
        """Count the questions that were not cached and the failures that were swallowed, by cause."""
        return self._adapter.faults.counts()

    def close(self) -> None:
        """Close the cache if it was opened here; one that was passed in stays open."""
        if self._adapter.close():
            STREAMS.release(self._adapter)

    def __copy__(self) -> CachedSynthesizer:
        return _with_state(self, vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedSynthesizer:
        return _with_state(self, deepcopy(vars(self), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the synthesizer alone: an open cache cannot be pickled."""
        return unpickle, (self._synthesizer,)

    def synthesize(self, *args: Any, **given: Any) -> RESPONSE_TYPE:
        """Synthesise as the synthesizer does: some, like `generation`, override this method."""
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
        """Return the stored answer to this question over these texts, or ask the synthesizer."""
        context = span_watcher.context()
        call = self._call(context, query_str, text_chunks, response_kwargs)
        found = call.lookup()
        self._note(call.hit)
        if found is not None:
            return stream_of(found) if self._streaming and isinstance(found, str) else found
        with call:
            answer = self._synthesizer.get_response(query_str, text_chunks, **response_kwargs)
            if isinstance(answer, (str, BaseModel)):
                _source.set(call.store(partial(self._answer, context, call, answer)))
                return answer
            # The stream may call the model when it is read: such a call belongs to the synthesis, and what
            # the reader does between two pieces does not.
            within = partial(attached_to, context.synthesis_id)
            stream = step_within(cast("Iterator[str]", answer), within)
            return call.record(stream, TextAccumulator(partial(self._answer, context, call)))

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """As `get_response`; the cache works in a thread."""
        context = span_watcher.context()
        call = self._call(context, query_str, text_chunks, response_kwargs)
        found = await call.alookup()
        self._note(call.hit)
        if found is not None:
            return astream_of(found) if self._streaming and isinstance(found, str) else found
        with call:
            answer = await self._synthesizer.aget_response(query_str, text_chunks, **response_kwargs)
            if isinstance(answer, (str, BaseModel)):
                _source.set(await call.astore(partial(self._answer, context, call, answer)))
                return answer
            within = partial(attached_to, context.synthesis_id)
            stream = astep_within(cast("AsyncIterator[str]", answer), within)
            return call.arecord(stream, TextAccumulator(partial(self._answer, context, call)))

    def get_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """Call the synthesizer: images and the like are compared by `CachedLLM`, not here."""
        _source.set(None)
        return self._synthesizer.get_response_from_messages(query_str, message_chunks, **response_kwargs)

    async def aget_response_from_messages(
        self, query_str: str, message_chunks: Sequence[ChatMessage], **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """As `get_response_from_messages`."""
        _source.set(None)
        return await self._synthesizer.aget_response_from_messages(
            query_str, message_chunks, **response_kwargs
        )

    @property
    def callback_manager(self) -> CallbackManager:
        """The callback manager of the synthesizer."""
        return self._callback_manager

    @callback_manager.setter
    def callback_manager(self, callback_manager: CallbackManager) -> None:
        self._callback_manager = self._synthesizer.callback_manager = callback_manager

    # LlamaIndex's chat engines set it.

    @property
    def _streaming(self) -> bool:
        return self._synthesizer._streaming

    @_streaming.setter
    def _streaming(self, streaming: bool) -> None:
        self._synthesizer._streaming = streaming

    def _view(self) -> BaseSynthesizer:
        """Return a copy of the synthesizer whose texts come from this object."""
        view = copy(self._synthesizer)
        for name in _CACHED_METHODS:
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
        """Build the response; `metadata["ibidem"]` says that it is repeated."""
        return _with_source(super()._prepare_response_output(response_str, source_nodes))

    def _note(self, hit: Hit | None) -> None:
        """Note what the cache said to the running synthesis. After a miss its calls of a model count."""
        _source.set(hit)
        record = partial(span_watcher.record_lookup, hit, calls=0 if hit is None else 1)
        attempt(self._adapter.faults, "mark a response", record)

    def _call(
        self, context: SpanContext, question: str, texts: Sequence[str], given: dict[str, Any]
    ) -> CachedCall[str | BaseModel]:
        build = partial(self._request, context, question, texts, given)
        attempted = partial(attempt, self._adapter.faults, "read a stored answer")
        return CachedCall(self._adapter, build, lambda hit: attempted(lambda: self._read(hit)))

    def _request(
        self, context: SpanContext, question: str, texts: Sequence[str], given: dict[str, Any]
    ) -> Request | None:
        if isinstance(self._synthesizer, (ContextOnly, NoText)):
            return None  # these call no model
        if not question.strip():
            raise NotCacheable("no_question", "the question is empty")
        if context.synthesis is None:
            raise NotCacheable("no_synthesis", "get_response was called directly; call synthesize")
        options, scope = self._options, require_scope(required=self._options.require_namespace)
        return Request(
            question,
            scope={
                "adapter": "llama_index/1",
                **_described(self._synthesizer, options.model_id, given),
            },
            namespace=scope.name(options.namespace),
            scope_context=scope,
            documents=documents_shown(texts, context.synthesis.documents),
            semantic=options.semantic and not _has_output_parser(self._synthesizer) and not context.judged,
            example=not context.judged,
            temperature=getattr(self._llm, "temperature", None),
        )

    def _read(self, hit: Hit) -> str | BaseModel:
        text = hit.answer.text
        if self._output_cls is None or hit.answer.payload == _TEXT:
            return text
        return self._output_cls.model_validate_json(text)

    def _answer(
        self, context: SpanContext, call: CachedCall[str | BaseModel], given: str | BaseModel
    ) -> Answer | None:
        """Build the answer to store; None if a `CachedLLM` repeated a part of it for another wording.

        Stored under a second wording, such an answer would drift away from its question.
        """
        stats = call_watcher.stats_of(context.synthesis_id or "")
        if stats.by_meaning:
            return None
        structured = isinstance(given, BaseModel)
        return Answer(
            given.model_dump_json() if isinstance(given, BaseModel) else given,
            payload=_FORM if structured else _TEXT,
            model=stats.model,
            input_tokens=stats.input_tokens,
            output_tokens=stats.output_tokens,
            finish_reason=stats.cut,
            seconds=call.seconds,
            semantic=not structured and not isinstance(self._llm, StructuredLLM),
        )


class TextAccumulator:
    """Joins the pieces of a streamed text, as `ibidem.adapter.call.StreamAccumulator`."""

    def __init__(self, answer: Callable[[str], Answer | None]) -> None:
        self._answer = answer
        self._pieces: list[str] = []

    def add(self, chunk: str) -> None:
        """Take one piece."""
        self._pieces.append(chunk)

    def answer(self) -> Answer | None:
        """Build the answer to store."""
        return self._answer("".join(self._pieces))


def _with_source(response: RESPONSE_TYPE) -> RESPONSE_TYPE:
    """Mark a response that is repeated; let `ibidem.forget` know one that was stored."""
    source = _source.get()
    _source.set(None)
    if isinstance(source, Hit):
        marker = {**source.provenance(), "model": source.answer.model}
        response.metadata = {**(response.metadata or {}), MARKER: marker}
    elif source is not None:
        remember(response, source)
    return response


def _with_state(synthesizer: CachedSynthesizer, state: dict[str, Any]) -> CachedSynthesizer:
    other = object.__new__(type(synthesizer))
    vars(other).update(state)
    return other


def _overrides(synthesizer: BaseSynthesizer, name: str) -> bool:
    return inspect.getattr_static(type(synthesizer), name) is not vars(BaseSynthesizer)[name]


# What an answer depends on besides question and nodes.


def _described(synthesizer: BaseSynthesizer, model_id: str, given: Mapping[str, Any]) -> dict[str, str]:
    """Describe a synthesizer and the arguments of a call, each of its parts by name.

    Raises:
        NotCacheable: Something cannot be compared.
    """
    llm, kind = synthesizer._llm, type(synthesizer)
    own = {name.lstrip("_"): _unbound(value, synthesizer) for name, value in vars(synthesizer).items()}
    settings = {
        name: _setting(value, llm, model_id) for name, value in own.items() if name not in _OF_SYNTHESIS
    }
    if own.get("output_cls") is not None:  # structured streams are texts
        settings["streams"] = own.get("streaming")
    prompts = {name: _template(prompt, llm) for name, prompt in synthesizer.get_prompts().items()}
    templates = [name for name in settings if isinstance(own.get(name), BasePromptTemplate)]
    held = {name: settings.pop(name) for name in templates}
    return {
        "synthesizer": f"{kind.__module__}.{kind.__qualname__}",
        "model": _model(llm, model_id),
        "settings": parameters(settings, lenient=bool(model_id)),
        "prompt": json.dumps([parameters(prompts), parameters(held, lenient=bool(model_id))]),
        "parameters": parameters(given),
    }


def _has_output_parser(synthesizer: BaseSynthesizer) -> bool:
    """Return whether the answer is parsed: then it is only right for exactly the same question."""
    prompts = synthesizer.get_prompts().values()
    return _parser(synthesizer._llm) is not None or any(prompt.output_parser for prompt in prompts)


def _unbound(value: Any, owner: object) -> Any:
    """Return the function of a method of the synthesizer itself."""
    return value.__func__ if isinstance(value, MethodType) and value.__self__ is owner else value


def _setting(value: Any, llm: LLM, model_id: str) -> Any:
    if isinstance(value, BasePromptTemplate):
        return _template(value, llm)
    return _model(value, model_id) if isinstance(value, LLM) else value


def _template(prompt: BasePromptTemplate, llm: LLM) -> dict[str, Any]:
    functions = {name: selected_by(each) for name, each in (prompt.function_mappings or {}).items()}
    if None in functions.values():
        raise NotCacheable(
            "function_mappings", "the results of a template's functions are not known; use CachedLLM"
        )
    return {
        **({"examples": functions} if functions else {}),
        "template": prompt.get_template(llm=llm),
        "variables": prompt.kwargs,
        "names": prompt.template_var_mappings,
        "parser": _parser_identity(prompt.output_parser),
    }


def _model(llm: LLM, model_id: str) -> str:
    """Describe a model, its effect on prompts, and its output class."""
    if isinstance(llm, StructuredLLM):
        form = parameters({"form": llm.output_cls})
        return json.dumps([_model(llm.llm, model_id), form])
    wrapper = llm.query_wrapper_prompt
    around = _template(wrapper, llm) if wrapper is not None else None
    prompting = parameters({"wrapper": around, "parser": _parser_identity(_parser(llm))})
    return json.dumps(
        [llm.identity(model_id) if isinstance(llm, DelegatingLLM) else identity(llm, model_id), prompting]
    )


def _parser(llm: LLM) -> BaseOutputParser | None:
    return _parser(llm.llm) if isinstance(llm, StructuredLLM) else llm.output_parser


def _parser_identity(parser: BaseOutputParser | None) -> list[str] | None:
    """Describe a parser by its class, and by what it adds to prompts."""
    return None if parser is None else [type(parser).__qualname__, parser.format("")]


# The documents.


def documents_shown(texts: Sequence[str], nodes: Sequence[Retrieved]) -> tuple[Document, ...]:
    """Convert the texts of a synthesizer to documents, with the ids of the nodes that each text shows.

    A synthesizer may join several nodes; a text in which none is found may show any of them.
    """
    found = []
    given, of_text = [text.strip() for text in texts], dict[str, list[Retrieved]]()
    for node in nodes:
        of_text.setdefault(node.text, []).append(node)
    mixed = _nodes_in([text for text in given if text not in of_text], nodes)
    for text in given:
        behind = of_text.get(text) or next(mixed) or [*nodes] or [Retrieved(digest(text), text)]
        shown = Document(behind[0].id, text, source=behind[0].source)
        named = dict.fromkeys((node.id, node.source) for node in behind)
        found += [renamed(shown, id_, source) for id_, source in named]
    return tuple(found)


def _nodes_in(texts: Sequence[str], nodes: Sequence[Retrieved]) -> Iterator[list[Retrieved]]:
    """Yield the nodes that occur in each of the texts."""
    whole = _BETWEEN.join(texts)
    begins = [0, *accumulate(len(text) + len(_BETWEEN) for text in texts)]
    places = find_positions(whole, (node.text for node in nodes))
    shown: list[list[Retrieved]] = [[] for _ in texts]
    for node in nodes:
        size, numbers = len(node.text), set[int]()
        for start in places.get(node.text, ()):
            number = bisect_right(begins, start) - 1
            fits = number not in numbers and start + size < begins[number + 1]
            if fits and whole.startswith(node.text, start):
                numbers.add(number)
                shown[number].append(node)
    return iter(shown)
