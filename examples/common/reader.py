"""An offline stand-in for a language model: it quotes the sentences that share rare words with the question.

It is not an LLM and does not pretend to be one. It lets the demos run anywhere, without key or network, and
answers from the documents of the prompt, so that an edited document changes the answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter

LABEL = "offline extractive reader, not an LLM"
SENTENCES = 2
LONGEST = 500  # characters; what is longer is a table or a grammar
NOTHING = "The excerpts do not say."

_WORD = re.compile(r"\w+|[-+*/%@&|^~<>=!]+")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[\"A-Z])")
_COMMON = frozenset(
    (
        "a an and are as at be been but by can could did do does for from had has have how i if in "
        "into is it its may more most no not of on one or other so some such than that the their "
        "them then there these they this those to was were what when where which who whose why will "
        "with would you your"
    ).split()
)


def extract(question: str, excerpts: str) -> str:
    """The sentences of `excerpts` that fit the question best, in their order; the same at every call."""
    sentences = _sentences(excerpts)
    held = [rare_words(sentence) for sentence in sentences]
    frequency = Counter(word for words in held for word in words)
    asked = rare_words(question)

    def score(number: int) -> float:
        shared = asked & held[number]
        return sum(math.log(1 + len(sentences) / frequency[word]) for word in shared)

    ranked = sorted(range(len(sentences)), key=lambda number: (-score(number), number))
    best = sorted(number for number in ranked[:SENTENCES] if score(number) > 0)
    return " ".join(sentences[number] for number in best) or NOTHING


def estimated_tokens(text: str) -> int:
    """About how many tokens a model would count: four for three words."""
    return round(len(text.split()) * 4 / 3)


def _sentences(excerpts: str) -> list[str]:
    paragraphs = (" ".join(paragraph.split()) for paragraph in excerpts.split("\n\n"))
    parts = (part for paragraph in paragraphs for part in _SENTENCE_END.split(paragraph))
    return [part for part in dict.fromkeys(parts) if 0 < len(part) <= LONGEST and "***" not in part]


def rare_words(text: str) -> frozenset[str]:
    """The words of a text but for the commonest, without the s of a plural."""
    return frozenset(word.removesuffix("s") for word in _WORD.findall(text.lower()) if word not in _COMMON)
