"""What is counted of a cache: pairs, one cache that holds all, streams, and the time of a lookup."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ibidem._util.statistics import auc
from tests.benchmarks.field.contenders import Cache, Judged
from tests.benchmarks.field.sets import Row, TurnPair
from tests.benchmarks.speed.timing import percentiles, times

Counts = dict[str, Any]
WARM = 5  # lookups before any is timed


def pairs(cache: Cache, given: Sequence[TurnPair]) -> dict[str, Counts]:
    """Of each setting: [served, of] of the same and of the different, and the AUC of the score."""
    same = np.array([pair.same for pair in given], bool)
    return {setting: _counted(judged, same) for setting, judged in cache.judge(given).items()}


def _counted(judged: Sequence[Judged], same: np.ndarray) -> Counts:
    served = np.array([one.served for one in judged], bool)
    scores = np.array([one.score for one in judged], np.float64)
    area = math.nan if np.isnan(scores).any() else auc(scores, same)
    return {
        "same": [int((served & same).sum()), int(same.sum())],
        "different": [int((served & ~same).sum()), int((~same).sum())],
        "auc": None if math.isnan(area) else round(area, 3),
    }


def one_cache(cache: Cache, given: Sequence[TurnPair]) -> dict[str, Counts]:
    """Everything is stored, then all is asked: how many get their own answer, and how many another's."""
    texts = [(cache.text_of(pair.stored), cache.text_of(pair.asked)) for pair in given]
    cache.prepare([text for both in texts for text in both])
    found = {}
    for setting, value in _alone(cache):
        cache.begin(value)
        for number, (stored, _) in enumerate(texts):
            cache.store(stored, f"answer {number}")
        told = [(cache.lookup(asked, value), f"answer {number}") for number, (_, asked) in enumerate(texts)]
        hits = [answer == own for answer, own in told if answer is not None]
        found[setting] = {"asked": len(texts), "hits": len(hits), "wrong": len(hits) - sum(hits)}
    return found


def stream(cache: Cache, rows: Sequence[Row]) -> dict[str, Counts]:
    """Each question is asked; what is no hit is stored."""
    texts = [cache.text_of((row.text,)) for row in rows]
    cache.prepare(texts)
    found = {}
    for setting, value in _alone(cache):
        cache.begin(value)
        hits = wrong = 0
        for text, row in zip(texts, rows, strict=True):
            answer = cache.lookup(text, value)
            if answer is None:
                cache.store(text, str(row.meaning))
            hits += answer is not None
            wrong += answer not in (None, str(row.meaning))
        found[setting] = {"asked": len(rows), "hits": hits, "wrong": wrong}
    return found


def _alone(cache: Cache) -> Iterator[tuple[str, Any]]:
    names = cache.alone or list(cache.settings)[:1]
    return ((name, cache.settings[name]) for name in names)


def fill(cache: Cache, given: Sequence[TurnPair]) -> None:
    """All that is stored, for lookups at the default."""
    cache.begin(next(iter(cache.settings.values())))
    cache.prepare([cache.text_of(pair.stored) for pair in given])
    for pair in given:
        cache.store(cache.text_of(pair.stored), "An answer of the usual length, of two sentences. " * 4)


def latency(caches: dict[str, Cache], given: Sequence[TurnPair], reference: str) -> dict[str, Counts]:
    """Milliseconds of a lookup in other words, in turn with the others; beside those of `reference`."""
    setting = {key: next(iter(cache.settings.values())) for key, cache in caches.items()}
    took: dict[str, list[float]] = {key: [] for key in caches}
    for number, pair in enumerate(given):
        for key, cache in caches.items():
            asked = cache.text_of(pair.asked)
            one = times(lambda text, cache=cache, key=key: cache.lookup(text, setting[key]), [asked])
            took[key] += one if number >= WARM else []
    middle = np.median(took[reference])
    return {
        key: {
            "stored": len(given),
            "ratio": round(float(np.median(all_of)) / float(middle), 2),
            "ms": {name: round(value, 2) for name, value in percentiles(all_of).items() if name != "p99"},
        }
        for key, all_of in took.items()
    }
