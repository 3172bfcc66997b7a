"""A process follows what is promoted: the coming matcher is made ready beside the one in use, then exchanged.

A step at a time in the background, while lookups go on with the one in use. Whoever promotes in this process
takes the same steps, without pauses.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ibidem._util.concurrency import ForkSafeLock
from ibidem.active_model import Model, open_model, read_promotion, sweep_models
from ibidem.embedding.minilm import TELEMETRY_KEY, telemetry_is_on
from ibidem.errors import CacheClosed, IbidemError, IndexUnavailable
from ibidem.storage.vectors import StoredVector

if TYPE_CHECKING:
    from ibidem.embedding.base import Embedder
    from ibidem.matching.fitted import Calibration
    from ibidem.runtime import Matcher, Runtime
    from ibidem.types import Entry

RETIRED_SECONDS = 30.0  # so long a replaced matcher stays open for lookups that began with it
AGAIN_SECONDS = 30.0  # how long a model that could not be opened is left alone
LOOK_SECONDS = 60.0  # how often it is said what is used, and what nobody uses is looked for


class Following:
    """Exchanges the matcher of one runtime. Thread-safe.

    Args:
        runtime: What it belongs to.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._follows = runtime, runtime.settings.embedder is None
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """Leave what the parent was about to do to the parent."""
        self._lock, self.promoting = ForkSafeLock(), ForkSafeLock()
        self._held = False  # what is coming was prepared by somebody who will say when it is to be used
        self._runtime.coming = None
        self._retired: list[tuple[float, Matcher]] = []
        self._again_at = self._look_at = 0.0

    def step(self) -> bool:
        """Do a little, if there is something to do; returns whether there may be more."""
        with self._lock:
            busy = self._keep_house()
            if self._held or not self._follows or time.monotonic() < self._again_at:
                return busy
            try:
                return self._follow() or busy
            except (IbidemError, OSError):
                self._give_up()
                self._again_at = time.monotonic() + AGAIN_SECONDS
                raise

    def _follow(self) -> bool:
        if self._closed:
            return False
        promotion = read_promotion(self._runtime.store)
        used, coming = self._runtime.matcher, self._runtime.coming
        if promotion is None or promotion.current.fingerprint == used.fingerprint:
            self._give_up()
            return False
        if coming is None or coming.fingerprint != promotion.current.fingerprint:
            self._give_up()
            self._begin(promotion.current)
            return self._runtime.coming is not None
        if self._advance(coming):
            self._exchange(coming)
            return False
        return True

    def _begin(self, model: Model) -> None:
        embedder = open_model(model, self._runtime.settings, self._runtime.store)
        if embedder.fingerprint != self._runtime.matcher.fingerprint:
            self._runtime.coming = self._ready_to_embed(embedder)

    def _ready_to_embed(self, embedder: Embedder) -> Matcher:
        matcher = self._runtime.matcher_of(embedder)
        matcher.embedder.embed(["loads the model"])  # here, and not in the first lookup
        return matcher

    def _advance(self, matcher: Matcher) -> bool:
        """Make the coming matcher a little readier; True if it is as ready as it can be made here."""
        vectors = matcher.vectors
        try:
            vectors.open()
            return vectors.caught_up() or not (vectors.index_batch() or not vectors.caught_up())
        except IndexUnavailable:  # of another process, or down: as it is for the one in use
            return True

    def prepare(self, embedder: Embedder) -> Matcher:
        """Make a matcher ready to be exchanged for the one in use; raises what opening and embedding do.

        Raises:
            CacheClosed: The cache was closed meanwhile.
        """
        matcher = self._ready_to_embed(embedder)
        with self._lock:
            self.require_open()
            self._give_up()
            self._runtime.coming, self._held = matcher, True
        while True:
            with self._lock:
                self.require_open()
                if self._advance(matcher):
                    return matcher

    def follow(self) -> None:
        """Use what is promoted now, or go on with what is used; raises what opening and embedding do."""
        while True:
            with self._lock:
                self._held = False
                if not self._follow():
                    return

    def require_open(self) -> None:
        """Raise `CacheClosed` if the cache was closed: an index opened now would stay open."""
        if self._closed:
            raise CacheClosed("this cache was closed while a model was promoted; promote it again")

    def calibrate(self, matcher: Matcher, calibration: Calibration) -> None:
        """Serve from these thresholds from now on, unless another embedder is used by now."""
        with self._lock:
            used = self._runtime.matcher
            if used.embedder is matcher.embedder:  # the scorer stays, and with it all that audits know
                self._runtime.matcher = replace(used, calibration=calibration)

    def take_along(self, entry: Entry, matcher: Matcher) -> None:
        """Make an entry that was stored with this matcher findable with those that take its place."""
        runtime = self._runtime
        coming = runtime.coming  # first: it may become the one in use at any moment
        for other in {id(one): one for one in (coming, runtime.matcher) if one is not None}.values():
            if other.embedder is matcher.embedder or entry.question is None:
                continue
            try:
                if other.embedder.refusal(entry.question) is not None:
                    continue
                vector = other.embedder.vector_of(entry.question)
                row = StoredVector(entry.id, entry.namespace, entry.scope, entry.question, vector)
                other.vectors.table.set_vectors([row])
                other.vectors.add(entry.namespace, entry.scope, vector)
            except IbidemError as error:  # it is embedded later
                runtime.faults.note("embed a question for the promoted model", error)

    def close(self) -> None:
        """Close all but the matcher in use."""
        with self._lock:
            self._closed = True
            self._give_up()
            for _, matcher in self._retired:
                matcher.vectors.close()
            self._retired = []

    def _exchange(self, matcher: Matcher) -> None:
        used = self._runtime.matcher
        self._runtime.adopt(matcher)
        self._runtime.coming = None
        self._retired.append((time.monotonic() + RETIRED_SECONDS, used))
        self._runtime.wake()

    def _give_up(self) -> None:
        coming, self._runtime.coming = self._runtime.coming, None
        if coming is not None:
            coming.vectors.close()

    def _keep_house(self) -> bool:
        """Close what was replaced, say what is used, delete what nobody uses; whether there is more."""
        now = time.monotonic()
        while self._retired and self._retired[0][0] <= now:
            self._retired.pop(0)[1].vectors.close()
        if now < self._look_at:
            return bool(self._retired)
        store = self._runtime.store
        for matcher in (self._runtime.matcher, self._runtime.coming):
            if matcher is not None:
                store.embedders.register(matcher.fingerprint)
        if telemetry_is_on():
            store.meta.set(TELEMETRY_KEY, repr(time.time()))
        promotion = read_promotion(store)
        kept = promotion.fingerprints if promotion else frozenset()
        if store.embedders.delete_unused(kept):
            return True
        sweep_models(self._runtime.settings, store)
        self._look_at = now + LOOK_SECONDS
        return bool(self._retired)
