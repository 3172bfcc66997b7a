"""A pair as a reviewer sees it: words that differ, both answers, what became of the documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

from ibidem._util.text import reveal_invisible
from ibidem.types import key_of, normalise

if TYPE_CHECKING:
    from ibidem.storage.browsing import ReviewPair
    from ibidem.storage.store import Store
    from ibidem.types import Entry, Source

LONGEST = 20_000  # characters shown of a text
COMPARED = 400  # words and signs of each question that are compared; longer ones have no marks
_TOKEN = re.compile(r"\w+|[^\w\s]|\s+")
# Beside what `ibidem._util.text` knows: line ends other than "\n", and surrogates.
_HARMFUL = re.compile("[\x0b-\r\x85\u2028\u2029\ud800-\udfff]")


class Piece(NamedTuple):
    """A part of a text, and whether the other text says something else there."""

    text: str
    differs: bool


@dataclass(frozen=True, slots=True)
class Paper:
    """A document behind one of two answers or both: `state` is `same`, `changed`, `stored` or `asked`."""

    id: str
    source: str
    supports: bool
    state: str


@dataclass(frozen=True, slots=True)
class Shown:
    """All that is shown of a pair. `fresh` is the answer of the model to the question asked, if it is stored.

    `replaced` if the stored answer is younger than what the log tells.
    """

    met: ReviewPair
    asked: Sequence[Piece]
    stored: Sequence[Piece]
    entry: Entry
    fresh: Entry | None
    papers: Sequence[Paper]

    @property
    def replaced(self) -> bool:
        """Whether the answer was stored anew after the question met it."""
        return self.entry.created > self.met.at


def show(store: Store, met: ReviewPair, entry: Entry) -> Shown:
    """What to show; raises `StorageError`."""
    fresh = _fresh(store, met, entry)
    asked, stored = marked(readable(met.asked), readable(met.stored))
    papers = tuple(_papers(entry.sources, None if fresh is None else fresh.sources))
    return Shown(met, asked, stored, entry, fresh, papers)


def _fresh(store: Store, met: ReviewPair, entry: Entry) -> Entry | None:
    """What was stored for the question asked: what the model said when there was no hit."""
    asked = normalise(met.asked)
    found = store.entries.of_ids([key_of(met.namespace, met.scope, asked, entry.documents)])
    if not found and (other := store.browser.answer_to(met.namespace, met.scope, asked)):
        found = store.entries.of_ids([other])
    return found[0] if found and found[0].id != entry.id else None


def readable(text: str) -> str:
    """A stored text with a sign for each character that nobody would see or that changes more than itself.

    Not escaped. Emoji sequences and joiners of Arabic, Persian and Indian scripts stay (`ibidem._util.text`).
    """
    text = _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", reveal_invisible(text.replace("\r\n", "\n")))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def marked(asked: str, stored: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; where their words differ these are marked."""
    one, other = _TOKEN.findall(asked), _TOKEN.findall(stored)
    if max(len(one), len(other)) > COMPARED:
        return [Piece(asked, False)], [Piece(stored, False)]
    here: list[Piece] = []
    there: list[Piece] = []
    for what, i, j, k, end in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        here += _pieces(one[i:j], what != "equal")
        there += _pieces(other[k:end], what != "equal")
    return here, there


def _pieces(tokens: Sequence[str], differs: bool) -> list[Piece]:
    text = "".join(tokens)
    bare = text.strip() if differs else ""
    before, _, after = text.partition(bare) if bare else (text, "", "")
    return [piece for piece in (Piece(before, False), Piece(bare, True), Piece(after, False)) if piece.text]


def _papers(stored: Sequence[Source], asked: Sequence[Source] | None) -> Iterator[Paper]:
    """The documents of both answers; those of the stored one alone if the other is not known."""
    then = {(one.id, one.digest) for one in asked or ()}
    names = {one.id for one in asked or ()}
    for one in stored:
        state = "same" if asked is None or (one.id, one.digest) in then else "stored"
        yield Paper(
            one.id, one.source, one.supports, "changed" if state == "stored" and one.id in names else state
        )
    known = {one.id for one in stored}
    for one in asked or ():
        if one.id not in known:
            yield Paper(one.id, one.source, False, "asked")
