"""Words that a beginning or an ending turns into their contrary: lock and unlock, useful and useless. Pure.

Whatever the stem: `lexicon` lists the beginnings and endings, and the few words in which they mean nothing.
"""

from __future__ import annotations

from functools import lru_cache

from ibidem.matching import lexicon
from ibidem.matching.phrasing import root
from ibidem.matching.wording import Wording

LEAST_STEM = 3  # letters that remain behind a beginning


def contrary_by_affix(one: Wording, other: Wording) -> bool:
    """Whether a word of one question is a word of the other but for such a beginning or ending.

    Not where a negation makes up for it: "not able" is "unable".
    """
    ours, theirs = one.roots - other.roots, other.roots - one.roots
    if not ours or not theirs or one.denials != other.denials:
        return False
    return any(not contraries(word).isdisjoint(theirs) for word in ours) or any(
        not contraries(word).isdisjoint(ours) for word in theirs
    )


@lru_cache(maxsize=16384)
def contraries(word: str) -> frozenset[str]:
    """What the word would be with the contrary beginning or ending, or without its negative one."""
    if word in lexicon.NO_CONTRARY:
        return frozenset()
    return frozenset((*_with_other_beginning(word), *_with_other_ending(word)))


def _with_other_beginning(word: str) -> list[str]:
    found = []
    for length in range(1, min(len(word) - LEAST_STEM, lexicon.LONGEST_PREFIX) + 1):
        start, rest = word[:length], word[length:]
        found += [partner + rest for partner in lexicon.CONTRARY_PREFIXES.get(start, ())]
        if start in lexicon.NEGATIVE_PREFIXES and len(rest) >= LEAST_STEM:
            found.append(rest)
    return found


def _with_other_ending(word: str) -> list[str]:
    return [
        root(word.removesuffix(ending) + partner)
        for ending, partner in lexicon.CONTRARY_SUFFIXES
        if word.endswith(ending) and len(word) - len(ending) >= LEAST_STEM
    ]
