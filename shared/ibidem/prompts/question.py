"""Find the question of a prompt.

Only the question is compared by meaning, so a text is only taken for one if there is evidence for it. Without
evidence the whole prompt is compared exactly: a lost hit is cheap, a wrong one is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ibidem.prompts.documents import (
    DocumentMatch,
    Retrieved,
    contains,
    contains_any,
    find_positions,
    occurs_at,
)
from ibidem.prompts.few_shot import FewShotBlock
from ibidem.prompts.prompt import Prompt

# Template variables that hold the question, in this order, and those that may also hold a ready-made prompt.
QUESTION_KEYS = ("question", "user_question", "query", "query_str", "user_query", "q")
GENERAL_KEYS = ("input", "user_input", "human_input", "prompt", "user_msg", "message")

# Without a template, only what looks like a question is taken for one.
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
class PromptContext:
    """What is known about a prompt besides its text.

    Attributes:
        variables: The texts that filled its template, by variable; None without a template.
        texts: All texts that filled its template, also those without a name.
        asked: The input of the program as a whole.
        questions: Texts that are certainly questions, if they occur in the prompt.
        documents: Documents that its own run retrieved.
        recent: Returns the documents that any run retrieved lately.
        values: All values of the template that may have made it, if these are more than `variables`.
        few_shot: The examples that were selected for it.
    """

    variables: Mapping[str, str] | None = None
    texts: frozenset[str] = frozenset()
    asked: str | None = None
    questions: tuple[str, ...] = ()
    documents: Sequence[Retrieved] = ()
    recent: Callable[[], Iterable[Retrieved]] = tuple
    values: Mapping[str, Any] | None = None
    few_shot: FewShotBlock | None = None


class QuestionFinder:
    """Finds the question of a prompt.

    Args:
        keys: Template variables that hold the question, before the usual ones.
        any_message: Take every one-line message of the user for a question, as in a support chat.
    """

    def __init__(self, keys: Sequence[str] = (), *, any_message: bool = False) -> None:
        self._keys = (*keys, *QUESTION_KEYS)
        self._is_question = one_line if any_message else looks_like_question

    def is_question(self, text: str) -> bool:
        """Return whether a text that no template vouches for is taken for a question."""
        return self._is_question(text)

    def find(
        self, prompt: Prompt, context: PromptContext, documents: Sequence[DocumentMatch]
    ) -> Iterator[str]:
        """Yield texts that may be the question, the best evidence first; each with and without blanks around.

        Such blanks are not part of the prompt around the question, unless the template has cut them off.
        """
        for question in self._find(prompt, context, documents):
            yield from filter(str.strip, dict.fromkeys((question, question.strip())))

    def _find(
        self, prompt: Prompt, context: PromptContext, documents: Sequence[DocumentMatch]
    ) -> Iterator[str]:
        yield from (question for question in context.questions if not _is_layout(question, documents))
        if context.variables is None:
            yield from self._without_template(prompt, context, documents)
        else:
            yield from self._in_template(prompt, context, context.variables, documents)

    def _without_template(
        self, prompt: Prompt, context: PromptContext, documents: Sequence[DocumentMatch]
    ) -> Iterator[str]:
        last, asked = prompt.last_human, (context.asked or "").strip()
        if self._is_question(last) and not contains_any(last, documents):
            yield last
        if self._is_question(asked) and contains(last, asked, whole_words=True):
            yield asked
        queries = {query for document in documents for query in document.queries}
        positions = find_positions(last, queries)
        in_prompt = (query for query in queries if occurs_at(last, query, positions, whole_words=True))
        yield from sorted(in_prompt, key=lambda query: (-len(query), query))

    def _in_template(
        self,
        prompt: Prompt,
        context: PromptContext,
        values: Mapping[str, str],
        documents: Sequence[DocumentMatch],
    ) -> Iterator[str]:
        # 1. The variable's name says so.
        named = [values[key] for key in self._keys if key in values]
        yield from (value for value in named if not _is_layout(value, documents))
        # 2. The documents were searched with it, or the program was asked it.
        searched = {query.strip() for document in documents for query in document.queries}
        yield from (value for value in values.values() if value.strip() in searched and one_line(value))
        asked = (context.asked or "").strip()
        yield from (v for v in values.values() if v.strip() == asked and self._is_question(v))
        # 3. It looks like a question, and has a general name or is all that the user says.
        yield from (values[key] for key in GENERAL_KEYS if self._is_question(values.get(key, "")))
        if self._is_question(prompt.last_human) and prompt.last_human in context.texts:
            yield prompt.last_human


def question_of(variables: Mapping[str, Any], input_key: str = "") -> str:
    """Return the question among the variables of a template, "" if there is none.

    It is in the variable `input_key`, else in one of the usual ones.
    """
    texts = (variables.get(key) for key in (input_key, *QUESTION_KEYS, *GENERAL_KEYS))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def one_line(text: str) -> bool:
    """Return whether a text of unknown origin can be a question: several lines are somebody's template."""
    return bool(text.strip()) and "\n" not in text.strip()


def looks_like_question(text: str) -> bool:
    """Return whether a text that nothing vouches for can be taken for a question: short, and asking.

    Otherwise it may be material to work on ("The cat sat." to translate), or a prompt put together by hand.
    """
    words = text.split()
    if not one_line(text) or len(words) > _LONGEST_QUESTION or _MATERIAL.search(text):
        return False
    first = re.sub(r"\W.*", "", words[0].casefold())
    return text.rstrip().endswith(("?", "\uff1f", "\u061f")) or first in _ASKING


def _is_layout(text: str, documents: Sequence[DocumentMatch]) -> bool:
    """Return whether several lines are a prompt of their own: with documents, or with labelled parts."""
    return not one_line(text) and (contains_any(text, documents) or bool(_LABELLED.search(text)))
