"""The models that a location uses, embedder and verifier, and their exchange while caches serve.

The embedder is the one given to `ibidem.open`, else the one promoted there, else the default. A promotion is
one row in the database; each process that sees another embedder there makes a semantic index for it in the
background, beside the one in use, and swaps them when the new one finds all that is stored. Another verifier
there is opened and takes the place of the one in use: vectors stay as they are.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from ibidem._util.concurrency import ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.embedding import resolve_embedder
from ibidem.embedding.base import CheckedEmbedder, Embedder
from ibidem.embedding.model_files import (
    LOCK_SECONDS,
    MANIFEST_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    cache_root,
    require_inside,
)
from ibidem.embedding.onnx_embedder import OnnxEmbedder
from ibidem.embedding.onnx_model import TELEMETRY_KEY, telemetry_is_on
from ibidem.errors import (
    CacheClosed,
    ConfigurationError,
    EmbedderUnavailable,
    IbidemError,
    IndexUnavailable,
)
from ibidem.index.search import SemanticIndex
from ibidem.matching.fitted import FittedThresholds, adopted
from ibidem.matching.pair_model import PairModel
from ibidem.matching.scorers import Scorer
from ibidem.matching.shipped import rule_for, scorer_for
from ibidem.settings import Settings
from ibidem.storage.engine import valid_rows
from ibidem.storage.store import Store
from ibidem.storage.vectors import StoredVector
from ibidem.types import Entry, digest

THRESHOLDS_FILE, METRICS_FILE, CARD_FILE = "thresholds.json", "metrics.json", "README.md"
OLD_SCORER_FILE = "scorer.json"  # of version 0.1: a score that is not used any more
KEPT_FILES = (MODEL_FILE, TOKENIZER_FILE, METRICS_FILE, CARD_FILE, MANIFEST_FILE)  # in the database
FILES = (*KEPT_FILES, THRESHOLDS_FILE, OLD_SCORER_FILE)  # of a model directory

RETIRED_SECONDS = 30.0  # how long a replaced index stays open for lookups that began with it
AGAIN_SECONDS = 30.0  # how long a model that could not be opened is left alone
LOOK_SECONDS = 60.0  # how often an embedder is registered as in use, and unused ones are deleted

_KEY = "promotion"
_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Model:
    """Models that a location uses or used.

    `fingerprint` is that of the embedder; the files of a `promoted` one are in the database. `verifier`
    is the name of the scores of a promoted verifier, whose files are there too; "" for the shipped one.
    """

    fingerprint: str
    promoted: bool
    verifier: str = ""

    @property
    def id(self) -> str:
        """Key of the embedder's files in the database and on disk."""
        return digest(self.fingerprint)

    def __str__(self) -> str:
        """Name them for people."""
        return f"{self.fingerprint}, verifier {self.verifier[:8]}" if self.verifier else self.fingerprint


@dataclass(frozen=True, slots=True)
class Promotion:
    """The model of all caches opened without an embedder, the one before, and since when (epoch seconds)."""

    current: Model
    previous: Model
    at: float

    @property
    def fingerprints(self) -> frozenset[str]:
        """The fingerprints of both models, whose vectors are kept."""
        return frozenset((self.current.fingerprint, self.previous.fingerprint))

    @property
    def verifiers(self) -> frozenset[str]:
        """The names of promoted verifiers, whose files are kept."""
        return frozenset((self.current.verifier, self.previous.verifier)) - {""}


def read_promotion(store: Store) -> Promotion | None:
    """Read the last promotion; None if there was none. Raises `StorageError`."""
    text = store.meta.get(_KEY)
    if text is None:
        return None
    found = next(valid_rows(_to_promotion, [text]), None)
    if found is None:  # damaged: else nothing could be promoted any more
        store.meta.set(_KEY, None)
    return found


def _to_promotion(text: str) -> Promotion:
    held = json.loads(text)
    found = Promotion(Model(**held["current"]), Model(**held["previous"]), float(held["at"]))
    for model in (found.current, found.previous):
        if not (isinstance(model.fingerprint, str) and isinstance(model.promoted, bool)):
            raise ValueError("damaged")
        if model.verifier and not (isinstance(model.verifier, str) and _ID.fullmatch(model.verifier)):
            raise ValueError("damaged")
    return found


def change_promotion(store: Store, old: Promotion | None, new: Promotion) -> bool:
    """Record a promotion, in force at once; False if the last one is not `old`. Raises `StorageError`."""
    return store.meta.compare_and_set(_KEY, None if old is None else _text(old), _text(new))


def _text(promotion: Promotion) -> str:
    return json.dumps(asdict(promotion), sort_keys=True)


def active_embedder(settings: Settings, store: Store) -> Embedder:
    """Return the embedder that a cache with these settings uses.

    Raises:
        EmbedderUnavailable: The files of the model cannot be found or used.
        StorageError: The database failed.
    """
    if settings.embedder is not None or (found := read_promotion(store)) is None:
        return resolve_embedder(settings.embedder)
    return open_model(found.current, settings, store)


def checked_active_embedder(settings: Settings, store: Store) -> CheckedEmbedder:
    """Return the active embedder, validated, for tools that read a database without opening a cache."""
    return CheckedEmbedder(active_embedder(settings, store), store.meta.set_default)


def open_model(model: Model, settings: Settings, store: Store) -> Embedder:
    """Open the embedder of a model; a promoted one is copied from the database if it is not on this host.

    Raises:
        EmbedderUnavailable: Its files are missing or damaged.
        StorageError: The database failed.
    """
    if not model.promoted:
        return resolve_embedder(None)
    return _opened(model.id, settings, store, lambda directory: _open_checked(directory, model))


def promoted_verifier(settings: Settings, store: Store, fingerprint: str) -> str:
    """Return the name of the verifier promoted for the embedder of this fingerprint, "" if there is none.

    Raises:
        StorageError: The database failed.
    """
    if settings.embedder is not None or (found := read_promotion(store)) is None:
        return ""
    models = (model for model in (found.current, found.previous) if model.fingerprint == fingerprint)
    return next((model.verifier for model in models), "")


def open_verifier(name: str, settings: Settings, store: Store) -> PairModel:
    """Open a promoted verifier; it is copied from the database if it is not on this host.

    Raises:
        EmbedderUnavailable: Its files are missing or damaged.
        ConfigurationError: Its manifest cannot be used.
        StorageError: The database failed.
    """

    def open_checked(directory: Path) -> PairModel:
        require_inside(directory, KEPT_FILES)
        found = PairModel(directory)
        if found.name != name:
            raise EmbedderUnavailable(f"{directory} holds another verifier: {found.name}")
        return found

    return _opened(name, settings, store, open_checked)


def active_scorer(settings: Settings, store: Store, fingerprint: str) -> Scorer:
    """Return what scores candidates in a cache with these settings, for tools that open none.

    Raises:
        EmbedderUnavailable: Files of a verifier are missing or damaged.
        ConfigurationError: A verifier's manifest cannot be used.
        StorageError: The database failed.
    """
    shipped = scorer_for(fingerprint, "none" if settings.verifier == "none" else "default")
    name = promoted_verifier(settings, store, fingerprint)
    return open_verifier(name, settings, store) if name and isinstance(shipped, PairModel) else shipped


def with_verifier(index: SemanticIndex, settings: Settings, store: Store, faults: Faults) -> SemanticIndex:
    """Return the index with the verifier that is in use now, and the thresholds fitted to its scores.

    A promoted one that cannot be opened is left out: the shipped one decides, by its own thresholds.

    Raises:
        StorageError: The database failed.
    """
    rule, scorer = rule_for(index.fingerprint), scorer_for(index.fingerprint)
    name = promoted_verifier(settings, store, index.fingerprint) if isinstance(scorer, PairModel) else ""
    if name:
        try:
            scorer = open_verifier(name, settings, store)
        except (EmbedderUnavailable, ConfigurationError) as error:
            faults.note("open the promoted verifier", error)
    scorers = {one.name: one for one in (rule, scorer)}  # often the same
    fitted = {key: adopted(store, one, faults) for key, one in scorers.items()}
    return replace(index, scorer=scorer, rule=rule, fitted=fitted, promoted_verifier=name)


_Opened = TypeVar("_Opened")


def _opened(key: str, settings: Settings, store: Store, open_it: Callable[[Path], _Opened]) -> _Opened:
    """Open a promoted model on this host, where it is copied to if it is lacking or damaged."""
    directory = models_directory(settings) / key
    try:
        return open_it(directory)
    except EmbedderUnavailable:
        pass
    with _write_lock(directory) as lock, lock:
        try:
            return open_it(directory)  # another process was faster
        except EmbedderUnavailable:
            _fetch(key, store, directory)
        return open_it(directory)


def models_directory(settings: Settings) -> Path:
    """Directory of promoted models on this host: with the cache, else in the user's cache directory."""
    return settings.path / "models" if settings.database is None else cache_root()


@contextlib.contextmanager
def _write_lock(directory: Path) -> Iterator[FileLock]:
    """Lock a model directory while it is written."""
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield FileLock(directory.with_suffix(".lock"), timeout=LOCK_SECONDS)
    except OSError as error:  # filelock's Timeout is one
        raise EmbedderUnavailable(
            f"cannot keep the promoted model in {directory}: {error}; make room there, or let it be written"
        ) from error


def _open_checked(directory: Path, model: Model) -> OnnxEmbedder:
    require_inside(directory, FILES)
    found = OnnxEmbedder.from_directory(directory)
    if found.fingerprint != model.fingerprint:
        raise EmbedderUnavailable(f"{directory} holds another model: {found.fingerprint}")
    return found


def _fetch(key: str, store: Store, directory: Path) -> None:
    """Copy the files from the database and move them into place at once."""
    names = store.model_files.names(key) & set(KEPT_FILES)  # whatever else the rows name is not written
    if MANIFEST_FILE not in names:
        raise EmbedderUnavailable(
            f"the files of the promoted model {key} are not in {store.url}; "
            "promote it again, or return to the one before with ibidem promote --rollback"
        )
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fresh = scratch / "fresh"
        fresh.mkdir()
        for name in names:
            with (fresh / name).open("wb") as file:
                file.writelines(store.model_files.pieces(key, name))
        if directory.exists():
            directory.rename(scratch / "damaged")
        fresh.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def delete_unused_models(settings: Settings, store: Store) -> None:
    """Delete models on this host that are not registered, unless other caches may use the directory."""
    if settings.database is not None:
        return
    found = [one for one in models_directory(settings).glob("*") if one.is_dir() and _ID.fullmatch(one.name)]
    # Read last: a model is registered before its directory is made.
    kept = set(map(digest, store.embedders.registered()))
    if (promotion := read_promotion(store)) is not None:
        kept |= promotion.verifiers
    for directory in found:
        if directory.name not in kept:
            shutil.rmtree(directory, ignore_errors=True)


class ActiveIndex:
    """The semantic index in use, and the one that will take its place. Thread-safe.

    Lookups and stores read `current` once and keep to it. `step` follows promotions in the background; a
    promotion in this process takes the same steps without pauses.

    Args:
        current: The index in use.
        settings: Where promoted models are, and whether a cache was opened with an embedder of its own.
        store: The database.
        build: Makes the semantic index of an embedder.
        on_swap: Called with the new index just before it is used.
        faults: Receives failures in the background.
    """

    def __init__(
        self,
        current: SemanticIndex,
        settings: Settings,
        store: Store,
        build: Callable[[Embedder], SemanticIndex],
        on_swap: Callable[[SemanticIndex], None],
        faults: Faults,
    ) -> None:
        self.current = current
        self._settings, self._store, self._faults = settings, store, faults
        self._build, self._on_swap = build, on_swap
        self._closed = False
        self._reset()

    def after_fork(self) -> None:
        """Leave the parent's indexes alone, and to the parent what it was about to do."""
        self.current.vectors.after_fork()
        self._reset()

    def _reset(self) -> None:
        self._lock = ForkSafeLock()
        self.promoting = ForkSafeLock()  # held by one promotion or rollback at a time
        self.next: SemanticIndex | None = None
        self._held = False  # whether `next` waits for the promotion that prepared it
        self._retired: list[tuple[float, SemanticIndex]] = []
        self._again_at = self._look_at = 0.0

    def step(self) -> bool:
        """Do a little, if there is something to do; returns whether there may be more."""
        with self._lock:
            busy = self._clean_up()
            follows = self._settings.embedder is None
            if self._held or not follows or time.monotonic() < self._again_at:
                return busy
            try:
                return self._follow() or busy
            except (IbidemError, OSError):
                self._discard_next()
                self._again_at = time.monotonic() + AGAIN_SECONDS
                raise

    def _follow(self) -> bool:
        if self._closed:
            return False
        promotion = read_promotion(self._store)
        if promotion is None or promotion.current.fingerprint == self.current.fingerprint:
            self._discard_next()
            if promotion is not None and promotion.current.verifier != self.current.promoted_verifier:
                changed = with_verifier(self.current, self._settings, self._store, self._faults)
                self._on_swap(changed)
                self.current = changed  # the same vectors: there is nothing to close
            return False
        if self.next is None or self.next.fingerprint != promotion.current.fingerprint:
            self._discard_next()
            embedder = open_model(promotion.current, self._settings, self._store)
            if embedder.fingerprint != self.current.fingerprint:
                self.next = self._warmed_up(embedder)
            return self.next is not None
        if self._advance(self.next):
            self._swap(self.next)
            return False
        return True

    def _warmed_up(self, embedder: Embedder) -> SemanticIndex:
        index = self._build(embedder)
        index.embedder.embed(["loads the model"])  # here, and not in the first lookup
        return index

    def _advance(self, index: SemanticIndex) -> bool:
        """Index one batch; True if the index is as ready as it can be made here."""
        vectors = index.vectors
        try:
            vectors.open()
            return vectors.caught_up() or not (vectors.index_batch() or not vectors.caught_up())
        except IndexUnavailable:  # of another process, or down: as it is for the one in use
            return True

    def prepare(self, embedder: Embedder) -> None:
        """Make an index ready, to be swapped by `follow`; raises what opening and embedding do.

        Raises:
            CacheClosed: The cache was closed meanwhile.
        """
        index = self._warmed_up(embedder)
        with self._lock:
            self.require_open()
            self._discard_next()
            self.next, self._held = index, True
        ready = False
        while not ready:
            with self._lock:
                self.require_open()
                ready = self._advance(index)

    def follow(self) -> None:
        """Swap to the promoted model now, if it is not in use; raises what opening and embedding do."""
        more = True
        while more:
            with self._lock:
                self._held = False
                more = self._follow()

    def require_open(self) -> None:
        """Raise `CacheClosed` if the cache was closed: an index opened now would stay open."""
        if self._closed:
            raise CacheClosed("this cache was closed while a model was promoted; promote it again")

    def adopt_thresholds(self, index: SemanticIndex, scorer: Scorer, fitted: FittedThresholds) -> None:
        """Use these thresholds for a scorer from now on, unless another embedder is in use by now."""
        with self._lock:
            if self.current.embedder is index.embedder:  # the scorer stays, and with it all that audits know
                known = {**self.current.fitted, scorer.name: fitted}
                self.current = replace(self.current, fitted=known)

    def embed_for_next(self, entry: Entry, index: SemanticIndex) -> None:
        """Make an entry that was stored with `index` findable with the indexes that take its place."""
        upcoming = self.next  # read first: it may become the one in use at any moment
        for other in {id(one): one for one in (upcoming, self.current) if one is not None}.values():
            if other.embedder is index.embedder or entry.question is None:
                continue
            try:
                if other.embedder.refusal(entry.question) is not None:
                    continue
                vector = other.embedder.vector_of(entry.question)
                row = StoredVector(entry.id, entry.namespace, entry.scope, entry.question, vector, entry.base)
                other.vectors.table.set_vectors([row])
                other.vectors.add(entry.namespace, entry.scope, vector, entry.base)
            except IbidemError as error:  # it is embedded later
                self._faults.note("embed a question for the promoted model", error)

    def close(self) -> None:
        """Close all indexes."""
        with self._lock:
            self._closed = True
            self._discard_next()
            for index in (*(index for _, index in self._retired), self.current):
                index.vectors.close()
            self._retired = []

    def _swap(self, index: SemanticIndex) -> None:
        self._on_swap(index)
        replaced, self.current, self.next = self.current, index, None
        self._retired.append((time.monotonic() + RETIRED_SECONDS, replaced))

    def _discard_next(self) -> None:
        index, self.next = self.next, None
        if index is not None:
            index.vectors.close()

    def _clean_up(self) -> bool:
        """Close replaced indexes, register what is in use, delete what nobody uses; whether there is more."""
        now = time.monotonic()
        while self._retired and self._retired[0][0] <= now:
            self._retired.pop(0)[1].vectors.close()
        if now < self._look_at:
            return bool(self._retired)
        for index in (self.current, self.next):
            if index is not None:
                self._store.embedders.register(index.fingerprint)
        if telemetry_is_on():
            self._store.meta.set(TELEMETRY_KEY, repr(time.time()))
        promotion = read_promotion(self._store)
        if self._store.embedders.delete_unused(promotion.fingerprints if promotion else frozenset()):
            return True
        delete_unused_models(self._settings, self._store)
        self._look_at = now + LOOK_SECONDS
        return bool(self._retired)
