"""Turn a prompt into the request that the cache compares: find its question, and mask it and the documents.

Only the question is compared by meaning, so a text is only taken for one if there is evidence for it. Without
evidence the whole prompt is compared exactly: a lost hit is cheap, a wrong one is not.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Any, NamedTuple

from ibidem.prompts.documents import (
    DocumentBlock,
    DocumentMatch,
    Positions,
    Prompt,
    Retrieved,
    contains,
    contains_any,
    find_positions,
    free_positions,
    match_documents,
    occurs_at,
)
from ibidem.prompts.few_shot import FewShotBlock, without_examples
from ibidem.prompts.history import HistoryMode, Turn, split_history, told
from ibidem.prompts.standing_alone import dependence, matters, unclear
from ibidem.types import Document, History, Request, Scope, Turns, storable, with_history

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

_MAX_QUESTIONS = 32  # texts tried as the question; later ones have no better evidence

_BY_MEANING = ("standalone", "meaning")  # of `history`
_MOST_TURNS, _LONGEST_CONVERSATION = 40, 20_000  # and characters, before a question, that are kept with it
_TOOLS = ("tools", "functions")  # parts of a scope: what they are called with may have been said before


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
        searched: What its own run searched documents for.
        turns: The messages among the values of its template: others are its own, such as examples. None if
            that is not known.
    """

    variables: Mapping[str, str] | None = None
    texts: frozenset[str] = frozenset()
    asked: str | None = None
    questions: tuple[str, ...] = ()
    documents: Sequence[Retrieved] = ()
    recent: Callable[[], Iterable[Retrieved]] = tuple
    values: Mapping[str, Any] | None = None
    few_shot: FewShotBlock | None = None
    searched: frozenset[str] = frozenset()
    turns: frozenset[str] | None = None


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


def build_request(
    prompt: Prompt,
    context: PromptContext,
    finder: QuestionFinder,
    *,
    model: Mapping[str, str],
    scope: Scope,
    namespace: str = "",
    exact: bool = False,
    temperature: float | None = None,
    example: bool | Callable[[ParsedPrompt], bool] = True,
    history: HistoryMode = "exact",
) -> Request:
    """Build the request for a call of a model.

    Args:
        prompt: What the model is shown.
        context: What is known about the prompt.
        finder: Finds its question.
        model: Texts that describe the model, its parameters and its tools, by name. They may hold headers
            with secrets: the request keeps only their hashes. Never log them.
        scope: The scope of the call (`ibidem.scope`).
        namespace: The namespace of the adapter, before that of the scope.
        exact: Compare the whole prompt exactly.
        temperature: At which the model samples, if known.
        example: Whether the answer may become an example; a function decides by the parsed prompt.
        history: How the earlier turns of a conversation are compared.
    """
    conversation = None if exact else split_conversation(prompt, context, finder, history)
    parsed = parse(prompt, context, finder, exact=exact) if conversation is None else conversation.parsed
    request = Request(
        parsed.question,
        scope={**model, **(parsed.masked or {})},
        namespace=scope.name(namespace),
        documents=parsed.documents,
        semantic=parsed.masked is not None,
        temperature=temperature,
        example=example(parsed) if callable(example) else example,
        scope_context=scope,
    )
    return request if conversation is None else conversation.follow(request, model)


def parse(
    prompt: Prompt, context: PromptContext, finder: QuestionFinder, *, exact: bool = False
) -> ParsedPrompt:
    """Split a prompt into question, documents and the rest; the whole is the question if `exact`."""
    values = context.variables if context.values is None else context.values
    documents = match_documents(prompt, context.documents, context.recent, values)
    if exact or not prompt.known:
        return parse_exact(prompt, documents)
    return parse_prompt(prompt, documents, finder.find(prompt, context, documents), context.few_shot)


def split_conversation(
    prompt: Prompt, context: PromptContext, finder: QuestionFinder, mode: HistoryMode
) -> ParsedConversation | None:
    """Split a prompt into its last question and the turns before it; None if it cannot be told apart.

    So it is with turns that belong to a template, as examples do, or that hold documents.
    """
    split = None if context.few_shot is not None else split_history(prompt)
    if split is None:
        return None
    rest, turns = split
    said = [turn.question for turn in turns if turn.question.strip()]
    if context.turns is not None and not context.turns.issuperset(said):
        return None
    values = context.variables if context.values is None else context.values
    documents = match_documents(prompt, context.documents, context.recent, values)
    if contains_any("\0".join(said), documents):
        return None
    parsed = parse_prompt(rest, documents, finder.find(rest, context, documents))
    if parsed.masked is None or parsed.question not in rest.last_human:
        return None
    # What the template says there, not what the documents say.
    said_by_system = json.loads(parsed.masked.get("system prompt", "[]"))
    system = "\n".join(text for parts in said_by_system for text in parts if isinstance(text, str))
    counted = turns if mode == "exact" else told(turns)
    found = ParsedConversation(parsed, counted, system, mode, parsed.question)
    return found.condensed(context.searched) if parsed.documents else found


@dataclass(frozen=True, slots=True)
class ParsedConversation:
    """The last prompt of a conversation, parsed; the turns before it, and what the system says.

    `asked` is the question as the user asked it: the program may have made one of it that stands alone.
    """

    parsed: ParsedPrompt
    turns: tuple[Turn, ...]
    system: str
    mode: HistoryMode
    asked: str

    def condensed(self, searched: frozenset[str]) -> ParsedConversation:
        """Take the question that the program made of the last one and its history, to find documents by.

        Where the last one is clear by itself it stays: a program that made the very same of it cannot be told
        from one that searches for whatever is asked, and rewording it must not make the difference.
        """
        if self.mode not in _BY_MEANING or not self.turns or len(searched) != 1 or not unclear(self.asked):
            return self
        (question,) = searched
        if question.strip() == self.asked.strip() or self._dependence(question, condensed=True):
            return self
        return replace(self, parsed=replace(self.parsed, question=question))

    def follow(self, request: Request, model: Mapping[str, str]) -> Request:
        """Return the request as one of this conversation; `model` as in `build_request`."""
        alone, said = self.mode == "ignore", tuple[str, ...]()
        condensed, tools = self.parsed.question != self.asked, any(map(model.get, _TOOLS))
        if self.mode in _BY_MEANING and self.turns and not tools:
            alone = condensed or not self._dependence(self.asked)
            said = () if condensed else tuple(turn.question for turn in self.turns)
        words = None if self.mode != "meaning" or condensed or tools else self._words()
        turns = tuple(turn.digest for turn in self.turns)
        history = History(request.scope_digest, turns, self.asked, alone, said, words=words)
        return with_history(request, history)

    def _words(self) -> Turns | None:
        """Return the turns, if they can be compared with those of other conversations."""
        words = tuple((turn.question, turn.answer) for turn in self.turns)
        texts = [text for turn in words for text in turn]
        long = len(words) > _MOST_TURNS or sum(map(len, texts)) > _LONGEST_CONVERSATION
        if long or matters(self.system):
            return None
        return words if all(map(storable, texts)) else None

    def _dependence(self, question: str, *, condensed: bool = False) -> str:
        turns = [(turn.question, turn.answer) for turn in self.turns]
        return dependence(question, turns, self.system, condensed=condensed)


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt in three parts that together determine it.

    `documents` are those that occur in the prompt, `masked` is the rest, as `MaskedPrompt.parts`. It is None
    if no question was found: then `question` is the whole prompt, and only the very same prompt matches.
    """

    question: str
    documents: tuple[Document, ...]
    masked: Mapping[str, str] | None


def parse_prompt(
    prompt: Prompt,
    documents: Sequence[DocumentMatch],
    questions: Iterable[str],
    few_shot: FewShotBlock | None = None,
) -> ParsedPrompt:
    """Take the first of `questions` that occurs in the prompt as its question; examples are left out."""
    compared = prompt if few_shot is None else without_examples(prompt, few_shot)
    positions = find_positions(text_of(compared), (match.text for match in documents))
    for question in islice(questions, _MAX_QUESTIONS):
        masked = MaskedPrompt(compared, positions)
        if (found := _mask(masked, documents, question)) is not None:
            return ParsedPrompt(question, _as_documents(found), masked.parts())
    return parse_exact(prompt, documents)


def parse_exact(prompt: Prompt, documents: Sequence[DocumentMatch]) -> ParsedPrompt:
    """Take the whole prompt as the question, with the documents of its own run for their lineage alone.

    Documents of other runs do not count: what others happen to retrieve must not change what a prompt is.
    """
    own = [match for match in documents if not match.from_other_run]
    positions = find_positions(text_of(prompt), (match.text for match in own))
    found = _mask(MaskedPrompt(prompt, positions), own, None) or []
    whole = json.dumps([prompt.frame, [segment.text for segment in prompt.segments]])
    return ParsedPrompt(whole, _as_documents(found), None)


def _as_documents(matches: Iterable[DocumentMatch]) -> tuple[Document, ...]:
    named = ((one.id, match.text, one.source) for match in matches for one in match.documents)
    return tuple(Document(id_, text, source=source) for id_, text, source in dict.fromkeys(named))


def _mask(
    masked: MaskedPrompt, documents: Sequence[DocumentMatch], question: str | None
) -> list[DocumentMatch] | None:
    """Mask question and documents; return the documents that occurred, None if the question did not.

    Longest first: a text inside a longer one is not a document of its own, and a question that a document
    quotes is not the question.
    """
    ordered = sorted(documents, key=lambda match: (-len(match.text), match.text))
    longer = [match for match in ordered if question is None or len(match.text) > len(question)]
    found = [match for match in longer if masked.mask_document(match)]
    if question is not None and not masked.mask_question(question):
        return None
    return found + [match for match in ordered[len(longer) :] if masked.mask_document(match)]


_BETWEEN = "\0"  # two segments


def text_of(prompt: Prompt) -> str:
    """Join all texts of a prompt, so that `MaskedPrompt` searches for each passage only once."""
    return _BETWEEN.join(segment.text for segment in prompt.segments)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What stands in the place of a document, by digest; of the question if there is none.

    `in_template` if this very document belongs to the prompt.
    """

    digest: str | None
    in_template: bool = False


@dataclass(frozen=True, slots=True)
class _ExamplesPlaceholder:
    """What stands in the place of selected examples."""

    label: str


_QUESTION = Placeholder(None)
_Part = str | Placeholder | _ExamplesPlaceholder


class _MaskedRange(NamedTuple):
    """A range that is not free any more, and what stands in its place: nothing between two segments."""

    start: int
    end: int
    part: Placeholder | _ExamplesPlaceholder | None


class MaskedPrompt:
    """A prompt in which a question and documents are masked, one after the other.

    Args:
        prompt: The prompt.
        positions: Where passages occur in `text_of(prompt)`, as far as that is known.
    """

    def __init__(self, prompt: Prompt, positions: Mapping[str, Positions] | None = None) -> None:
        self._frame, self._text = prompt.frame, text_of(prompt)
        self._positions = dict(positions or {})
        self._roles = [segment.role for segment in prompt.segments]
        ends = accumulate(len(segment.text) + len(_BETWEEN) for segment in prompt.segments)
        self._begins = [0, *ends][:-1]
        self._masked = [_MaskedRange(begin - len(_BETWEEN), begin, None) for begin in self._begins[1:]]
        self._starts = [masked.start for masked in self._masked]
        if (cut := prompt.cut) is not None:
            begin = self._begins[cut.segment]
            self._mask(begin + cut.start, begin + cut.end, _ExamplesPlaceholder(cut.label))

    def mask_question(self, question: str) -> bool:
        """Mask the last occurrence of `question` at word borders; return False if there is none.

        The user's messages are searched first, then the system prompt. Answers and tool results only quote.
        """
        starts = self._free_positions(question, whole_words=True)
        last = {self._role_at(start): start for start in starts}
        for role in ("human", "system"):
            if role in last:
                self._mask(last[role], last[role] + len(question), _QUESTION)
                return True
        return False

    def mask_document(self, match: DocumentMatch) -> bool:
        """Mask every occurrence of the document; return False if there is none.

        Earlier answers of the model are not searched: they may quote a document without being one. In the
        system prompt a document of another run belongs to the template: it may be there by coincidence.
        """
        starts = self._free_positions(match.text, whole_words=match.whole_words)
        starts = [start for start in starts if self._role_at(start) != "ai"]
        for start in starts:
            by_coincidence = match.from_other_run and self._role_at(start) == "system"
            placeholder = Placeholder(match.digest, in_template=match.in_template or by_coincidence)
            self._mask(start, start + len(match.text), placeholder)
        return bool(starts)

    def _free_positions(self, passage: str, *, whole_words: bool) -> list[int]:
        """Find the passage in what is not masked yet: no two positions overlap, from left to right."""
        if passage not in self._positions:
            self._positions |= find_positions(self._text, (passage,))
        starts = self._positions.get(passage, ())
        return list(
            free_positions(self._text, passage, starts, whole_words=whole_words, free=self._free_around)
        )

    def _free_around(self, start: int) -> tuple[int, int]:
        """Return the bounds of the free range around a position; if it is masked, the range begins behind."""
        at = bisect_right(self._starts, start)
        until = self._starts[at] if at < len(self._starts) else len(self._text)
        return self._masked[at - 1].end if at else 0, until

    def _role_at(self, start: int) -> str:
        return self._roles[bisect_right(self._begins, start) - 1]

    def _mask(self, start: int, end: int, part: Placeholder | _ExamplesPlaceholder) -> None:
        at = bisect_right(self._starts, start)
        self._starts.insert(at, start)
        self._masked.insert(at, _MaskedRange(start, end, part))

    def _texts(self) -> Iterator[list[_Part]]:
        """Yield the parts of each segment: a literal on both sides of each placeholder."""
        parts, end = list[_Part](), 0
        last = [_MaskedRange(len(self._text), len(self._text), None)] if self._roles else []
        for masked in (*self._masked, *last):
            parts.append(self._text[end : masked.start])
            end = masked.end
            if masked.part is None:
                yield parts
                parts = []
            else:
                parts.append(masked.part)

    def parts(self) -> dict[str, str]:
        """Return the masked prompt as JSON texts by name; together they determine it.

        `prompt` is what stands around the question in the user's last text, `system prompt` what the system
        says, `conversation` all else: earlier messages, results of tools, images.
        """
        frame, texts = self.to_json()
        last = max((at for at, role in enumerate(self._roles) if role == "human"), default=None)
        system = [text for text, role in zip(texts, self._roles, strict=True) if role == "system"]
        # In the place of a text that belongs to another part stands its name: no text is a str.
        others = [
            "prompt" if at == last else "system prompt" if role == "system" else texts[at]
            for at, role in enumerate(self._roles)
        ]
        found = {"conversation": json.dumps([frame, others])}
        if system:
            found["system prompt"] = json.dumps(system)
        if last is not None:
            found["prompt"] = json.dumps(texts[last])
        return found

    def to_json(self) -> list[Any]:
        """Return the masked prompt as JSON values.

        If documents stand in several places or repeatedly, each place names its own: swapping two documents
        between a contract of Alice and a contract of Bob is another prompt of the same documents. Numbered
        documents are named too, in their order: the answer may cite "[2]".
        """
        texts = [_without_blanks_at_documents(_join_documents(parts)) for parts in self._texts()]
        blocks = [part for text in texts for part in text if isinstance(part, DocumentBlock)]
        digests = [digest for block in blocks for digest in block.digests]
        numbered = any(block.first is not None for block in blocks)
        in_template = any(block.in_template for block in blocks)
        named = numbered or in_template or len(blocks) > 1 or len(digests) > len(set(digests))
        return [self._frame, [[_as_json(part, named) for part in text] for text in texts]]


def _join_documents(parts: Sequence[_Part]) -> list[_Part | DocumentBlock]:
    """Join neighbouring documents to one block, and leave out what separates them."""
    joined: list[_Part | DocumentBlock] = []
    block = DocumentBlock()
    for part in parts:
        if isinstance(part, str):
            joined.append(part)
        elif isinstance(part, _ExamplesPlaceholder) or part.digest is None:
            block = DocumentBlock()
            joined.append(part)
        # There is a literal on both sides of a placeholder, so always one before it.
        elif block.digests and block.continues_after(str(joined[-1])):
            joined.pop()
            block.digests.append(part.digest)
            block.in_template = block.in_template or part.in_template
        else:
            block = DocumentBlock([part.digest], in_template=part.in_template)
            joined.append(block)
    return joined


def _without_blanks_at_documents(parts: list[_Part | DocumentBlock]) -> list[_Part | DocumentBlock]:
    """Strip blanks beside documents: they belong to the first or last document, which may be another one."""
    trimmed = list(parts)
    for index, part in enumerate(parts):
        if isinstance(part, str):
            if index + 1 < len(parts) and isinstance(parts[index + 1], DocumentBlock):
                part = part.rstrip()
            if index and isinstance(parts[index - 1], DocumentBlock):
                part = part.lstrip()
            trimmed[index] = part
    return trimmed


def _as_json(part: _Part | DocumentBlock, named: bool) -> Any:
    if isinstance(part, str):
        return part
    if isinstance(part, _ExamplesPlaceholder):
        return {"examples": part.label}
    if isinstance(part, Placeholder):
        return {"question": True}
    if not named:
        return {"documents": []}
    if part.first is None:
        return {"documents": sorted(part.digests)}
    return {"documents": part.digests, "first": part.first}
