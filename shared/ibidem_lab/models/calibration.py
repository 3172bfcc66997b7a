"""Calibrate a verifier: from its logit, the cosine and the density around to a probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ibidem._util.statistics import logistic
from ibidem.matching.pair_model import LARGEST_LOGIT, SPARSE, Calibration, PairModel
from ibidem.matching.policy import Policy, Verdict, decide
from ibidem.matching.scorers import Candidate
from ibidem.types import Request, Vector
from ibidem_lab.fitting.thresholds import Sample, measure, together
from ibidem_lab.models.groups import Pair
from ibidem_lab.replay import Outcome, Row, replay

# What all sets of pairs count beside all streams. Pairs keep the weight of the cosine down: among them are
# near misses that share most words, which traffic seldom has. Of 0.3, 1 and 3 streams have most hits at 0.3;
# at 0.1 as many, and fewer pairs are served.
PAIRS_COUNT = 0.3
# Answers are stored, while a stream is replayed, where the best candidate scores less.
STORED_BELOW = 0.9


@dataclass(frozen=True)
class Compared:
    """What a calibration combines, shape (n,) each, and whether one answer serves both questions."""

    logits: NDArray[np.float64]
    cosines: NDArray[np.float64]
    densities: NDArray[np.float64]
    same: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.same)


def compared_pairs(
    pairs: Sequence[Pair], logits: NDArray[np.float32], cosines: NDArray[np.float32]
) -> Compared:
    """Pairs of which nothing else is stored, without those beyond the window (NaN)."""
    known = ~(np.isnan(logits) | np.isnan(cosines))
    same = np.array([pair.same for pair in pairs]) == 1
    return Compared(
        logits[known].astype(np.float64),
        cosines[known].astype(np.float64),
        np.full(int(known.sum()), SPARSE),
        same[known],
    )


class RememberedLogits(PairModel):
    """A pair model that reads no pair twice: a stream is replayed at each threshold."""

    def __init__(self, verifier: PairModel) -> None:
        vars(self).update(vars(verifier))
        self._known: dict[tuple[str, str], float | None] = {}

    def logits(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """As the model, which is only asked for pairs that it has not read."""
        ordered: list[tuple[str, str]] = [(min(pair), max(pair)) for pair in pairs]
        unknown = [pair for pair in dict.fromkeys(ordered) if pair not in self._known]
        if unknown:
            self._known |= zip(unknown, super().logits(unknown), strict=True)
        return [self._known[pair] for pair in ordered]


def compared_on_stream(
    verifier: PairModel, rows: Sequence[Row], vectors: Sequence[Vector | None], least_cosine: float
) -> Compared:
    """Replay a stream, and note of each request the best candidate that no guard refuses.

    Args:
        verifier: With a first calibration, which decides what is stored.
        rows: Questions in their order.
        vectors: Of each question.
        least_cosine: Of candidates that are read.
    """
    policy, found = Policy(STORED_BELOW), list[tuple[float, float, float, bool]]()
    meanings = {Request(row.text).question: row.meaning for row in rows}

    def note(request: Request, near: list[Candidate]) -> Verdict:
        verdict = decide(request, near, policy, verifier, min_cosine=least_cosine)
        if (best := verdict.best) is not None and best.entry.question is not None:
            (logit,) = verifier.logits([(request.question, best.entry.question)])
            right = meanings[best.entry.question] == meanings[request.question]
            if logit is not None:
                found.append((logit, best.similarity, best.density, right))
        return verdict

    replay(rows, vectors, note)
    table = np.array(found, np.float64).reshape(-1, 4)
    return Compared(table[:, 0], table[:, 1], table[:, 2], table[:, 3] == 1)


def calibrated_on_streams(
    reader: RememberedLogits,
    pairs: Mapping[str, Compared],
    halves: Sequence[Mapping[str, Sample]],
    least_cosine: float,
) -> tuple[Calibration, dict[str, dict[float, Outcome]]]:
    """Calibrate by two halves of streams; return also what each threshold serves of each stream.

    That is measured on each half with the calibration that the other one leads to: on the half that it was
    fitted to, it would serve fewer wrong answers than elsewhere.

    Args:
        reader: Its calibration is changed.
        pairs: Labelled pairs, by set.
        halves: Of each stream by name.
        least_cosine: Of candidates that are read.
    """
    reader.calibration = fit_calibration(pairs, {})
    compared = [
        {name: compared_on_stream(reader, *sample, least_cosine) for name, sample in half.items()}
        for half in halves
    ]
    measured: dict[str, list[dict[float, Outcome]]] = {}
    for half, other in zip(halves, reversed(compared), strict=True):
        reader.calibration = fit_calibration(pairs, other)
        for name, sample in half.items():
            found = measure(reader, [sample], least_cosine=least_cosine)
            measured.setdefault(name, []).append(found)
    both = {f"{name}, {at}": one for at, half in enumerate(compared) for name, one in half.items()}
    return fit_calibration(pairs, both), {name: together(found) for name, found in measured.items()}


def fit_calibration(pairs: Mapping[str, Compared], streams: Mapping[str, Compared]) -> Calibration:
    """Fit by maximum likelihood on pairs and streams that the verifier was not trained on.

    Each set counts as much as another of its kind, however many pairs it has, and all sets of pairs together
    `PAIRS_COUNT` of all streams. The offset is that of the streams: of pairs, more are near misses than of
    what a cache is asked. A higher cosine or logit never lowers the probability, a higher density never
    raises it: a weight of the other sign is 0.
    """
    sets = [(one, 0.0, 1.0 / len(streams)) for one in streams.values()]
    sets += [(one, 1.0, (PAIRS_COUNT if streams else 1.0) / len(pairs)) for one in pairs.values()]
    columns = np.concatenate([_columns(one, is_pairs) for one, is_pairs, _ in sets])
    same = np.concatenate([one.same for one, _, _ in sets])
    weights = np.concatenate([np.full(len(one), count / max(1, len(one))) for one, _, count in sets])
    used = [0, 1, 3] + [2] * bool(streams) + [4] * bool(pairs and streams)
    while True:
        found = logistic(columns[:, used], same, weights * len(same) / weights.sum())
        whole = dict(zip(used, found.tolist(), strict=True))
        wrong = [at for at, sign in ((0, 1), (1, 1), (2, -1)) if whole.get(at, 0.0) * sign < 0]
        if not wrong:
            return Calibration(whole.get(0, 0.0), whole.get(1, 0.0), whole.get(2, 0.0), whole[3])
        used = [column for column in used if column not in wrong]


def _columns(one: Compared, is_pairs: float) -> NDArray[np.float64]:
    """Logit, cosine, density, offset, and the offset of pairs."""
    around, ones = np.maximum(one.densities, SPARSE), np.ones(len(one))
    logits = np.clip(one.logits, -LARGEST_LOGIT, LARGEST_LOGIT)
    return np.column_stack([logits, one.cosines, around, ones, is_pairs * ones])


def deciles(probabilities: NDArray[np.float64], same: NDArray[np.bool_]) -> list[tuple[int, float, float]]:
    """Count the pairs in each tenth of the probability, with the mean told and the share that is the same."""
    known = ~np.isnan(probabilities)
    probabilities, same = probabilities[known], same[known]
    place = np.minimum((probabilities * 10).astype(int), 9)
    return [
        (int(at.sum()), float(probabilities[at].mean()), float(same[at].mean()))
        for at in (place == number for number in range(10))
        if at.any()
    ]
