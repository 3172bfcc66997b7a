"""From LangChain's prompt and model strings to the request that the core compares.

Only the question is compared by meaning, so the question is only believed to be one if there is evidence for
it. Without evidence the whole prompt is compared exactly: a lost hit is cheap, a wrong one is not.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence

from ibidem.request import Document, Request
from langchain_ibidem.errors import NotCacheable
from langchain_ibidem.memory import Memory, Render
from langchain_ibidem.prompt import Prompt, parse
from langchain_ibidem.skeleton import Skeleton, occurs
from langchain_ibidem.sources import Candidate, candidates

# Template variables that hold the question, in this order, and those that may also hold a ready-made prompt.
QUESTION_KEYS = ("question", "user_question", "query", "user_query", "q")
GENERAL_KEYS = ("input", "user_input", "human_input", "prompt")

# Parameters that tell one model from another.
_NAMING = re.compile(r"model|deployment|engine|repo|endpoint|responses")
_PARAMETER = re.compile(r"\('(\w+)', ")
# Without a template, only what looks like a question is believed to be one.
_LONGEST_QUESTION = 30  # words
_MATERIAL = re.compile(r":\s")  # "Summarize: ...", "Context: ... Question: ..."
_LABELLED = re.compile(r"(?im)^\s*(?:context|question|documents?|text|passages?|sources?|input)\s*:")
_ASKING = frozenset(
    (
        "what which who whom whose when where why how is are was were am do does did can could may might "
        "must shall should will would has have had tell explain describe show list give define name find "
        "help compare"
    ).split()
)

# Settings that change when an answer comes, not what it says.
_OPERATIONAL = ("max_retries", "timeout", "request_timeout", "default_request_timeout")
# A class shows its name but not its fields, an object its address: neither says what the model was told.
_OPAQUE = re.compile(r"<class '| at 0x[0-9a-fA-F]+>")
# An answer in a given form is data for a program: "almost the same question" is not good enough for it.
_STRUCTURED = re.compile(
    r"""['"](response_format|response_schema|response_json_schema|output_format|output_config)['"]"""
    r"""|\('format', [{']"""
)


class RequestBuilder:
    """Builds requests for one cache. Stateless but for what `memory` holds."""

    def __init__(
        self,
        memory: Memory,
        namespace: str,
        question_keys: Sequence[str],
        *,
        model_id: str = "",
        semantic: bool = True,
        any_message: bool = False,
    ) -> None:
        self._memory = memory
        self._namespace = namespace
        self._model_id, self._semantic = model_id, semantic
        self._is_question = _one_line if any_message else _looks_like_question
        self._keys = (*question_keys, *QUESTION_KEYS)

    def build(self, prompt: str, llm_string: str) -> Request:
        """The request for a call of the model that `llm_string` describes with `prompt`.

        Raises:
            NotCacheable: `llm_string` does not say all that the answer depends on.
        """
        if not (self._model_id or _names_its_model(llm_string)):
            raise NotCacheable(
                "model_unknown",
                "LangChain's description of this model does not say which one it is; give the model a cache "
                "of its own: model.cache = IbidemCache(cache, model_id='its name and settings')",
            )
        if _OPAQUE.search(llm_string):
            raise NotCacheable(
                "opaque_parameters",
                "the model's parameters hold a Python object, so a change of it would go unnoticed; for "
                'structured output pass a JSON schema, or use method="function_calling"',
            )
        parsed = parse(prompt)
        render = self._memory.render_of(parsed.fingerprint)
        documents = candidates(self._memory, parsed, render)
        if self._semantic and parsed.known and not _STRUCTURED.search(llm_string):
            for question in _with_and_without_blanks(self._questions(parsed, render, documents)):
                skeleton = Skeleton(parsed)
                if (found := _cut(skeleton, documents, question)) is not None:
                    return self._request(question, found, llm_string, skeleton)
        return self._exact(parsed, documents, llm_string)

    def _exact(self, prompt: Prompt, documents: Sequence[Candidate], llm_string: str) -> Request:
        """A request that only the very same prompt matches; documents are named for their lineage alone."""
        found = _cut(Skeleton(prompt), documents, None) or []
        whole = json.dumps([prompt.frame, [segment.text for segment in prompt.segments]])
        return self._request(whole, found, llm_string, None)

    def _request(
        self, question: str, documents: Sequence[Candidate], llm_string: str, skeleton: Skeleton | None
    ) -> Request:
        # The scope may hold headers with secrets. The request hashes it and keeps nothing else: never log it.
        scope = [
            "langchain/1",
            self._model_id,
            model_identity(llm_string),
            skeleton.canonical() if skeleton else None,
        ]
        return Request(
            question,
            scope=json.dumps(scope),
            namespace=self._namespace,
            documents=tuple(Document(d.id, d.text) for d in documents),
            semantic=skeleton is not None,
        )

    def _questions(
        self, prompt: Prompt, render: Render | None, documents: Sequence[Candidate]
    ) -> Iterator[str]:
        """Texts that may be the question, the best evidence first."""
        if render is None:
            return self._questions_without_template(prompt, documents)
        return self._questions_of_template(prompt, render, documents)

    def _questions_without_template(self, prompt: Prompt, documents: Sequence[Candidate]) -> Iterator[str]:
        last = prompt.last_human
        if self._is_question(last) and not _quotes(last, documents):
            yield last
        queries = {query for document in documents for query in document.queries}
        yield from sorted((q for q in queries if occurs(last, q, as_words=True)), key=lambda q: (-len(q), q))

    def _questions_of_template(
        self, prompt: Prompt, render: Render, documents: Sequence[Candidate]
    ) -> Iterator[str]:
        values = render.named
        # 1. The name says so.
        named = [values[key] for key in self._keys if key in values]
        yield from (value for value in named if not _is_layout(value, documents))
        # 2. It is what the documents were searched with, or what the program was asked.
        searched = {query.strip() for document in documents for query in document.queries}
        yield from (value for value in values.values() if value.strip() in searched and _one_line(value))
        asked = (render.asked or "").strip()
        yield from (v for v in values.values() if v.strip() == asked and self._is_question(v))
        # 3. It looks like one, and is called so or is all that the user says.
        yield from (values[key] for key in GENERAL_KEYS if self._is_question(values.get(key, "")))
        if self._is_question(prompt.last_human) and prompt.last_human in render.texts:
            yield prompt.last_human


def _names_its_model(llm_string: str) -> bool:
    """Whether `llm_string` says which model it is; some only name their provider."""
    if not llm_string.startswith("["):
        return True
    try:
        names = [name for name, _ in ast.literal_eval(llm_string)]
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        names = _PARAMETER.findall(llm_string)
    return any(map(_NAMING.search, names))


def model_identity(llm_string: str) -> str:
    """`llm_string` without the settings that do not influence the answer."""
    if not llm_string.startswith("{"):
        return llm_string
    try:
        model, end = json.JSONDecoder().raw_decode(llm_string)
    except ValueError:
        return llm_string
    if isinstance(parameters := model.get("kwargs"), dict):
        for name in _OPERATIONAL:
            parameters.pop(name, None)
    return json.dumps(model, sort_keys=True) + llm_string[end:]


def _with_and_without_blanks(questions: Iterator[str]) -> Iterator[str]:
    """Blanks around a question are not part of the prompt around it, unless the template has cut them off."""
    for question in questions:
        yield from filter(str.strip, dict.fromkeys((question, question.strip())))


def _quotes(text: str, documents: Sequence[Candidate]) -> bool:
    return any(occurs(text, document.text, as_words=document.as_words) for document in documents)


def _is_layout(text: str, documents: Sequence[Candidate]) -> bool:
    """Whether several lines are a prompt of their own: with documents, or parts that are labelled."""
    return not _one_line(text) and (_quotes(text, documents) or bool(_LABELLED.search(text)))


def _one_line(text: str) -> bool:
    """Whether a text of unknown origin can be a question. Several lines are a layout: somebody's template."""
    return bool(text.strip()) and "\n" not in text.strip()


def _looks_like_question(text: str) -> bool:
    """Whether a text that nothing vouches for can be taken for a question: short, and asking.

    Otherwise it may be material to work on ("The cat sat." to translate), or a prompt put together by hand.
    """
    words = text.split()
    if not _one_line(text) or len(words) > _LONGEST_QUESTION or _MATERIAL.search(text):
        return False
    first = re.sub(r"\W.*", "", words[0].casefold())
    return text.rstrip().endswith(("?", "\uff1f", "\u061f")) or first in _ASKING


def _cut(skeleton: Skeleton, documents: Sequence[Candidate], question: str | None) -> list[Candidate] | None:
    """Cut question and documents; the documents that were there, or None if the question was not.

    Longest first: a text inside a longer one is not a document of its own, and a question that a document
    quotes is not the question.
    """
    ordered = sorted(documents, key=lambda d: (-len(d.text), d.text))
    longer = [d for d in ordered if question is None or len(d.text) > len(question)]
    found = _cut_documents(skeleton, longer)
    if question is not None and not skeleton.cut_question(question):
        return None
    return found + _cut_documents(skeleton, ordered[len(longer) :])


def _cut_documents(skeleton: Skeleton, documents: Sequence[Candidate]) -> list[Candidate]:
    return [d for d in documents if _cut_document(skeleton, d)]


def _cut_document(skeleton: Skeleton, document: Candidate) -> bool:
    return skeleton.cut_document(
        document.text, document.digest, as_words=document.as_words, stranger=document.stranger
    )
