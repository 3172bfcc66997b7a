"""Which of the retrieved documents does an answer rest on? Lexical, pure, only run when an answer is stored.

A document supports a sentence of the answer if it holds most of the words that the sentence adds to the
question. The rule errs towards naming too many documents: each one named must be retrieved again, unchanged,
before the answer is repeated. (Lexical support by fresh evidence is the load-bearing gate of GroundedCache,
arXiv 2605.27494; the shares below are our choice.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ibidem.request import Document
from ibidem.wording import COMMON_WORDS

# Share of a sentence's new words a document must hold to count, and share of the best document's share.
LEAST_SHARE = 0.2
SHARE_OF_BEST = 0.5
# Share of the sentences that must be supported at all; else the answer came from elsewhere.
SUPPORTED_SENTENCES = 0.5

_WORD = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def supporting(answer: str, question: str, documents: Sequence[Document]) -> frozenset[str]:
    """Digests of the documents that support the answer; empty if that cannot be told."""
    known = _words(question)
    held = {document.digest: _words(document.text) for document in documents}
    sentences = [new for part in _SENTENCE_END.split(answer) if (new := _words(part) - known)]
    support = [_supporters(new, held) for new in sentences]
    supported = [names for names in support if names]
    if len(supported) < SUPPORTED_SENTENCES * max(1, len(sentences)):
        return frozenset()
    return frozenset().union(*supported)


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower())) - COMMON_WORDS


def _supporters(new: frozenset[str], held: dict[str, frozenset[str]]) -> frozenset[str]:
    shares = {name: len(new & words) / len(new) for name, words in held.items()}
    least = max(LEAST_SHARE, SHARE_OF_BEST * max(shares.values(), default=0.0))
    return frozenset(name for name, share in shares.items() if share >= least)
