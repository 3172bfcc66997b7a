"""What one process invalidates no other serves: not in the first lookup that begins afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ibidem
from tests.embedders import DenseWords
from tests.helpers import Child, question, rounds
from tests.servers import running_chroma, running_postgres

ENTRIES = 40
ROUNDS = rounds(1, 20)

# Looks up all questions again and again, in their own and other words, until it is told to stop. Then it
# prints how often it looked, how often it hit, and the hits of lookups that began after the time it is given.
HAMMER = """
import os, sys, threading, time
import ibidem
from tests.embedders import DenseWords
from tests.helpers import question

where = dict(part.split("=", 1) for part in sys.argv[2:])
cache = ibidem.open(sys.argv[1], embedder=DenseWords(), min_similarity=0.9, **where)
document = (ibidem.Document("guide#1", "the guide", source="guide.md"),)
texts = [words + question(n) for n in range(40) for words in ("", "please ")]
asked = [ibidem.Request(text, documents=document) for text in texts]
hits, count, running = [], 0, True

def hammer():
    global count
    while running:
        for request in asked:
            began = time.time()
            if cache.lookup(request):
                hits.append(began)
            count += 1

print("ready", flush=True)
for line in sys.stdin:
    verb, _, since = line.strip().partition(" ")
    if verb == "go":
        hits, count, running = [], 0, True
        thread = threading.Thread(target=hammer)
        thread.start()
        print("going", flush=True)
    elif verb == "stop":
        running = False
        thread.join()
        late = sum(began > float(since) for began in hits)
        # one index serves one process, a server's is not waited for; a log that cannot keep up with a hammer
        # drops lookups: as documented
        expected = "InUse", "IndexUnavailable", "write the lookup log: too many wait"
        faults = [cause for cause in cache.stats().faults if not any(part in cause for part in expected)]
        print(count, len(hits), late, faults or "sound", flush=True)
"""


@contextlib.contextmanager
def places(kind: str, path: Path) -> Iterator[dict[str, str]]:
    """Where the cache is: a directory, or two servers."""
    with contextlib.ExitStack() as stack:
        if kind == "files":
            yield {}
        else:
            database = stack.enter_context(running_postgres())
            yield {"database": database, "chroma": stack.enter_context(running_chroma(path)).url}


@pytest.mark.parametrize("kind", ["files", "servers"])
def test_no_process_serves_what_was_invalidated(kind: str, tmp_path: Path) -> None:
    """Three processes look up without pause while a fourth invalidates: none of them hits afterwards."""
    with places(kind, tmp_path / "chroma") as where, contextlib.ExitStack() as stack:
        path = tmp_path / "cache"
        cache = stack.enter_context(ibidem.open(path, embedder=DenseWords(), min_similarity=0.9, **where))
        given = [f"{name}={value}" for name, value in where.items()]
        children = [stack.enter_context(Child(HAMMER, path, *given)) for _ in range(3)]
        for child in children:
            assert child.line() == "ready"
        document = (ibidem.Document("guide#1", "the guide", source="guide.md"),)
        for _ in range(ROUNDS):
            for n in range(ENTRIES):
                assert cache.store(ibidem.Request(question(n), documents=document), ibidem.Answer("yes"))
            for child in children:
                assert child.ask("go") == "going"
            time.sleep(0.3)
            assert cache.invalidate(document="guide.md").count == ENTRIES
            returned = time.time()
            time.sleep(0.3)
            for child in children:
                count, hits, late, faults = child.ask(f"stop {returned}").split(" ", 3)
                assert int(hits) > 0
                assert int(count) > int(hits)
                assert (late, faults) == ("0", "sound")
