"""The door through which a cache tells what came of a lookup or a store: to spans, metrics and the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import StatusCode

from ibidem._util import faults
from ibidem.storage.statistics import LONG_PROMPT
from ibidem.telemetry import metrics as instruments
from ibidem.telemetry import telemetry as spans
from ibidem.telemetry.metrics import Bounded, Labels, outcome_of
from ibidem.types import Answer, Hit, Miss, Rejected, Request, Stored

if TYPE_CHECKING:
    from ibidem.costs import Prices
    from ibidem.storage.logs import JudgementRow
    from ibidem.telemetry.metrics import Attributes


_looked_up, _kept = logging.getLogger("ibidem.lookup"), logging.getLogger("ibidem.store")
_faults = Bounded()


class Telemetry:
    """What one cache tells. No method raises; what a provider raises is counted as a fault.

    Args:
        place: Names the cache.
        threshold: Tells the least score that it serves now.
        noted: Where failures are counted.
        prices: What models cost.
        namespaced: Whether namespaces may be told.
    """

    def __init__(
        self,
        place: str,
        threshold: Callable[[], float],
        noted: faults.Faults,
        prices: Prices,
        *,
        namespaced: bool = False,
    ) -> None:
        self._place, self._threshold, self._prices = place, threshold, prices
        self._faults, self._namespaced = noted, namespaced
        self._on, self._labels = instruments.shared(), Labels(place)
        faults.listen(_failed)

    def lookup(self, request: Request) -> Span:
        """The span of a lookup."""
        span = spans.begin(self._on.tracer, "ibidem.lookup", self._broken)
        if span is None:
            return spans.UNRECORDED
        return spans.Recorded(self._on.tracer, span, self._broken, partial(self._of_lookup, request))

    def store(self, request: Request, answer: Answer) -> Span:
        """The span of a store."""
        span = spans.begin(self._on.tracer, "ibidem.store", self._broken)
        if span is None:
            return spans.UNRECORDED
        return spans.Recorded(self._on.tracer, span, self._broken, partial(self._of_store, request, answer))

    def looked_up(self, request: Request, result: Hit | Miss) -> None:
        """A request has come to this."""
        try:
            if _looked_up.isEnabledFor(logging.DEBUG):
                _log(_looked_up, "ibidem.lookup", self._of_lookup(request, result))
            if not self._on.metering:
                return
            namespace = self._namespace(request)
            self._on.lookups.add(1, self._labels.counted(result, namespace))
            if result.seconds:  # else it asked past the cache
                self._on.duration.record(result.seconds, self._labels.timed(result))
            if isinstance(result, Hit) and result.answer.tokens:
                self._saved(result.answer, namespace)
        except Exception as broken:
            self._broken(broken)

    def kept(self, request: Request, answer: Answer, result: Stored | Rejected) -> None:
        """An answer was stored or rejected."""
        try:
            if _kept.isEnabledFor(logging.DEBUG):
                _log(_kept, "ibidem.store", self._of_store(request, answer, result))
            if self._on.metering:
                self._on.stores.add(1, self._labels.counted(result, self._namespace(request)))
        except Exception as broken:
            self._broken(broken)

    def _saved(self, answer: Answer, namespace: str | None) -> None:
        labels = self._labels
        for kind, count in (("input", answer.input_tokens), ("output", answer.output_tokens)):
            if count:
                self._on.tokens.add(count, labels.tokens(kind, answer.model, namespace))
        if cost := self._cost(answer):
            self._on.money.add(cost, labels.money(self._prices.currency, answer.model, namespace))

    def _cost(self, answer: Answer) -> float | None:
        """As in the figures: None where the price is not known, or not flat."""
        read, said = answer.input_tokens, answer.output_tokens
        if read is None or said is None or read > LONG_PROMPT:
            return None
        return self._prices.cost(answer.model, read, said)

    def _namespace(self, request: Request) -> str | None:
        return request.namespace if self._namespaced else None

    def _of_lookup(self, request: Request, result: object) -> Attributes:
        if not isinstance(result, (Hit, Miss)):  # the cache was closed while this waited
            return self._about(request, "miss")
        told = self._about(request, outcome_of(result)) | {"ibidem.threshold": self._threshold()}
        if result.entry_id is not None:
            told["ibidem.entry.id"] = result.entry_id
        if result.similarity is not None:
            told["ibidem.similarity"] = float(result.similarity)
        if isinstance(result, Miss):
            return told | {"ibidem.reason": result.reason}
        told |= {"ibidem.tier": result.tier, "ibidem.score": float(result.score)}
        told |= {"ibidem.entry.age": float(result.age), "ibidem.stale": result.stale}
        return told | _model(result.answer)

    def _of_store(self, request: Request, answer: Answer, result: object) -> Attributes:
        told = self._about(request, outcome_of(result)) | _model(answer)
        if isinstance(result, Stored):
            return told | {"ibidem.entry.id": result.entry_id}
        return told | {"ibidem.reason": result.reason} if isinstance(result, Rejected) else told

    def _about(self, request: Request, outcome: str) -> Attributes:
        told: Attributes = {"ibidem.place": self._place, "ibidem.outcome": outcome}
        return told | {"ibidem.namespace": request.namespace} if self._namespaced else told

    def _broken(self, error: BaseException) -> None:
        self._faults.note("tell telemetry", error)


def audited(place: str, row: JudgementRow) -> None:
    """A stored answer of this place was compared with a fresh one; raises nothing."""
    try:
        about: Attributes = {"ibidem.place": place, "ibidem.audit.source": row.source}
        instruments.shared().audits.add(1, about | {"ibidem.audit.right": row.right})
    except Exception as broken:
        _ignore(broken)


def _model(answer: Answer) -> Attributes:
    return {"gen_ai.response.model": answer.model} if answer.model else {}


def _log(to: logging.Logger, event: str, told: Attributes) -> None:
    why = told.get("ibidem.tier") or told.get("ibidem.reason") or ""
    to.debug("%s: %s %s", event, told["ibidem.outcome"], why, extra={"event.name": event, **told})


def _failed(cause: str, kind: str) -> None:
    """A failure anywhere in the process: counted, and told to the span in which it happened."""
    try:
        about: Attributes = {"ibidem.fault": _faults.of(cause)}
        instruments.shared().errors.add(1, about | ({"error.type": kind} if kind else {}))
        if kind and (span := spans.current()) is not None:
            span.went_wrong(kind)
    except Exception as broken:  # no fault, which would come here again
        _ignore(broken)


def _ignore(broken: Exception) -> None:
    logging.getLogger("ibidem").debug("Ibidem failed to tell telemetry", exc_info=broken)


if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from ibidem.telemetry.metrics import Attributes

    Describe = Callable[[object], Attributes]

T = TypeVar("T")
Failed = Callable[[BaseException], None]
_OURS = context.create_key("ibidem-span")


class Span:
    """Nobody records this one. What is told goes back to who told it."""

    __slots__ = ()

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        return

    def told(self, result: T) -> T:
        """What came of it."""
        return result


UNRECORDED = Span()


class Recorded(Span):
    """A span that is current in its block. Whatever a provider raises goes to `failed`, not to the caller.

    Args:
        tracer: Where it began.
        span: It, begun.
        failed: Told what went wrong.
        describe: What is said of a result.
    """

    __slots__ = ("_describe", "_failed", "_span", "_token", "_tracer")

    def __init__(
        self, tracer: Tracer, span: trace.Span, failed: Failed, describe: Describe | None = None
    ) -> None:
        self._tracer, self._span, self._failed, self._describe = tracer, span, failed, describe

    def __enter__(self) -> Span:
        inside = trace.set_span_in_context(self._span)
        self._token = context.attach(context.set_value(_OURS, self, inside))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        context.detach(self._token)
        try:
            if kind is not None:
                self.went_wrong(kind.__name__)
                self._span.set_status(StatusCode.ERROR)
            self._span.end()
        except Exception as broken:
            self._failed(broken)

    def told(self, result: T) -> T:
        """What came of it."""
        try:
            if self._describe is not None and self._span.is_recording():
                said = self._describe(result)
                self._span.set_attributes(said)
                if said.get("ibidem.outcome") == "error":
                    self._span.set_status(StatusCode.ERROR)
        except Exception as broken:
            self._failed(broken)
        return result

    def went_wrong(self, kind: str) -> None:
        """An error of this class happened within."""
        self._span.set_attribute("error.type", kind)

    def child(self, name: str) -> Span:
        """A span within, of a step."""
        span = begin(self._tracer, name, self._failed)
        return UNRECORDED if span is None else Recorded(self._tracer, span, self._failed)


def begin(tracer: Tracer, name: str, failed: Failed) -> trace.Span | None:
    """A span that begins now; None if there is no provider."""
    try:
        span = tracer.start_span(name)
        if span is trace.INVALID_SPAN or not span.get_span_context().is_valid:
            return None
    except Exception as broken:
        failed(broken)
        return None
    return span


def current() -> Recorded | None:
    """The span of Ibidem that the running code is in."""
    found = context.get_value(_OURS)
    return found if isinstance(found, Recorded) else None


def step(name: str) -> Span:
    """A span of a step within the current span of Ibidem, if that is recorded."""
    around = current()
    return UNRECORDED if around is None else around.child(name)
