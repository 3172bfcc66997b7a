"""Spans around what a cache does, children of whatever span its caller is in."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import StatusCode

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

    from ibidem.telemetry.instruments import Attributes

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
