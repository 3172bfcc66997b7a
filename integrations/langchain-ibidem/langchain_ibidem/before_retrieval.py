"""`answer_first`: a question is looked up before the chain retrieves anything, by the state of its corpus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document as Chunk
from langchain_core.globals import get_llm_cache
from langchain_core.indexing import RecordManager
from langchain_core.outputs import LLMResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from pydantic import ConfigDict, PrivateAttr

from ibidem.adapter.call import AdapterCache, attempt, collect_calls
from ibidem.adapter.corpus import RESTS_ON, Corpus, ProgramCall, description_digest, warn_unnamed
from ibidem.adapter.model_state import temperature_of
from ibidem.adapter.provider_fields import MODEL_KEYS
from ibidem.adapter.streams import astep_within, step_within
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.lifecycle.rules import COMPLETE
from ibidem.matching.documents import NewDocuments
from ibidem.options import AnswerFirstOptions
from ibidem.prompts.key import GENERAL_KEYS, QUESTION_KEYS
from ibidem.provenance import MARKER
from ibidem.types import Answer, Document, Request, require_name
from langchain_ibidem.cache import IbidemCache
from langchain_ibidem.call import HOOKS, ChunkWatcher
from langchain_ibidem.chain_identity import describe_chain, described, filled_in, require_stateless
from langchain_ibidem.indexing import arecord_keys, record_keys
from langchain_ibidem.messages import finish_reason_of, provider_info, to_json
from langchain_ibidem.model_identity import scope_of_run
from langchain_ibidem.outputs import OutputAccumulator, RepeatedOutput, pack_output, remember_output
from langchain_ibidem.tracking import retrieved

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


def answer_first(
    chain: Runnable[Any, Any],
    cache: IbidemCache | SemanticCache | None = None,
    *,
    corpus: str | Callable[[], Any] | RecordManager,
    new_documents: NewDocuments = "miss",
    input_key: str = "",
    name: str = "",
    **options: Unpack[AnswerFirstOptions],
) -> AnswerFirst:
    """Return the chain, which is only run for questions that it has not answered over this corpus before.

    The question is compared by meaning; the corpus, the other inputs, the chain with its prompts, models and
    settings, and the tenant exactly. So nothing is retrieved for a hit, and nothing that changed is missed.

    Args:
        chain: Retrieves and answers: any runnable without a memory of its own.
        cache: An `IbidemCache` or an open `ibidem.SemanticCache`, which stays yours to close. By default that
            of `install()`; without one, one is opened.
        corpus: What the chain searches, at one time: a version as a text, a `RecordManager`, or a function,
            which may be async, that returns a version, or a mapping of document ids to versions.
        new_documents: `miss`: whatever is added, changed or deleted ends all answers. `ignore`: only what the
            documents of an answer say counts; the corpus must tell them apart.
        input_key: The input that holds the question, where it is not one of the usual ones.
        name: Names what the chain holds and nothing describes, such as its vector store. Without it such
            objects are compared by identity, and answers are found in this process only.
        **options: For `IbidemCache`: `namespace`, `semantic`, ..., and those of `ibidem.open`.

    Raises:
        InvalidInput: An argument cannot be used; the chain keeps a conversation of its own, or is an agent.
        IbidemError: The cache cannot be opened.
    """
    return AnswerFirst(
        chain, cache, _corpus_of(corpus, new_documents), input_key=input_key, name=name, options=options
    )


class AnswerFirst(RunnableSerializable[Any, Any]):
    """What `answer_first` returns: a runnable with the input and the output of the chain."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    chain: Runnable[Any, Any]
    _cache: IbidemCache = PrivateAttr()
    _owned: bool = PrivateAttr()
    _adapter: AdapterCache = PrivateAttr()
    _corpus: Corpus = PrivateAttr()
    _question_keys: tuple[str, ...] = PrivateAttr()
    _name: str = PrivateAttr()

    def __init__(
        self,
        chain: Runnable[Any, Any],
        cache: IbidemCache | SemanticCache | None,
        corpus: Corpus,
        *,
        input_key: str,
        name: str,
        options: Mapping[str, Any],
    ) -> None:
        require_stateless(chain)
        require_name("input_key", input_key)
        require_name("name", name)
        if isinstance(cache, IbidemCache) and options:
            raise InvalidInput(f"an IbidemCache has its options already (got {sorted(options)})")
        installed: Any = get_llm_cache() if cache is None and not options else cache
        super().__init__(chain=chain)  # type: ignore[call-arg]  # pydantic makes it of the fields
        self._owned = not isinstance(installed, IbidemCache)
        self._cache = IbidemCache(cast(Any, cache), **options) if self._owned else installed
        self._adapter = AdapterCache(self._cache.cache, "LangChain")
        self._corpus, self._name = corpus, name
        named = tuple(filter(None, (input_key, *self._cache._requests.options.question_keys)))
        self._question_keys = named if input_key else (*named, *QUESTION_KEYS, *GENERAL_KEYS)
        HOOKS.hold(self._adapter)
        if not name:
            attempt(self._adapter.faults, "describe a chain", self._warn_unnamed)

    @property
    def cache(self) -> SemanticCache:
        """The cache in use."""
        return self._cache.cache

    def faults(self) -> dict[str, int]:
        """Count the questions that were not cached and the failures that were swallowed, by cause."""
        return self._adapter.faults.counts()

    def close(self) -> None:
        """Close the cache if it was opened here; one that was passed in, or installed, stays open."""
        HOOKS.release(self._adapter)
        if self._owned:
            self._cache.close()

    def _warn_unnamed(self) -> None:
        strict, lenient = (describe_chain(self.chain, named=named) for named in (False, True))
        warn_unnamed(strict, lenient, "a chain", "answer_first(..., name=...)")

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return the stored answer, or run the chain."""
        return self._call_with_config(cast(Any, self._invoke), input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """As `invoke`; the cache works in threads."""
        return await self._acall_with_config(cast(Any, self._ainvoke), input, config, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Stream the stored answer in pieces, or the chain."""
        yield from self._transform_stream_with_config(
            iter([input]), cast(Any, self._stream), config, **kwargs
        )

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """As `stream`."""

        async def given() -> AsyncIterator[Any]:
            yield input

        async for chunk in self._atransform_stream_with_config(
            given(), cast(Any, self._astream), config, **kwargs
        ):
            yield chunk

    @property
    def InputType(self) -> Any:
        """That of the chain."""
        return self.chain.InputType

    @property
    def OutputType(self) -> Any:
        """That of the chain."""
        return self.chain.OutputType

    def get_input_schema(self, config: RunnableConfig | None = None) -> Any:
        """Return that of the chain."""
        return self.chain.get_input_schema(config)

    def get_output_schema(self, config: RunnableConfig | None = None) -> Any:
        """Return that of the chain."""
        return self.chain.get_output_schema(config)

    @property
    def config_specs(self) -> Any:
        """Those of the chain."""
        return self.chain.config_specs

    def get_graph(self, config: RunnableConfig | None = None) -> Any:
        """Return that of the chain."""
        return self.chain.get_graph(config)

    def _invoke(self, given: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        call, run = self._begin(given, config, kwargs)
        if (found := call.lookup()) is not None:
            return found.output
        with call, collect_calls(call.within):
            output = self.chain.invoke(given, config, **kwargs)
        if stored := call.store(partial(run.answer, call, output), output):
            remember_output(output, stored)
        return output

    async def _ainvoke(self, given: Any, config: RunnableConfig, **kwargs: Any) -> Any:
        call, run = self._begin(given, config, kwargs)
        if (found := await call.alookup()) is not None:
            return found.output
        with call, collect_calls(call.within):
            output = await self.chain.ainvoke(given, config, **kwargs)
        if stored := await call.astore(partial(run.answer, call, output), output):
            remember_output(output, stored)
        return output

    def _stream(self, inputs: Iterator[Any], config: RunnableConfig, **kwargs: Any) -> Iterator[Any]:
        (given,) = inputs
        call, run = self._begin(given, config, kwargs)
        if (found := call.lookup()) is not None:
            yield from call.replay(found.pieces())
            return
        with call:
            stream = step_within(
                self.chain.stream(given, config, **kwargs), partial(collect_calls, call.within)
            )
            recorded = call.record(stream, OutputAccumulator(partial(run.answer, call)))
        yield from recorded

    async def _astream(
        self, inputs: AsyncIterator[Any], config: RunnableConfig, **kwargs: Any
    ) -> AsyncIterator[Any]:
        (given,) = [each async for each in inputs]
        call, run = self._begin(given, config, kwargs)
        if (found := await call.alookup()) is not None:
            for piece in found.pieces():
                yield piece
            return

        async def chunks() -> AsyncIterator[Any]:
            stream = self.chain.astream(given, config, **kwargs)
            async for chunk in astep_within(stream, partial(collect_calls, call.within)):
                yield chunk
            await call.aread()

        with call:
            recorded = call.arecord(chunks(), OutputAccumulator(partial(run.answer, call)))
        try:
            async for chunk in recorded:
                yield chunk
        finally:
            await recorded.aclose()

    def _begin(
        self, given: Any, config: RunnableConfig, kwargs: Mapping[str, Any]
    ) -> tuple[ProgramCall[RepeatedOutput], _Run]:
        run = _Run()
        cast(Any, config["callbacks"]).add_handler(run, inherit=True)
        asked = self._question_of(given)
        run.question = asked[0] if asked is not None else ""
        build = partial(self._request, asked, config, kwargs)
        read_hit = partial(RepeatedOutput.of, run.question)
        return ProgramCall(self._adapter, self._corpus, build, read_hit), run

    def _request(
        self,
        asked: tuple[str, dict[str, Any]] | None,
        config: RunnableConfig,
        kwargs: Mapping[str, Any],
        corpus: str,
    ) -> Request:
        options = self._cache._requests.options
        scope = scope_of_run(config.get("metadata") or {}, {}, required=options.require_namespace)
        if asked is None:
            raise NotCacheable(
                "no_question",
                "the input of the chain is no text, and no input that holds the question is known: name it "
                "with answer_first(..., input_key=...)",
            )
        question, others = asked
        chain = describe_chain(self.chain, named=bool(self._name))
        chosen = config.get("configurable") or {}
        parts = {
            "input": described(others),
            "parameters": described(kwargs),
            "configuration": described({k: v for k, v in chosen.items() if not k.startswith("__")}),
            "prompt variables": described(filled_in(self.chain)),
            "name": self._name,
        }
        return Request(
            question,
            scope={
                "adapter": "answer_first/1",
                "chain": description_digest(chain),
                "corpus": corpus,
                **{key: text for key, text in parts.items() if text not in ("", "{}")},
            },
            namespace=scope.name(options.namespace),
            scope_context=scope,
            semantic=options.semantic,
            temperature=temperature_of([chain]),
        )

    def _question_of(self, given: Any) -> tuple[str, dict[str, Any]] | None:
        """Return the question among the inputs, and the others; None if there is none."""
        if isinstance(given, str) and given.strip():
            return given, {}
        for key in self._question_keys if isinstance(given, Mapping) else ():
            if isinstance(text := given.get(key), str) and text.strip():
                return text, {"question in": key, **{k: v for k, v in given.items() if k != key}}
        return None


def _corpus_of(given: object, new_documents: NewDocuments) -> Corpus:
    if not isinstance(given, RecordManager):
        return Corpus.of(given, new_documents)
    name = f"records {given.namespace}"
    return Corpus(name, partial(record_keys, given), partial(arecord_keys, given), new_documents)


# One run of it -----------------------------------------------------------------------------------------


class _Run(BaseCallbackHandler):
    """What happens within one run of the chain: documents, what models spent, and what went wrong."""

    def __init__(self) -> None:
        self.question = ""
        self.documents: dict[tuple[str, str], Document] = {}
        self._searching: set[UUID | None] = set()  # runs in which other retrievers searched
        self._streams: dict[UUID, ChunkWatcher] = {}
        self._usage: tuple[int | None, int | None] = (None, None)
        self._model, self._cut, self._objection = "", "", ("", "")

    def on_chat_model_start(self, *args: Any, **kwargs: Any) -> None:
        """Nothing; LangChain wants this method."""

    def on_retriever_start(self, *args: Any, parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        """Note the run in which it searches: that of another retriever, if that passes on what this finds."""
        self._searching.add(parent_run_id)

    def on_retriever_end(self, documents: Sequence[Chunk], *, run_id: UUID, **kwargs: Any) -> None:
        """Note the documents."""
        if run_id not in self._searching:
            self.documents |= _documents(documents)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **kwargs: Any) -> None:
        """Look whether the model says that this is the end."""
        self._streams.setdefault(run_id, ChunkWatcher()).on_llm_new_token(token, chunk=chunk)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Note what the model said about its answer, unless it is repeated from a cache."""
        for generations in response.generations:
            about = provider_info(generations[0])
            if MARKER in about:
                continue
            reason = finish_reason_of(generations)
            self._cut = self._cut or ("" if reason.lower() in COMPLETE else reason)
            streamed = self._streams.get(run_id)
            if streamed is not None and not (reason or streamed.saw_last):
                self._objection = (
                    "unfinished_stream",
                    "a stream ended without a finish reason, so it may have been cut off",
                )
            named = (value for key in MODEL_KEYS if isinstance(value := about.get(key), str))
            self._model = next(named, self._model)
            message = getattr(generations[0], "message", None)
            if usage := getattr(message, "usage_metadata", None):
                spent = (usage["input_tokens"], usage["output_tokens"])
                self._usage = cast(Any, tuple((a or 0) + b for a, b in zip(self._usage, spent, strict=True)))

    def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        """Note that a part of the answer may be missing, or that a fallback gave it."""
        self._objection = (
            "incomplete_run",
            "a model, retriever or tool failed while the question was answered",
        )

    on_retriever_error = on_tool_error = on_llm_error

    def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
        """Note that the chain acts, which a hit would not."""
        self._objection = (
            "tool_called",
            "the chain called a tool, which it would not if its answer was repeated",
        )

    def answer(self, call: ProgramCall[Any], output: Any) -> Answer | None:
        """Build the answer to store.

        Raises:
            NotCacheable: It must not be repeated, or cannot be restored.
        """
        if self._objection[0]:
            raise NotCacheable(*self._objection)
        documents = tuple((self.documents or _documents(_documents_in(output))).values())
        if (rests_on := call.rests_on(documents)) is None:
            return None
        text, packed, semantic = pack_output(output, self.question)
        spent = call.tokens(self._usage)
        return Answer(
            text,
            payload=to_json({**packed, **({RESTS_ON: rests_on} if rests_on else {})}),
            model=self._model or next((hit.answer.model for hit in call.within.hits), ""),
            input_tokens=spent[0],
            output_tokens=spent[1],
            finish_reason=self._cut,
            seconds=call.seconds,
            semantic=semantic,
            documents=documents,
        )


def _documents(chunks: Iterable[Chunk]) -> dict[tuple[str, str], Document]:
    found = (retrieved(chunk) for chunk in chunks)
    made = (Document(one.id, one.text, source=one.source) for one in found if one.text)
    return {(document.id, document.digest): document for document in made}


def _documents_in(value: Any) -> Iterator[Chunk]:
    if isinstance(value, Chunk):
        yield value
    elif isinstance(value, (list, Mapping)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _documents_in(inner)
