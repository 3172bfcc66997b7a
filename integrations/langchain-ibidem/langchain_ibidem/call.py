"""The model calls under way: one hook on LangChain's methods, one context variable.

LangChain hands a cache two strings. The model, the arguments of the call and the metadata of its run are
parameters of the methods that ask the cache: `BaseChatModel._generate_with_cache` and `BaseLLM.generate`,
sync and async. A hook around these four sets a context variable to what they are given, and ends what was
looked up in vain when they fail. It is there as long as an `IbidemCache` is.

Nothing is guessed. A cache that LangChain asks itself is asked in the order of the prompts; through a cache
around ours, the strings are compared with those of the call. If there is no call (somebody asks the cache
directly, or in a thread without the context), the caller is unknown and only the strings count.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Protocol
from uuid import UUID

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.load import dumps
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, LLMResult
from langchain_core.runnables import Runnable
from langchain_core.utils.utils import LC_ID_PREFIX

from ibidem._util.concurrency import ForkSafeLock
from ibidem.adapter.streams import StreamMethods
from ibidem.errors import NotCacheable
from langchain_ibidem.messages import Chunk, chat_chunks, completion_chunks

Method = Callable[..., Any]


@dataclass(frozen=True, slots=True, eq=False)
class ModelCall:
    """One call of a model.

    Attributes:
        model: The model; None if a cache around ours has changed what is asked.
        run: LangChain's manager of the run. The run of a completion model begins after the lookup.
        parameters: Those of this call alone, without `stop`.
        begin: Begins the run of a completion model, as a list of one; in async code, awaited.
    """

    model: Any
    run: Any = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stop: list[str] | None = None
    begin: Callable[[], Any] | None = None

    @classmethod
    def in_config(
        cls, model: Any, config: Mapping[str, Any], parameters: Mapping[str, Any], stop: list[str] | None
    ) -> ModelCall:
        """Describe a call whose run LangChain begins by this configuration, without telling us of it."""
        manager = CallbackManager.configure(
            config.get("callbacks"),
            model.callbacks,
            inheritable_metadata=config.get("metadata"),
            local_metadata=model.metadata,
        )
        return cls(model, manager, parameters, stop)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata of the run."""
        return getattr(self.run, "metadata", None) or {}

    @property
    def inherited(self) -> Mapping[str, Any]:
        """The part of the metadata that the run was given from above."""
        return getattr(self.run, "inheritable_metadata", None) or {}

    @property
    def parent(self) -> UUID | None:
        """The id of the run around it."""
        return getattr(self.run, "parent_run_id", None)

    def streams_in_invoke(self, *, in_async: bool) -> bool:
        """Whether LangChain streams this call of `invoke`, since somebody follows it chunk by chunk."""
        if not isinstance(self.model, BaseChatModel):
            return False
        asked = {**self.parameters, "async_api": in_async, "run_manager": self.run}
        return self.streams_by_events(in_async=in_async) or self.model._should_stream(**asked)

    def streams_by_events(self, *, in_async: bool) -> bool:
        """The same by LangChain's newer protocol, which its older versions do not know."""
        asked = {**self.parameters, "async_api": in_async, "run_manager": self.run}
        by_events = getattr(self.model, "_should_use_protocol_streaming", None)
        return by_events is not None and bool(by_events(**asked))

    def watch(self) -> ChunkWatcher:
        """Follow the chunks of this run alone."""
        watcher = ChunkWatcher()
        # Managers of one batch share the list, so it is replaced, not changed.
        self.run.handlers = [*self.run.handlers, watcher]
        return watcher

    def token_events(self, found: Sequence[Generation], *, in_async: bool) -> TokenEvents | None:
        """Return the events of a hit; None where a miss would send no tokens.

        A message that is sent in pieces gets the id of these: LangGraph would show it once more.

        Raises:
            Exception: What was found is not the answer of such a model.
        """
        if self.model is None or self.run is None or len(found) != 1:
            return None
        (generation,) = found
        by_itself = self.parameters.get("stream", getattr(self.model, "streaming", None)) is True
        if isinstance(self.model, BaseLLM):
            return TokenEvents(self, generation, [*completion_chunks(generation)]) if by_itself else None
        if not isinstance(generation, ChatGeneration):
            return None
        by_events = self.streams_by_events(in_async=in_async)  # then LangChain sends a hit itself
        if not (by_events or by_itself or self.streams_in_invoke(in_async=in_async)):
            return None
        generation.message.id = run_message_id(self.run)
        if by_events:
            return None
        chunks = [*chat_chunks(generation)]
        for chunk in chunks:
            chunk.message.id = generation.message.id
        return TokenEvents(self, generation, [*chunks])


def run_message_id(run: Any) -> str | None:
    """Return the id that LangChain gives a message of this run which has none."""
    return f"{LC_ID_PREFIX}-{run.run_id}" if hasattr(run, "run_id") else None


@dataclass(frozen=True, slots=True)
class TokenEvents:
    """The events that handlers get of a hit. What the handlers raise is raised, as on a miss.

    Whoever follows an `invoke` token by token (`astream_events`, LangGraph's messages, handlers of a model
    with `streaming=True`) gets a miss in pieces, but of a hit of any cache LangChain tells the start and the
    end alone. So the cache sends the pieces to the handlers of the run before it returns the hit.
    """

    call: ModelCall
    found: Generation
    chunks: list[Chunk]

    def send(self) -> None:
        """Send them to the handlers of a sync call."""
        begin = self.call.begin
        run = begin()[0] if begin else self.call.run
        for chunk in self.chunks:
            run.on_llm_new_token(_token(chunk), chunk=chunk)
        if begin:
            run.on_llm_end(LLMResult(generations=[[self.found]]))

    async def asend(self) -> None:
        """Send them to the handlers of an async call."""
        begin = self.call.begin
        run = (await begin())[0] if begin else self.call.run
        for chunk in self.chunks:
            await run.on_llm_new_token(_token(chunk), chunk=chunk)
        if begin:
            await run.on_llm_end(LLMResult(generations=[[self.found]]))


def _token(chunk: Chunk) -> Any:
    return chunk.message.content if isinstance(chunk, ChatGenerationChunk) else chunk.text


class ChunkWatcher(BaseCallbackHandler):
    """Notes whether the model marked a chunk as its last one, in a stream inside `invoke`."""

    run_inline = True  # in async code it needs no thread

    def __init__(self) -> None:
        self.saw_last = False

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **kwargs: Any) -> None:
        """Look at one chunk. LangChain itself adds a last one, which holds nothing."""
        message: Any = getattr(chunk, "message", None)
        if getattr(message, "chunk_position", None) == "last":
            told = (message.content, message.response_metadata, message.usage_metadata)
            self.saw_last = any(told) or bool(message.tool_call_chunks)


def cache_strings(
    model: BaseChatModel | BaseLLM, asked: Any, stop: list[str] | None, parameters: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the two strings that LangChain hands a cache for this call: prompt and model."""
    if isinstance(model, BaseLLM):
        return asked, str(sorted(_completion_params(model, stop).items()))
    plain = [m if m.id is None else m.model_copy(update={"id": None}) for m in asked]
    return dumps(plain), model._get_llm_string(stop=stop, **parameters)


def _completion_params(model: BaseLLM, stop: list[str] | None) -> dict[str, Any]:
    return {**getattr(model, "_dict_for_compat", model.dict)(), "stop": stop}


class Lookup(Protocol):
    """What a cache looks up, as `PendingCalls` sees it: with `asked`, the cache and the two strings."""

    asked: tuple[BaseCache, str, str]

    def abort(self) -> None:
        """End it: the call has failed, and somebody else may ask."""


class PendingCalls:
    """The calls of one hooked method: one of a chat model, or the prompts of a completion model.

    As a context manager it is what `pending_calls` returns; lookups that have missed and not ended by then
    have failed.

    Args:
        given: The arguments of the method, by name.
        in_async: Whether it is a coroutine function.

    Attributes:
        lookups: Those that may still miss, or have; answers come in the same order.
    """

    def __init__(self, given: Mapping[str, Any], *, in_async: bool) -> None:
        self._model, self._given, self._in_async = given["self"], given, in_async
        self._stop, self._parameters = given.get("stop"), given.get("kwargs") or {}
        self._asked = 0  # how many prompts LangChain has asked our cache for
        self._token: Token[PendingCalls | None] | None = None
        self.lookups: list[Lookup] = []

    def model_call(self, cache: BaseCache, prompt: str, llm_string: str) -> ModelCall | None:
        """Return the call that a cache is asked for now; None if it is not one of these.

        Raises:
            NotCacheable: Prompts of several callers, and a cache around this one hides which it is.
        """
        if cache_of(self._model) is not cache:
            return self._through_another_cache(prompt, llm_string)
        number, self._asked = self._asked, self._asked + 1
        return self._call(number, prompt)

    def take(self, asked: tuple[BaseCache, str, str]) -> Lookup | None:
        """Remove the lookup of what is answered now, and return it; None if there was none."""
        found = next((lookup for lookup in self.lookups if lookup.asked == asked), None)
        if found is not None:
            self.lookups.remove(found)
        return found

    def __enter__(self) -> PendingCalls:
        self._token = _pending.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(ValueError):  # an abandoned coroutine is closed in another context
            if self._token is not None:
                _pending.reset(self._token)
        lookups, self.lookups = self.lookups, []
        for lookup in lookups:
            lookup.abort()

    def _call(self, number: int, prompt: str) -> ModelCall | None:
        raise NotImplementedError

    def _through_another_cache(self, prompt: str, llm_string: str) -> ModelCall | None:
        raise NotImplementedError


class _PendingChat(PendingCalls):
    """One call of a chat model."""

    def _call(self, number: int, prompt: str) -> ModelCall | None:
        run = self._given["run_manager"]
        return ModelCall(self._model, run, self._parameters, self._stop) if number == 0 else None

    def _through_another_cache(self, prompt: str, llm_string: str) -> ModelCall | None:
        strings = cache_strings(self._model, self._given["messages"], self._stop, self._parameters)
        if strings == (prompt, llm_string):
            return self._call(0, prompt)
        return ModelCall(None, self._given["run_manager"])


class _PendingCompletion(PendingCalls):
    """The prompts of one call of a completion model."""

    def __init__(self, given: Mapping[str, Any], *, in_async: bool) -> None:
        super().__init__(given, in_async=in_async)
        self._prompts: Sequence[str] = given["prompts"]
        callbacks = given["callbacks"]  # LangChain tells by them whether there is one option for each prompt
        first = callbacks[0] if isinstance(callbacks, list) and callbacks else ()
        self._several = first is None or isinstance(first, (list, BaseCallbackManager))

    def _call(self, number: int, prompt: str) -> ModelCall | None:
        if number >= len(self._prompts) or self._prompts[number] != prompt:
            return None
        return self._described(number)

    def _through_another_cache(self, prompt: str, llm_string: str) -> ModelCall | None:
        same = [number for number, asked in enumerate(self._prompts) if asked == prompt]
        calls = [self._described(number) for number in same or range(len(self._prompts))]
        if any((c.metadata, c.inherited) != (calls[0].metadata, calls[0].inherited) for c in calls):
            raise NotCacheable("caller_unreadable", "a cache around this one hides which prompt is whose")
        if same and cache_strings(self._model, prompt, self._stop, {}) == (prompt, llm_string):
            return calls[0]
        return ModelCall(None, calls[0].run)

    def _described(self, number: int) -> ModelCall:
        kind = AsyncCallbackManager if self._in_async else CallbackManager
        manager = kind.configure(
            self._option("callbacks", number),
            self._model.callbacks,
            self._model.verbose,
            self._option("tags", number),
            self._model.tags,
            self._option("metadata", number),
            self._model.metadata,
        )
        begin = partial(self._begin, manager, number)
        return ModelCall(self._model, manager, self._parameters, self._stop, begin)

    def _option(self, name: str, number: int) -> Any:
        option = self._given.get(name)
        return option[number] if self._several and isinstance(option, list) else option

    def _begin(self, manager: Any, number: int) -> Any:
        """Begin the run of one prompt, as LangChain does for what it asks the model."""
        return manager.on_llm_start(
            self._model._serialized,
            [self._prompts[number]],
            invocation_params=_completion_params(self._model, self._stop),
            options={"stop": self._stop},
            name=self._option("run_name", number),
            batch_size=len(self._prompts),
        )


_pending: ContextVar[PendingCalls | None] = ContextVar("langchain_ibidem_calls", default=None)


def pending_calls() -> PendingCalls | None:
    """The calls under way in this context."""
    return _pending.get()


def cache_of(model: Any) -> BaseCache | None:
    """The cache that LangChain asks for this model."""
    if model.cache is False:
        return None
    return model.cache if isinstance(model.cache, BaseCache) else get_llm_cache()


# The hook -----------------------------------------------------------------------------------------------


Wrapper = Callable[[Method], Method]


def _among(kind: type[PendingCalls]) -> Wrapper:
    """Wrap a method that asks the cache: it runs among its pending calls."""

    def wrap(method: Method) -> Method:
        signature, in_async = inspect.signature(method), inspect.iscoroutinefunction(method)

        def pending(*args: Any, **kwargs: Any) -> PendingCalls:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return kind(bound.arguments, in_async=in_async)

        @wraps(method)
        def hooked(*args: Any, **kwargs: Any) -> Any:
            with pending(*args, **kwargs):
                return method(*args, **kwargs)

        @wraps(method)
        async def ahooked(*args: Any, **kwargs: Any) -> Any:
            with pending(*args, **kwargs):
                return await method(*args, **kwargs)

        return ahooked if in_async else hooked

    return wrap


class MethodPatches:
    """Methods of classes, replaced by wrappers and put back. Its owner holds a lock."""

    def __init__(self, wrappers: Mapping[tuple[type, str], Wrapper]) -> None:
        self._wrappers = wrappers
        self.active = False
        self._replaced: list[tuple[Any, str, Method, Method]] = []

    def apply(self) -> None:
        """Replace the methods, if they are not; those that the installed version lacks are left out."""
        if self.active:
            return
        self.active = True
        for (kind, name), wrap in self._wrappers.items():
            if (method := vars(kind).get(name)) is not None:
                ours = wrap(method)
                setattr(kind, name, ours)
                self._replaced.append((kind, name, method, ours))

    def restore(self) -> None:
        """Put the methods back. Where others have put something over ours since, ours stays below it."""
        self.active = False
        for kind, name, method, ours in self._replaced:
            if vars(kind).get(name) is ours:
                setattr(kind, name, method)
        self._replaced.clear()


class _Hooks:
    """What is patched in LangChain's classes as long as a cache is there."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        # Whatever is run (a model, a chain, a graph) is a `Runnable`, and its streams are generators: they
        # begin with their first step, in the context of their reader. Classes may have methods of their own.
        streams = "stream astream transform atransform astream_events astream_log"
        self.streams = StreamMethods(
            {Runnable: (*streams.split(), "batch_as_completed", "abatch_as_completed")}
        )
        self.calls = MethodPatches(
            {
                (BaseChatModel, "_generate_with_cache"): _among(_PendingChat),
                (BaseChatModel, "_agenerate_with_cache"): _among(_PendingChat),
                (BaseLLM, "generate"): _among(_PendingCompletion),
                (BaseLLM, "agenerate"): _among(_PendingCompletion),
            }
        )

    def hold(self, holder: object) -> None:
        """Patch the classes at least until the holder releases them."""
        with self._lock:
            self.streams.hold(holder)
            self.calls.apply()

    def release(self, holder: object) -> None:
        """Put back what was there, if nobody else holds it."""
        with self._lock:
            self.streams.release(holder)
            if not self.streams.active:
                self.calls.restore()


HOOKS = _Hooks()
