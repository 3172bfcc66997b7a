"""Storing an answer, if it is worth keeping."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ibidem.decision.evidence import supporting
from ibidem.entry import Entry, Source, Vector
from ibidem.lifecycle.admission import Admission
from ibidem.lifecycle.lifetime import Lifetime
from ibidem.request import Answer, Request
from ibidem.telemetry.spans import step

if TYPE_CHECKING:
    from ibidem.backend import Backend
    from ibidem.examples.log import ExampleLog
    from ibidem.models.matcher import Matcher


class Keeper:
    """Stores answers for one cache.

    Args:
        backend: Truth and vectors.
        admission: What may be stored.
        lifetime: How long answers live.
        examples: Where what was stored is an example too.
    """

    def __init__(
        self, backend: Backend, admission: Admission, lifetime: Lifetime, examples: ExampleLog
    ) -> None:
        self._backend, self._admission, self._lifetime = backend, admission, lifetime
        self._examples = examples

    def keep(
        self, request: Request, answer: Answer, now: float, ttl: float | None, tags: tuple[str, ...]
    ) -> str | None:
        """Store an answer that was admitted, or say why not; what the database raises passes through."""
        readable = request.semantic and not self._admission.is_private(request.question)
        matcher = self._backend.matcher  # once: the vector is of the embedder that it is stored for
        semantic, vector = self._meaning(matcher, request) if readable and answer.semantic else (False, None)
        evidence = supporting(answer.text, request.question, request.documents)
        life = self._lifetime.of(request.namespace, ttl)
        entry = Entry(
            id=request.key,
            namespace=request.namespace,
            scope=request.scope_digest,
            question=request.question if readable else None,
            documents=request.documents_digest,
            semantic=semantic,
            answer=answer,
            created=now,
            expires=self._lifetime.expires(life, now),
            ttl=None if math.isinf(life) else life,
            used=now,
            sources=tuple(Source(d.id, d.digest, d.digest in evidence, d.source) for d in request.documents),
            tags=tags,
            vector=vector,
        )
        if not self._backend.keep(entry, request.made, matcher):
            return "invalidated"
        if request.example:
            self._examples.of_entry(entry, answer, matcher.fingerprint)
        return None

    def _meaning(self, matcher: Matcher, request: Request) -> tuple[bool, Vector | None]:
        """Whether the question can be found by meaning, and its vector, if it could be made now."""
        embedder = matcher.embedder
        try:
            if embedder.refusal(request.question) is not None:
                return False, None
            with step("ibidem.embed"):
                return True, embedder.vector_of(request.question)
        except Exception as error:  # the answer is worth keeping; its vector is made later
            self._backend.faults.note("embed a question", error)
            return True, None
