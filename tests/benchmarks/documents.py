"""What do documents cost in hits? Questions over the Python language reference, one policy beside another.

    python -m tests.benchmarks.documents [--answers written|extracted] [--ids IDS ...] [--min-probability P]

Written for this project, in `suites/documents.json`: 60 questions with an answer in other words than those of
the reference, 3 rewordings and 2 near misses each; nothing is trained on them. The 4 nearest of 521 passages
are retrieved for each wording by the default embedder. All questions are stored, then rewordings and near
misses are looked up, which stores nothing. A rewording with the answer to another question is wrong.

`perfect` stands for a comparison that knows every rewording: how many do documents alone let through?
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import numpy as np
from rich.console import Console
from rich.table import Table

import ibidem
from ibidem import Answer, Document, Hit, Request
from ibidem.embedding import resolve_embedder
from ibidem.embedding.base import Embedder
from ibidem.matching.documents import document_objection
from ibidem.types import Entry
from tests.helpers import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from common.corpus import Passage, language_reference
from common.reader import extract

SUITE = Path(__file__).parent / "suites" / "documents.json"
RETRIEVED = 4
POLICIES = ("ignore", "unchanged", "supporting", "all")
_SPACE = UUID(int=7)

#: How passages may be named: the kinds of ids that programs have, and whether sources are known.
IDS: dict[str, Callable[[Passage], tuple[str, str]]] = {
    "names": lambda one: (one.id, ""),
    "names, sources": lambda one: (f"passage of {sum(one.id.encode())} {len(one.text)}", one.topic),
    "random, sources": lambda one: (str(UUID(int=uuid5(_SPACE, one.id).int, version=4)), one.topic),
    "positions, sources": lambda one: (one.id, one.topic),
    "hashes, sources": lambda one: (str(uuid5(_SPACE, one.text)), one.topic),
    "sources alone": lambda one: (one.topic, one.topic),
    "hashes, told": lambda one: (str(uuid5(_SPACE, one.text)), one.topic),
}


class Question(NamedTuple):
    """A question with its answer, and wordings that are to be served and not to be."""

    text: str
    answer: str
    reworded: tuple[str, ...]
    near: tuple[str, ...]


@dataclass
class Served:
    """What a policy serves: rewordings, near misses, and rewordings by the answer to another question."""

    reworded: int = 0
    near: int = 0
    wrong: int = 0
    perfect: int = 0


def load() -> list[Question]:
    """The questions of the suite."""
    held = json.loads(SUITE.read_text(encoding="utf-8"))
    return [
        Question(one["question"], one["answer"], tuple(one["reworded"]), tuple(one["near"])) for one in held
    ]


class Retriever:
    """The passages nearest to a text."""

    def __init__(self, embedder: Embedder, passages: list[Passage]) -> None:
        self._embedder, self.passages = embedder, passages
        texts = [one.text for one in passages]
        parts = [embedder.embed(texts[at : at + 16]) for at in range(0, len(texts), 16)]
        self._vectors = np.concatenate(parts)
        self._found: dict[str, list[Passage]] = {}

    def nearest(self, text: str) -> list[Passage]:
        """The nearest `RETRIEVED` passages; the same at every call."""
        if text not in self._found:
            cosines = self._vectors @ self._embedder.embed([text])[0]
            best = np.argsort(-cosines, kind="stable")[:RETRIEVED]
            self._found[text] = [self.passages[int(at)] for at in best]
        return self._found[text]


def measure(
    questions: list[Question], retriever: Retriever, ids: str, *, extracted: bool, **options: Any
) -> dict[str, Served]:
    """What each policy serves, from one store of all questions."""
    named = IDS[ids]

    def request(text: str) -> Request:
        shown = [(named(one), one.text) for one in retriever.nearest(text)]
        return Request(text, documents=tuple(Document(id_, held, source=of) for (id_, of), held in shown))

    found: dict[str, Served] = {}
    with TemporaryDirectory() as folder:
        with ibidem.open(folder, **options) as cache:
            if ids.endswith("told"):  # as `invalidating` does when they are indexed
                cache.announce(named(passage)[0] for passage in retriever.passages)
            for one in questions:
                excerpts = "\n\n".join(passage.text for passage in retriever.nearest(one.text))
                answer = extract(one.text, excerpts) if extracted else one.answer
                assert cache.store(request(one.text), Answer(answer))
            entries = {entry.question: entry for entry in cache._runtime.store.entries.newest(len(questions))}
        for policy in POLICIES:
            with ibidem.open(folder, document_policy=policy, **options) as cache:
                found[policy] = _served(cache, questions, request, entries)
    return found


def _served(
    cache: Any, questions: list[Question], request: Callable[[str], Request], entries: dict[str | None, Entry]
) -> Served:
    served = Served()
    for one in questions:
        entry = entries[request(one.text).question]
        for text in one.reworded:
            asked = request(text)
            told = cache._runtime.store.told.of(asked.documents, asked.namespace)
            served.perfect += not document_objection(asked, entry, cache.policy.document_policy, told=told)
            hit = cache.lookup(asked)
            served.reworded += isinstance(hit, Hit) and hit.entry_id == entry.id
            served.wrong += isinstance(hit, Hit) and hit.entry_id != entry.id
        for text in one.near:
            hit = cache.lookup(request(text))
            served.near += isinstance(hit, Hit)
    return served


def table(found: dict[str, dict[str, Served]], questions: list[Question], title: str) -> Table:
    """A line per policy and kind of ids."""
    shown = Table(
        "ids", "documents", "rewordings", "of ignore", "near misses", "wrong", "perfect", title=title
    )
    reworded, near = sum(len(one.reworded) for one in questions), sum(len(one.near) for one in questions)
    for ids, policies in found.items():
        most = policies["ignore"].reworded
        for policy, one in policies.items():
            cells = (f"{one.reworded}/{reworded}", f"{one.reworded / most:.1%}" if most else "")
            last = policy == POLICIES[-1]
            shown.add_row(
                ids,
                policy,
                *cells,
                f"{one.near}/{near}",
                str(one.wrong),
                f"{one.perfect}/{reworded}",
                end_section=last,
            )
    return shown


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--answers", choices=("written", "extracted"), default="written")
    options.add_argument("--ids", choices=IDS, nargs="*", default=list(IDS))
    options.add_argument("--min-probability", type=float, help="default: that of the default error rate")
    given = options.parse_args()
    embedder = resolve_embedder(None)
    questions, retriever = load(), Retriever(embedder, language_reference())
    chosen = {"min_probability": given.min_probability} if given.min_probability else {}
    found = {
        ids: measure(questions, retriever, ids, extracted=given.answers == "extracted", **chosen)
        for ids in given.ids
    }
    title = f"{len(retriever.passages)} passages, {RETRIEVED} retrieved, answers {given.answers}"
    Console(width=110).print(table(found, questions, f"{title}, {embedder.fingerprint}"))


if __name__ == "__main__":
    main()
