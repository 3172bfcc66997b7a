"""The tracer and the instruments of the process, of whichever OpenTelemetry providers the program has set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from ibidem._util.concurrency import ForkSafeLock
from ibidem._util.deadline import deadline
from ibidem.errors import StorageError
from ibidem.types import Hit, Miss, Rejected, Stored, tenant_of

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

    from ibidem.runtime import Runtime


SCOPE = "ibidem"  # of the instrumentation
_making = ForkSafeLock()
# From an identical question in memory to a server that is waited for, in seconds.
BUCKETS = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
)

Attributes = dict[str, str | bool | int | float]


class Instruments:
    """The tracer and the instruments, made once; the API hands them to providers that are set later.

    Args:
        tracer: Where spans begin.
        meter: Where metrics go.
        runtimes: Those that are open now. They are asked for at each collection and not held: a cache that
            was closed is gone.
    """

    def __init__(self, tracer: Tracer, meter: Meter, runtimes: Callable[[], list[Runtime]]) -> None:
        self.tracer, self._runtimes = tracer, runtimes
        count = meter.create_counter
        self.lookups = count("ibidem.lookups", "{lookup}", "Requests looked up")
        self.duration = meter.create_histogram(
            "ibidem.lookup.duration",
            "s",
            "How long the lookup took",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self.stores = count("ibidem.stores", "{answer}", "Answers stored or rejected")
        self.tokens = count("ibidem.tokens.saved", "{token}", "Tokens that the answers of hits had cost")
        self.money = count("ibidem.money.saved", "{currency}", "The same in money, where prices are known")
        self.audits = count("ibidem.audits", "{audit}", "Stored answers compared with fresh ones")
        self.errors = count("ibidem.errors", "{error}", "Failures inside, kept from the caller")
        gauge = meter.create_observable_gauge
        gauge("ibidem.entries", [partial(self._sizes, 0)], "{entry}", "Answers stored, of all processes")
        gauge("ibidem.size", [partial(self._sizes, 1)], "By", "Bytes they take, estimated")
        gauge("ibidem.queue.length", [self._queues], "{item}", "What waits to be done in the background")

    @property
    def metering(self) -> bool:
        """Whether the program has set a provider of meters; a cheap look at what the API keeps to itself.

        Instruments made before are proxies of real ones. Should the API change, they are used either way.
        """
        return getattr(self.lookups, "_real_instrument", self) is not None

    def _sizes(self, which: int, _: CallbackOptions) -> Iterable[Observation]:
        for runtime in self._runtimes():
            if (size := _size(runtime)) is not None:
                yield Observation(size[which], {"ibidem.place": runtime.place})

    def _queues(self, _: CallbackOptions) -> Iterable[Observation]:
        for runtime in self._runtimes():
            for queue, length in runtime.waiting().items():
                yield Observation(length, {"ibidem.place": runtime.place, "ibidem.queue": queue})


def _size(runtime: Runtime) -> tuple[int, int] | None:
    """Entries and their bytes; None as long as the database is away."""
    with suppress(StorageError), deadline():
        runtime.check_process()  # the collector may be of a forked child
        return runtime.store.evictor.size()
    return None


def shared() -> Instruments:
    """Those of the program's providers."""
    with _making:  # once, also if two threads open their first cache
        return _made()


@cache
def _made() -> Instruments:
    from ibidem import __version__
    from ibidem.runtime import runtimes

    return Instruments(trace.get_tracer(SCOPE, __version__), metrics.get_meter(SCOPE, __version__), runtimes)


MOST = 100  # values of one attribute; what comes later is told as `_OTHER`, the conventions' word
OTHER = "_OTHER"


class Bounded:
    """At most `MOST` values."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        """The value, if it is one of the first."""
        if value in self._known:
            return value
        if len(self._known) >= MOST:
            return OTHER
        self._known.add(value)
        return value


class Labels:
    """Attributes by what they are about, for one cache. Thread-safe: the same is made twice at worst.

    A `namespace` is None if it may not be told; its users are not told apart.
    """

    def __init__(self, place: str) -> None:
        self._place = place
        self._made: dict[tuple[str | None, ...], Attributes] = {}
        self._reasons, self._namespaces, self._models = Bounded(), Bounded(), Bounded()

    def counted(self, result: Hit | Miss | Stored | Rejected, namespace: str | None) -> Attributes:
        """Of a lookup or a store in counters."""
        tier = result.tier if isinstance(result, Hit) else ""
        reason = result.reason if isinstance(result, (Miss, Rejected)) else ""
        if reason.startswith("finish_reason:"):  # models say why they stop in words of their own
            reason = "finish_reason"
        told = (outcome_of(result), tier, self._reasons.of(reason))
        return self._of(("ibidem.outcome", "ibidem.tier", "ibidem.reason"), told, namespace)

    def timed(self, result: Hit | Miss) -> Attributes:
        """Of a lookup in histograms."""
        tier = result.tier if isinstance(result, Hit) else ""
        return self._of(("ibidem.outcome", "ibidem.tier"), (outcome_of(result), tier), None)

    def tokens(self, kind: str, model: str, namespace: str | None) -> Attributes:
        """Of tokens of this kind (`input`, `output`) that this model did not have to read or say."""
        told = (kind, self._models.of(model))
        return self._of(("gen_ai.token.type", "gen_ai.response.model"), told, namespace)

    def money(self, currency: str, model: str, namespace: str | None) -> Attributes:
        """Of what such tokens cost."""
        told = (currency, self._models.of(model))
        return self._of(("ibidem.currency", "gen_ai.response.model"), told, namespace)

    def _of(self, names: tuple[str, ...], values: tuple[str, ...], namespace: str | None) -> Attributes:
        tenant = None if namespace is None else self._namespaces.of(tenant_of(namespace))
        key = (names[0], *values, tenant)
        if (known := self._made.get(key)) is None:
            known = {"ibidem.place": self._place}
            known |= {name: value for name, value in zip(names, values, strict=True) if value}
            if tenant is not None:
                known["ibidem.namespace"] = tenant
            self._made[key] = known
        return known


def outcome_of(result: object) -> str:
    """What came of a lookup or a store, in a word."""
    if isinstance(result, (Miss, Rejected)):
        named = "miss" if isinstance(result, Miss) else "rejected"
        return "error" if result.reason == "error" else named
    return "hit" if isinstance(result, Hit) else "stored"
