"""Make a cache better from its labels: gather, read, train, judge, and put in service what is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ibidem.matching.pair_model import SPARSE, Calibration
from ibidem_lab.files import lock_file
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.choosing import Learned, Problem, fits, learn_from, served
from ibidem_lab.learning.evidence import LabelSet, label_set, working_directory
from ibidem_lab.learning.gate import Judgement, LearnReport, judge, not_enough
from ibidem_lab.learning.place import Place, Progress, margin_of
from ibidem_lab.learning.reading import STATES, Reader
from ibidem_lab.learning.verifier_files import Correction, write_verifier
from ibidem_lab.promotion import promote_verifier

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache

CANDIDATE = "candidate"  # in the working directory


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
    place, folder = Place(cache), working_directory(cache._runtime.settings)
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


def _judged(place: Place, problem: Problem, progress: Progress) -> tuple[Judgement, Learned]:
    """Learn from all labels, and judge the same procedure on lookups that it has not seen."""
    lookups, done = problem.lookups, 0
    total = fits(int(lookups.known.sum()))

    def seen() -> None:
        nonlocal done
        done += 1
        progress("train and judge", done, total)

    learned, after = learn_from(problem, seen)
    before = served(lookups, place.margins_in_use(lookups), margin_of(place.threshold_in_use))
    return judge(problem, learned, before, after), learned
