"""Questions with their nearest earlier ones: what the learned scorer is fitted to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ibidem.matching.guards import failed_guard
from ibidem.matching.learned import features
from ibidem.matching.text import parse_question
from ibidem.types import normalise
from tests.benchmarks.streams import ANSWERS, Stream

Array = NDArray[np.float64]
NAMES = tuple(features("x", "x"))
SEEDS = (1, 2, 3)
CAP, LOW, NEIGHBOURS = 6_000, 0.85, 4


@dataclass(frozen=True)
class Pairs:
    """Questions with their near earlier ones; arrays of one entry per pair."""

    request: NDArray[np.int64]
    first: NDArray[np.bool_]  # the nearest of its request
    cosine: Array
    right: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    refused: NDArray[np.bool_]
    english: NDArray[np.bool_]
    features: Array
    requests: int

    def where(self, kept: NDArray[np.bool_]) -> Pairs:
        """Some of the pairs."""
        arrays = {name: value[kept] for name, value in vars(self).items() if name != "requests"}
        return replace(self, **arrays)

    @property
    def undecided(self) -> Pairs:
        """Those that are left to the score."""
        return self.where(~self.refused & ~self.exact)


def pairs_of(stream: Stream) -> Pairs:
    """Every question with its nearest earlier ones; all are stored."""
    found: list[tuple[Any, ...]] = []
    for number in range(1, len(stream.texts)):
        cosines = stream.vectors[:number] @ stream.vectors[number]
        count = min(NEIGHBOURS, number)
        top = np.argpartition(-cosines, count - 1)[:count]
        near = [at for at in top[np.argsort(-cosines[top], kind="stable")] if cosines[at] >= LOW]
        found.extend((number, at == near[0], float(cosines[at]), *_read(stream, number, at)) for at in near)
    columns = list(zip(*found, strict=True)) or [[]] * 8
    kinds = (np.int64, bool, np.float64, bool, bool, bool, bool, np.float64)
    arrays = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    arrays[-1] = arrays[-1].reshape(-1, len(NAMES))
    return Pairs(*arrays, len(stream.texts))


def _read(stream: Stream, one: int, other: int) -> tuple[bool, bool, bool, bool, list[float]]:
    """Whether right, the same text, refused, English; the features."""
    a, b = normalise(stream.texts[one]), normalise(stream.texts[other])
    english = parse_question(a).is_english and parse_question(b).is_english
    return (
        stream.same(one, other),
        a == b,
        failed_guard(a, b) is not None,
        english,
        list(features(a, b).values()),
    )


def joined(parts: Sequence[Pairs]) -> Pairs:
    """All of them, as one stream after the other."""
    starts = np.cumsum([0, *(part.requests for part in parts)])
    moved = [replace(part, request=part.request + at) for part, at in zip(parts, starts, strict=False)]
    arrays = {n: np.concatenate([vars(p)[n] for p in moved]) for n in vars(parts[0]) if n != "requests"}
    return Pairs(**arrays, requests=int(starts[-1]))


def pairs_by_family(streams: Sequence[Stream]) -> dict[str, Pairs]:
    """The pairs that a family teaches, over all seeds."""
    found = defaultdict(list)
    for stream in streams:
        for seed in SEEDS:
            cap = len(stream.texts) if stream.name == ANSWERS else CAP
            found[stream.family].append(pairs_of(stream.sample(cap, seed)))
    return {family: joined(parts) for family, parts in found.items()}
