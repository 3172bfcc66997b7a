"""The fitted scorer of a place: kept in the truth, one for each embedder, and read when a cache is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ibidem.audits.terms import scorer_name
from ibidem.decision.scoring import scorer_for
from ibidem.errors import InvalidInput
from ibidem.fit.text import from_json, to_json
from ibidem.request import digest

if TYPE_CHECKING:
    from ibidem.decision.scoring import Scorer
    from ibidem.faults import Faults
    from ibidem.fit.fitted import FittedScorer
    from ibidem.storage.records import Records


def key_of(fingerprint: str) -> str:
    """Where the fitted scorer for this embedder stands in the table `meta`."""
    return f"scorer:{digest(fingerprint)}"


def adopted(records: Records, fingerprint: str, faults: Faults) -> Scorer:
    """The scorer fitted for this embedder; the shipped one if there is none, or none that can be used.

    Raises:
        StorageError: The database cannot be read.
    """
    base = scorer_for(fingerprint)
    text = records.meta(key_of(fingerprint))
    if text is None:
        return base
    noted = records.meta(f"dimension:{digest(fingerprint)}")
    try:
        return from_json(
            text, base, scorer_name(fingerprint, base), int(noted) if noted and noted.isdecimal() else None
        )
    except InvalidInput as error:
        faults.note("use the fitted scorer", error)
        return base


def adopt(records: Records, fingerprint: str, scorer: FittedScorer) -> None:
    """Keep it for all who open a cache on this place from now on; raises `StorageError`."""
    records.set_meta(key_of(fingerprint), to_json(scorer))


def drop(records: Records, fingerprint: str) -> bool:
    """Return to the scorer that is shipped; whether there was another. Raises `StorageError`."""
    there = records.meta(key_of(fingerprint)) is not None
    if there:
        records.set_meta(key_of(fingerprint), None)
    return there
