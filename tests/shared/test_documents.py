"""Under `document_policy="unchanged"`: what was changed, told or added is never behind a repeated answer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import count
from uuid import UUID
from zlib import crc32

import pytest

from ibidem import Answer, Document, Hit, Request
from ibidem.cache import SemanticCache
from tests.conftest import OpenCache
from tests.embedders import Constant

# The documents of a made-up shop: each source a list of chunks, each chunk some facts.

EDITS = 84  # of each kind of id and size of chunk, of which there are twelve
SIZES = (1, 2, 3)  # facts in a chunk
KINDS = ("names", "random", "positions", "sources")


@dataclass
class Fact:
    """Something that a source says: a subject has a value."""

    source: str
    subject: str
    value: str

    @property
    def text(self) -> str:
        return f"The {self.subject} of {self.source} is {self.value}."


@dataclass
class Chunk:
    """Neighbouring facts, under a name that stays while they are edited."""

    name: str
    facts: list[Fact]

    @property
    def text(self) -> str:
        return " ".join(fact.text for fact in self.facts)


@dataclass
class Told:
    """What the cache was told, each with the number of the step."""

    changed: list[tuple[int, str]] = field(default_factory=list)  # texts that are no longer there
    added: list[tuple[int, str]] = field(default_factory=list)  # texts that were not there before


class Shop:
    """Documents that are edited at random, and programs that ask about them through a cache."""

    def __init__(self, cache: SemanticCache, kind: str, size: int, seed: int) -> None:
        self.cache, self.kind, self.size = cache, kind, size
        self.namespace = f"shop {size}"
        self.draw, self._numbers = random.Random(seed), count()
        self.step, self.told = 0, Told()
        self.sources = {f"file{name}.md": list[Chunk]() for name in "abcdefghijkl"}
        self.cuttings = dict.fromkeys(self.sources, 0)  # how often each was indexed anew
        for name in self.sources:
            self.sources[name] = self._cut([self._fact(name) for _ in range(6)])
        facts = self._facts()
        self.questions = [self.draw.sample(facts, 2) for _ in range(8)]
        self.made: dict[str, tuple[int, list[Fact], dict[str, str]]] = {}  # of each answer

    def _fact(self, source: str) -> Fact:
        number = next(self._numbers)
        return Fact(source, f"subject{number}x", f"value{number}y")

    def _facts(self) -> list[Fact]:
        return [fact for chunks in self.sources.values() for chunk in chunks for fact in chunk.facts]

    def _cut(self, facts: list[Fact]) -> list[Chunk]:
        parts = [facts[at : at + self.size] for at in range(0, len(facts), self.size)]
        return [Chunk(f"key-{next(self._numbers)}-z", part) for part in parts]

    # What the retriever returns.

    def chunks(self, source: str) -> list[tuple[str, str, Chunk]]:
        """The chunks of a source with their ids and texts, as the program's index has them."""
        made = []
        for number, chunk in enumerate(self.sources[source]):
            names = {
                "names": chunk.name,
                "random": self._random(f"{source} {self.cuttings[source]} {number}"),
                "positions": f"{source}#{number}",
                "sources": source,
            }
            made.append((names[self.kind], chunk.text, chunk))
        return made

    def _random(self, seed: str) -> str:
        return str(UUID(int=random.Random(seed).getrandbits(128), version=4))

    def retrieve(self, wanted: list[Fact], wording: int) -> tuple[Document, ...]:
        """The chunks with the facts, mostly, and some others: each wording finds other ones."""
        asked = f"{wanted[0].subject} {wording}"
        every = [(source, *one) for source in self.sources for one in self.chunks(source)]

        def odd(some: list[tuple[str, str, str, Chunk]]) -> list[tuple[str, str, str, Chunk]]:
            return sorted(some, key=lambda one: crc32(f"{asked} {one[2]}".encode()))[:1]

        found = odd(every)
        for fact in wanted:
            about = [one for one in every if any(fact.subject == held.subject for held in one[3].facts)]
            beside = [one for one in every if one[0] == fact.source]
            found += odd(beside) if crc32(f"{asked} {fact.subject}".encode()) % 6 == 0 else about
        return tuple(Document(id_, text, source=source) for source, id_, text, _ in found)

    # What programs ask.

    def request(self, number: int, wording: int) -> Request:
        documents = self.retrieve(self.questions[number], wording)
        # Each question is alone in its scope, and all texts are alike: only documents decide.
        return Request(
            "word" * (wording + 1), scope=f"question {number}", namespace=self.namespace, documents=documents
        )

    def ask(self, number: int, wording: int) -> str:
        """Ask in some wording; return the tier if the cache answered, rightly, and "" if the model did."""
        request = self.request(number, wording)
        hit = self.cache.lookup(request)
        if isinstance(hit, Hit):
            self.check(hit, request)
            return hit.tier
        shown = {document.text for document in request.documents}
        asked = {fact.subject for fact in self.questions[number]}
        said = [fact for fact in self._facts() if fact.subject in asked]
        said = [fact for fact in said if any(fact.text in text for text in shown)]
        if said:
            self.cache.store(request, Answer(" ".join(fact.text for fact in said)))
            facts = [Fact(one.source, one.subject, one.value) for one in said]
            under = {one.text: text for one in facts for text in shown if one.text in text}
            self.made[request.key] = self.step, facts, under | dict.fromkeys(shown, "")
        return ""

    def check(self, hit: Hit, request: Request) -> None:
        """The answer must rest on nothing that is retrieved changed, or was told of."""
        step, facts, under = self.made[hit.entry_id]
        shown = [document.text for document in request.documents]
        for fact in facts:
            now = f"The {fact.subject} of {fact.source} is "
            assert not any(now in text and fact.text not in text for text in shown), "changed, and retrieved"
            gone = [at for at, text in self.told.changed if text == under[fact.text]]
            assert max(gone, default=-1) <= step, "told as changed"
        if hit.entry_id != request.key:
            added = {text for at, text in self.told.added if at > step}
            assert not (added & set(shown)) - under.keys(), "told as new"

    # What happens to the documents.

    def edit(self, number: int) -> str:
        """Do something to a source, told or not, often to one that was asked about; return which."""
        self.step += 1
        source, told = self.draw.choice(list(self.sources)), self.draw.random() < 0.5
        self.asked = self.draw.choice(self.questions[number])
        source = self.asked.source if self.draw.random() < 0.4 else source
        old = {(id_, text) for id_, text, _ in self.chunks(source)}
        ways = (self._change, self._change, self._add, self._drop, self._recut)
        self.draw.choice(ways)(self.sources[source])
        self.cuttings[source] += 1
        new = {(id_, text) for id_, text, _ in self.chunks(source)}
        if told:
            self._tell(source, old, new)
            before, now = {text for _, text in old}, {text for _, text in new}
            self.told.changed += [(self.step, text) for text in before - now]
            self.told.added += [(self.step, text) for text in now - before]
        return source

    def _tell(self, source: str, old: set[tuple[str, str]], new: set[tuple[str, str]]) -> None:
        if self.kind in ("names", "random") and self.draw.random() < 0.5:  # as an index does, chunk by chunk
            if gone := sorted(id_ for id_, _ in old - new):
                self.cache.invalidate(document=gone, namespace=self.namespace)
            if come := sorted(id_ for id_, _ in new - old):
                self.cache.announce(come, namespace=self.namespace)
        elif self.draw.random() < 0.5:
            self.cache.invalidate(document=source, namespace=self.namespace)
        else:
            now = sorted(text for _, text in new)
            self.cache.invalidate(document=source, current=now, namespace=self.namespace)

    def _change(self, chunks: list[Chunk]) -> None:
        facts = [fact for chunk in chunks for fact in chunk.facts]
        fact = self.asked if self.asked in facts else self.draw.choice(facts)
        fact.value = f"value{next(self._numbers)}y"

    def _add(self, chunks: list[Chunk]) -> None:
        made = Chunk(f"key-{next(self._numbers)}-z", [self._fact(self._name_of(chunks))])
        chunks.insert(self.draw.randint(0, len(chunks)), made)

    def _drop(self, chunks: list[Chunk]) -> None:
        if len(chunks) > 2:
            chunks.pop(self.draw.randrange(len(chunks)))

    def _recut(self, chunks: list[Chunk]) -> None:
        self.size = self.draw.choice(SIZES)
        chunks[:] = self._cut([fact for chunk in chunks for fact in chunk.facts])

    def _name_of(self, chunks: list[Chunk]) -> str:
        return next(name for name, held in self.sources.items() if held is chunks)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changed_told_or_added_is_behind_an_answer(open_cache: OpenCache, kind: str) -> None:
    """After any edit, addition, deletion and re-chunking; what has nothing to do with it is served still."""
    cache = open_cache(embedder=Constant(), examples=False)
    before, after, by_meaning = 0, 0, 0
    for size in SIZES:
        shop = Shop(cache, kind, size, seed=size)
        for _ in range(EDITS):
            number, served = shop.draw.randrange(len(shop.questions)), dict[int, tuple[Request, str]]()
            for wording in range(2):
                served[wording] = shop.request(number, wording), shop.ask(number, wording)
            edited = shop.edit(number)
            for wording, (request, tier) in served.items():
                by_meaning += (again := shop.ask(number, wording)) == "semantic"
                shown = request.documents + shop.request(number, wording).documents
                if tier == "semantic" and all(one.source != edited for one in shown):
                    before, after = before + 1, after + bool(again)

    assert by_meaning > EDITS
    assert after >= 0.95 * before > 0
    assert cache.stats().faults == {}
