"""The labels of a cache: what people, audits, second opinions, answers and files say of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ibidem.active_model import models_directory
from ibidem.errors import InvalidInput
from ibidem.types import digest, normalise
from ibidem_lab.fitting.labels import Label, read_labels
from ibidem_lab.labelling.mining import miner_of
from ibidem_lab.labelling.pairs import QuestionPair, read_pairs
from ibidem_lab.learning.lookups import distinct

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache
    from ibidem.settings import Settings

MOST = 4_000  # labels that count, the newest: more take long to read
# Who has the last word on a pair, from the least trusted on.
RANKS = ("answers", "opinion", "teacher", "judgement", "feedback", "review", "file")


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Labels of different pairs, and how many come from which source."""

    labels: Sequence[Label]
    sources: Mapping[str, int]


def label_set(cache: SemanticCache, further: Sequence[Label] = ()) -> LabelSet:
    """Gather the labels of a cache, with the verdicts of teachers; `further` ones count before all.

    Raises `StorageError`.
    """
    mined = miner_of(cache).mine(limit=MOST).pairs
    folder = working_directory(cache._runtime.settings)
    taught = [pair for file in sorted(folder.glob("verdicts-*.jsonl")) for pair in read_pairs(file)]
    given = [QuestionPair(one.asked, one.stored, one.right, labelled_by="file") for one in further]
    return merged([*mined, *taught, *given], cache._admission.is_private)


def working_directory(settings: Settings) -> Path:
    """Return where a run keeps what it has done: beside the models of the cache on this host."""
    name = "learning" if settings.database is None else f"learning-{digest(settings.database)[:8]}"
    return models_directory(settings).parent / name


def verdicts_file(settings: Settings, teacher: str) -> Path:
    """Return where the verdicts of a teacher are kept."""
    return working_directory(settings) / f"verdicts-{digest(teacher)[:8]}.jsonl"


def mined(cache: SemanticCache) -> Sequence[QuestionPair]:
    """Return pairs of the log and of neighbours among the stored questions, with a label or without.

    Raises `StorageError`.
    """
    return miner_of(cache).mine(limit=2 * MOST).pairs


def merged(pairs: Sequence[QuestionPair], private: Callable[[str], bool]) -> LabelSet:
    """Return the labels of pairs, by who has the last word, without those of private questions."""
    told = [pair for pair in pairs if pair.same is not None]
    told.sort(key=lambda pair: RANKS.index(pair.labelled_by) if pair.labelled_by in RANKS else len(RANKS))
    labels = distinct([Label(pair.a, pair.b, bool(pair.same)) for pair in told], private)[-MOST:]
    source = {frozenset((normalise(pair.a), normalise(pair.b))): pair.labelled_by or "file" for pair in told}
    counts = Counter(source[frozenset((one.asked, one.stored))] for one in labels)
    return LabelSet(labels, dict(counts))


def labels_in(path: Path) -> list[Label]:
    """Return the labels of a file of pairs or of judged questions.

    Raises:
        InvalidInput: It cannot be read, holds no labels, or questions with meanings.
    """
    found = [label for label in read_labels(path) if isinstance(label, Label)]
    if not found:
        raise InvalidInput(
            f"{path} holds questions with meanings; give pairs, as ibidem learn pairs writes them"
        )
    return found
