"""Which embedder a place uses: the one given, else the one promoted there, else the default."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ibidem.embedding.base import CheckedEmbedder, resolve_embedder
from ibidem.embedding.minilm import OnnxEmbedder
from ibidem.embedding.minilm_files import LOCK_SECONDS, MANIFEST_FILE, cache_root, require_inside
from ibidem.errors import EmbedderUnavailable
from ibidem.models.directory import FILES, KEPT_FILES
from ibidem.storage.tables import valid_rows
from ibidem.types import digest

if TYPE_CHECKING:
    from ibidem.embedding.base import Embedder
    from ibidem.settings import Settings
    from ibidem.storage.store import Store


_KEY = "promotion"
_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Model:
    """An embedder that a place uses, or used. Its files are in the database if it was `promoted`."""

    fingerprint: str
    promoted: bool

    @property
    def id(self) -> str:
        """Under which its files are kept."""
        return digest(self.fingerprint)


@dataclass(frozen=True, slots=True)
class Promotion:
    """Which model all use who give none, which they used before, and since when (seconds since the epoch)."""

    current: Model
    previous: Model
    at: float

    @property
    def fingerprints(self) -> frozenset[str]:
        """Of both; their vectors are kept."""
        return frozenset((self.current.fingerprint, self.previous.fingerprint))


def read_promotion(store: Store) -> Promotion | None:
    """What was promoted last; None if nothing ever was. Raises `StorageError`."""
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
    return found


def change_promotion(store: Store, old: Promotion | None, new: Promotion) -> bool:
    """Use another model from this moment on; False if what is used is not `old`. Raises `StorageError`."""
    return store.meta.compare_and_set(_KEY, None if old is None else _text(old), _text(new))


def _text(promotion: Promotion) -> str:
    return json.dumps(asdict(promotion), sort_keys=True)


def embedder_of(settings: Settings, store: Store) -> Embedder:
    """The embedder that a cache with these settings uses.

    Raises:
        EmbedderUnavailable: The files of the model cannot be found or used.
        StorageError: The database failed.
    """
    if settings.embedder is not None or (found := read_promotion(store)) is None:
        return resolve_embedder(settings.embedder)
    return open_model(found.current, settings, store)


def checked_embedder_of(settings: Settings, store: Store) -> CheckedEmbedder:
    """The same with its vectors checked, for who reads a place without opening a cache; raises as above."""
    return CheckedEmbedder(embedder_of(settings, store), store.meta.set_default)


def open_model(model: Model, settings: Settings, store: Store) -> Embedder:
    """The embedder of a model; one that was promoted is copied from the database if it is not on this host.

    Raises:
        EmbedderUnavailable: Its files are missing or damaged.
        StorageError: The database failed.
    """
    if not model.promoted:
        return resolve_embedder(None)
    directory = models_directory(settings) / model.id
    try:
        return _opened(directory, model)
    except EmbedderUnavailable:
        pass
    with _making(directory) as lock, lock:
        try:
            return _opened(directory, model)  # another process was faster
        except EmbedderUnavailable:
            _fetch(model, store, directory)
        return _opened(directory, model)


def models_directory(settings: Settings) -> Path:
    """Where the files of promoted models are on this host: with the cache, else with the default model."""
    return settings.path / "models" if settings.database is None else cache_root()


@contextlib.contextmanager
def _making(directory: Path) -> Iterator[FileLock]:
    """A lock for who makes the directory."""
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield FileLock(directory.with_suffix(".lock"), timeout=LOCK_SECONDS)
    except OSError as error:  # filelock's Timeout is one
        raise EmbedderUnavailable(
            f"cannot keep the promoted model in {directory}: {error}; make room there, or let it be written"
        ) from error


def _opened(directory: Path, model: Model) -> OnnxEmbedder:
    require_inside(directory, FILES)
    found = OnnxEmbedder.from_directory(directory)
    if found.fingerprint != model.fingerprint:
        raise EmbedderUnavailable(f"{directory} holds another model: {found.fingerprint}")
    return found


def _fetch(model: Model, store: Store, directory: Path) -> None:
    """Copy the files from the database, in one move."""
    names = store.model_files.names(model.id) & set(KEPT_FILES)  # no other is written, whatever the rows say
    if MANIFEST_FILE not in names:
        raise EmbedderUnavailable(
            f"the files of the promoted model {model.fingerprint} are not in {store.url}; "
            "promote it again, or return to the one before with ibidem promote --rollback"
        )
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        fresh = scratch / "fresh"
        fresh.mkdir()
        for name in names:
            with (fresh / name).open("wb") as file:
                file.writelines(store.model_files.pieces(model.id, name))
        if directory.exists():
            directory.rename(scratch / "damaged")
        fresh.rename(directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sweep_models(settings: Settings, store: Store) -> None:
    """Delete the files on this host of models that are not registered, unless other caches may use them."""
    if settings.database is not None:
        return
    found = [one for one in models_directory(settings).glob("*") if one.is_dir() and _ID.fullmatch(one.name)]
    kept = set(map(digest, store.embedders.registered()))  # read last: who makes a directory registers before
    for directory in found:
        if directory.name not in kept:
            shutil.rmtree(directory, ignore_errors=True)
