"""Which step next? What the logs say about where few-shot, more documents or fine-tuning would pay.

The ladder: first what the cache misses for no good reason, then few-shot and documents, then fine-tuning.
Every advice rests on figures, and a share that decides is taken at the end of its 95 % interval that speaks
against the advice: what may be chance is not advised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ibidem.matching.fitted import key_of
from ibidem_lab.advice import ladder, misses
from ibidem_lab.advice.traffic import Traffic, traffic_of
from ibidem_lab.advice.values import Advice, Lacking

if TYPE_CHECKING:
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.storage.store import Store

_RULES: tuple[Callable[[Traffic], Iterator[Advice | Lacking]], ...] = (
    misses.of_misses,
    misses.of_labels,
    ladder.few_shot,
    ladder.documents,
    ladder.prompt_text,
    ladder.fine_tuning,
)


@dataclass(frozen=True, slots=True)
class Advised:
    """What is advised, in the order of the ladder, and what could not be told.

    `lookups` and `examples` are those that were read, `sampled` the lookups whose questions were compared by
    meaning. `intents` are the most frequent groups of these: question, count, share of the sample and, where
    known, share of the tokens.
    """

    advice: tuple[Advice, ...]
    lacking: tuple[Lacking, ...]
    lookups: int
    hits: int
    examples: int
    sampled: int
    intents: tuple[tuple[str, int, float, float], ...]


def advise(
    store: Store, embedder: CheckedEmbedder, *, threshold: float = 0.955, namespace: str | None = None
) -> Advised:
    """Read the logs and say what would pay; takes seconds, also with 100,000 lookups.

    Args:
        store: The database of a location.
        embedder: What the place compares questions with.
        threshold: The least score that its cache serves.
        namespace: Only this one; default: all.

    Raises:
        StorageError: The database failed.
        Exception: Whatever the embedder raises.
    """
    fitted = store.meta.get(key_of(embedder.fingerprint)) is not None
    traffic = traffic_of(store, embedder, threshold=threshold, fitted=fitted, namespace=namespace)
    said = [one for rule in _RULES for one in rule(traffic)]
    tokens = sum(intent.tokens for intent in traffic.asked)
    return Advised(
        advice=tuple(one for one in said if isinstance(one, Advice)),
        lacking=tuple(one for one in said if isinstance(one, Lacking)),
        lookups=len(traffic.lookups),
        hits=traffic.hits,
        examples=len(traffic.examples),
        sampled=traffic.sampled,
        intents=tuple(
            (
                intent.question,
                intent.count,
                intent.count / traffic.sampled,
                intent.tokens / tokens if tokens else 0.0,
            )
            for intent in traffic.asked[:10]
            if intent.count > 1
        ),
    )
