"""OpenTelemetry spans, metrics and log records of the lookups and stores of a cache."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import StatusCode

from ibidem._util import faults
from ibidem.telemetry import metrics
from ibidem.telemetry.metrics import Labels, ValueLimit, outcome_of
from ibidem.types import Answer, Hit, Miss, Rejected, Request, Stored

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from ibidem.costs import Prices
    from ibidem.storage.logs import JudgementRow
    from ibidem.telemetry.metrics import Attributes, Instruments

    Describe = Callable[[object], Attributes]

T = TypeVar("T")
OnError = Callable[[BaseException], None]

_CURRENT = context.create_key("ibidem-span")
_lookup_log, _store_log = logging.getLogger("ibidem.lookup"), logging.getLogger("ibidem.store")
_fault_causes = ValueLimit()


class Span:
    """A span that is not recorded."""

    __slots__ = ()

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        return

    def set_result(self, result: T) -> T:
        """Record the result; return it."""
        return result


NOOP_SPAN = Span()


class RecordedSpan(Span):
    """A span that is current in its block. Exceptions of exporters go to `on_error`, not to the caller.

    Args:
        tracer: Starts child spans.
        span: The span of the SDK, started.
        on_error: Called with exceptions of the SDK.
        describe: Returns the attributes of a result.
    """

    __slots__ = ("_describe", "_on_error", "_span", "_token", "_tracer")

    def __init__(
        self, tracer: Tracer, span: trace.Span, on_error: OnError, describe: Describe | None = None
    ) -> None:
        self._tracer, self._span, self._on_error, self._describe = tracer, span, on_error, describe

    def __enter__(self) -> Span:
        inside = trace.set_span_in_context(self._span)
        self._token = context.attach(context.set_value(_CURRENT, self, inside))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        context.detach(self._token)
        try:
            if kind is not None:
                self.set_error(kind.__name__)
                self._span.set_status(StatusCode.ERROR)
            self._span.end()
        except Exception as failure:
            self._on_error(failure)

    def set_result(self, result: T) -> T:
        """Record the result; return it."""
        try:
            if self._describe is not None and self._span.is_recording():
                attributes = self._describe(result)
                self._span.set_attributes(attributes)
                if attributes.get("ibidem.outcome") == "error":
                    self._span.set_status(StatusCode.ERROR)
        except Exception as failure:
            self._on_error(failure)
        return result

    def set_error(self, kind: str) -> None:
        """Record the class of an error that happened in the span."""
        self._span.set_attribute("error.type", kind)

    def child(self, name: str, attribute: str = "") -> Span:
        """Start a child span, whose result becomes an attribute, if it has one."""
        describe: Describe | None = (lambda result: {attribute: str(result)}) if attribute else None
        return _start_span(self._tracer, name, self._on_error, describe)


def _start_span(tracer: Tracer, name: str, on_error: OnError, describe: Describe | None = None) -> Span:
    """Start a span; a no-op without a provider."""
    try:
        span = tracer.start_span(name)
        if span is trace.INVALID_SPAN or not span.get_span_context().is_valid:
            return NOOP_SPAN
    except Exception as failure:
        on_error(failure)
        return NOOP_SPAN
    return RecordedSpan(tracer, span, on_error, describe)


def _current_span() -> RecordedSpan | None:
    """Return the span of Ibidem that the running code is in."""
    span = context.get_value(_CURRENT)
    return span if isinstance(span, RecordedSpan) else None


def step(name: str, attribute: str = "") -> Span:
    """Start a span of a step within the current span of Ibidem; a no-op if that is not recorded.

    The result of the step, if it has one, becomes an attribute of this name.
    """
    parent = _current_span()
    return NOOP_SPAN if parent is None else parent.child(name, attribute)


class Telemetry:
    """Telemetry of one cache. No method raises; exceptions of exporters are counted as faults.

    Args:
        place: Id of the cache location.
        threshold: Returns the least score that is served now.
        counted: Counts failures.
        prices: Prices of models.
        namespaced: Whether namespaces may be recorded.
    """

    def __init__(
        self,
        place: str,
        threshold: Callable[[], float],
        counted: faults.Faults,
        prices: Prices,
        *,
        namespaced: bool = False,
    ) -> None:
        self._place, self._threshold, self._prices = place, threshold, prices
        self._faults, self._namespaced = counted, namespaced
        self._instruments, self._labels = metrics.instruments(), Labels(place)
        faults.listen(_record_fault)

    def start_lookup(self, request: Request) -> Span:
        """Start the span of a lookup."""
        describe = partial(self._describe_lookup, request)
        return _start_span(self._instruments.tracer, "ibidem.lookup", self._on_exporter_error, describe)

    def start_store(self, request: Request, answer: Answer) -> Span:
        """Start the span of a store."""
        describe = partial(self._describe_store, request, answer)
        return _start_span(self._instruments.tracer, "ibidem.store", self._on_exporter_error, describe)

    def record_lookup(self, request: Request, result: Hit | Miss) -> None:
        """Record the final result of a lookup."""
        try:
            if _lookup_log.isEnabledFor(logging.DEBUG):
                _log(_lookup_log, "ibidem.lookup", self._describe_lookup(request, result))
            if not has_meter_provider(self._instruments):
                return
            namespace = self._namespace(request)
            self._instruments.lookups.add(1, self._labels.for_counter(result, namespace))
            if result.seconds:  # else it was bypassed
                self._instruments.duration.record(result.seconds, self._labels.for_histogram(result))
            if isinstance(result, Hit) and result.answer.tokens:
                self._record_savings(result.answer, namespace)
        except Exception as failure:
            self._on_exporter_error(failure)

    def record_store(self, request: Request, answer: Answer, result: Stored | Rejected) -> None:
        """Record the result of a store."""
        try:
            if _store_log.isEnabledFor(logging.DEBUG):
                _log(_store_log, "ibidem.store", self._describe_store(request, answer, result))
            if has_meter_provider(self._instruments):
                labels = self._labels.for_counter(result, self._namespace(request))
                self._instruments.stores.add(1, labels)
        except Exception as failure:
            self._on_exporter_error(failure)

    def _record_savings(self, answer: Answer, namespace: str | None) -> None:
        labels = self._labels
        for kind, count in (("input", answer.input_tokens), ("output", answer.output_tokens)):
            if count:
                self._instruments.tokens.add(count, labels.for_tokens(kind, answer.model, namespace))
        if cost := self._cost(answer):
            money = labels.for_money(self._prices.currency, answer.model, namespace)
            self._instruments.money.add(cost, money)

    def _cost(self, answer: Answer) -> float | None:
        """Compute the cost as in the figures: None where tokens or price are not known."""
        input_tokens, output_tokens = answer.input_tokens, answer.output_tokens
        if input_tokens is None or output_tokens is None:
            return None
        return self._prices.cost(answer.model, input_tokens, output_tokens)

    def _namespace(self, request: Request) -> str | None:
        return request.namespace if self._namespaced else None

    def _describe_lookup(self, request: Request, result: object) -> Attributes:
        if not isinstance(result, (Hit, Miss)):  # the cache was closed while this waited
            return self._describe_outcome(request, "miss")
        found = self._describe_outcome(request, outcome_of(result)) | {"ibidem.threshold": self._threshold()}
        if result.entry_id is not None:
            found["ibidem.entry.id"] = result.entry_id
        if result.similarity is not None:
            found["ibidem.similarity"] = float(result.similarity)
        if isinstance(result, Miss):
            return found | {"ibidem.reason": result.reason}
        found |= {"ibidem.tier": result.tier, "ibidem.score": float(result.score)}
        found |= {"ibidem.entry.age": float(result.age), "ibidem.stale": result.stale}
        return found | _describe_model(result.answer)

    def _describe_store(self, request: Request, answer: Answer, result: object) -> Attributes:
        found = self._describe_outcome(request, outcome_of(result)) | _describe_model(answer)
        if isinstance(result, Stored):
            return found | {"ibidem.entry.id": result.entry_id}
        return found | {"ibidem.reason": result.reason} if isinstance(result, Rejected) else found

    def _describe_outcome(self, request: Request, outcome: str) -> Attributes:
        found: Attributes = {"ibidem.place": self._place, "ibidem.outcome": outcome}
        return found | {"ibidem.namespace": request.namespace} if self._namespaced else found

    def _on_exporter_error(self, error: BaseException) -> None:
        self._faults.note("tell telemetry", error)


def has_meter_provider(instruments: Instruments) -> bool:
    """Return whether the program has set a provider of meters; a cheap look at a private part of the API.

    Instruments made before are proxies of real ones. Should the API change, they are used either way.
    """
    return getattr(instruments.lookups, "_real_instrument", instruments) is not None


def record_audit(place: str, row: JudgementRow) -> None:
    """Record the comparison of a stored answer with a fresh one. Never raises."""
    try:
        labels: Attributes = {"ibidem.place": place, "ibidem.audit.source": row.source}
        metrics.instruments().audits.add(1, labels | {"ibidem.audit.right": row.right})
    except Exception as failure:
        _log_failure(failure)


def _describe_model(answer: Answer) -> Attributes:
    return {"gen_ai.response.model": answer.model} if answer.model else {}


def _log(log: logging.Logger, event: str, attributes: Attributes) -> None:
    detail = attributes.get("ibidem.tier") or attributes.get("ibidem.reason") or ""
    log.debug(
        "%s: %s %s", event, attributes["ibidem.outcome"], detail, extra={"event.name": event, **attributes}
    )


def _record_fault(cause: str, kind: str) -> None:
    """Count a failure anywhere in the process; record it in the span in which it happened."""
    try:
        labels: Attributes = {"ibidem.fault": _fault_causes.apply(cause)}
        metrics.instruments().errors.add(1, labels | ({"error.type": kind} if kind else {}))
        if kind and (span := _current_span()) is not None:
            span.set_error(kind)
    except Exception as failure:  # not a fault, which would come here again
        _log_failure(failure)


def _log_failure(failure: Exception) -> None:
    logging.getLogger("ibidem").debug("Ibidem failed to tell telemetry", exc_info=failure)
