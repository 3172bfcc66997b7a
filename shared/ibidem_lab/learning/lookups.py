"""Labelled questions as lookups: each is asked of the whole store, and what it may meet there is read."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ibidem.embedding.base import CheckedEmbedder
from ibidem.matching.guards import NamedGuard, failed_guard
from ibidem.matching.pair_model import SPARSE, PairModel
from ibidem.matching.policy import MAX_CANDIDATES
from ibidem.matching.scorers import NEIGHBOURS, densities
from ibidem.types import Vector, normalise
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.fitting import Pairs
from ibidem_lab.learning.reading import Reader
from ibidem_lab.learning.verifier_files import Shipped
from ibidem_lab.tuning.data import communities, components

LARGEST_GROUP = 0.1  # share of the questions that one group may hold; a larger one is cut
FEW = 20  # questions that one group may hold in any case


@dataclass(frozen=True)
class Met:
    """A question and a stored one that a lookup of it compares it with, or that it has a label with.

    `read` tells whether the lookup reads the pair: it is among the nearest that no guard refuses.
    """

    asked: str
    stored: str
    cosine: float
    density: float
    read: bool


@dataclass(frozen=True)
class Lookups:
    """What the labelled questions meet: `met` row by row, in the order in which each lookup reads.

    `lookup` numbers the questions, `known` tells whether a pair has a label, which stands in `pairs.right`.
    `group` is that of the question asked, `others` that of the stored one (-1: it has no label of its own).
    """

    met: Sequence[Met]
    pairs: Pairs
    known: NDArray[np.bool_]
    read: NDArray[np.bool_]
    lookup: NDArray[np.int64]
    group: NDArray[np.int64]
    others: NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many questions are asked."""
        return int(self.lookup.max()) + 1 if len(self.lookup) else 0


class Searcher:
    """Finds what a question meets in a store of questions.

    Args:
        stored: Their vectors by text.
        embedder: Of the questions asked.
        guards: Beside the score.
        model: How many candidates it reads, and from which cosine on.
    """

    def __init__(
        self,
        stored: Mapping[str, Vector],
        embedder: CheckedEmbedder,
        guards: Sequence[NamedGuard],
        model: PairModel,
        threshold: float,
    ) -> None:
        self._texts, self._matrix = list(stored), np.stack(list(stored.values()))
        self._vectors = dict(stored)
        self._embedder, self._guards = embedder, guards
        self._most, self._least = model.most, model.min_cosine(threshold)

    def vector(self, text: str) -> Vector | None:
        """Return the vector of a question, None if it is not compared by meaning."""
        if text not in self._vectors:
            if self._embedder.refusal(text):
                return None
            self._vectors[text] = self._embedder.vector_of(text)
        return self._vectors[text]

    def met(self, asked: str, labelled: Sequence[str]) -> list[Met]:
        """Return what a lookup of the question reads, and then the pairs that have a label besides."""
        vector = self.vector(asked)
        if vector is None:
            return []
        cosines = self._matrix @ vector
        near = [at for at in np.argsort(-cosines)[: NEIGHBOURS + 1] if self._texts[at] != asked][:NEIGHBOURS]
        told = [min(1.0, float(cosines[at])) for at in near]
        around = densities([self._texts[at] for at in near], told)
        found: list[Met] = []
        for at, cosine, density in list(zip(near, told, around, strict=True))[:MAX_CANDIDATES]:
            stored = self._texts[at]
            if len(found) < self._most and cosine >= self._least and not self._refused(asked, stored):
                found.append(Met(asked, stored, cosine, density, read=True))
        crowd = sum(told) / (NEIGHBOURS - 1)
        for stored in labelled:
            other = self.vector(stored)
            if other is None or any(one.stored == stored for one in found) or self._refused(asked, stored):
                continue
            cosine = min(1.0, float(vector @ other))
            found.append(Met(asked, stored, cosine, crowd, read=False))
        return found

    def _refused(self, asked: str, stored: str) -> bool:
        return bool(failed_guard(asked, stored, self._guards))


def _pair(one: str, other: str) -> tuple[str, str]:
    return min(one, other), max(one, other)


class Known:
    """What labels say of pairs, also of such that they do not name: if a is b and b is c, then a is c."""

    def __init__(self, labels: Sequence[Label]) -> None:
        told = {_pair(one.asked, one.stored): one.right for one in labels}
        self._one: dict[str, int] = components(pair for pair, right in told.items() if right)
        self._apart = {frozenset((self._of(a), self._of(b))) for (a, b), right in told.items() if not right}
        self._told = told

    def _of(self, text: str) -> int | str:
        return self._one.get(text, text)

    def right(self, asked: str, stored: str) -> bool | None:
        """Return whether one answer serves both; None if that is not known."""
        if (told := self._told.get(_pair(asked, stored))) is not None:
            return told
        one, other = self._of(asked), self._of(stored)
        if one == other:
            return True
        return False if frozenset((one, other)) in self._apart else None


def look_up(
    labels: Sequence[Label],
    searcher: Searcher,
    reader: Reader,
    shipped: Shipped,
    seen: Callable[[str, int, int], object],
) -> Lookups:
    """Ask each question of a label, also the stored one, of the others that are stored; read what it meets.

    Args:
        labels: Of different questions, normalised, the newest of a pair alone.
        searcher: Searches the store.
        reader: Reads pairs.
        shipped: The pair model.
        seen: Told a stage, and how many of how many are done.
    """
    partners: dict[str, list[str]] = {}
    for one in labels:
        partners.setdefault(one.asked, []).append(one.stored)
        partners.setdefault(one.stored, []).append(one.asked)
    met: list[Met] = []
    for done, (asked, stored) in enumerate(partners.items(), 1):
        met += searcher.met(asked, stored)
        seen("search", done, len(partners))
    pairs = read_pairs(met, reader, shipped, seen)
    inside = np.flatnonzero(~np.isnan(pairs.logits))  # the window holds them
    met, known, groups = [met[at] for at in inside], Known(labels), groups_of(labels)
    told = [known.right(one.asked, one.stored) for one in met]
    numbers: dict[str, int] = {}
    return Lookups(
        met=met,
        pairs=pairs.at(inside).labelled(np.array([bool(one) for one in told])),
        known=np.array([one is not None for one in told]),
        read=np.array([one.read for one in met]),
        lookup=np.array([numbers.setdefault(one.asked, len(numbers)) for one in met], np.int64),
        group=np.array([groups[one.asked] for one in met], np.int64),
        others=np.array([groups.get(one.stored, -1) for one in met], np.int64),
    )


def read_pairs(
    met: Sequence[Met], reader: Reader, shipped: Shipped, seen: Callable[[str, int, int], object]
) -> Pairs:
    """Read pairs; the labels are left open. A pair beyond the window has a logit of NaN."""
    done = 0

    def note(count: int) -> None:
        nonlocal done
        done += count
        seen("read", done, len(met))

    states = reader.states([(one.asked, one.stored) for one in met], note)
    return Pairs(
        shipped.logits(states),
        np.array([one.cosine for one in met]),
        np.array([one.density for one in met]),
        states,
        np.zeros(len(met), np.bool_),
    )


def alone(label: Label, cosine: float) -> Met:
    """Return a pair as it is met in a cache that holds nothing else."""
    return Met(label.asked, label.stored, cosine, SPARSE, read=True)


def distinct(labels: Sequence[Label], private: Callable[[str], bool] = lambda text: False) -> list[Label]:
    """Return the labels of different questions, normalised; of two for one pair the later counts."""
    found: dict[tuple[str, str], Label] = {}
    for one in labels:
        asked, stored = normalise(one.asked), normalise(one.stored)
        if asked and stored and asked != stored and not private(asked) and not private(stored):
            found.pop(key := _pair(asked, stored), None)
            found[key] = Label(asked, stored, one.right)
    return list(found.values())


def groups_of(labels: Sequence[Label], seed: int = 0) -> dict[str, int]:
    """Return the group of each question: what hangs together by labels, cut where that is too much."""
    number = components((one.asked, one.stored) for one in labels)
    sizes = Counter(number.values())
    largest = max(FEW, int(LARGEST_GROUP * len(number)))
    tied = [one for one in labels if sizes[number[one.asked]] > largest]
    community = communities(tied, largest, random.Random(seed))  # noqa: S311 (no secret)
    named: dict[tuple[int, int], int] = {}
    return {
        text: named.setdefault((one, community.get(text, -1)), len(named)) for text, one in number.items()
    }
