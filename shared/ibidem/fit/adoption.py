"""The fitted threshold of a place: kept in the truth, one for each embedder, read when a cache is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ibidem.errors import InvalidInput
from ibidem.faults import Faults, log
from ibidem.fit.calibration import SHIPPED, Calibration, from_json, to_json
from ibidem.request import digest

if TYPE_CHECKING:
    from ibidem.decision.policy import Policy
    from ibidem.settings import Settings
    from ibidem.storage.records import Records

OLD_SCORE = (
    "a score that `ibidem fit` of version 0.1 learned is kept here and not used any more: it served far "
    "questions that no label told about. The shipped score decides; `ibidem fit` moves its threshold, and "
    "`ibidem fit --drop` deletes the old score"
)


def key_of(fingerprint: str) -> str:
    """Where the fitted threshold for this embedder stands in the table `meta`."""
    return f"threshold:{digest(fingerprint)}"


def old_key_of(fingerprint: str) -> str:
    """Where version 0.1 kept a fitted score for this embedder."""
    return f"scorer:{digest(fingerprint)}"


def has_old_score(records: Records, fingerprint: str) -> bool:
    """Whether version 0.1 has fitted a score here, which is not used any more; raises `StorageError`."""
    return records.meta(old_key_of(fingerprint)) is not None


def warn_of_old_score(records: Records, fingerprint: str) -> None:
    """Log that such a score is not used any more, if there is one; raises `StorageError`."""
    if has_old_score(records, fingerprint):
        log.warning("%s: %s", records.url, OLD_SCORE, extra={"event.name": "ibidem.fit.old_score"})


def adopted(records: Records, fingerprint: str, faults: Faults) -> Calibration:
    """The thresholds fitted for this embedder; the shipped ones if there are none, or none that can be used.

    Raises:
        StorageError: The database cannot be read.
    """
    text = records.meta(key_of(fingerprint))
    if text is None:
        return SHIPPED
    try:
        return from_json(text)
    except InvalidInput as error:
        faults.note("use the fitted threshold", error)
        return SHIPPED


def adopt(records: Records, fingerprint: str, calibration: Calibration) -> None:
    """Keep it for all who open a cache on this place from now on; raises `StorageError`."""
    records.set_meta(key_of(fingerprint), to_json(calibration))


def drop(records: Records, fingerprint: str) -> bool:
    """Return to the threshold that is shipped; whether there was another. Raises `StorageError`.

    A score that version 0.1 fitted goes too.
    """
    keys = [key for key in (key_of(fingerprint), old_key_of(fingerprint)) if records.meta(key) is not None]
    for key in keys:
        records.set_meta(key, None)
    return bool(keys)


def policy_in_force(records: Records, settings: Settings, fingerprint: str | None = None) -> Policy:
    """The policy of caches that are opened in this place with these settings; no model is loaded.

    Args:
        records: The truth of the place.
        settings: Of the caches.
        fingerprint: Of their embedder; default: the one that was used last.

    Raises:
        StorageError: The database failed.
    """
    if fingerprint is None:
        known = records.embedders.known()
        fingerprint = max(known, key=lambda one: known[one], default="")
    return adopted(records, fingerprint, Faults()).applied(settings.policy)
