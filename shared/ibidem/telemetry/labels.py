"""The attributes of metrics: made once for each combination, of values that are bounded."""

from __future__ import annotations

from ibidem.request import Hit, Miss, Rejected, Stored
from ibidem.scoping import tenant_of
from ibidem.telemetry.instruments import Attributes

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
