"""Make a cache better from its labels: gather, read, train, judge, and put in service what is better."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, cast

import numpy as np

from ibidem.errors import InvalidInput
from ibidem.matching.pair_model import SPARSE, Calibration, PairModel
from ibidem.matching.policy import guards_beside
from ibidem.matching.shipped import pair_model
from ibidem.pipeline import policy_of
from ibidem.types import cosine, normalise
from ibidem_lab.files import lock_file
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.choosing import Learned, Problem, fits, held_out, learn_from, served
from ibidem_lab.learning.evidence import LabelSet, label_set, working_directory
from ibidem_lab.learning.fitting import Array, Basis, Pairs
from ibidem_lab.learning.gate import Judgement, LearnReport, judge, not_enough
from ibidem_lab.learning.lookups import Lookups, Searcher, alone, look_up, read_pairs
from ibidem_lab.learning.reading import Reader
from ibidem_lab.learning.verifier_files import Correction, Shipped, write_verifier
from ibidem_lab.promotion import promote_verifier

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.types import Vector

MOST_STORED = 20_000  # stored questions that lookups are asked of, the newest
CANDIDATE, STATES = "candidate", "states.bin"  # in the working directory

Progress = Callable[[str, int, int], object]


def learn(
    cache: SemanticCache,
    labels: Sequence[Label] = (),
    *,
    promote: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> LearnReport:
    """Learn a better verifier from what is known of this cache's pairs, and judge it on held-out lookups.

    The labels are what people, audits and second opinions said, what stored answers tell, and `labels`. From
    50 of them on the calibration of the pair model is learned, from 200 its last layer too; cross-validation
    over groups of questions chooses. It is judged on lookups of all labelled questions among all stored ones,
    each decided by what was learned without it. A killed run goes on where it was.

    Args:
        cache: An open cache with the default embedder and verifier.
        labels: Further labels; they count more than those of the log.
        promote: Put it in service here and in all caches on this location, if it is better.
        dry_run: Only say how many labels there are, and what they can tell.
        progress: Called with a stage, and how many of how many steps of it are done.

    Raises:
        InvalidInput: The cache has another embedder or verifier, or another run learns from it.
        EmbedderUnavailable: A model cannot be read.
        StorageError: The database failed.
        CacheClosed: The cache was closed.
    """
    cache.flush()
    known = label_set(cache, labels)
    if (lacking := not_enough(known)) or dry_run:
        return LearnReport.of_labels(known, lacking, cache._strictness.max_error_rate)
    report = _learned(cache, known, progress)
    if promote and report.judged is not None and report.judged.better and report.directory is not None:
        promote_verifier(cache, report.directory)
        return report.in_service()
    return report


def _learned(cache: SemanticCache, known: LabelSet, progress: Progress) -> LearnReport:
    """Read, train, judge, and write what was learned into the working directory."""
    place, folder = _Place(cache), working_directory(cache._runtime.settings)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_file(folder / STATES), Reader(place.shipped, folder / STATES) as reader:
        problem = place.problem(known.labels, reader, progress)
        judged, learned = _judged(place, problem, progress)
        report = LearnReport.of_judgement(known, judged, learned, folder / CANDIDATE)
        write_verifier(place.shipped, correction_of(learned, problem), folder / CANDIDATE, report.figures())
    return report


def correction_of(learned: Learned, problem: Problem) -> Correction:
    """Return what is changed of the shipped model, as the parts of its files."""
    logit, by_cosine, density, offset = learned.change[:4]
    old, shift = problem.shipped, learned.shift or 0.0
    calibration = Calibration(
        max(old.logit + float(logit), 0.05),
        old.cosine + float(by_cosine),
        old.density + float(density) + shift,
        old.offset + float(offset) - shift * SPARSE,
    )
    states = learned.change[4:]
    weights = problem.basis.directions[:, : len(states)] @ states / calibration.logit
    return Correction(weights, -float(problem.basis.mean @ weights), calibration)


class _Place:
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
        guards = guards_beside(self.model, self._cache._guards)
        stored = self._stored(labels)
        searcher = Searcher(stored, self._index.embedder, guards, self.model, self.threshold)
        lookups = look_up(labels, searcher, reader, self.shipped, progress)
        anchors = self._anchors(reader, progress)
        basis = Basis.of(np.vstack([lookups.pairs.states, anchors.states]))
        return Problem(
            lookups, self.shipped.calibration, margin_of(self.threshold), self.level, basis, anchors
        )

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

    def _anchors(self, reader: Reader, progress: Progress) -> Pairs:
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


def _judged(place: _Place, problem: Problem, progress: Progress) -> tuple[Judgement, Learned]:
    """Learn from all labels, and judge the same procedure on lookups that it has not seen."""
    lookups, done = problem.lookups, 0
    total = fits(int(lookups.known.sum()))

    def seen() -> None:
        nonlocal done
        done += 1
        progress("train and judge", min(done, total), total)

    learned = learn_from(problem, np.flatnonzero(lookups.known), seen)
    before = served(lookups, place.margins_in_use(lookups), margin_of(place.threshold_in_use))
    after = held_out(problem, seen)
    anchored = learned.margins(problem, problem.anchors)
    plain = problem.anchors.margins(problem.shipped)
    return judge(problem, learned, before, after, plain, anchored), learned
