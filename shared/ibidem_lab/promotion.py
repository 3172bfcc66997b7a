"""Promotion of a tuned embedder or verifier while caches serve, and rollback to the one before.

For an embedder all stored questions are embedded beside the serving cache; then one row in the database says
which models are in use, and every process follows (`ibidem.active_model`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ibidem.active_model import (
    KEPT_FILES,
    Model,
    Promotion,
    change_promotion,
    open_model,
    open_verifier,
    read_promotion,
)
from ibidem.cache import SemanticCache
from ibidem.embedding.base import CheckedEmbedder, Embedder
from ibidem.embedding.model_files import MANIFEST_FILE
from ibidem.errors import ConfigurationError, EmbedderUnavailable, InvalidInput, StorageError
from ibidem.matching.fitted import adopt
from ibidem.matching.pair_model import PairModel
from ibidem.matching.shipped import scorer_for
from ibidem.runtime import Runtime
from ibidem.storage.store import Store
from ibidem.storage.vectors import StoredVector, VectorTable
from ibidem_lab.model_directory import Figure, ModelDirectory, open_model_directory, regressions

BATCH = 256  # questions embedded, and written in one transaction, at a time
KEPT_SECONDS = 86_400.0  # how long vectors of an interrupted promotion are kept

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class PromotionReport:
    """The result of a promotion or a rollback.

    `model` and `previous` name the models in use from now on and before: the fingerprint of the embedder, and
    the verifier if one was promoted; `changed` is False if it was in use already. `embedded` questions were
    embedded in `seconds`. `figures` come from the model's `metrics.json`.
    """

    model: str
    previous: str
    changed: bool
    embedded: int = 0
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()


def promote(
    cache: SemanticCache, directory: str | Path, *, force: bool = False, progress: Progress | None = None
) -> PromotionReport:
    """Promote a tuned embedder: embed all that is stored, then have all caches on this location use it.

    Lookups and stores go on meanwhile, with the embedder that they began with. Caches of other processes
    that were opened without an `embedder` notice within some seconds of use. If interrupted, the old model
    stays in use, and another call resumes.

    Args:
        cache: An open cache of the location.
        directory: Written by `ibidem learn encoder`: a model, its thresholds, its metrics.
        force: True to use it although its metrics say that it is worse, or say nothing.
        progress: Called now and then with how many questions are embedded, and of how many.

    Raises:
        InvalidInput: The metrics say that it is worse; or the thresholds or the metrics cannot be used.
        EmbedderUnavailable: The model's files are missing or damaged.
        ConfigurationError: This cache was opened with an embedder of its own.
        StorageError: The database failed, or something else was promoted meanwhile.
        CacheClosed: The cache was closed.
    """
    runtime = _runtime_of(cache)
    found = open_model_directory(directory)
    if not force:
        _require_better(found)
    with runtime.active.promoting:
        return _promote(runtime, found, progress or (lambda done, total: None))


def promote_verifier(cache: SemanticCache, directory: str | Path) -> PromotionReport:
    """Put a learned verifier in service: its files go into the database, and all caches there use it.

    Args:
        cache: An open cache of the location, with the embedder of the shipped verifier.
        directory: As `ibidem_lab.learning.verifier_files.write_verifier` writes it.

    Raises:
        EmbedderUnavailable: Files are missing or damaged.
        ConfigurationError: The manifest cannot be used, or this cache has an embedder of its own.
        StorageError: The database failed, or something else was promoted meanwhile.
        CacheClosed: The cache was closed.
    """
    runtime, path = _runtime_of(cache), Path(directory)
    verifier = PairModel(path)
    with runtime.active.promoting:
        store, index = runtime.store, runtime.semantic_index
        now = read_promotion(store)
        used = now.current if now else Model(index.fingerprint, promoted=False)
        if used.verifier == verifier.name:
            return PromotionReport(str(used), str(used), changed=False)
        for name in KEPT_FILES:  # the manifest last: who finds it finds the others
            if (path / name).is_file():
                store.model_files.put(verifier.name, path / name)
        open_verifier(verifier.name, runtime.settings, store)
        model = replace(used, verifier=verifier.name)
        _switch(store, now, Promotion(model, used, time.time()))
        for name in now.verifiers - {used.verifier} if now else ():
            store.model_files.delete(name)
        _follow(runtime)
    return PromotionReport(str(model), str(used), changed=True)


def rollback(cache: SemanticCache) -> PromotionReport:
    """Return to the embedder in use before the last promotion, at once: its vectors and thresholds are kept.

    What was stored since is embedded in the background. Another call returns to the promoted one.

    Raises:
        InvalidInput: Nothing was promoted here.
        EmbedderUnavailable: The files of the embedder before are missing.
        ConfigurationError: This cache was opened with an embedder of its own.
        StorageError: The database failed, or something else was promoted meanwhile.
        CacheClosed: The cache was closed.
    """
    runtime = _runtime_of(cache)
    with runtime.active.promoting:
        store = runtime.store
        now = read_promotion(store)
        if now is None:
            raise InvalidInput("there is nothing to roll back: no model was promoted here")
        embedder = open_model(now.previous, runtime.settings, store)
        store.embedders.register(embedder.fingerprint)
        back = replace(now.previous, fingerprint=embedder.fingerprint)
        _switch(store, now, Promotion(back, now.current, time.time()))
        _follow(runtime)
    return PromotionReport(str(back), str(now.current), changed=True)


def _runtime_of(cache: SemanticCache) -> Runtime:
    cache._ready()
    if cache._runtime.settings.embedder is not None:
        raise ConfigurationError(
            "this cache was opened with an embedder of its own, which no promotion replaces: open it "
            "without embedder= (and without IBIDEM_EMBEDDER)"
        )
    return cache._runtime


def _require_better(found: ModelDirectory) -> None:
    if not found.figures:
        raise InvalidInput(
            f"nothing says that the model in {found.path} is better: it has no metrics.json with figures "
            "before and after; measure it with ibidem learn compare, or promote it with force (--force)"
        )
    if bad := regressions(found.figures):
        raise InvalidInput(
            f"the model in {found.path} is worse than the one it was tuned from: "
            f"{', '.join(map(str, bad))}; tune it with more pairs, or promote it with force (--force)"
        )


def _promote(runtime: Runtime, found: ModelDirectory, progress: Progress) -> PromotionReport:
    store, model = runtime.store, Model(found.embedder.fingerprint, promoted=True)
    now = read_promotion(store)
    used = now.current if now else Model(runtime.semantic_index.fingerprint, promoted=False)
    store.embedders.register(model.fingerprint, KEPT_SECONDS)
    if MANIFEST_FILE not in store.model_files.names(model.id):
        for file in found.files:
            store.model_files.put(model.id, file)
    kept = open_model(model, runtime.settings, store)
    started = time.perf_counter()
    checked = CheckedEmbedder(kept, store.meta.set_default)
    table = store.vectors(model.fingerprint)
    embedded = embed_all(table, checked, partial(_tell, runtime, progress))
    seconds = time.perf_counter() - started
    if found.fitted is not None:
        adopt(store, scorer_for(model.fingerprint), found.fitted)
    changed = used.fingerprint != model.fingerprint
    if changed:
        _swap(runtime, kept, now, Promotion(model, used, time.time()))
    elif found.fitted is not None:  # the model is in use already: its thresholds may be others
        index = runtime.semantic_index
        runtime.active.adopt_thresholds(index, index.scorer, found.fitted)
    return PromotionReport(str(model), str(used), changed, embedded, seconds, found.figures)


def _tell(runtime: Runtime, progress: Progress, done: int, total: int) -> None:
    runtime.active.require_open()
    progress(done, total)


def _swap(runtime: Runtime, embedder: Embedder, now: Promotion | None, then: Promotion) -> None:
    """Fill the vector index beside the one in use, then record the promotion for all to follow."""
    try:
        runtime.active.prepare(embedder)
        _switch(runtime.store, now, then)
    finally:
        _follow(runtime)


def _follow(runtime: Runtime) -> None:
    runtime.active.follow()
    runtime.wake()


def _switch(store: Store, now: Promotion | None, then: Promotion) -> None:
    if not change_promotion(store, now, then):
        raise StorageError("another model was promoted meanwhile: look with ibidem promote --status")


def embed_all(table: VectorTable, embedder: CheckedEmbedder, progress: Progress) -> int:
    """Embed all questions that have no vector of this embedder, on all cores but one; returns how many.

    Questions that fail are left to the background; those that the embedder refuses are compared exactly.

    Raises:
        EmbedderUnavailable: It embeds none of a batch.
        StorageError: The database failed.
    """
    done, failed, total = 0, set[str](), table.count_missing()
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1)) as threads:
        while rows := _due(table, failed):
            outcomes = list(threads.map(partial(_embedded, embedder), rows))
            failures = {row.id: one for row, one in zip(rows, outcomes, strict=True) if _failed(one)}
            if len(failures) == len(rows):
                raise EmbedderUnavailable(f"the model embeds nothing: {next(iter(failures.values()))}")
            failed.update(failures)
            rows = [one for one in outcomes if isinstance(one, StoredVector)]
            table.set_vectors(rows)
            table.set_exact_only([row.id for row in rows if row.vector is None])
            done += len(rows)
            progress(done, max(done, total))
    return done


def _failed(outcome: StoredVector | Exception) -> bool:
    return isinstance(outcome, Exception)


def _due(table: VectorTable, failed: set[str]) -> list[StoredVector]:
    rows = table.missing(BATCH + len(failed))
    return [row for row in rows if row.id not in failed]


def _embedded(embedder: CheckedEmbedder, row: StoredVector) -> StoredVector | Exception:
    """Return the row with its vector, without one if the embedder refuses the question, or the failure."""
    try:
        if embedder.refusal(row.question):
            return row
        return replace(row, vector=embedder.embed([row.question])[0])
    except Exception as error:
        return error
