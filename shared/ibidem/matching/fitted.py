"""Read, apply and keep the thresholds that `ibidem learn threshold` proved for a deployment.

A fit moves the threshold and nothing else: the score of a pair is the one that is shipped, so what labels say
of near pairs cannot lift far ones. A threshold is lowered where the labels prove the lower one, raised where
they disprove the shipped one, and never set below the `floor` of the score, as nobody judges pairs that score
less. It is kept by the name of the scorer: another one has another scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from ibidem._util.faults import Faults, log
from ibidem.errors import InvalidInput
from ibidem.matching.scorers import Scorer, Thresholds
from ibidem.types import digest

NEVER = 2.0  # a threshold above all scores: nothing is served by meaning
FORMAT = 1
MAX_CHARACTERS, MAX_LEVELS = 10_000, 100  # of a text that is read: rows are untrusted


class Level(NamedTuple):
    """A share of wrong hits, and the threshold that keeps it; None where the shipped one stays."""

    max_error_rate: float
    threshold: float | None


@dataclass(frozen=True, slots=True)
class FittedThresholds:
    """Thresholds for shares of wrong hits, by rising share; `labels` questions were judged for them."""

    levels: tuple[Level, ...]
    labels: int

    @property
    def moved(self) -> bool:
        """Return whether any threshold differs from the shipped one."""
        return any(level.threshold is not None for level in self.levels)

    def threshold(self, max_error_rate: float, thresholds: Thresholds) -> float:
        """Return the threshold for a share: that of the greatest level that does not exceed it.

        Below all levels nothing was judged: the shipped one, or that of the least level if it is stricter.

        Args:
            max_error_rate: The share.
            thresholds: Those that are shipped with the score.

        Raises:
            InvalidInput: No shipped threshold is known for the share.
        """
        shipped = thresholds.at(max_error_rate)
        known = [level.threshold for level in self.levels if level.max_error_rate <= max_error_rate]
        if known:
            return shipped if known[-1] is None else known[-1]
        least = self.levels[0].threshold if self.levels else None
        return shipped if least is None else max(shipped, least)


SHIPPED = FittedThresholds((), 0)  # nothing was fitted


# as text ----------------------------------------------------------------------------------------------


def to_json(fitted: FittedThresholds) -> str:
    """Write the thresholds as one line that `from_json` reads."""
    return json.dumps({"format": FORMAT, "labels": fitted.labels, "levels": fitted.levels}, allow_nan=False)


def from_json(text: str, floor: float) -> FittedThresholds:
    """Read the thresholds that `to_json` wrote; nothing in the text is trusted.

    Args:
        text: The line.
        floor: Least score that is judged, and so the least threshold.

    Raises:
        InvalidInput: It is damaged, or of another version.
    """
    try:
        if len(text) > MAX_CHARACTERS:
            raise ValueError("it is too long")
        held = json.loads(text)
        if held["format"] != FORMAT:
            raise ValueError("it was written by another version of Ibidem")
        levels = tuple(Level(_number(share), _threshold_of(value, floor)) for share, value in held["levels"])
        rising = all(a.max_error_rate < b.max_error_rate for a, b in pairwise(levels))
        if not 0 < len(levels) <= MAX_LEVELS or not rising or not levels[0].max_error_rate > 0.0:
            raise ValueError("its shares do not rise")
        return FittedThresholds(levels, int(_number(held["labels"])))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidInput(
            f"the fitted threshold cannot be used ({error}); run ibidem learn threshold again"
        ) from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ValueError(f"{value!r} is not a number")
    return value


def _threshold_of(value: Any, floor: float) -> float | None:
    if value is not None and _number(value) < floor:
        raise ValueError(f"{value!r} is below {floor:.4f}, where nothing is judged")
    return value  # type: ignore[no-any-return]


# in the database --------------------------------------------------------------------------------------


class Meta(Protocol):
    """Values of a database by key."""

    def get(self, key: str) -> str | None:
        """Return the value of a key, None if there is none."""
        ...

    def set(self, key: str, value: str | None) -> None:
        """Set the value of a key; None deletes it."""
        ...


class Embedders(Protocol):
    """The embedders that a database knows."""

    def registered(self) -> Mapping[str, float]:
        """Return their fingerprints, and when each was used last."""
        ...


class Database(Protocol):
    """What a fit needs of the database (`ibidem.storage.store.Store`)."""

    @property
    def url(self) -> str:
        """Its URL without a password."""
        ...

    @property
    def meta(self) -> Meta:
        """Its values by key."""
        ...

    @property
    def embedders(self) -> Embedders:
        """Its embedders."""
        ...


OLD_SCORE = (
    "a score that `ibidem fit` of version 0.1 learned is kept here and not used any more: it served far "
    "questions that no label told about. The shipped score decides; `ibidem learn` makes a better one, and "
    "`ibidem learn threshold --drop` deletes the old score"
)


def key_of(scorer: Scorer) -> str:
    """Return the key of the thresholds fitted to these scores in the table `meta`."""
    return f"threshold:{digest(scorer.name)}"


def old_key_of(fingerprint: str) -> str:
    """Return the key under which version 0.1 kept a fitted score for this embedder."""
    return f"scorer:{digest(fingerprint)}"


def has_old_score(store: Database, fingerprint: str) -> bool:
    """Return whether version 0.1 fitted a score, which is not used any more; raises `StorageError`."""
    return store.meta.get(old_key_of(fingerprint)) is not None


def warn_of_old_score(store: Database, fingerprint: str) -> None:
    """Log that such a score is not used any more, if there is one; raises `StorageError`."""
    if has_old_score(store, fingerprint):
        log.warning("%s: %s", store.url, OLD_SCORE, extra={"event.name": "ibidem.fit.old_score"})


def adopted(store: Database, scorer: Scorer, faults: Faults) -> FittedThresholds:
    """Return the thresholds fitted to these scores; the shipped ones if there are none that can be used.

    Raises:
        StorageError: The database cannot be read.
    """
    text = store.meta.get(key_of(scorer))
    if text is None:
        return SHIPPED
    try:
        return from_json(text, scorer.floor)
    except InvalidInput as error:
        faults.note("use the fitted threshold", error)
        return SHIPPED


def adopt(store: Database, scorer: Scorer, fitted: FittedThresholds) -> None:
    """Keep the thresholds for all caches opened on this location from now on; raises `StorageError`."""
    store.meta.set(key_of(scorer), to_json(fitted))


def drop(store: Database, scorer: Scorer, fingerprint: str) -> bool:
    """Delete the fitted thresholds, and a score that version 0.1 fitted; return whether there were any.

    Raises:
        StorageError: The database failed.
    """
    keys = [key for key in (key_of(scorer), old_key_of(fingerprint)) if store.meta.get(key) is not None]
    for key in keys:
        store.meta.set(key, None)
    return bool(keys)
