"""Is the cache sound? What `ibidem doctor` looks at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ibidem._util.faults import Faults
from ibidem.active_model import active_embedder, read_promotion
from ibidem.doctor_index import compare, holder
from ibidem.embedding.base import fingerprint_of
from ibidem.embedding.minilm import ADVICE, TELEMETRY_KEY, telemetry_is_on
from ibidem.errors import IbidemError, IndexInUse, IndexUnavailable, StorageError
from ibidem.foreign import foreign_package
from ibidem.index import search as vectors
from ibidem.index.base import Compactable
from ibidem.index.memory import VectorBuffer
from ibidem.matching import fitted as adoption
from ibidem.runtime import index_opener, open_store, registry_of
from ibidem.settings import Settings
from ibidem.storage.store import Store

TELEMETRY_SECONDS = 86_400.0  # so long it is told that a process had it on


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check: `ok`, or a `text` that says what is wrong and what to do."""

    check: str
    ok: bool
    text: str


def examine(settings: Settings) -> list[Finding]:
    """Check place, database, model and index of a cache; opens it as `ibidem.open` would.

    Raises:
        StorageError: The database cannot be opened at all.
    """
    store = open_store(settings)
    try:
        findings = [*_package(), *_leftovers(settings), _database(store)]
        if not findings[-1].ok:
            return findings
        findings += _telemetry(store)
        try:
            fingerprint = fingerprint_of(active_embedder(settings, store))
        except IbidemError as error:
            return [*findings, Finding("embedding model", False, str(error))]
        findings.append(Finding("embedding model", True, fingerprint + _promoted(settings, store)))
        findings.extend(_threshold(settings, store, fingerprint))
        return [*findings, *_index(settings, store, fingerprint)]
    finally:
        store.close()


def _package() -> Iterator[Finding]:
    if problem := foreign_package():
        yield Finding("package", False, problem)


def _telemetry(store: Store) -> Iterator[Finding]:
    """Whether onnxruntime was imported before Ibidem, here or lately in a process that used the cache."""
    if telemetry_is_on():
        who = "this process"
    elif time.time() - _number(store.meta.get(TELEMETRY_KEY)) < TELEMETRY_SECONDS:
        who = "a program that used this cache in the last 24 hours"
    else:
        return
    text = (
        f"{who} imported onnxruntime before Ibidem could switch its telemetry off: it looks up a host of "
        f"Microsoft and keeps a device id in the user's cache directory; {ADVICE}"
    )
    yield Finding("onnxruntime", False, text)


def _number(text: str | None) -> float:
    try:
        return float(text or 0.0)
    except ValueError:
        return 0.0


def _leftovers(settings: Settings) -> Iterator[Finding]:
    if settings.database is None:
        yield Finding("directory", True, str(settings.path))
        for kept in sorted(settings.path.glob("*.damaged-*")):
            text = f"{kept} was damaged and moved aside; delete it when you have looked at it"
            yield Finding("leftovers", False, text)


def _database(store: Store) -> Finding:
    started = time.perf_counter()
    try:
        schema = store.meta.get("schema_version")
        took = _ms(started)
        problems = store.check()
    except StorageError as error:
        problems = [str(error)]
    if problems:
        text = f"{problems[0]}; restore {store.url} from a backup, or move it away to begin a new one"
        return Finding("database", False, text)
    text = f"{store.totals().entries:,} entries in {store.url}, schema {schema}, answers in {took}"
    return Finding("database", True, text)


def _ms(started: float) -> str:
    return f"{1000 * (time.perf_counter() - started):.1f} ms"


def _promoted(settings: Settings, store: Store) -> str:
    found = read_promotion(store)
    if found is None:
        return ""
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.at))
    if settings.embedder is not None:
        return f", given; without it {found.current.fingerprint} is used, since {since}"
    return f", since {since}; before it {found.previous.fingerprint}, kept for ibidem promote --rollback"


def _threshold(settings: Settings, store: Store, fingerprint: str) -> Iterator[Finding]:
    """What `ibidem fit` has moved, and what a fit of version 0.1 left."""
    if adoption.has_old_score(store, fingerprint):
        yield Finding("threshold", True, adoption.OLD_SCORE)
    faults = Faults()
    fitted = adoption.adopted(store, fingerprint, faults)
    if faults.counts():
        yield Finding("threshold", False, "the fitted threshold cannot be read; run ibidem fit again")
    elif fitted.moved and (max_error_rate := settings.policy.max_error_rate) is not None:
        text = f"{fitted.threshold(max_error_rate):.4f} for max_error_rate {max_error_rate:g}, by ibidem fit"
        yield Finding("threshold", True, f"{text} to {fitted.labels:,} labelled questions")


def _index(settings: Settings, store: Store, fingerprint: str) -> Iterator[Finding]:
    registry, table = registry_of(settings, fingerprint, store), store.vectors(fingerprint)
    held = table.count(vectors.EXACT_LIMIT + 1)
    small = settings.chroma is None and held <= vectors.EXACT_LIMIT
    try:
        index = index_opener(settings, registry)(VectorBuffer() if small else None)
    except IndexInUse:
        text = f"in use by another process{holder(settings)}, which looks after it"
        yield Finding("vector index", True, text)
        return
    except IndexUnavailable as error:
        yield Finding("vector index", False, str(error))
        return
    if not isinstance(index, Compactable):
        index.close()
        lacking = table.count_missing()
        text = f"{held - lacking:,} vectors, few enough to be searched in memory"
        text += f"; {lacking:,} are still to be made, which happens when the cache is used" if lacking else ""
        yield Finding("vector index", True, text)
        return
    try:
        if settings.chroma is not None:
            started = time.perf_counter()
            index.count()
            yield Finding("Chroma server", True, f"answers in {_ms(started)}")
        sound, text = compare(index, table, registry)
    except IndexUnavailable as error:
        sound, text = False, f"{error}; run `ibidem rebuild`"
    finally:
        index.close()
    yield Finding("vector index", sound, text)
