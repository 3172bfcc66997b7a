"""A program with a cache, for gunicorn (`wsgi`) and for uvicorn (`asgi`).

`/lookup?q=` and `/store?q=&a=` say what came of it, in which process, and how long the cache took. With
`VECTORS`, a file of vectors, it does the work of a lookup by meaning without a cache: it embeds the question,
compares the vectors, and reads a pair with the pair model; there is no database, and nothing to follow.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import numpy as np

import ibidem
from ibidem._util.concurrency import in_thread
from ibidem.embedding import resolve_embedder
from ibidem.matching.shipped import scorer_for

Body = dict[str, Any]


class Bare:
    """The models and the vectors, without a cache."""

    def __init__(self, vectors: str) -> None:
        self._embedder, self._rows = resolve_embedder(None), np.load(vectors)
        self._scorer: Any = scorer_for(self._embedder.fingerprint, "default")

    def lookup(self, request: ibidem.Request) -> ibidem.Miss:
        """Do the work; nothing is found."""
        began = time.perf_counter()
        (vector,) = self._embedder.embed([request.question])
        np.argpartition(-np.einsum("ij,j->i", self._rows, vector), 16)
        self._scorer.logits([(request.question, f"{request.question} please")])
        return ibidem.Miss("bare", seconds=time.perf_counter() - began)

    async def alookup(self, request: ibidem.Request) -> ibidem.Miss:
        """In a thread, as a cache does."""
        return await in_thread(lambda: self.lookup(request))

    def store(self, request: ibidem.Request, answer: ibidem.Answer) -> ibidem.Rejected:
        """Store nothing."""
        return ibidem.Rejected("bare")

    async def astore(self, request: ibidem.Request, answer: ibidem.Answer) -> ibidem.Rejected:
        """Store nothing."""
        return ibidem.Rejected("bare")


def _opened() -> Any:
    if "VECTORS" in os.environ:
        return Bare(os.environ["VECTORS"])
    cache = ibidem.open(os.environ["IBIDEM_PATH"])
    cache.load_models()
    return cache


# At import: before the fork with `gunicorn --preload`, else in each worker.
CACHE = _opened()


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The program for gunicorn."""
    request, answer = _read(environ["QUERY_STRING"])
    if environ["PATH_INFO"] == "/store":
        body = _stored(CACHE.store(request, answer))
    else:
        body = _found(CACHE.lookup(request))
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


async def asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """The program for uvicorn."""
    if scope["type"] == "lifespan":
        while True:
            step = (await receive())["type"]
            await send({"type": f"{step}.complete"})
            if step == "lifespan.shutdown":
                return
    request, answer = _read(scope["query_string"].decode())
    if scope["path"] == "/store":
        body = _stored(await CACHE.astore(request, answer))
    else:
        body = _found(await CACHE.alookup(request))
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def _read(query: str) -> tuple[ibidem.Request, ibidem.Answer]:
    given = parse_qs(query)
    return ibidem.Request(given["q"][0]), ibidem.Answer(given.get("a", ["none"])[0])


def _found(found: ibidem.Hit | ibidem.Miss) -> Body:
    outcome, text = (found.tier, found.answer.text) if isinstance(found, ibidem.Hit) else (found.reason, "")
    return {"pid": os.getpid(), "outcome": outcome, "answer": text, "seconds": found.seconds}


def _stored(result: ibidem.Stored | ibidem.Rejected) -> Body:
    return {"pid": os.getpid(), "outcome": "stored" if result else result.reason, "seconds": 0.0}
