"""What telemetry costs an exact hit: without an SDK, and with one whose exporter drops everything.

Both are measured side by side with a cache that tells nothing, in turns of 500 lookups. Of all lookups the
medians are shown, since a busy machine adds to the mean.

    python -m tests.benchmarks.telemetry [--lookups 20000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from rich.console import Console
from rich.table import Table

import ibidem
from ibidem.cache import SemanticCache
from ibidem.telemetry.telemetry import NOOP_SPAN, Span
from tests.embedders import BagOfWords

TURN = 500
ASKED = ibidem.Request("how long can I return goods", scope="shop")
ANSWER = ibidem.Answer("30 days", model="gpt-4o-mini", input_tokens=2_000, output_tokens=10)


class Nothing:
    """Telemetry that tells nothing."""

    def start_lookup(self, request: ibidem.Request) -> Span:
        return NOOP_SPAN

    def record_lookup(self, *told: object) -> None:
        return


class Dropping(SpanExporter):
    """Sends nothing anywhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def medians(cache: SemanticCache, lookups: int) -> tuple[float, float]:
    """Microseconds of a lookup that tells nothing, and of one that tells what it does."""
    kinds: tuple[Any, Any] = (Nothing(), cache._telemetry)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * max(1, lookups // TURN) + 2):
        cache._telemetry = kinds[turn % 2]
        for _ in range(TURN):
            began = time.perf_counter()
            cache.lookup(ASKED)
            times[turn % 2].append(time.perf_counter() - began)
    silent, telling = (statistics.median(one[TURN:]) * 1e6 for one in times)  # the first turn warms up
    cache._telemetry = kinds[1]
    return silent, telling


def provide() -> None:
    """As a program with an SDK does."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Dropping()))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--lookups", type=int, default=20_000)
    lookups = options.parse_args().lookups
    table = Table("", "tells nothing, us", "telemetry, us", "difference, us", title="An exact hit, median")
    with tempfile.TemporaryDirectory() as place, ibidem.open(place, embedder=BagOfWords()) as cache:
        cache.store(ASKED, ANSWER)
        for name, begin in (("without an SDK", lambda: None), ("with one", provide)):
            begin()
            silent, telling = medians(cache, lookups)
            table.add_row(name, f"{silent:.1f}", f"{telling:.1f}", f"{telling - silent:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
