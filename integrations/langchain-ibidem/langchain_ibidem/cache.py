"""`IbidemCache`: LangChain's `BaseCache` on Ibidem."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.outputs import Generation
from pydantic import BaseModel

from ibidem._util.concurrency import BoundedDict, ForkSafeLock, in_thread
from ibidem._util.faults import Faults
from ibidem.adapter.call import Desk, Inquiry
from ibidem.adapter.options import open_or_use
from ibidem.answering import Asking
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.prompts.documents import Retrieved
from ibidem.prompts.prompt import Prompt
from ibidem.scope import current, use_scope
from ibidem.types import Request, Scope, Stored, require_bool, require_name, require_text
from langchain_ibidem import calls
from langchain_ibidem.callers import Caller, caller_of
from langchain_ibidem.codec import decode, encode
from langchain_ibidem.form_names import to_repeat, to_store
from langchain_ibidem.forms import objection_to, require_form
from langchain_ibidem.implicit import UNFINISHED, is_unfinished
from langchain_ibidem.keys import Call, RequestBuilder
from langchain_ibidem.origins import remember
from langchain_ibidem.stream_scopes import STREAMS
from langchain_ibidem.tokens import Telling, telling_of
from langchain_ibidem.tracker import memory

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

T = TypeVar("T")

_PENDING = 1024
_LOOK_UP, _STORE = "look up an answer for LangChain", "store an answer of LangChain"
_TELL = "tell a repeated answer in pieces"


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
        **options: For `ibidem.open`: `path`, `threshold`, `embedder`, ...

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
        **options: Any,
    ) -> None:
        require_bool("require_namespace", require_namespace)
        if namespace and require_namespace:
            raise InvalidInput("with require_namespace each call names its own: leave out namespace")
        if isinstance(question_keys, str):
            question_keys = (question_keys,)
        self.cache = open_or_use(cache, options, type(self).__name__)
        self.namespace = require_name("namespace", namespace)
        self._owned = cache is None
        self._requests = RequestBuilder(
            memory(),
            namespace,
            question_keys,
            model_id=require_text("model_id", model_id),
            semantic=semantic,
            any_message=any_message,
            require_namespace=require_namespace,
        )
        self._faults = Faults()
        self._desk = Desk(self.cache, "LangChain", self._faults)
        self._lock = ForkSafeLock()
        self._pending: BoundedDict[str, tuple[Request, float]] = BoundedDict(_PENDING)
        STREAMS.hold(self)

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """The stored answer to this call, or None."""
        # LangChain only takes a real list, and fails on an empty one.
        try:
            call = self._faults.attempt(_LOOK_UP, lambda: self._call(prompt, llm_string))
            found = self._faults.attempt(_LOOK_UP, partial(self._find, call)) if call else None
            if call and found and (telling := self._telling(call, found, in_async=False)):
                telling.tell()
            return found
        except BaseException:  # interrupted: so are other prompts of this batch
            calls.failed()
            raise

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Store what the model answered, unless it is not worth repeating."""
        frame = sys._getframe(1)
        self._faults.attempt(
            _STORE,
            lambda: self._keep(self._call(prompt, llm_string), return_val, self._is_half(return_val, frame)),
        )

    def clear(self, **kwargs: Any) -> None:
        """Forget what is stored in this cache's namespace, or in that given as `namespace` (None: in all).

        Within `ibidem.scope` its namespace is meant. Others are named as `ibidem ls` shows them.

        Raises:
            IbidemError: The cache could not be cleared; unlike a lookup, this must not fail in silence.
        """
        self.cache.clear(namespace=kwargs.get("namespace", current().name(self.namespace)))

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """As `lookup`, in a thread; while it waits for an identical call it needs none."""
        try:
            call = self._faults.attempt(_LOOK_UP, lambda: self._call(prompt, llm_string))
            found = await self._afind(call) if call else None
            if call and found and (telling := self._telling(call, found, in_async=True)):
                await telling.atell()
            return found
        except BaseException:  # cancelled
            calls.failed()
            raise

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """As `update`, in a thread."""
        half = self._is_half(return_val, sys._getframe(1))
        call = self._faults.attempt(_STORE, lambda: self._call(prompt, llm_string))
        if call is not None:
            await in_thread(self._faults.attempt, _STORE, lambda: self._keep(call, return_val, half))

    async def aclear(self, **kwargs: Any) -> None:
        """As `clear`, in a thread."""
        await in_thread(partial(self.clear, **kwargs))

    def request(self, prompt: Prompt, documents: Sequence[Retrieved], caller: Caller) -> Request:
        """Build the request for a call that somebody else answers (`IbidemMiddleware`).

        Raises:
            NotCacheable: The call must not be cached.
        """
        return self._requests.request(self._requests.read(prompt, "", caller), documents)

    def faults(self) -> dict[str, int]:
        """How often a call was not cached or a failure was swallowed, by cause."""
        return self._faults.counts()

    def close(self) -> None:
        """Close the cache that was opened here; one that was passed in stays open."""
        if self._owned:
            self.cache.close()
            STREAMS.release(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(namespace={self.namespace!r})"

    def __copy__(self) -> IbidemCache:
        return self  # a copied model asks the same cache

    def __deepcopy__(self, memo: dict[int, Any]) -> IbidemCache:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pending": BoundedDict(_PENDING)}  # what is under way stays here

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        STREAMS.hold(self)

    def __enter__(self) -> IbidemCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _inquiry(
        self,
        described: Callable[[], tuple[str, str, Caller]],
        read: Callable[[list[Generation]], T | None],
        form: type[BaseModel] | None,
        names: Sequence[str],
        scope: Scope,
    ) -> Inquiry[T]:
        """A stream's request, which ends with it; `described` is what `lookup` is given, and who asks.

        It is asked in `scope`, whoever reads the stream.
        """

        def request() -> Request:
            with use_scope(scope):
                return self._requests.build(*described())

        return Inquiry(
            self._desk, request, lambda hit: read(decode(to_repeat(hit, names))), objection_to(form)
        )

    def _call(self, prompt: str, llm_string: str, caller: Caller | None = None) -> Call:
        """The call that is under way. Of an async one the caller is found in its own coroutine only."""
        return self._requests.read(prompt, llm_string, caller or caller_of(prompt, llm_string))

    def _find(self, call: Call) -> list[Generation] | None:
        asking = self.cache.asking(self._begin(call))
        while (found := _repeated(asking, call)) is None and asking.wait():
            pass
        calls.begin(asking, of_chat=call.of_chat)
        return found

    async def _afind(self, call: Call) -> list[Generation] | None:
        try:
            asking, found = await in_thread(self._first, call)
            if asking is None:
                return None
            while found is None and await asking.await_turn():
                found = await in_thread(self._faults.attempt, _LOOK_UP, partial(_repeated, asking, call))
        except Exception as error:
            self._faults.note(_LOOK_UP, error)
            return None
        calls.begin(asking, of_chat=call.of_chat)
        return found

    def _first(self, call: Call) -> tuple[Asking | None, list[Generation] | None]:
        asking = self._faults.attempt(_LOOK_UP, lambda: self.cache.asking(self._begin(call)))
        if asking is None:
            return None, None
        return asking, self._faults.attempt(_LOOK_UP, partial(_repeated, asking, call))

    def _telling(self, call: Call, found: list[Generation], *, in_async: bool) -> Telling | None:
        return self._faults.attempt(_TELL, partial(telling_of, call.caller, found, in_async=in_async))

    def _is_half(self, generations: RETURN_VAL_TYPE, frame: FrameType) -> bool:
        return self._faults.attempt(_STORE, partial(is_unfinished, frame, generations)) is not False

    def _keep(self, call: Call, generations: RETURN_VAL_TYPE, half: bool) -> None:
        # Encoded at once: these are the objects that the program gets, and may change.
        request, started = self._resume(call)
        asking = calls.answered(self.cache, request.key) or self.cache.asking(request)
        with asking:
            try:
                if half:
                    raise NotCacheable("unfinished_stream", UNFINISHED)
                require_form(call.model.form, generations)
                answer = encode(generations, seconds=time.monotonic() - started)
                answer = to_store(answer, call.model.form_names)
            except NotCacheable:
                asking.refuse()
                raise
            stored = asking.keep(answer)
            if isinstance(stored, Stored):
                remember(generations, stored)

    def _begin(self, call: Call) -> Request:
        request = self._requests.request(call)
        with self._lock:
            self._pending.put(call.mark, (request, time.monotonic()))
        return request

    def _resume(self, call: Call) -> tuple[Request, float]:
        """The request of the lookup: built anew it could differ, as the tracker forgets."""
        with self._lock:
            known = self._pending.get(call.mark)
        return known or (self._begin(call), time.monotonic())


def _repeated(asking: Asking, call: Call) -> list[Generation] | None:
    hit = asking.look(objection_to(call.model.form))
    if hit is None:
        return None
    generations = decode(to_repeat(hit, call.model.form_names))
    remember(generations, hit)
    return generations or None
