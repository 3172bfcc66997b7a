"""The real OpenTelemetry SDK for tests, with everything kept in memory, and none of it global."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ibidem.telemetry.metrics import Instruments


class Sdk:
    """What a program has that wants to see what Ibidem tells."""

    def __init__(self, *processors: SpanProcessor) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers, self._meters = TracerProvider(), MeterProvider([self._reader])
        for processor in (*processors, SimpleSpanProcessor(self._exporter)):
            tracers.add_span_processor(processor)
        self.tracer = tracers.get_tracer("the program")
        self.instruments = Instruments(tracers.get_tracer("ibidem"), self._meters.get_meter("ibidem"))

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Those that ended, or those of this name, in the order in which they ended."""
        return [span for span in self._exporter.get_finished_spans() if name in (None, span.name)]

    def span(self, name: str = "ibidem.lookup") -> dict[str, Any]:
        """The attributes of the last span of this name."""
        return dict(self.spans(name)[-1].attributes or {})

    def metrics(self) -> dict[str, Metric]:
        """All that was counted so far, by name."""
        data = self._reader.get_metrics_data()
        resources = data.resource_metrics if data is not None else []
        return {
            metric.name: metric
            for resource in resources
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str, *wanted: str) -> dict[tuple[Any, ...], Any]:
        """Values of a metric by these attributes; of a histogram how often."""
        found: dict[tuple[Any, ...], Any] = {}
        metric = self.metrics().get(name)
        for point in metric.data.data_points if metric is not None else ():
            key = tuple((point.attributes or {}).get(attribute) for attribute in wanted)
            found[key] = found.get(key, 0) + getattr(point, "value", getattr(point, "count", 0))
        return found

    def close(self) -> None:
        """No collection after this."""
        self._meters.shutdown()


@contextmanager
def told_to(monkeypatch: pytest.MonkeyPatch, *processors: SpanProcessor) -> Iterator[Sdk]:
    """What is opened in this block tells an SDK."""
    sdk = Sdk(*processors)
    monkeypatch.setattr("ibidem.telemetry.metrics.instruments", lambda: sdk.instruments)
    yield sdk
    sdk.close()
