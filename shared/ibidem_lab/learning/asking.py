"""Choose the pairs that are worth a label: what a lookup would serve, or nearly, by what is known so far.

The gate judges hits, so it needs labels of would-be hits; and pairs far below the threshold teach little.
"""

from __future__ import annotations

import random
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

import numpy as np

from ibidem_lab.files import lock_file
from ibidem_lab.fitting.labels import Label
from ibidem_lab.learning.evidence import label_set, mined, working_directory
from ibidem_lab.learning.fitting import Array, Pairs, taught_margins
from ibidem_lab.learning.lookups import Met, Searcher, read_pairs
from ibidem_lab.learning.place import Place, Progress, margin_of
from ibidem_lab.learning.reading import STATES, Reader
from ibidem_lab.learning.verifier_files import Shipped

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem_lab.labelling.pairs import QuestionPair

ENOUGH = 100  # labels from which on they say what would be served
UPPER = 2 / 3  # of the lookups, by the margin of their best pair: where is drawn while there are fewer
NEAR = 1.0  # below the least margin: what may be served once more is known


def worth_asking(cache: SemanticCache, count: int, progress: Progress) -> list[QuestionPair]:
    """Return at most so many pairs without a label, those that would teach and prove most.

    Half of the labels that are wanted in all is a good number: what they say chooses the others.

    Args:
        cache: An open cache with the default embedder and verifier.
        count: Maximum number.
        progress: Called with a stage, and how many of how many steps of it are done.

    Raises:
        InvalidInput: The cache has another embedder or verifier, or another run learns from it.
        EmbedderUnavailable: A model cannot be read.
        StorageError: The database failed.
    """
    place, labels = Place(cache), label_set(cache).labels
    folder, searcher = working_directory(cache._runtime.settings), place.searcher(labels)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found: list[tuple[Met, QuestionPair]] = []
    for pair in mined(cache):
        found += [(one, pair) for one in searcher.met(pair.a, []) if one.stored == pair.b]
    if not found:
        return []
    with lock_file(folder / STATES), Reader(place.shipped, folder / STATES) as reader:
        met = [one for one, _ in found]
        pairs = read_pairs(met, reader, place.shipped, progress)
        told = labelled_pairs(labels, searcher, reader, place.shipped, progress)
        values = margins_so_far(pairs, told, place.anchors(reader, progress), place.shipped)
    known = {frozenset((one.asked, one.stored)) for one in labels}
    chosen = choose(met, values, margin_of(place.threshold), count, known, random.Random(0))  # noqa: S311
    return [found[at][1] for at in chosen]


def labelled_pairs(
    labels: Sequence[Label], searcher: Searcher, reader: Reader, shipped: Shipped, progress: Progress
) -> Pairs:
    """Return what is read of labelled pairs."""
    met, right = list[Met](), list[bool]()
    for label in labels:
        some = [one for one in searcher.met(label.asked, [label.stored]) if one.stored == label.stored]
        met += some
        right += [label.right] * len(some)
    pairs = read_pairs(met, reader, shipped, progress).labelled(np.array(right, np.bool_))
    return pairs.at(np.flatnonzero(~np.isnan(pairs.logits)))


def margins_so_far(pairs: Pairs, told: Pairs, anchors: Pairs, shipped: Shipped) -> Array:
    """Return the margins of pairs by what labels have taught so far: the last layer, if they are enough."""
    if len(told) < ENOUGH:
        return pairs.margins(shipped.calibration)
    return taught_margins(pairs, told, shipped.calibration, anchors)


def choose(
    met: Sequence[Met],
    values: Array,
    least: float,
    count: int,
    known: Set[frozenset[str]],
    draw: random.Random,
) -> list[int]:
    """Return the places of at most `count` pairs without a label: the best of a lookup, none twice.

    With few labels they are drawn from the upper part of the lookups. With more, from what is served at the
    least margin or is near it, so that what is judged is a fair part of the hits; then in order.
    """
    best: dict[str, int] = {}
    for at in np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable").tolist():
        best.setdefault(met[at].asked, at)
    pairs = {frozenset((met[at].asked, met[at].stored)): at for at in best.values()}
    order = [at for pair, at in pairs.items() if pair not in known]
    if len(known) < ENOUGH:
        upper = order[: max(count, round(UPPER * len(order)))]
        return draw.sample(upper, min(count, len(upper)))
    near = [at for at in order if values[at] >= least - NEAR]
    found = draw.sample(near, min(count, len(near)))
    return found + order[len(near) :][: count - len(found)]
