"""What a cache tells the real OpenTelemetry SDK, and the log; never what was asked."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from pathlib import Path
from typing import Any, get_args

import pytest
from opentelemetry.sdk.metrics.export import Gauge, Histogram
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode

import ibidem
from ibidem import Answer, Document, Hit, Miss, Rejected, Request, runtime
from ibidem.cache import SemanticCache
from ibidem.errors import IndexUnavailable, StorageUnavailable
from ibidem.index import chroma
from ibidem.pipeline import PendingRequest
from ibidem.telemetry import metrics
from ibidem.telemetry.metrics import MAX_VALUES, OTHER
from ibidem.telemetry.telemetry import NOOP_SPAN, has_meter_provider
from ibidem.types import Tier
from tests.conftest import OpenCache
from tests.embedders import Broken
from tests.helpers import Child, question, reworded
from tests.telemetry import Sdk, told_to

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "telemetry.md"
ASKED = Request(question(0))
REWORDED = Request(reworded(0))
PRICED = Answer("30 days.", model="gpt-4o-mini", input_tokens=100_000, output_tokens=100_000)


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sdk]:
    with told_to(monkeypatch) as one:
        yield one


@pytest.fixture
def cache(sdk: Sdk, open_cache: OpenCache) -> SemanticCache:
    """A cache with one answer, that tells the SDK."""
    cache = open_cache()
    cache.store(ASKED, PRICED)
    return cache


# What came of it -----------------------------------------------------------------------------------------


def test_an_exact_hit(sdk: Sdk, cache: SemanticCache) -> None:
    """One span without steps; tokens and money are counted."""
    hit = cache.lookup(ASKED)
    (span,) = sdk.spans("ibidem.lookup")

    assert dict(span.attributes or {}) == {
        "ibidem.place": hit.place,
        "ibidem.outcome": "hit",
        "ibidem.tier": "exact",
        "ibidem.similarity": 1.0,
        "ibidem.score": 1.0,
        "ibidem.threshold": 0.8,
        "ibidem.stale": False,
        "ibidem.entry.id": hit.entry_id,
        "ibidem.entry.age": hit.age,
        "gen_ai.response.model": "gpt-4o-mini",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert [one.name for one in sdk.spans()] == ["ibidem.embed", "ibidem.store", "ibidem.lookup"]
    assert sdk.points("ibidem.tokens.saved", "gen_ai.token.type") == {
        ("input",): 100_000,
        ("output",): 100_000,
    }
    assert sdk.points("ibidem.money.saved", "ibidem.currency") == {("USD",): pytest.approx(0.075)}


def test_a_hit_by_meaning_has_its_steps_within(sdk: Sdk, cache: SemanticCache) -> None:
    """Embedding, search and confirmation are children of the lookup."""
    hit = cache.lookup(REWORDED)
    *steps, lookup = sdk.spans()[2:]

    assert [one.name for one in steps] == ["ibidem.embed", "ibidem.search", "ibidem.confirm"]
    assert {one.parent.span_id for one in steps if one.parent} == {lookup.context.span_id}
    assert sdk.span()["ibidem.tier"] == "semantic"
    assert sdk.span()["ibidem.score"] == pytest.approx(hit.score)
    assert sdk.points("ibidem.lookup.duration", "ibidem.outcome", "ibidem.tier") == {("hit", "semantic"): 1}


MISSES: dict[str, Request] = {
    "empty": Request(question(1), scope="another"),
    "below_threshold": Request(question(1)),
    "question_unknown": Request(question(1), semantic=False),
    "guard:numbers": Request(f"{question(0)} 7"),
    "question_too_long": Request("word " * 300),
}


@pytest.mark.parametrize("reason", MISSES)
def test_a_miss_says_why(sdk: Sdk, cache: SemanticCache, reason: str) -> None:
    """In the span and in the counter."""
    assert cache.lookup(MISSES[reason]).reason == reason
    assert (sdk.span()["ibidem.outcome"], sdk.span()["ibidem.reason"]) == ("miss", reason)
    assert sdk.points("ibidem.lookups", "ibidem.outcome", "ibidem.reason") == {("miss", reason): 1}
    assert sdk.points("ibidem.tokens.saved") == {}


def reasons_of(kind: type) -> list[str]:
    """Those that its docstring lists."""
    listed = (kind.__doc__ or "").partition("Reasons:")[2]
    return [found.replace("<name>", "roles") for found in re.findall(r"`([a-z_]+(?::<\w+>)?)`", listed)]


@pytest.mark.parametrize("reason", reasons_of(Miss))
def test_every_reason_of_a_miss_is_counted_by_its_name(sdk: Sdk, cache: SemanticCache, reason: str) -> None:
    """An error is no miss: the cache could not say."""
    cache._telemetry.record_lookup(ASKED, Miss(reason))
    outcome = "error" if reason == "error" else "miss"

    assert sdk.points("ibidem.lookups", "ibidem.outcome", "ibidem.reason") == {(outcome, reason): 1}


@pytest.mark.parametrize("tier", get_args(Tier))
def test_every_tier_is_counted_by_its_name(sdk: Sdk, cache: SemanticCache, tier: Tier) -> None:
    """And timed."""
    cache._telemetry.record_lookup(ASKED, Hit(Answer("a"), "e", tier, 1.0, None, 0.0, seconds=0.1))

    assert sdk.points("ibidem.lookups", "ibidem.tier") == {(tier,): 1}
    assert sdk.points("ibidem.lookup.duration", "ibidem.tier") == {(tier,): 1}


def test_what_asks_past_the_cache_is_counted_and_not_timed(sdk: Sdk, cache: SemanticCache) -> None:
    """It took no time."""
    with ibidem.scope(bypass=True):
        cache.lookup(ASKED)
        cache.store(ASKED, PRICED)

    assert sdk.points("ibidem.lookups", "ibidem.reason") == {("bypassed",): 1}
    assert sdk.points("ibidem.lookup.duration") == {}
    assert sdk.points("ibidem.stores", "ibidem.outcome", "ibidem.reason") == {
        ("stored", None): 1,
        ("rejected", "bypassed"): 1,
    }


def test_a_rejected_answer_says_why(sdk: Sdk, cache: SemanticCache) -> None:
    """Why a model stopped it says in its own words: in the span, not in the counter."""
    cache.store(ASKED, Answer("cut", finish_reason="length"))
    cache.store(ASKED, Answer(""))

    assert [one.attributes["ibidem.reason"] for one in sdk.spans("ibidem.store")[1:] if one.attributes] == [
        "finish_reason:length",
        "empty",
    ]
    assert sdk.points("ibidem.stores", "ibidem.outcome", "ibidem.reason") == {
        ("stored", None): 1,
        ("rejected", "finish_reason"): 1,
        ("rejected", "empty"): 1,
    }


def test_an_unknown_model_has_no_money(sdk: Sdk, cache: SemanticCache) -> None:
    """Its tokens are counted; `prices` gives a model one."""
    asked = Request(question(2))
    cache.store(asked, Answer("a", model="nobody's", input_tokens=5, output_tokens=1))
    cache.lookup(asked)

    assert sdk.points("ibidem.tokens.saved", "gen_ai.response.model") == {("nobody's",): 6}
    assert sdk.points("ibidem.money.saved") == {}


def test_an_objection_of_an_adapter_is_the_outcome(sdk: Sdk, cache: SemanticCache) -> None:
    """A hit that the program cannot use is a miss, also in the span."""

    async def objecting(hit: Hit) -> str:
        return "answer_invalid"

    PendingRequest(cache.steps, ASKED).lookup(lambda hit: "answer_invalid")
    asyncio.run(PendingRequest(cache.steps, ASKED).alookup(objecting))

    assert [one.attributes["ibidem.reason"] for one in sdk.spans("ibidem.lookup") if one.attributes] == [
        "answer_invalid",
        "answer_invalid",
    ]


# Failures ------------------------------------------------------------------------------------------------


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def test_a_database_that_fails(sdk: Sdk, cache: SemanticCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lookup and store are errors, and say of which class; gauges of entries are left out."""
    opened = cache._runtime.store
    for table, name in ((opened.entries, "get_both"), (opened.entries, "put"), (opened.evictor, "size")):
        monkeypatch.setattr(table, name, failing(StorageUnavailable("away: s3cret")))
    assert cache.lookup(ASKED).reason == "error"
    assert cache.store(ASKED, PRICED) == Rejected("error")
    lookup, store = sdk.spans("ibidem.lookup")[-1], sdk.spans("ibidem.store")[-1]

    for span in (lookup, store):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "StorageUnavailable"
        assert span.attributes["ibidem.outcome"] == "error"
    assert sdk.points("ibidem.errors", "ibidem.fault", "error.type") == {
        ("look up a question: StorageUnavailable", "StorageUnavailable"): 1,
        ("store an answer: StorageUnavailable", "StorageUnavailable"): 1,
    }
    assert "ibidem.entries" not in sdk.metrics()
    assert "s3cret" not in str([span.to_json() for span in sdk.spans()])


def test_an_index_that_fails(sdk: Sdk, cache: SemanticCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miss without its index, not an error; the step that failed is one."""
    monkeypatch.setattr(cache._runtime.vectors, "nearest", failing(IndexUnavailable("down")))
    assert cache.lookup(REWORDED).reason == "no_index"
    lookup, search = sdk.spans("ibidem.lookup")[-1], sdk.spans("ibidem.search")[-1]

    assert (sdk.span()["ibidem.outcome"], sdk.span()["error.type"]) == ("miss", "IndexUnavailable")
    assert lookup.status.status_code is StatusCode.UNSET
    assert search.status.status_code is StatusCode.ERROR
    assert sdk.span("ibidem.search") == {"error.type": "IndexUnavailable"}


def test_an_embedder_that_fails(sdk: Sdk, open_cache: OpenCache) -> None:
    """The lookup is an error."""
    open_cache(embedder=Broken()).lookup(ASKED)

    assert sdk.span()["error.type"] == sdk.span("ibidem.embed")["error.type"] == "RuntimeError"
    assert sdk.points("ibidem.lookups", "ibidem.outcome") == {("error",): 1}


def test_a_closed_cache_raises_and_its_span_ends(sdk: Sdk, cache: SemanticCache) -> None:
    """The program's own mistake is its error."""
    cache.close()
    with pytest.raises(ibidem.CacheClosed):
        PendingRequest(cache.steps, ASKED).lookup()

    assert sdk.span() == {"error.type": "CacheClosed"}
    assert sdk.spans("ibidem.lookup")[-1].status.status_code is StatusCode.ERROR


class Raising(SpanProcessor):
    """A processor with a mistake in it."""

    def __init__(self, when: str) -> None:
        self.when = when

    def on_start(self, span: object, parent_context: object = None) -> None:
        if self.when == "start":
            raise RuntimeError("broken processor")

    def on_end(self, span: ReadableSpan) -> None:
        if self.when == "end":
            raise RuntimeError("broken processor")


@pytest.mark.parametrize("when", ["start", "end"])
def test_a_processor_that_raises_disturbs_nothing(
    monkeypatch: pytest.MonkeyPatch, open_cache: OpenCache, when: str
) -> None:
    """The calls are as ever; that nothing is told is a fault."""
    with told_to(monkeypatch, Raising(when)) as sdk:
        cache = open_cache()
        assert cache.store(ASKED, PRICED)
        assert cache.lookup(ASKED).tier == "exact"
        assert cache.lookup(REWORDED).tier == "semantic"

        assert set(cache.stats().faults) == {"tell telemetry: RuntimeError"}
        assert sdk.points("ibidem.lookups", "ibidem.outcome") == {("hit",): 2}


def test_instruments_that_raise_disturb_nothing(
    sdk: Sdk, cache: SemanticCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when the failure itself cannot be told."""
    for name in ("lookups", "stores", "errors", "audits"):
        broken = type("Broken", (), {"add": failing(ValueError("no"))})()
        monkeypatch.setattr(sdk.instruments, name, broken)

    assert cache.lookup(ASKED)
    assert cache.store(ASKED, PRICED)
    assert cache.stats().faults == {"tell telemetry: ValueError": 2}


class Failing(SpanExporter):
    """An exporter whose server is down."""

    def export(self, spans: object) -> SpanExportResult:
        raise ConnectionError("no collector")


def test_an_exporter_that_raises_disturbs_nothing(
    monkeypatch: pytest.MonkeyPatch, open_cache: OpenCache, caplog: pytest.LogCaptureFixture
) -> None:
    """The SDK says so itself."""
    with told_to(monkeypatch, SimpleSpanProcessor(Failing())):
        cache = open_cache()
        cache.store(ASKED, PRICED)
        assert cache.lookup(ASKED).tier == "exact"
        assert cache.stats().faults == {}
    assert "Exception while exporting Span" in caplog.text


# Parents -------------------------------------------------------------------------------------------------


def parents_of(sdk: Sdk, name: str = "ibidem.lookup") -> list[int | None]:
    return [span.parent.span_id if span.parent else None for span in sdk.spans(name)]


def test_the_callers_span_is_the_parent(sdk: Sdk, cache: SemanticCache) -> None:
    """In its thread, and in one that runs in its context; elsewhere there is none."""
    with sdk.tracer.start_as_current_span("request") as own, ThreadPoolExecutor(1) as pool:
        cache.lookup(ASKED)
        pool.submit(copy_context().run, cache.lookup, ASKED).result()
        pool.submit(cache.lookup, ASKED).result()
        mine = own.get_span_context().span_id

    assert parents_of(sdk) == [mine, mine, None]


async def test_tasks_have_their_own_parents(sdk: Sdk, cache: SemanticCache) -> None:
    """Lookups of tasks run in threads, at the same time."""

    async def ask(request: Request) -> Answer:
        await asyncio.sleep(0)
        return PRICED

    async def one(n: int) -> tuple[str, int]:
        with sdk.tracer.start_as_current_span(f"request {n}") as own:
            await cache.aanswer(Request(question(n)), ask)
            return Request(question(n)).key, own.get_span_context().span_id

    expected = dict(await asyncio.gather(*map(one, range(10, 18))))
    stores = [span for span in sdk.spans("ibidem.store") if span.parent is not None]

    assert len(stores) == len(expected)
    for span in stores:
        assert span.parent is not None
        assert span.attributes is not None
        assert span.parent.span_id == expected[str(span.attributes["ibidem.entry.id"])]
    assert sorted(filter(None, parents_of(sdk))) == sorted(expected.values())


def test_spans_of_the_embedder_are_within_the_step(sdk: Sdk, cache: SemanticCache) -> None:
    """What a model server's client traces is seen where it happens."""
    embed = cache._runtime.embedder.vector_of

    def traced(text: str) -> Any:
        with sdk.tracer.start_as_current_span("POST /embed"):
            return embed(text)

    cache._runtime.embedder.vector_of = traced  # type: ignore[method-assign]
    cache.lookup(REWORDED)

    assert parents_of(sdk, "POST /embed") == [sdk.spans("ibidem.embed")[-1].context.span_id]


# What is never told --------------------------------------------------------------------------------------


def test_no_text_is_told(sdk: Sdk, open_cache: OpenCache, caplog: pytest.LogCaptureFixture) -> None:
    """Of question, answer, scope, document and namespace: in spans, metrics and records above debug."""
    secrets = {name: f"s3cret-{name}" for name in ("question", "answer", "scope", "document", "namespace")}
    cache = open_cache(redact=lambda text: text)
    document = Document(secrets["document"], f"text {secrets['document']}")
    request = Request(
        f"what is {secrets['question']}",
        scope=secrets["scope"],
        namespace=secrets["namespace"],
        documents=(document,),
    )
    with caplog.at_level(logging.INFO, "ibidem"):
        cache.store(request, Answer(f"it is {secrets['answer']}", payload=secrets["answer"]))
        assert cache.lookup(request)
        cache.lookup(Request(f"so what is {secrets['question']}", scope=secrets["scope"]))
    told = "".join(span.to_json() for span in sdk.spans())
    told += "".join(metric.to_json() for metric in sdk.metrics().values()) + caplog.text

    assert len(sdk.spans("ibidem.lookup")) == 2
    assert [secret for secret in secrets.values() if secret in told] == []


def test_debug_records_name_no_text_either(cache: SemanticCache, caplog: pytest.LogCaptureFixture) -> None:
    """Those of lookups and stores say what spans say."""
    with caplog.at_level(logging.DEBUG, "ibidem"):
        cache.lookup(REWORDED)
        cache.store(REWORDED, PRICED)
    told = str([vars(record) for record in caplog.records])

    assert [record.name for record in caplog.records] == ["ibidem.lookup", "ibidem.store"]
    assert question(0) not in told
    assert PRICED.text not in told


def test_namespaces_are_told_if_asked_for(sdk: Sdk, open_cache: OpenCache) -> None:
    """With their users in spans; metrics name tenants only, and not too many of them."""
    cache = open_cache(telemetry_namespace=True)
    cache.lookup(Request("a", namespace=ibidem.namespace_of("acme/eu", "ann")))
    for n in range(MAX_VALUES + 5):
        cache.lookup(Request("a", namespace=f"tenant {n}"))
    counted = sdk.points("ibidem.lookups", "ibidem.namespace")

    assert sdk.spans("ibidem.lookup")[0].attributes["ibidem.namespace"] == "acme%2Feu/user=ann"  # type: ignore[index]
    assert counted["acme/eu",] == 1
    assert counted[OTHER,] == 6
    assert len(counted) == MAX_VALUES + 1


def test_namespaces_are_not_told_unasked(sdk: Sdk, cache: SemanticCache) -> None:
    """They may name a person."""
    cache.lookup(Request("a", namespace="ann@example.com"))

    assert "ibidem.namespace" not in sdk.span()
    assert sdk.points("ibidem.lookups", "ibidem.namespace") == {(None,): 1}


# Gauges --------------------------------------------------------------------------------------------------


def test_gauges_are_of_open_caches(sdk: Sdk, open_cache: OpenCache, tmp_path: Path) -> None:
    """By place; a closed cache has none."""
    one, two = open_cache(path=tmp_path / "one"), open_cache(path=tmp_path / "two")
    one.store(ASKED, PRICED)
    place, other = one._runtime.cache_id, two._runtime.cache_id
    entries, size = sdk.points("ibidem.entries", "ibidem.place"), sdk.points("ibidem.size", "ibidem.place")
    assert entries == {(place,): 1, (other,): 0}
    assert size[place,] == one.stats().bytes
    assert {queue for _, queue in sdk.points("ibidem.queue.length", "ibidem.place", "ibidem.queue")} == {
        "lookups",
        "examples",
        "audits",
    }

    one.close()
    assert sdk.points("ibidem.entries", "ibidem.place") == {(other,): 0}


def test_a_closed_cache_is_not_kept_alive(sdk: Sdk, tmp_path: Path) -> None:
    """Neither by instruments nor by what listens to failures."""
    cache = ibidem.open(tmp_path / "short", embedder=Broken())
    cache.lookup(ASKED)
    cache.close()
    ends = weakref.ref(cache), weakref.ref(cache._runtime)
    del cache
    gc.collect()

    assert [end() for end in ends] == [None, None]


# Without an SDK ------------------------------------------------------------------------------------------


def test_without_providers_nothing_is_made(open_cache: OpenCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """No span, no attributes, no measurement."""
    cache = open_cache()
    for name in ("for_counter", "for_histogram"):
        monkeypatch.setattr(cache._telemetry._labels, name, failing(AssertionError(name)))
    cache.store(ASKED, PRICED)

    assert has_meter_provider(metrics.instruments()) is False
    assert cache._telemetry.start_lookup(ASKED) is NOOP_SPAN
    assert cache.lookup(ASKED).tier == "exact"
    assert cache.stats().faults == {}


LATE = """
import sys
import ibidem
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.embedders import BagOfWords

with ibidem.open(sys.argv[1], embedder=BagOfWords()) as cache:
    cache.lookup(ibidem.Request("before"))
    spans, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    cache.lookup(ibidem.Request("after"))
    (scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
names = sorted(metric.name for metric in scope.metrics)
print(len(spans.get_finished_spans()), scope.scope.name, scope.scope.version, *names)
"""


def test_providers_may_be_set_after_a_cache_was_opened(tmp_path: Path) -> None:
    """What comes then is told to them."""
    with Child(LATE, tmp_path) as child:
        spans, scope, version, *names = child.line().split()

    assert (spans, scope, version) == ("4", "ibidem", ibidem.__version__)
    assert {"ibidem.lookups", "ibidem.entries", "ibidem.queue.length"} <= set(names)


def test_chroma_tells_nobody(tmp_path: Path) -> None:
    """Neither its makers nor the program's tracer."""
    import chromadb.telemetry.opentelemetry

    with closing(chroma._embedded_client(tmp_path / "chroma")) as client:
        assert client.get_settings().anonymized_telemetry is False
        assert chromadb.telemetry.opentelemetry.tracer is None


# The page ------------------------------------------------------------------------------------------------


def tables_of(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, as cells."""
    section = PAGE.read_text().partition(f" {heading}\n")[2].partition("\n#")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_.]+)`", cell))


@pytest.fixture
def everything(sdk: Sdk, open_cache: OpenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """All that can be told was told."""
    cache = open_cache(telemetry_namespace=True, audit_rate=1.0, min_similarity=None, compare=lambda *_: True)
    cache.store(ASKED, PRICED)
    cache.lookup(ASKED)
    cache.lookup(REWORDED)
    cache.store(REWORDED, Answer("cut", finish_reason="length"))
    cache.lookup(Request(reworded(0) + " please"))
    cache.store(Request(reworded(0) + " please"), PRICED)
    doubting = open_cache(path=tmp_path / "doubt", min_similarity=0.99, second_opinion=lambda *_: True)
    doubting.store(ASKED, PRICED)
    doubting.lookup(REWORDED)
    with monkeypatch.context() as patch:
        patch.setattr(doubting._runtime.store.judgements, "opinion", failing(StorageUnavailable("away")))
        doubting.lookup(REWORDED)
    cache.flush()
    nearest, vector_of = cache._runtime.vectors.nearest, cache._runtime.embedder.vector_of
    with monkeypatch.context() as patch:
        patch.setattr(cache._runtime.vectors, "nearest", failing(IndexUnavailable("down")))
        cache.lookup(REWORDED)
        patch.setattr(cache._runtime.vectors, "nearest", nearest)
        patch.setattr(cache._runtime.store.entries, "near", failing(StorageUnavailable("away")))
        cache.lookup(REWORDED)
        patch.setattr(cache._runtime.embedder, "vector_of", failing(RuntimeError("down")))
        cache.store(REWORDED, PRICED)
        patch.setattr(cache._runtime.embedder, "vector_of", vector_of)
        patch.setattr(cache._runtime.store.entries, "put", failing(StorageUnavailable("away")))
        cache.store(ASKED, PRICED)
    return sdk


def test_the_page_lists_the_spans_that_there_are(everything: Sdk) -> None:
    """With their attributes, in both directions."""
    listed = {row[0].strip("`"): named(row[2]) for row in tables_of("Spans")}
    told: dict[str, set[str]] = {}
    for span in everything.spans():
        told.setdefault(span.name, set()).update(span.attributes or {})

    assert told == listed


def test_the_page_lists_the_metrics_that_there_are(everything: Sdk) -> None:
    """With kind, unit and attributes, in both directions."""
    listed = {row[0].strip("`"): (row[1], row[2].strip("`"), named(row[4])) for row in tables_of("Metrics")}
    told = {}
    for name, metric in everything.metrics().items():
        kinds = {Gauge: "gauge", Histogram: "histogram"}
        attributes = {key for point in metric.data.data_points for key in point.attributes or {}}
        told[name] = (kinds.get(type(metric.data), "counter"), metric.unit, attributes)

    assert told == listed


def test_the_page_explains_the_attributes_that_there_are() -> None:
    """Each once."""
    rows = tables_of("Spans") + tables_of("Metrics")
    used = {name for row in rows for name in named(row[-1])}
    explained = [name for row in tables_of("Attributes") for name in sorted(named(row[0]))]

    assert sorted(explained) == sorted(used)


def test_the_page_lists_the_records_that_there_are(
    sdk: Sdk, cache: SemanticCache, caplog: pytest.LogCaptureFixture, open_cache: OpenCache, tmp_path: Path
) -> None:
    """By logger, level and event, with their fields."""
    (tmp_path / "no database").mkdir()
    (tmp_path / "no database" / "ibidem.sqlite3").write_text("this is not a database file" * 100)
    with caplog.at_level(logging.DEBUG, "ibidem"):
        cache.lookup(ASKED)
        cache.store(ASKED, PRICED)
        cache._runtime.faults.note("try", ValueError("x"))
        open_cache(path=tmp_path / "no database")
        chroma._warn_rebuilt(tmp_path, "may be damaged")
        runtime._warn_of("it has no pgvector")
    told: dict[tuple[str, str, str], set[str]] = {}
    for record in caplog.records:
        fields = {name for name in vars(record) if "." in name}
        told[record.name, record.levelname.lower(), vars(record)["event.name"]] = fields - {"event.name"}
    listed = {
        (row[0].strip("`"), row[1].split()[0], row[2].strip("`")): named(row[3]) for row in tables_of("Logs")
    }
    for name in ("lookup", "store"):  # the attributes of the span
        told[f"ibidem.{name}", "debug", f"ibidem.{name}"] -= set(sdk.span(f"ibidem.{name}"))

    assert told == listed
