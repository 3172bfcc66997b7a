"""OpenTelemetry metrics: the instruments of the process, and the attributes of measurements."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Protocol

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from ibidem._util.concurrency import ForkSafeLock
from ibidem.types import Hit, Miss, Rejected, Stored, tenant_of

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

INSTRUMENTATION = "ibidem"
DISTRIBUTION = "ibidem-cache"
MAX_VALUES = 100  # distinct values of one attribute; later ones become `OTHER`, as the conventions call it
OTHER = "_OTHER"
# From an identical question in memory to a server that is waited for, in seconds.
BUCKETS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)

Attributes = dict[str, str | bool | int | float]


class Observed(Protocol):
    """An open location of caches, as gauges see it."""

    @property
    def cache_id(self) -> str:
        """Identifier of the location."""

    def size(self) -> tuple[int, int] | None:
        """Return the entries and their bytes; None while the database is unavailable."""

    def queue_lengths(self) -> dict[str, int]:
        """Return the length of each queue."""


_observed: weakref.WeakSet[Observed] = weakref.WeakSet()
_observed_lock = ForkSafeLock()


def observe(location: Observed) -> None:
    """Include a location in the gauges, until it is closed or garbage-collected."""
    with _observed_lock:
        _observed.add(location)


def stop_observing(location: Observed) -> None:
    """Exclude a location from the gauges."""
    with _observed_lock:
        _observed.discard(location)


def _locations() -> list[Observed]:
    with _observed_lock:
        return list(_observed)


class Instruments:
    """The tracer and the instruments, made once; the API hands them to providers that are set later."""

    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self.tracer = tracer
        count = meter.create_counter
        self.lookups = count("ibidem.lookups", "{lookup}", "Requests looked up")
        self.duration = meter.create_histogram(
            "ibidem.lookup.duration",
            "s",
            "Duration of lookups",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.stores = count("ibidem.stores", "{answer}", "Answers stored or rejected")
        self.tokens = count("ibidem.tokens.saved", "{token}", "Tokens that the answers of hits had cost")
        self.money = count("ibidem.money.saved", "{currency}", "The same in money, where prices are known")
        self.audits = count("ibidem.audits", "{audit}", "Stored answers compared with fresh ones")
        self.errors = count("ibidem.errors", "{error}", "Failures inside, kept from the caller")
        gauge = meter.create_observable_gauge
        gauge("ibidem.entries", [partial(_sizes, 0)], "{entry}", "Answers stored, of all processes")
        gauge("ibidem.size", [partial(_sizes, 1)], "By", "Bytes they take, estimated")
        gauge("ibidem.queue.length", [_queues], "{item}", "Pending background work")


def _sizes(which: int, _: CallbackOptions) -> Iterable[Observation]:
    for location in _locations():
        if (size := location.size()) is not None:
            yield Observation(size[which], {"ibidem.place": location.cache_id})


def _queues(_: CallbackOptions) -> Iterable[Observation]:
    for location in _locations():
        for queue, length in location.queue_lengths().items():
            yield Observation(length, {"ibidem.place": location.cache_id, "ibidem.queue": queue})


_making = ForkSafeLock()


def instruments() -> Instruments:
    """Return the instruments of the program's providers."""
    with _making:  # once, also if two threads open their first cache
        return _make_instruments()


@cache
def _make_instruments() -> Instruments:
    try:
        ours = version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a checkout
        ours = ""
    return Instruments(trace.get_tracer(INSTRUMENTATION, ours), metrics.get_meter(INSTRUMENTATION, ours))


class ValueLimit:
    """Limits an attribute to its first `MAX_VALUES` values."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def apply(self, value: str) -> str:
        """Return the value if it is one of the first, else `OTHER`."""
        if value in self._known:
            return value
        if len(self._known) >= MAX_VALUES:
            return OTHER
        self._known.add(value)
        return value


class Labels:
    """Attributes of the measurements of one cache. Thread-safe: the same are made twice at worst.

    A `namespace` is None if it must stay private; its users are not told apart.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._made: dict[tuple[str | None, ...], Attributes] = {}
        self._reasons, self._namespaces, self._models = ValueLimit(), ValueLimit(), ValueLimit()

    def for_counter(self, result: Hit | Miss | Stored | Rejected, namespace: str | None) -> Attributes:
        """Return the attributes of a lookup or a store in counters."""
        tier = result.tier if isinstance(result, Hit) else ""
        reason = result.reason if isinstance(result, (Miss, Rejected)) else ""
        if reason.startswith("finish_reason:"):  # each model has its own words for the rest
            reason = "finish_reason"
        values = (outcome_of(result), tier, self._reasons.apply(reason))
        return self._get(("ibidem.outcome", "ibidem.tier", "ibidem.reason"), values, namespace)

    def for_histogram(self, result: Hit | Miss) -> Attributes:
        """Return the attributes of a lookup in histograms."""
        tier = result.tier if isinstance(result, Hit) else ""
        return self._get(("ibidem.outcome", "ibidem.tier"), (outcome_of(result), tier), None)

    def for_tokens(self, kind: str, model: str, namespace: str | None) -> Attributes:
        """Return the attributes of saved tokens of this kind (`input`, `output`)."""
        values = (kind, self._models.apply(model))
        return self._get(("gen_ai.token.type", "gen_ai.response.model"), values, namespace)

    def for_money(self, currency: str, model: str, namespace: str | None) -> Attributes:
        """Return the attributes of saved money."""
        values = (currency, self._models.apply(model))
        return self._get(("ibidem.currency", "gen_ai.response.model"), values, namespace)

    def _get(self, names: tuple[str, ...], values: tuple[str, ...], namespace: str | None) -> Attributes:
        tenant = None if namespace is None else self._namespaces.apply(tenant_of(namespace))
        key = (names[0], *values, tenant)
        if (known := self._made.get(key)) is None:
            known = {"ibidem.place": self._place}
            known |= {name: value for name, value in zip(names, values, strict=True) if value}
            if tenant is not None:
                known["ibidem.namespace"] = tenant
            self._made[key] = known
        return known


def outcome_of(result: object) -> str:
    """Return the outcome of a lookup or a store in one word."""
    if isinstance(result, (Miss, Rejected)):
        name = "miss" if isinstance(result, Miss) else "rejected"
        return "error" if result.reason == "error" else name
    return "hit" if isinstance(result, Hit) else "stored"
