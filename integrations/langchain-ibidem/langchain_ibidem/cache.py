"""`IbidemCache`: LangChain's `BaseCache` on Ibidem.

What there is of one call, in the order in which it comes to be: `PendingCalls`, the hook around LangChain's
method with its arguments; `_Lookup`, one prompt that it looks up; `ModelCall`, what is known of the model and
the run; `Request`, which `RequestBuilder` makes of them; `CachedCall`, which looks it up, waits and stores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.outputs import Generation

from ibidem._util.concurrency import in_thread
from ibidem.adapter.call import AdapterCache, CachedCall, attempt
from ibidem.adapter.model_state import temperature_of
from ibidem.adapter.options import AdapterOptions
from ibidem.errors import InvalidInput
from ibidem.options import OpenOptions
from ibidem.prompts.documents import Prompt, Retrieved
from ibidem.prompts.history import mode_of
from ibidem.prompts.key import PromptContext, QuestionFinder, build_request
from ibidem.scope import current
from ibidem.types import Answer, Hit, Request
from langchain_ibidem.call import HOOKS, ChunkWatcher, ModelCall, PendingCalls, TokenEvents, pending_calls
from langchain_ibidem.messages import attach_source, decode, parse, require_finished
from langchain_ibidem.model_identity import ResponseFormat, describe, scope_for
from langchain_ibidem.tracking import RenderedPrompt, Tracker, tracker

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

T = TypeVar("T")

_TELL = "tell a repeated answer in pieces"
# An answer in a given form is data for a program: "almost the same question" is not good enough for it.
_STRUCTURED = re.compile(
    r"""['"](response_format|response_schema|response_json_schema|output_format|output_config)['"]"""
    r"""|\('format', [{']|"format": [{"]"""
)


class IbidemCache(BaseCache):
    """A cache for LangChain that compares the question by meaning and everything else exactly.

    `set_llm_cache(IbidemCache())` caches every chat and completion model of the process. A failure of the
    cache never reaches the program: the model is asked, as without a cache.

    Args:
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: Tenant, user or application: what is stored in one namespace is never served in another.
            `ibidem.scope` and the metadata of a call ("ibidem_namespace", "ibidem_user") take its place.
        question_keys: Names of template variables that hold the question, before the usual ones ("question",
            "query", ...). Others, such as "input", are believed to if what they hold looks like a question.
        model_id: Names the model, where LangChain's description of it does not (the log says so).
        any_message: True to take every line of the user for a question, as in a support chat ("I lost my
            card"). By default it must ask something, since it might be a text to work on.
        semantic: False to repeat answers to identical prompts only, for models that translate or rewrite.
        require_namespace: True to cache only calls that say by scope or metadata whose they are.
        history: How the earlier turns of a chat are compared: "exact", not where the last message stands
            alone ("standalone"), by their meaning ("meaning"), or never ("ignore").
        **options: For `ibidem.open`: `path`, `max_error_rate`, `embedder`, ...

    Raises:
        InvalidInput: Both a cache and options to open one were given, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """

    def __init__(
        self,
        cache: SemanticCache | None = None,
        *,
        namespace: str = "",
        question_keys: Sequence[str] = (),
        model_id: str = "",
        semantic: bool = True,
        any_message: bool = False,
        require_namespace: bool = False,
        history: str | None = None,
        **options: Unpack[OpenOptions],
    ) -> None:
        if namespace and require_namespace:
            raise InvalidInput("with require_namespace each call names its own: leave out namespace")
        settings = AdapterOptions(
            namespace=namespace,
            question_keys=question_keys,
            model_id=model_id,
            any_message=any_message,
            semantic=semantic,
            require_namespace=require_namespace,
            history=mode_of(history),
        )
        self._adapter = AdapterCache.of(cache, "LangChain", owner=type(self).__name__, options=options)
        self._requests = RequestBuilder(tracker(), settings)
        self.cache, self.namespace = self._adapter.cache, namespace
        HOOKS.hold(self)

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The stored answer to this call, or None."""
        lookup = _Lookup(self, prompt, llm_string, pending_calls())
        found = lookup.call.lookup()
        if events := lookup.settle(found, in_async=False):
            events.send()
        return found

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Store what the model answered, unless it is not worth repeating."""
        self._resume(prompt, llm_string).store(return_val)

    def clear(self, **kwargs: Any) -> None:
        """Forget what is stored in this cache's namespace, or in that given as `namespace` (None: in all).

        Within `ibidem.scope` its namespace is meant. Others are named as `ibidem ls` shows them.

        Raises:
            IbidemError: The cache could not be cleared; unlike a lookup, this must not fail in silence.
        """
        self.cache.clear(namespace=kwargs.get("namespace", current().name(self.namespace)))

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """As `lookup`, in a thread; while it waits for an identical call it needs none."""
        lookup = _Lookup(self, prompt, llm_string, pending_calls())
        found = await lookup.call.alookup()
        if events := lookup.settle(found, in_async=True):
            await events.asend()
        return found

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """As `update`, in a thread."""
        await in_thread(self._resume(prompt, llm_string).store, return_val)

    async def aclear(self, **kwargs: Any) -> None:
        """As `clear`, in a thread."""
        await in_thread(partial(self.clear, **kwargs))

    def faults(self) -> dict[str, int]:
        """How often a call was not cached or a failure was swallowed, by cause."""
        return self._adapter.faults.counts()

    def close(self) -> None:
        """Close the cache that was opened here; one that was passed in stays open."""
        if self._adapter.close():
            HOOKS.release(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(namespace={self.namespace!r})"

    def __copy__(self) -> IbidemCache:
        return self  # a copied model asks the same cache

    def __deepcopy__(self, memo: dict[int, Any]) -> IbidemCache:
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        HOOKS.hold(self)

    def __enter__(self) -> IbidemCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _resume(self, prompt: str, llm_string: str) -> _Lookup:
        """The lookup that is answered now; a new one if none was made."""
        calls = pending_calls()
        known: Any = None if calls is None else calls.take((self, prompt, llm_string))
        return known or _Lookup(self, prompt, llm_string, calls)


class _Lookup:
    """One prompt that LangChain looks up, and stores the answer to."""

    def __init__(self, cache: IbidemCache, prompt: str, llm_string: str, calls: PendingCalls | None) -> None:
        self.asked: tuple[BaseCache, str, str] = (cache, prompt, llm_string)
        self._adapter, self._requests, self._calls = cache._adapter, cache._requests, calls
        self._model_call: ModelCall | None = None
        self._form = ResponseFormat()
        self._watcher: ChunkWatcher | None = None
        self._streams = self._missed = False
        self.call: CachedCall[list[Generation]] = CachedCall(
            cache._adapter, self._request, self._read, lambda hit: self._form.objection(hit)
        )
        if calls is not None:
            calls.lookups.append(self)  # they end it: they know if the model fails

    def settle(self, found: list[Generation] | None, *, in_async: bool) -> TokenEvents | None:
        """Prepare what follows the lookup: token events of a hit, or the model's answer."""
        if self._calls is None:
            self.abort()  # nobody would tell that the model failed
        elif found is not None:
            self._calls.lookups = [lookup for lookup in self._calls.lookups if lookup is not self]
        else:
            self._missed = True
            self._attempt(self._adapter.lookup_operation, partial(self._watch_stream, in_async=in_async))
        if found is None or self._model_call is None:
            return None
        return self._attempt(_TELL, partial(self._model_call.token_events, found, in_async=in_async))

    def store(self, generations: Sequence[Generation]) -> None:
        """Store what the model answered: at once, as the program may change these objects."""
        if stored := self.call.store(partial(self._answer, generations)):
            self._attempt(self._adapter.store_operation, partial(attach_source, generations, stored))

    def abort(self) -> None:
        """The model has failed."""
        self.call.abort()

    def _attempt(self, doing: str, work: Callable[[], T]) -> T | None:
        return attempt(self._adapter.faults, doing, work)

    def _request(self) -> Request:
        _, prompt, llm_string = self.asked
        if self._calls is not None and (call := self._calls.model_call(*self.asked)) is not None:
            self._model_call, self._form = call, ResponseFormat.of(call.parameters)
        return self._requests.build(prompt, llm_string, self._model_call)

    def _watch_stream(self, *, in_async: bool) -> None:
        """See to it that half a stream is told from a whole answer, where LangChain streams in `invoke`."""
        call = self._model_call
        if call is None or call.run is None or not call.streams_in_invoke(in_async=in_async):
            return
        self._streams = True
        if not call.streams_by_events(in_async=in_async):
            self._watcher = call.watch()

    def _read(self, hit: Hit) -> list[Generation] | None:
        generations = decode(hit, self._form.names)
        attach_source(generations, hit)
        return generations or None  # LangChain only takes a real list, and fails on an empty one

    def _answer(self, generations: Sequence[Generation]) -> Answer:
        if self._streams and not (self._watcher is not None and self._watcher.saw_last):
            require_finished(generations)
        return self._form.to_answer(generations, self.call.seconds if self._missed else None)


class RequestBuilder:
    """Builds the requests of one cache. Stateless but for what the tracker remembers of runs."""

    def __init__(self, tracker: Tracker, options: AdapterOptions | None = None) -> None:
        self._tracker, self.options = tracker, options or AdapterOptions()
        self._questions = QuestionFinder(self.options.question_keys, any_message=self.options.any_message)

    def build(
        self,
        prompt: str | Prompt,
        llm_string: str,
        call: ModelCall | None = None,
        documents: Sequence[Retrieved] = (),
    ) -> Request:
        """Build the request for a call of the model that `llm_string` describes.

        Args:
            prompt: As LangChain hands it to a cache, or parsed.
            llm_string: As LangChain hands it to a cache.
            call: The call; None if it is not known.
            documents: Documents that are known to stand in the prompt.

        Raises:
            NotCacheable: They do not say all that the answer depends on, or not whose call it is.
        """
        options = self.options
        scope = scope_for(call, required=options.require_namespace)
        model = describe(llm_string, call, named=bool(options.model_id))
        parsed = parse(prompt) if isinstance(prompt, str) else prompt
        evaluates = call is not None and self._tracker.is_evaluating(call.parent)
        structured = any(map(_STRUCTURED.search, (llm_string, *model.values())))
        named = {"model id": options.model_id} if options.model_id else {}
        return build_request(
            parsed,
            self._context(self._tracker.rendered_prompt(parsed.fingerprint), documents),
            self._questions,
            model={"adapter": "langchain/1", **named, **model},
            scope=scope,
            namespace=options.namespace,
            exact=not options.semantic or evaluates or structured,
            temperature=temperature_of(model.values()),
            example=not evaluates,
            history=options.history,
        )

    def _context(self, rendered: RenderedPrompt | None, documents: Sequence[Retrieved]) -> PromptContext:
        retrievals = self._tracker.retrievals
        if rendered is None:
            return PromptContext(documents=documents, recent=retrievals.recent)
        return PromptContext(
            rendered.variables,
            rendered.texts,
            rendered.run_input,
            documents=[*documents, *rendered.documents, *retrievals.of_run(rendered.run)],
            recent=retrievals.recent,
            few_shot=rendered.few_shot,
            searched=retrievals.queries_of(rendered.run),
            turns=rendered.texts,
        )
