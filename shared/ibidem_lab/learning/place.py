"""A cache as a run of `ibidem learn` sees it: its decision, its stored questions, and the pairs of Ibidem."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, cast

import numpy as np

from ibidem.errors import InvalidInput
from ibidem.matching.pair_model import PairModel
from ibidem.matching.policy import guards_beside
from ibidem.matching.shipped import pair_model
from ibidem.pipeline import policy_of
from ibidem.types import cosine, normalise
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.choosing import Problem
from ibidem_lab.learning.fitting import Array, Basis, Pairs
from ibidem_lab.learning.lookups import Lookups, Searcher, alone, look_up, read_pairs
from ibidem_lab.learning.reading import Reader
from ibidem_lab.learning.verifier_files import Shipped

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.types import Vector

MOST_STORED = 20_000  # stored questions that lookups are asked of, the newest

Progress = Callable[[str, int, int], object]


class Place:
    """The cache as a run sees it.

    Raises:
        InvalidInput: Its embedder or its verifier is another than the shipped one.
    """

    def __init__(self, cache: SemanticCache) -> None:
        self._cache, index = cache, cache._runtime.semantic_index
        model = pair_model()
        if model is None or not isinstance(index.scorer, PairModel) or cache._verifier != "default":
            raise InvalidInput(
                "only the pair model that comes with Ibidem learns, with the default embedder: for other "
                "scores ibidem learn threshold moves the threshold"
            )
        self._index, self.model, self.shipped = index, model, Shipped.of(model)
        strictness = cache._strictness
        self.level = min(strictness.max_error_rate, model.thresholds.highest)
        given = strictness.given(model)
        self.threshold = model.thresholds.at(self.level) if given is None else given
        _, policy = policy_of("default", index, strictness)
        self.threshold_in_use = self.threshold if strictness.audited and given is None else policy.threshold

    def problem(self, labels: Sequence[Label], reader: Reader, progress: Progress) -> Problem:
        """Read what the labels need."""
        lookups = look_up(labels, self.searcher(labels), reader, self.shipped, progress)
        anchors = self.anchors(reader, progress)
        basis = Basis.of(np.vstack([lookups.pairs.states, anchors.states]))
        return Problem(
            lookups, self.shipped.calibration, margin_of(self.threshold), self.level, basis, anchors
        )

    def searcher(self, labels: Sequence[Label]) -> Searcher:
        """Return what finds the stored questions, and those that labels name as stored."""
        guards = guards_beside(self.model, self._cache._guards)
        return Searcher(self._stored(labels), self._index.embedder, guards, self.model, self.threshold)

    def _stored(self, labels: Sequence[Label]) -> dict[str, Vector]:
        """Return the vectors of the stored questions, and of those that labels name as stored."""
        table, embedder = self._cache._runtime.store.entries, self._index.embedder
        rows = table.newest_questions(MOST_STORED, embedder.fingerprint)
        found = {normalise(row.question): row.vector for row in rows}
        wanted = [*found, *(one.stored for one in labels)]
        private = self._cache._admission.is_private
        for text in wanted:
            if found.get(text) is None:
                usable = not private(text) and embedder.refusal(text) is None
                found[text] = embedder.vector_of(text) if usable else None
        return {text: vector for text, vector in found.items() if vector is not None}

    def anchors(self, reader: Reader, progress: Progress) -> Pairs:
        """Return the labelled pairs that come with Ibidem."""
        text = (files("ibidem.matching") / "labelled_pairs.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        vector, met = self._index.embedder.vector_of, []
        for done, row in enumerate(rows, 1):
            label = Label(normalise(row["a"]), normalise(row["b"]), bool(row["same"]))
            met.append(alone(label, cosine(vector(label.asked), vector(label.stored))))
            progress("embed pairs that come with Ibidem", done, len(rows))
        pairs = read_pairs(met, reader, self.shipped, progress)
        pairs = pairs.labelled(np.array([bool(row["same"]) for row in rows]))
        return pairs.at(np.flatnonzero(~np.isnan(pairs.logits)))

    def margins_in_use(self, lookups: Lookups) -> Array:
        """Return the margins by the verifier in use."""
        scorer = self._index.scorer
        if scorer.name == self.model.name:
            return lookups.pairs.margins(self.shipped.calibration)
        scorer = cast("PairModel", scorer)
        logits = [scorer.logits([(one.asked, one.stored)])[0] for one in lookups.met]
        known = np.array([-math.inf if logit is None else logit for logit in logits])
        return replace(lookups.pairs, logits=known).margins(scorer.calibration)


def margin_of(probability: float) -> float:
    """Return the log odds; infinite from 1 on."""
    if probability >= 1.0:
        return math.inf
    return math.log(probability / (1.0 - probability)) if probability > 0.0 else -math.inf
