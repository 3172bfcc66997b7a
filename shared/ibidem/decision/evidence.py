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
from collections.abc import Sequence

from ibidem.decision.lexicon import COMMON_WORDS
from ibidem.request import Document

# Share of a sentence's new words a document must hold to count, and share of the best document's share.
LEAST_SHARE = 0.2
SHARE_OF_BEST = 0.5

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def supporting(answer: str, question: str, documents: Sequence[Document]) -> frozenset[str]:
    """Digests of the documents that support the answer; empty if that cannot be told."""
    known = _words(question)
    held = {document.digest: _words(document.text) for document in documents}
    found: frozenset[str] = frozenset()
    for sentence in _SENTENCE_END.split(answer):
        words = _words(sentence)
        # A sentence that only repeats the question affirms it, which has a source as well.
        supporters = _supporters(words - known or words, held) if words else frozenset()
        if words and not supporters and not sentence.endswith("?"):  # asking back needs no source
            return frozenset()
        found |= supporters
    return found


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower())) - COMMON_WORDS


def _supporters(new: frozenset[str], held: dict[str, frozenset[str]]) -> frozenset[str]:
    shares = {name: len(new & words) / len(new) for name, words in held.items()}
    best = max(shares.values(), default=0.0)
    if best < LEAST_SHARE:
        return frozenset()
    holders = [[name for name, words in held.items() if word in words] for word in new]
    alone = {names[0] for names in holders if len(names) == 1}
    numbers = {word for word in new if word[0].isdecimal()}
    return frozenset(
        name
        for name, share in shares.items()
        if share >= SHARE_OF_BEST * best or name in alone or numbers & held[name]
    )
