"""A handler that writes answered questions to the example log; in LlamaIndex handlers cannot answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index_instrumentation.span import active_span_id

from ibidem._util.faults import Faults
from ibidem.adapter.options import open_or_use
from ibidem.errors import InvalidInput
from ibidem.types import require_name
from llama_index_ibidem.calls import watch
from llama_index_ibidem.recorder import Recorder
from llama_index_ibidem.requests import RequestBuilder

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

_DOING = "log what LlamaIndex answered"


class IbidemCallbackHandler(BaseCallbackHandler):
    """Logs every question that a model answered: `CallbackManager([IbidemCallbackHandler(cache)])`.

    It writes question, answer, documents, model, tokens and time to `cache.examples`, also for streams (when
    they end) and for models asked directly. An answer repeated from a cache is no new one. It never raises
    and never touches a stream.

    Args:
        cache: An open `ibidem.SemanticCache`, which stays yours to close. By default one is opened.
        namespace: Tenant, user or application that the examples belong to.
        any_message: True to log every line that a model is asked directly; by default it must ask something.
        **options: For `ibidem.open`: `path`, `database`, ...

    Raises:
        InvalidInput: An option does not exist.
        IbidemError: The cache cannot be opened.
    """

    def __init__(
        self,
        cache: SemanticCache | None = None,
        *,
        namespace: str = "",
        any_message: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self._owned = cache is None
        self.cache = open_or_use(cache, options, type(self).__name__)
        self._faults = Faults()
        self._recorder = _recorder(self.cache, namespace, any_message, self._faults)

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        """Something began."""
        _attempt(self._faults, partial(self._began, event_type, payload or {}, event_id))
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        """Something ended."""
        _attempt(self._faults, partial(self._ended, event_type, payload or {}, event_id))

    def start_trace(self, trace_id: str | None = None) -> None:
        """Not used."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Not used."""

    def __copy__(self) -> Self:
        return self  # a copied model tells the same handler

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise InvalidInput(f"{type(self).__name__} cannot be pickled; add one in the other process")

    def faults(self) -> dict[str, int]:
        """How often a failure was swallowed, by cause."""
        return self._faults.counts()

    def close(self) -> None:
        """Close the cache that was opened here; one that was passed in stays open."""
        if self._owned:
            self.cache.close()

    def _began(self, kind: CBEventType, payload: dict[str, Any], event: str) -> None:
        span = active_span_id.get()
        if kind == CBEventType.SYNTHESIZE:
            self._recorder.synthesis_began(span)
        elif kind == CBEventType.LLM:
            asked = payload.get(EventPayload.MESSAGES) or str(payload.get(EventPayload.PROMPT, ""))
            self._recorder.call_began(event, span, asked)

    def _ended(self, kind: CBEventType, payload: dict[str, Any], event: str) -> None:
        if kind == CBEventType.SYNTHESIZE:
            self._recorder.synthesis_ended(active_span_id.get(), payload.get(EventPayload.RESPONSE))
        elif kind == CBEventType.LLM:
            response = payload.get(EventPayload.RESPONSE) or payload.get(EventPayload.COMPLETION)
            self._recorder.call_ended(event, response)


def _attempt(faults: Faults, work: Callable[[], None]) -> None:
    """Do it, or count why not."""
    faults.attempt(_DOING, work, refused="does not log a question")


def _recorder(cache: SemanticCache, namespace: str, any_message: bool, faults: Faults) -> Recorder:
    watch()
    requests = RequestBuilder(require_name("namespace", namespace), (), any_message=any_message)
    return Recorder(cache, requests, faults)
