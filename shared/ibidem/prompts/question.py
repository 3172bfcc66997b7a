"""Which text of a prompt is the question.

Only the question is compared by meaning, so a text is only believed to be one if there is evidence for it.
Without evidence the whole prompt is compared exactly: a lost hit is cheap, a wrong one is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ibidem.prompts.documents import Occurrence, occurs, places_of, standing, stands
from ibidem.prompts.key import Prompt

# Template variables that hold the question, in this order, and those that may also hold a ready-made prompt.
QUESTION_KEYS = ("question", "user_question", "query", "query_str", "user_query", "q")
GENERAL_KEYS = ("input", "user_input", "human_input", "prompt", "user_msg", "message")

# Without a template, only what looks like a question is believed to be one.
_LONGEST_QUESTION = 30  # words
_MATERIAL = re.compile(r":\s")  # "Summarize: ...", "Context: ... Question: ..."
_LABELLED = re.compile(r"(?im)^[^\S\n]*(?:context|question|documents?|text|passages?|sources?|input)\s*:")
_ASKING = frozenset(
    (
        "what which who whom whose when where why how is are was were am do does did can could may might "
        "must shall should will would has have had tell explain describe show list give define name find "
        "help compare"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Clues:
    """What is known of a prompt beside itself.

    `named` are the texts that filled its template, by variable, and `texts` all of them, also without a
    name; without a template there are none. `asked` is what the program as a whole was asked, `known` the
    texts that are certainly questions, if they stand in the prompt.
    """

    named: Mapping[str, str] | None = None
    texts: frozenset[str] = frozenset()
    asked: str | None = None
    known: tuple[str, ...] = ()


class QuestionFinder:
    """Finds the question of a prompt.

    Args:
        keys: Template variables that hold the question, before the usual ones.
        any_message: Take every line of the user for a question, as in a support chat.
    """

    def __init__(self, keys: Sequence[str] = (), *, any_message: bool = False) -> None:
        self._keys = (*keys, *QUESTION_KEYS)
        self._is_question = one_line if any_message else looks_like_question

    def find(self, prompt: Prompt, clues: Clues, documents: Sequence[Occurrence]) -> Iterator[str]:
        """Texts that may be the question, the best evidence first; each with and without blanks around it.

        Such blanks are not part of the prompt around the question, unless the template has cut them off.
        """
        for question in self._find(prompt, clues, documents):
            yield from filter(str.strip, dict.fromkeys((question, question.strip())))

    def _find(self, prompt: Prompt, clues: Clues, documents: Sequence[Occurrence]) -> Iterator[str]:
        yield from (question for question in clues.known if not _is_layout(question, documents))
        if clues.named is None:
            yield from self._without_template(prompt, clues, documents)
        else:
            yield from self._of_template(prompt, clues, documents)

    def _without_template(
        self, prompt: Prompt, clues: Clues, documents: Sequence[Occurrence]
    ) -> Iterator[str]:
        last, asked = prompt.last_human, (clues.asked or "").strip()
        if self._is_question(last) and not standing(last, documents):
            yield last
        if self._is_question(asked) and occurs(last, asked, as_words=True):
            yield asked
        queries = {query for document in documents for query in document.queries}
        places = places_of(last, queries)
        said = (query for query in queries if stands(last, query, places, as_words=True))
        yield from sorted(said, key=lambda q: (-len(q), q))

    def _of_template(self, prompt: Prompt, clues: Clues, documents: Sequence[Occurrence]) -> Iterator[str]:
        values = clues.named or {}
        # 1. The name says so.
        named = [values[key] for key in self._keys if key in values]
        yield from (value for value in named if not _is_layout(value, documents))
        # 2. It is what the documents were searched with, or what the program was asked.
        searched = {query.strip() for document in documents for query in document.queries}
        yield from (value for value in values.values() if value.strip() in searched and one_line(value))
        asked = (clues.asked or "").strip()
        yield from (v for v in values.values() if v.strip() == asked and self._is_question(v))
        # 3. It looks like one, and is called so or is all that the user says.
        yield from (values[key] for key in GENERAL_KEYS if self._is_question(values.get(key, "")))
        if self._is_question(prompt.last_human) and prompt.last_human in clues.texts:
            yield prompt.last_human


def one_line(text: str) -> bool:
    """Whether a text of unknown origin can be a question. Several lines are a layout: somebody's template."""
    return bool(text.strip()) and "\n" not in text.strip()


def looks_like_question(text: str) -> bool:
    """Whether a text that nothing vouches for can be taken for a question: short, and asking.

    Otherwise it may be material to work on ("The cat sat." to translate), or a prompt put together by hand.
    """
    words = text.split()
    if not one_line(text) or len(words) > _LONGEST_QUESTION or _MATERIAL.search(text):
        return False
    first = re.sub(r"\W.*", "", words[0].casefold())
    return text.rstrip().endswith(("?", "\uff1f", "\u061f")) or first in _ASKING


def _is_layout(text: str, documents: Sequence[Occurrence]) -> bool:
    """Whether several lines are a prompt of their own: with documents, or parts that are labelled."""
    return not one_line(text) and (standing(text, documents) or bool(_LABELLED.search(text)))
