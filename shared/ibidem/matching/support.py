"""Find the documents that support an answer: by words, and by meaning where words tell nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ibidem._util.words_en import COMMON_WORDS
from ibidem.types import Document

# Share of a sentence's new words a document must hold to count, and share of the best document's share.
LEAST_SHARE = 0.2
SHARE_OF_BEST = 0.5
# Pairs of a word of the answer and a document that holds it: as many as an answer of 4,000 words has with 500
# documents that hold a fifth of its words each. With more, the support is unknown.
MAX_PAIRS = 400_000

# Least cosine of a sentence and the document that is nearest, and how much farther others may be. An embedder
# reads 50 ms on a slow core for a page: so many texts are read in a second.
LEAST_COSINE, NEAR_BEST = 0.45, 0.05
READ_DOCUMENTS, READ_SENTENCES = 12, 8
FEW_WORDS = 3

_REPLIES = frozenset("yes no yeah nope correct right exactly sure certainly".split())
# "The context does not say", which is near in meaning to what it does say.
_NEGATION = re.compile(r"(?i)\b(?:no|not|cannot|none|nothing|unable|sorry)\b|n['\u2019]t\b")
_OF_SOURCES = re.compile(
    r"(?i)\b(?:contexts?|documents?|excerpts?|passages?|sources?|information|know|mentions?|mentioned|says?|answer)\b"
)
_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def supporting(
    answer: str,
    question: str,
    documents: Sequence[Document],
    embed: Callable[[Sequence[str]], NDArray[np.float32]] | None = None,
) -> frozenset[str]:
    """Return the digests of the documents that support the answer; empty if unknown.

    Args:
        answer: Each of its sentences must be supported.
        question: What is in it already is no evidence.
        documents: What the answer was made with.
        embed: Makes unit vectors of texts. With it, a sentence that shares no words with a document is
            supported by those that are near in meaning.
    """
    known = _words(question)
    sentences = [(sentence, _words(sentence)) for sentence in _SENTENCE_END.split(answer)]
    holders = _holders(frozenset().union(*(words for _, words in sentences)), documents)
    found, unsupported, pairs, before = set[str](), list[str](), 0, ""
    for sentence, words in sentences:
        if not words - _REPLIES:  # "Yes." has the source of what follows
            continue
        # A sentence that only repeats the question affirms it, which has a source as well.
        new = words - known or words
        pairs += sum(len(holders.get(word, ())) for word in new)
        if pairs > MAX_PAIRS:
            return frozenset()
        supporters = _supporters(new, holders)
        if not supporters and not sentence.endswith("?"):  # asking back needs no source
            # A few words mean nothing by themselves: "There is only one of it."
            unsupported.append(f"{before} {sentence}" if len(words) < FEW_WORDS else sentence)
        found |= supporters
        before = sentence
    if unsupported:
        near = _near(unsupported, documents, embed) if embed else frozenset()
        return near and frozenset(found | near)
    return frozenset(found)


def _near(
    sentences: Sequence[str],
    documents: Sequence[Document],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
) -> frozenset[str]:
    """Return the documents near to any of the sentences; none if a sentence is near to none."""
    texts = {document.digest: document.text for document in documents}
    if not texts or len(texts) > READ_DOCUMENTS or len(sentences) > READ_SENTENCES:
        return frozenset()
    if any(_NEGATION.search(one) and _OF_SOURCES.search(one) for one in sentences):
        return frozenset()
    vectors = embed([*sentences, *texts.values()])
    cosines = vectors[: len(sentences)] @ vectors[len(sentences) :].T
    best = cosines.max(axis=1, keepdims=True)
    if best.min() < LEAST_COSINE:
        return frozenset()
    chosen = (cosines >= best - NEAR_BEST).any(axis=0)
    return frozenset(key for key, near in zip(texts, chosen, strict=True) if near)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower())) - COMMON_WORDS


def _holders(words: frozenset[str], documents: Sequence[Document]) -> dict[str, list[str]]:
    """Map each word to the digests of the documents that hold it."""
    holders: dict[str, list[str]] = {}
    for key, text in {document.digest: document.text for document in documents}.items():
        for word in _words(text) & words:
            holders.setdefault(word, []).append(key)
    return holders


def _supporters(new: frozenset[str], holders: dict[str, list[str]]) -> frozenset[str]:
    names = {word: holders.get(word, ()) for word in new}
    counts = Counter(chain.from_iterable(names.values()))
    best = max(counts.values(), default=0)
    if best < LEAST_SHARE * len(new):
        return frozenset()
    distinctive = {digests[0] for digests in names.values() if len(digests) == 1}
    distinctive.update(*(digests for word, digests in names.items() if word[0].isdecimal()))
    least = SHARE_OF_BEST * best
    return frozenset(name for name, count in counts.items() if count >= least or name in distinctive)
