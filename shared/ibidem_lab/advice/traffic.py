"""What the logs of a place say, gathered once for `ibidem_lab.advice.advising`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ibidem.examples.example import Example
from ibidem.storage.examples import EXAMPLE_LIMIT
from ibidem.storage.logs import JUDGEMENT_LIMIT, LOG_LIMIT, JudgementRow, LookupRow
from ibidem.storage.statistics import Support
from ibidem.types import Vector, normalise, to_vector
from ibidem_lab.advice.intents import Intent, intents
from ibidem_lab.fitting.labels import SOURCES

if TYPE_CHECKING:
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.storage.store import Store

Row = TypeVar("Row")

SAMPLE = 1_000  # lookups, and examples, whose questions are compared by meaning: they must be embedded
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Traffic:
    """The logs of a place, the newest first, and what follows from samples of them.

    `asked` are the groups of the sampled lookups, of which there are `sampled`, `judged` those
    of the sampled examples with feedback. `support` tells by namespace how many stored answers rest on
    documents, `fitted` whether a threshold was fitted for the embedder in use.
    """

    lookups: Sequence[LookupRow]
    examples: Sequence[Example]
    judgements: Sequence[JudgementRow]
    support: Mapping[str, Support]
    asked: Sequence[Intent]
    sampled: int
    judged: Sequence[Intent]
    threshold: float
    fitted: bool

    @property
    def hits(self) -> int:
        """Lookups that were answered from the cache."""
        return sum(bool(row.tier) for row in self.lookups)

    @property
    def reasons(self) -> Counter[str]:
        """Misses by reason; those of guards by the guard."""
        return Counter(row.reason for row in self.lookups if not row.tier)


def traffic_of(
    store: Store, embedder: CheckedEmbedder, *, threshold: float, fitted: bool, namespace: str | None
) -> Traffic:
    """Read the logs, of all namespaces or of one.

    Raises:
        StorageError: The database failed.
        Exception: Whatever the embedder raises.
    """
    lookups = [row for row in store.lookups.recent(LOG_LIMIT) if namespace in (None, row.namespace)]
    examples = store.examples.recent(EXAMPLE_LIMIT, namespace)
    judged = [row for row in store.judgements.recent(JUDGEMENT_LIMIT, namespace) if row.source in SOURCES]
    asked = evenly([row for row in lookups if row.question])
    told = [normalise(one.question) for one in examples if one.feedback is not None]
    questions = [normalise(row.question or "") for row in asked]
    said = evenly(told)
    vectors = _vectors([*questions, *said], store, examples, embedder)
    costs = _costs(examples)
    return Traffic(
        lookups=lookups,
        examples=examples,
        judgements=judged,
        support=store.statistics.support(namespace),
        asked=_groups(questions, costs, vectors),
        sampled=len(asked),
        judged=_groups(said, costs, vectors),
        threshold=threshold,
        fitted=fitted,
    )


def evenly(rows: Sequence[Row], most: int = SAMPLE) -> Sequence[Row]:
    """At most `most` of the rows, evenly over their order."""
    if len(rows) <= most:
        return rows
    return [rows[at * len(rows) // most] for at in range(most)]


def _groups(
    questions: Iterable[str], costs: Mapping[str, int], vectors: Mapping[str, Vector]
) -> list[Intent]:
    counts = Counter(questions)
    return intents(counts, {text: costs.get(text, 0) * n for text, n in counts.items()}, vectors)


def _costs(examples: Iterable[Example]) -> dict[str, int]:
    """Tokens of the newest answer of each question."""
    found: dict[str, int] = {}
    for example in examples:
        spent = (example.input_tokens or 0) + (example.output_tokens or 0)
        if spent:
            found.setdefault(normalise(example.question), spent)
    return found


def _vectors(
    texts: Iterable[str], store: Store, examples: Iterable[Example], embedder: CheckedEmbedder
) -> dict[str, Vector]:
    """Of the questions that can be compared by meaning; those kept with examples are not made again."""
    wanted = {text for text in dict.fromkeys(texts) if embedder.refusal(text) is None}
    places: dict[str, dict[int, str]] = {}
    for example in examples:
        text = normalise(example.question)
        if text in wanted and example.id is not None:
            places.setdefault(example.namespace, {})[example.id] = text
    found: dict[str, Vector] = {}
    for namespace, by_id in places.items():
        for id_, raw in store.examples.vectors(namespace, embedder.fingerprint, ids=list(by_id)):
            if raw is not None:
                found[by_id[id_]] = to_vector(raw)
    lacking = sorted(wanted - found.keys())
    for start in range(0, len(lacking), _BATCH):
        some = lacking[start : start + _BATCH]
        found.update(zip(some, embedder.embed(some), strict=True))
    return found
