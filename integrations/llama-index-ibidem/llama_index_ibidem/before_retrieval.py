"""`AnswerFirst`: a question is looked up before the engine retrieves anything, by the state of its corpus."""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.chat_engine.types import BaseChatEngine
from llama_index.core.data_structs.data_structs import IndexDict, IndexList
from llama_index.core.indices.base import BaseIndex
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts.mixin import PromptMixin
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.storage import StorageContext
from llama_index.core.storage.docstore import BaseDocumentStore
from llama_index.core.tools import BaseTool
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from ibidem.adapter.call import AdapterCache, attempt, collect_calls
from ibidem.adapter.corpus import RESTS_ON, Corpus, ProgramCall, description_digest, warn_unnamed
from ibidem.adapter.model_state import state_of, temperature_of
from ibidem.adapter.options import AdapterOptions
from ibidem.adapter.streams import astep_within, step_within
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.matching.documents import NewDocuments
from ibidem.options import CacheOptions
from ibidem.provenance import remember
from ibidem.scope import require_scope
from ibidem.types import Answer, Document, Hit, Request, Stored, require_name
from llama_index_ibidem.calls import CallStats, call_watcher, counted_in
from llama_index_ibidem.delegation import DelegatingLLM
from llama_index_ibidem.few_shot import selected_by
from llama_index_ibidem.indexing import document_hashes, nodes_of_documents
from llama_index_ibidem.replay import astream_of, stream_of
from llama_index_ibidem.request import OPERATIONAL_SETTINGS, RULES, parameters
from llama_index_ibidem.responses import MARKER
from llama_index_ibidem.spans import STREAMS, as_documents, span_watcher
from llama_index_ibidem.synthesizer import CachedSynthesizer, TextAccumulator

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_STREAMING = (StreamingResponse, AsyncStreamingResponse)


class AnswerFirst(BaseQueryEngine):
    """A query engine that is only asked what it has not answered over this corpus before.

    The question is compared by meaning; the corpus, the engine with its prompts, models and settings, and the
    tenant exactly. So nothing is retrieved for a hit, and nothing that changed is missed. The response has
    the source nodes of the stored answer.

    Args:
        query_engine: The engine.
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        corpus: What the engine searches, at one time: an index, a document store (also that of an
            `IngestionPipeline`), a version as a text, or a function, which may be async, that returns a
            version, or a mapping of document ids to versions.
        new_documents: `miss`: whatever is added, changed or deleted ends all answers. `ignore`: only what the
            documents of an answer say counts; the corpus must tell them apart.
        name: Names what the engine holds and nothing describes, such as its vector store. Without it such
            objects are compared by identity, and answers are found in this process only.
        namespace: Tenant or application: answers stored in one are never served in another (`ibidem.scope`).
        semantic: False to repeat answers to identical questions only.
        require_namespace: True to cache only questions within `ibidem.scope(namespace=...)`.
        **options: For `ibidem.open`: `path`, `max_error_rate`, `embedder`, ...

    Raises:
        InvalidInput: An argument cannot be used.
        IbidemError: The cache cannot be opened.
    """

    def __init__(
        self,
        query_engine: BaseQueryEngine,
        cache: SemanticCache | None = None,
        *,
        corpus: str | Callable[[], Any] | BaseDocumentStore | BaseIndex[Any],
        new_documents: NewDocuments = "miss",
        name: str = "",
        namespace: str = "",
        semantic: bool = True,
        require_namespace: bool = False,
        **options: Unpack[CacheOptions],
    ) -> None:
        _require_engine(query_engine)
        self._engine, self._name = query_engine, require_name("name", name)
        self._corpus = _corpus_of(corpus, new_documents)
        self._options = AdapterOptions(namespace, semantic=semantic, require_namespace=require_namespace)
        self._adapter = AdapterCache.of(cache, "LlamaIndex", owner=type(self).__name__, options=options)
        super().__init__(callback_manager=query_engine.callback_manager)
        call_watcher.watch()
        STREAMS.hold(self._adapter)
        if not name:
            attempt(self._adapter.faults, "describe an engine", self._warn_unnamed)

    @property
    def cache(self) -> SemanticCache:
        """The cache in use."""
        return self._adapter.cache

    @property
    def query_engine(self) -> BaseQueryEngine:
        """The engine that is asked on a miss."""
        return self._engine

    def faults(self) -> dict[str, int]:
        """Count the questions that were not cached and the failures that were swallowed, by cause."""
        return self._adapter.faults.counts()

    def close(self) -> None:
        """Close the cache if it was opened here; one that was passed in stays open."""
        self._adapter.close()
        STREAMS.release(self._adapter)

    def _warn_unnamed(self) -> None:
        strict, lenient = (state_of(self._engine, _RULES, lenient=named) for named in (False, True))
        warn_unnamed(strict, lenient, "an engine", "AnswerFirst(..., name=...)")

    @property
    def callback_manager(self) -> CallbackManager:
        """The callback manager of the engine."""
        return self._engine.callback_manager

    @callback_manager.setter
    def callback_manager(self, callback_manager: CallbackManager) -> None:
        self._engine.callback_manager = callback_manager

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Retrieve, as the engine does."""
        return self._engine.retrieve(query_bundle)

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Synthesise, as the engine does."""
        return self._engine.synthesize(query_bundle, nodes, additional_source_nodes)

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """As `synthesize`."""
        return await self._engine.asynthesize(query_bundle, nodes, additional_source_nodes)

    def _get_prompts(self) -> dict[str, Any]:
        return self._engine._get_prompts()

    def _get_prompt_modules(self) -> Any:
        return self._engine._get_prompt_modules()

    def _update_prompts(self, prompts: Any) -> None:
        self._engine._update_prompts(prompts)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        call, stats = self._call(query_bundle)
        found = call.lookup()
        self._note(call.hit)
        if found is not None:
            return self._repeated(call, query_bundle, found.response(in_async=False, call=call))
        with call, _within(call, stats):
            ask = self._engine.query if _overrides(self._engine, "query") else self._engine._query
            response = ask(query_bundle)
        if isinstance(response, _STREAMING):
            return self._recorded(call, stats, response)
        if stored := call.store(partial(_answer, call, stats, response)):
            remember(response, stored)
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        call, stats = self._call(query_bundle)
        found = await call.alookup()
        self._note(call.hit)
        if found is not None:
            return self._repeated(call, query_bundle, found.response(in_async=True, call=call))
        with call, _within(call, stats):
            ask = self._engine.aquery if _overrides(self._engine, "aquery") else self._engine._aquery
            response = await ask(query_bundle)
        if isinstance(response, _STREAMING):
            return self._recorded(call, stats, response)
        if stored := await call.astore(partial(_answer, call, stats, response)):
            remember(response, stored)
        return response

    def _call(self, query_bundle: QueryBundle) -> tuple[ProgramCall[_Found], CallStats]:
        build = partial(self._request, query_bundle)
        return ProgramCall(self._adapter, self._corpus, build, _Found), CallStats()

    def _request(self, query_bundle: QueryBundle, corpus: str) -> Request:
        question, options = query_bundle.query_str, self._options
        if not question.strip():
            raise NotCacheable("no_question", "the question is empty")
        scope, judged = require_scope(required=options.require_namespace), span_watcher.context().judged
        _require_known_prompts(self._engine)
        others = {
            "texts": query_bundle.custom_embedding_strs,
            "image": query_bundle.image_path,
            "embedding": query_bundle.embedding,
        }
        given = {name: value for name, value in others.items() if value is not None}
        engine = state_of(self._engine, _RULES, lenient=bool(self._name))
        return Request(
            question,
            scope={
                "adapter": "answer_first/llama_index/1",
                "engine": description_digest(engine),
                "corpus": corpus,
                **({"input": parameters(given)} if given else {}),
                **({"name": self._name} if self._name else {}),
            },
            namespace=scope.name(options.namespace),
            scope_context=scope,
            semantic=options.semantic and not judged,
            example=not judged,
            temperature=temperature_of([engine]),
        )

    def _note(self, hit: Hit | None) -> None:
        """Let the responses of the engines around say what the cache said."""
        record = partial(span_watcher.record_lookup, hit, calls=0 if hit is None else 1)
        attempt(self._adapter.faults, "mark a response", record)

    def _repeated(
        self, call: ProgramCall[Any], query_bundle: QueryBundle, response: RESPONSE_TYPE
    ) -> RESPONSE_TYPE:
        """Tell the handlers of a query, as the engine would."""
        if call.hit is not None:
            remember(response, call.hit)
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    def _recorded(
        self, call: ProgramCall[Any], stats: CallStats, response: StreamingResponse | AsyncStreamingResponse
    ) -> RESPONSE_TYPE:
        """Store what is streamed, if it is read to its end; calls of models meanwhile belong to it."""
        within = partial(_within, call, stats)
        nodes, metadata = list(response.source_nodes), dict(response.metadata or {})

        def answer(text: str) -> Answer | None:
            return _answer(call, stats, Response(text, nodes, metadata), streamed=True)

        def on_stored(stored: Stored) -> None:
            remember(response, stored)

        accumulator = TextAccumulator(answer)
        if isinstance(response, StreamingResponse):
            stream = step_within(response.response_gen, within)
            response.response_gen = call.record(stream, accumulator, on_stored)
        else:
            steps = astep_within(response.response_gen, within)

            async def pieces() -> AsyncIterator[str]:
                async for piece in steps:
                    yield piece
                await call.aread()

            response.response_gen = call.arecord(pieces(), accumulator, on_stored)
        return response


@contextmanager
def _within(call: ProgramCall[Any], stats: CallStats) -> Iterator[None]:
    with collect_calls(call.within), counted_in(stats):
        yield


def _overrides(engine: BaseQueryEngine, name: str) -> bool:
    return inspect.getattr_static(type(engine), name) is not vars(BaseQueryEngine)[name]


# The engine and its corpus.


def _require_engine(query_engine: object) -> None:
    if isinstance(query_engine, BaseChatEngine):
        raise InvalidInput(
            "a chat engine keeps a conversation, which is not known before it runs: put AnswerFirst around "
            "the query engine that it asks (CondenseQuestionChatEngine takes one), or cache its model"
        )
    if not isinstance(query_engine, BaseQueryEngine):
        kind = type(query_engine).__name__
        raise InvalidInput(f"query_engine must be a query engine of LlamaIndex, not {kind}")
    if isinstance(query_engine, AnswerFirst):
        raise InvalidInput("this engine answers first already")


def _require_known_prompts(engine: BaseQueryEngine) -> None:
    """Raise `NotCacheable` if functions fill the prompts of the engine: what they return is not known."""
    for prompt in engine.get_prompts().values():
        functions = (prompt.function_mappings or {}).values()
        if any(selected_by(each) is None for each in functions):
            raise NotCacheable(
                "function_mappings", "the results of a template's functions are not known; use CachedLLM"
            )


def _corpus_of(given: object, new_documents: NewDocuments) -> Corpus:
    if isinstance(given, BaseIndex):
        return Corpus("index", partial(_index_state, given), new_documents=new_documents)
    if isinstance(given, BaseDocumentStore):
        return Corpus("docstore", partial(document_hashes, given), new_documents=new_documents)
    return Corpus.of(given, new_documents)


def _index_state(index: BaseIndex[Any]) -> dict[str, str]:
    """Return the hashes of its documents and nodes; nodes that it does not hold any more are left out."""
    struct, hashes = index.index_struct, document_hashes(index.docstore)
    if isinstance(struct, IndexDict):
        held = list(struct.nodes_dict.values())
    elif isinstance(struct, IndexList):
        held = struct.nodes
    else:
        return hashes
    if not held:  # the vector store holds the nodes, or there are none
        return hashes
    gone = nodes_of_documents(index.docstore).difference(held)
    kept = {id_: hash_ for id_, hash_ in hashes.items() if id_ not in gone}
    return {**dict.fromkeys(held, ""), **kept, "number of nodes": str(len(held))}


def _unwrap(value: Any) -> Any:
    """Return what a wrapper of ours stands for.

    Raises:
        NotCacheable: A model keeps a conversation of its own.
    """
    while isinstance(value, (DelegatingLLM, CachedSynthesizer)):
        value = value.llm if isinstance(value, DelegatingLLM) else value._synthesizer
    if isinstance(value, LLM) and getattr(value, "track_previous_responses", False):
        raise NotCacheable(
            "stateful_model", "its provider keeps the conversation, so prompts lack a part of it"
        )
    return value


_RULES = RULES._replace(
    operational=OPERATIONAL_SETTINGS,
    by_attributes=(PromptMixin, BaseRetriever, BaseTool),
    by_identity=(BasePydanticVectorStore, BaseIndex, BaseDocumentStore, StorageContext),
    unwrap=_unwrap,
)


# The response.


def _answer(
    call: ProgramCall[Any], stats: CallStats, response: RESPONSE_TYPE, *, streamed: bool = False
) -> Answer | None:
    """Build the answer to store; None if it must not be.

    Raises:
        NotCacheable: It cannot be restored, or the corpus changed.
    """
    if not isinstance(response, Response):
        raise NotCacheable(
            "output_kind", f"a {type(response).__name__} is not stored; its model's answers are"
        )
    documents = _documents(response.source_nodes)
    if (rests_on := call.rests_on(documents)) is None:
        return None
    metadata = {name: value for name, value in (response.metadata or {}).items() if name != MARKER}
    held = {
        "text": response.response or "",
        "streamed": streamed,
        "nodes": [_dumped(node) for node in response.source_nodes],
        "metadata": metadata,
        **({RESTS_ON: rests_on} if rests_on else {}),
    }
    input_tokens, output_tokens = call.tokens((stats.input_tokens, stats.output_tokens))
    return Answer(
        response.response or "",
        payload=_to_json(held),
        model=stats.model,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        finish_reason=stats.cut,
        seconds=call.seconds,
        documents=documents,
    )


def _documents(nodes: Sequence[NodeWithScore]) -> tuple[Document, ...]:
    found = (Document(one.id, one.text, source=one.source) for one in as_documents(nodes))
    return tuple({(document.id, document.digest): document for document in found}.values())


def _to_json(held: dict[str, Any]) -> str:
    try:
        text = json.dumps(held, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise NotCacheable("not_json", f"the response is not JSON ({type(error).__name__})") from None
    if json.loads(text) != held:
        raise NotCacheable(
            "not_json", "the response holds what JSON changes (tuples, keys that are not text)"
        )
    return text


def _dumped(scored: NodeWithScore) -> dict[str, Any]:
    node = scored.node.model_copy(update={"embedding": None})  # nobody reads that of an answer
    score = None if scored.score is None else float(scored.score)
    dumped = {"class": _name(type(node)), "node": node.model_dump(mode="json"), "score": score}
    if _restored(dumped).node != node:
        raise NotCacheable(
            "not_json", f"a {type(node).__name__} holds what JSON changes (sets, dates, objects)"
        )
    return dumped


def _restored(dumped: Mapping[str, Any]) -> NodeWithScore:
    """Restore a node, of a class that the program has loaded: a stored row must not load any."""
    kinds = [BaseNode]
    for kind in kinds:
        kinds += kind.__subclasses__()
    known = {_name(kind): kind for kind in kinds}
    node = known[dumped["class"]].model_validate(dumped["node"])
    return NodeWithScore(node=node, score=dumped["score"])


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class _Found:
    """A stored response, to be repeated. Whatever may be wrong with what is stored is raised here."""

    def __init__(self, hit: Hit) -> None:
        held = json.loads(hit.answer.payload)
        self._text: str = held["text"]
        self._streamed: bool = held["streamed"]
        self._nodes = [_restored(node) for node in held["nodes"]]
        self._metadata: dict[str, Any] = held["metadata"]

    def response(self, *, in_async: bool, call: ProgramCall[Any]) -> RESPONSE_TYPE:
        """Make a new response, streamed if the engine streams."""
        nodes, metadata = self._nodes, self._metadata
        if not self._streamed:
            return Response(self._text, nodes, metadata)
        if in_async:
            return AsyncStreamingResponse(call.replay(astream_of(self._text)), nodes, metadata)
        return StreamingResponse(call.replay(cast(Any, stream_of(self._text))), nodes, metadata)
