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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol
from uuid import UUID

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.callbacks.base import BaseCallbackManager
from langchain_core.globals import get_llm_cache
from langchain_core.language_models import BaseChatModel, BaseLLM
from langchain_core.load import dumps
from langchain_core.messages import BaseMessage
from langchain_core.runnables import Runnable

from ibidem._util.concurrency import ForkSafeLock
from ibidem.adapter.stream_scope import StreamMethods
from ibidem.errors import NotCacheable

Method = Callable[..., Any]


@dataclass(frozen=True, slots=True, eq=False)
class ModelCall:
    """One call of a model.

    Attributes:
        model: The model; None if a cache around ours has changed what is asked.
        parameters: Those of this call alone, and `stop`.
        metadata: That of the run; `inherited` is the part that it was given from above.
        run: LangChain's manager of the run. The run of a completion model begins after the lookup.
        parent: The id of the run around it.
        begin: Begins the run of a completion model.
    """

    model: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stop: list[str] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inherited: Mapping[str, Any] = field(default_factory=dict)
    run: Any = None
    parent: UUID | None = None
    begin: Callable[[], Any] | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        run_manager: Any = None,
        parameters: Mapping[str, Any] | None = None,
        stop: list[str] | None = None,
        begin: Callable[[], Any] | None = None,
    ) -> ModelCall:
        """Describe the call by the manager of its run, or of the runs that are begun for it."""
        metadata = getattr(run_manager, "metadata", None) or {}
        inherited = getattr(run_manager, "inheritable_metadata", None) or {}
        parent = getattr(run_manager, "parent_run_id", None)
        return cls(model, parameters or {}, stop, metadata, inherited, run_manager, parent, begin)

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
        return cls.of(model, manager, parameters, stop)

    @property
    def completes(self) -> bool:
        """Whether it is a completion model: it does not tell caches the arguments of a call."""
        return isinstance(self.model, BaseLLM)

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


def describe_chat(
    model: BaseChatModel,
    messages: Sequence[BaseMessage],
    stop: list[str] | None,
    parameters: Mapping[str, Any],
) -> tuple[str, str]:
    """Return the two strings that LangChain hands a cache for this call of a chat model."""
    plain = [m if m.id is None else m.model_copy(update={"id": None}) for m in messages]
    return dumps(plain), model._get_llm_string(stop=stop, **parameters)


def describe_completion(model: BaseLLM, stop: list[str] | None) -> str:
    """Return the description of the model that LangChain hands a cache for a completion model."""
    return str(sorted(_completion_params(model, stop).items()))


def _completion_params(model: BaseLLM, stop: list[str] | None) -> dict[str, Any]:
    return {**getattr(model, "_dict_for_compat", model.dict)(), "stop": stop}


class Abortable(Protocol):
    """What was looked up in vain, as `PendingCalls` sees it."""

    def abort(self) -> None:
        """The call has failed: somebody else may ask."""


@dataclass(frozen=True, slots=True)
class _Lookup:
    cache: object
    asked: tuple[str, str]
    pending: Abortable | None


class PendingCalls:
    """The calls of one hooked method: one of a chat model, or the prompts of a completion model.

    As a context manager it is what `pending_calls` returns; what was looked up and has not ended by then has
    failed.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._asked = 0  # how many prompts LangChain has asked our cache for
        self._lookups: list[_Lookup] = []
        self._token: Token[PendingCalls | None] | None = None

    def model_call(self, cache: BaseCache, prompt: str, llm_string: str) -> ModelCall | None:
        """The call that a cache is asked for now; None if it is not one of these.

        Raises:
            NotCacheable: Prompts of several callers, and a cache around this one hides which it is.
        """
        if cache_of(self._model) is not cache:
            return self._through_another_cache(prompt, llm_string)
        number, self._asked = self._asked, self._asked + 1
        return self._call(number, prompt)

    def add(self, cache: BaseCache, asked: tuple[str, str], pending: Abortable | None) -> None:
        """Note what was looked up in vain, also what could not be: answers come in the same order."""
        self._lookups.append(_Lookup(cache, asked, pending))

    def remove(self, pending: Abortable) -> None:
        """Note that it was found."""
        self._lookups = [lookup for lookup in self._lookups if lookup.pending is not pending]

    def take(self, cache: BaseCache, asked: tuple[str, str]) -> tuple[bool, Any]:
        """Return whether this cache was asked for it, and what it looked up."""
        for lookup in self._lookups:
            if lookup.cache is cache and lookup.asked == asked:
                self._lookups.remove(lookup)
                return True, lookup.pending
        return False, None

    def __enter__(self) -> PendingCalls:
        self._token = _pending.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(ValueError):  # an abandoned coroutine is closed in another context
            if self._token is not None:
                _pending.reset(self._token)
        lookups, self._lookups = self._lookups, []
        for lookup in lookups:
            if lookup.pending is not None:
                lookup.pending.abort()

    def _call(self, number: int, prompt: str) -> ModelCall | None:
        raise NotImplementedError

    def _through_another_cache(self, prompt: str, llm_string: str) -> ModelCall | None:
        raise NotImplementedError


class _PendingChat(PendingCalls):
    """One call of a chat model."""

    def __init__(
        self,
        model: BaseChatModel,
        messages: Sequence[BaseMessage],
        stop: Any,
        run: Any,
        given: Mapping[str, Any],
    ) -> None:
        super().__init__(model)
        self._messages, self._stop, self._run, self._given = messages, stop, run, given

    def _call(self, number: int, prompt: str) -> ModelCall | None:
        return ModelCall.of(self._model, self._run, self._given, self._stop) if number == 0 else None

    def _through_another_cache(self, prompt: str, llm_string: str) -> ModelCall | None:
        if describe_chat(self._model, self._messages, self._stop, self._given) == (prompt, llm_string):
            return ModelCall.of(self._model, self._run, self._given, self._stop)
        return ModelCall.of(None, self._run)


class _PendingCompletion(PendingCalls):
    """The prompts of one call of a completion model."""

    def __init__(
        self, model: BaseLLM, prompts: Sequence[str], options: Mapping[str, Any], *, in_async: bool
    ) -> None:
        super().__init__(model)
        self._prompts, self._in_async = prompts, in_async
        self._stop, self._options = options["stop"], options
        given = options["callbacks"]  # LangChain tells by them whether there is one option for each prompt
        first = given[0] if isinstance(given, list) and given else ()
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
        if same and describe_completion(self._model, self._stop) == llm_string:
            return calls[0]
        return ModelCall(None, metadata=calls[0].metadata, inherited=calls[0].inherited)

    def _described(self, number: int) -> ModelCall:
        manager = self._manager(number)
        given = self._options.get("kwargs") or {}
        return ModelCall.of(self._model, manager, given, self._stop, lambda: self._begin(manager, number))

    def _manager(self, number: int) -> Any:
        kind = AsyncCallbackManager if self._in_async else CallbackManager
        return kind.configure(
            self._option("callbacks", number),
            self._model.callbacks,
            self._model.verbose,
            self._option("tags", number),
            self._model.tags,
            self._option("metadata", number),
            self._model.metadata,
        )

    def _option(self, name: str, number: int) -> Any:
        option = self._options[name]
        return option[number] if self._several and isinstance(option, list) else option

    def _begin(self, manager: Any, number: int) -> Any:
        """Begin the run of one prompt, as LangChain does for what it asks the model."""
        begun = manager.on_llm_start(
            self._model._serialized,
            [self._prompts[number]],
            invocation_params=_completion_params(self._model, self._stop),
            options={"stop": self._stop},
            name=self._option("run_name", number),
            batch_size=len(self._prompts),
        )
        return _first(begun) if inspect.isawaitable(begun) else begun[0]


async def _first(begun: Awaitable[list[Any]]) -> Any:
    return (await begun)[0]


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


def _chat(method: Method) -> Method:
    @wraps(method)
    def hooked(self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        with _PendingChat(self, messages, stop, run_manager, kwargs):
            return method(self, messages, stop=stop, run_manager=run_manager, **kwargs)

    return hooked


def _achat(method: Method) -> Method:
    @wraps(method)
    async def hooked(
        self: Any, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        with _PendingChat(self, messages, stop, run_manager, kwargs):
            return await method(self, messages, stop=stop, run_manager=run_manager, **kwargs)

    return hooked


def _completion(method: Method) -> Method:
    bind = _options_of(method)

    @wraps(method)
    def hooked(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        with _PendingCompletion(self, prompts, bind(self, prompts, *args, **kwargs), in_async=False):
            return method(self, prompts, *args, **kwargs)

    return hooked


def _acompletion(method: Method) -> Method:
    bind = _options_of(method)

    @wraps(method)
    async def hooked(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        with _PendingCompletion(self, prompts, bind(self, prompts, *args, **kwargs), in_async=True):
            return await method(self, prompts, *args, **kwargs)

    return hooked


def _options_of(method: Method) -> Callable[..., Mapping[str, Any]]:
    """Return what binds arguments to the names of `generate`; those that its version lacks are None."""
    signature = inspect.signature(method)
    absent = dict.fromkeys(("stop", "callbacks", "tags", "metadata", "run_name"))

    def bind(*args: Any, **kwargs: Any) -> Mapping[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {**absent, **bound.arguments}

    return bind


Wrapper = Callable[[Method], Method]


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
                (BaseChatModel, "_generate_with_cache"): _chat,
                (BaseChatModel, "_agenerate_with_cache"): _achat,
                (BaseLLM, "generate"): _completion,
                (BaseLLM, "agenerate"): _acompletion,
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
