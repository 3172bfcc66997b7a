"""What tells which stored questions mean the same as one that is asked, of one embedder throughout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ibidem.audits.terms import scorer_name
from ibidem.decision.scoring import scorer_for
from ibidem.embedding.embedder import CheckedEmbedder
from ibidem.errors import StorageError
from ibidem.fit.adoption import adopted, warn_of_old_score
from ibidem.fit.calibration import SHIPPED, Calibration
from ibidem.index.vectors import Vectors
from ibidem.places import catalogue_of, index_opener

if TYPE_CHECKING:
    from ibidem.decision.scoring import Scorer
    from ibidem.embedding.embedder import Embedder
    from ibidem.faults import Faults
    from ibidem.settings import Settings
    from ibidem.storage.records import Records


@dataclass(frozen=True, slots=True)
class Matcher:
    """An embedder, the vectors it made, the scorer of their similarities, and the thresholds fitted to it.

    A lookup or a store takes one when it begins and keeps to it: vectors and scores of two embedders are
    never compared, also while another model is promoted.
    """

    embedder: CheckedEmbedder
    scorer: Scorer
    vectors: Vectors
    calibration: Calibration = SHIPPED

    @property
    def fingerprint(self) -> str:
        """Of the embedder."""
        return self.embedder.fingerprint

    @property
    def scorer_name(self) -> str:
        """What gives the scores: judgements are kept under it."""
        return scorer_name(self.fingerprint, self.scorer)


def matcher_of(
    settings: Settings, records: Records, embedder: Embedder, faults: Faults, opened: Callable[[], None]
) -> Matcher:
    """The matcher of this embedder, whose vectors are kept from now on.

    Args:
        settings: Say where the vector index is.
        records: The truth.
        embedder: Makes the vectors.
        faults: Where failures in the background go.
        opened: Called when a server's index is open.

    Raises:
        EmbedderUnavailable: The embedder does not answer.
        StorageError: The database failed.
    """
    checked = CheckedEmbedder(embedder, records.meta_once)
    try:
        records.embedders.use(checked.fingerprint)
    except StorageError as error:  # the background tries again
        faults.note("note which embedder is used", error)
    catalogue = catalogue_of(settings, checked.fingerprint, records)
    vectors = Vectors(
        records,
        checked,
        index_opener(settings, catalogue),
        faults,
        catalogue,
        alone=settings.chroma is None,
        opened=opened,
    )
    warn_of_old_score(records, checked.fingerprint)
    calibration = adopted(records, checked.fingerprint, faults)
    return Matcher(checked, scorer_for(checked.fingerprint), vectors, calibration)
