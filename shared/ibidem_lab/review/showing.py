"""A pair as a reviewer sees it: different words, both answers, the documents behind them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, NamedTuple

from ibidem._util.text import reveal_invisible
from ibidem.types import key_of, normalise

if TYPE_CHECKING:
    from ibidem.storage.reviews import ReviewPair
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


class DocumentState(NamedTuple):
    """A document behind one of two answers or both: `state` is `same`, `changed`, `stored` or `asked`."""

    id: str
    source: str
    supports: bool
    state: str


class PairView(NamedTuple):
    """A pair for the page. `fresh` is the answer of the model to the question asked, if it is stored."""

    pair: ReviewPair
    asked: Sequence[Piece]
    stored: Sequence[Piece]
    entry: Entry
    fresh: Entry | None
    documents: Sequence[DocumentState]

    @property
    def replaced(self) -> bool:
        """Whether the answer was stored anew after the question met it."""
        return self.entry.created > self.pair.at


def pair_view(store: Store, pair: ReviewPair, entry: Entry) -> PairView:
    """Return the view of a pair; raises `StorageError`."""
    question = normalise(pair.asked)
    ids = [key_of(pair.namespace, pair.scope, question, entry.documents)]
    ids += filter(None, [store.reviews.answer_to(pair.namespace, pair.scope, question)])
    found = [one for id_ in ids for one in store.entries.of_ids([id_])]
    fresh = found[0] if found and found[0].id != entry.id else None
    asked, stored = marked(readable(pair.asked), readable(pair.stored))
    documents = tuple(_documents(entry.sources, None if fresh is None else fresh.sources))
    return PairView(pair, asked, stored, entry, fresh, documents)


def readable(text: str) -> str:
    """Replace each character that nobody would see or that changes more than itself.

    Not escaped. Emoji sequences and joiners of Arabic, Persian and Indian scripts stay (`ibidem._util.text`).
    """
    text = _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", reveal_invisible(text.replace("\r\n", "\n")))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def marked(asked: str, stored: str) -> tuple[list[Piece], list[Piece]]:
    """Cut both texts into pieces and mark those with different words."""
    one, other = _TOKEN.findall(asked), _TOKEN.findall(stored)
    if max(len(one), len(other)) > COMPARED:
        return [Piece(asked, False)], [Piece(stored, False)]
    here: list[Piece] = []
    there: list[Piece] = []
    for tag, i, j, k, end in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        here += _pieces(one[i:j], tag != "equal")
        there += _pieces(other[k:end], tag != "equal")
    return here, there


def _pieces(tokens: Sequence[str], differs: bool) -> list[Piece]:
    text = "".join(tokens)
    bare = text.strip() if differs else ""
    before, _, after = text.partition(bare) if bare else (text, "", "")
    return [piece for piece in (Piece(before, False), Piece(bare, True), Piece(after, False)) if piece.text]


def _documents(stored: Sequence[Source], asked: Sequence[Source] | None) -> Iterator[DocumentState]:
    """List the documents of both answers; those of the stored one alone if the other is not known."""
    contents, names = {(one.id, one.digest) for one in asked or ()}, {one.id for one in asked or ()}
    known = {one.id for one in stored}
    for one in stored:
        state = "changed" if one.id in names else "stored"
        if asked is None or (one.id, one.digest) in contents:
            state = "same"
        yield DocumentState(one.id, one.source, one.supports, state)
    for one in asked or ():
        if one.id not in known:
            yield DocumentState(one.id, one.source, False, "asked")
