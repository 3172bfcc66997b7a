"""Which of the retrieved documents does an answer rest on? Lexical, pure, only run when an answer is stored.

A document supports a sentence of the answer if it holds many of the words that the sentence adds to the
question, or one of its numbers, or a word that no other document holds. If a sentence is supported by none,
the answer rests on more than can be seen, and all documents must be the same. The rule errs towards naming
too many documents: each one named must be retrieved again, unchanged, before the answer is repeated.
(Lexical support by fresh evidence is the load-bearing gate of GroundedCache, arXiv 2605.27494; the shares
below are our choice.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

from ibidem.decision.lexicon import COMMON_WORDS
from ibidem.request import Document

# Share of a sentence's new words a document must hold to count, and share of the best document's share.
LEAST_SHARE = 0.2
SHARE_OF_BEST = 0.5
# Pairs of a word of the answer and a document that holds it which are looked at: so many have an answer of
# 4,000 words and 500 documents with a fifth of its words each. Of more it cannot be told.
MOST_PAIRS = 400_000

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def supporting(answer: str, question: str, documents: Sequence[Document]) -> frozenset[str]:
    """Digests of the documents that support the answer; empty if that cannot be told."""
    known = _words(question)
    sentences = [(sentence, _words(sentence)) for sentence in _SENTENCE_END.split(answer)]
    holders = _holders(frozenset().union(*(words for _, words in sentences)), documents)
    found, pairs = set[str](), 0
    for sentence, words in sentences:
        # A sentence that only repeats the question affirms it, which has a source as well.
        new = words - known or words
        pairs += sum(len(holders.get(word, ())) for word in new)
        if pairs > MOST_PAIRS:
            return frozenset()
        supporters = _supporters(new, holders) if words else frozenset()
        if words and not supporters and not sentence.endswith("?"):  # asking back needs no source
            return frozenset()
        found |= supporters
    return frozenset(found)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower())) - COMMON_WORDS


def _holders(words: frozenset[str], documents: Sequence[Document]) -> dict[str, list[str]]:
    """The words -> digests of the documents that hold them."""
    holders: dict[str, list[str]] = {}
    for digest, text in {document.digest: document.text for document in documents}.items():
        for word in _words(text) & words:
            holders.setdefault(word, []).append(digest)
    return holders


def _supporters(new: frozenset[str], holders: dict[str, list[str]]) -> frozenset[str]:
    names = {word: holders.get(word, ()) for word in new}
    counts = Counter(chain.from_iterable(names.values()))
    best = max(counts.values(), default=0)
    if best < LEAST_SHARE * len(new):
        return frozenset()
    telling = {those[0] for those in names.values() if len(those) == 1}
    telling.update(*(those for word, those in names.items() if word[0].isdecimal()))
    least = SHARE_OF_BEST * best
    return frozenset(name for name, count in counts.items() if count >= least or name in telling)
