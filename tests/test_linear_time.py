"""Time grows in proportion to the text, whatever the text is: nothing that a user writes holds the program.

Each way into the code that takes text is given texts of many shapes, and each regular expression in it what
its own repeats take. A new expression is found by itself; a new way in belongs into `ENTRIES`.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate, FewShotPromptTemplate, PromptTemplate
from llama_index.core import Document as LlamaDocument
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage, CompletionResponse
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import PromptTemplate as LlamaTemplate
from llama_index.core.response_synthesizers import get_response_synthesizer
from rich.console import Console

import ibidem
from ibidem import Answer, Document, Example, Request
from ibidem.adapter.streams import split_text
from ibidem.audits.judge import AnswerJudge, contradict
from ibidem.cache import SemanticCache
from ibidem.cli import tables
from ibidem.cli.formatting import shown
from ibidem.cli.output import plain
from ibidem.examples.flaws import flaw_of
from ibidem.explanation.logged import LoggedLookup
from ibidem.lifecycle.rules import _texts
from ibidem.matching.guards import failed_guard
from ibidem.matching.shipped import learned_scorer
from ibidem.matching.support import supporting
from ibidem.prompts.documents import Retrieved
from ibidem.storage.logs import LookupRow
from ibidem_lab.labelling.teachers import prompt_of, verdict_of
from ibidem_lab.personal import by_patterns
from ibidem_lab.redaction import secrets
from ibidem_lab.review.showing import marked, readable
from langchain_ibidem import IbidemCache, IbidemExampleSelector
from llama_index_ibidem import CachedLLM, CachedSynthesizer
from llama_index_ibidem.replay import chunks_of
from llama_index_ibidem.responses import is_for_programs
from llama_index_ibidem.synthesizer import documents_shown
from tests.embedders import BagOfWords
from tests.growth import Call, growth_of, modules_of, patterns_of, seconds_of, texts_for

QUESTION = "How long can I return goods? "
_number = itertools.count()

SHAPES: dict[str, str] = {  # what is repeated
    "blank lines": "\n",
    "one letter": "a",
    "mixed blanks": " \n\t\r\n",
    "brackets": "[",
    "quotes": "\" '`",
    "digits": "7",
    "numbers": "1.5, 2 ",
    "accents": "e\u0301",
    "marks of two classes": "\u0301\u0323",
    "a word without blanks": "the_quick-brown/fox",
    "short lines": "a]}\n",
    "a question": QUESTION,
    "fences": "```\n",
    "tags": "<b>",
    "joiners": "\u200b\u200d",
    "turns": "assistant: yes\nuser: no\n",
    "labels": "Context:\nAction:\nAnswer: YES ",
    "addresses": "a@b.c/",
}


def text_of(shape: str, size: int) -> str:
    """A text of this shape, of this many characters, and unlike any before."""
    unit = SHAPES[shape]
    return f"What is {unit * (size // len(unit))}x{next(_number)}"


class Everything(BagOfWords):
    """Reads texts of any length, so that all of them are compared by meaning."""

    max_tokens = 10**9


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """What all entries share: measuring begins when it is warm."""
    folders = (tmp_path_factory.mktemp(name) for name in ("cache", "examples"))
    opened = zip(folders, (None, secrets), strict=True)
    cache, examples = (ibidem.open(folder, embedder=Everything(), redact=redact) for folder, redact in opened)
    with cache, examples:
        yield Place(cache, examples)


class Place:
    """A cache, and programs of both frameworks that ask it."""

    def __init__(self, cache: SemanticCache, examples: SemanticCache) -> None:
        self.cache, self.redacting = cache, examples
        adapter = IbidemCache(cache)
        self.model = FakeListChatModel(responses=["ok"], cache=adapter)
        told = ChatPromptTemplate.from_messages([("system", "You help."), ("user", "{question}\n\n{text}")])
        self.chain = told | self.model
        self.shots = (
            FewShotPromptTemplate(
                example_selector=IbidemExampleSelector(examples, 2),
                example_prompt=PromptTemplate.from_template("Q: {question}\nA: {answer}"),
                suffix="{text}\nQ: {input}\nA:",
                input_variables=["input", "text"],
            )
            | self.model
        )
        self.llm = CachedLLM(MockLLM(max_tokens=5), cache)
        said = [LlamaDocument(text="Goods can be returned in 30 days.")]
        index = VectorStoreIndex.from_documents(said, embed_model=MockEmbedding(embed_dim=8))
        llm = MockLLM(max_tokens=5)
        helper = PromptHelper(context_window=10**9, num_output=5, tokenizer=str.split)
        answering = CachedSynthesizer(get_response_synthesizer(llm=llm, prompt_helper=helper), cache)
        self.engine = index.as_query_engine(llm=llm, response_synthesizer=answering)
        for n in range(3):
            examples.examples.add(Example(f"{QUESTION} {n}", f"{n} days"))


Entry = Callable[[Place, str], object]


def _core(place: Place, text: str) -> None:
    """A miss, a store and a hit."""
    request = Request(text, scope=text, documents=(Document(text[-9:], text),))
    place.cache.lookup(request)
    place.cache.store(request, Answer(text, payload=text, finish_reason="stop"))
    assert place.cache.lookup(request)


def _feedback(place: Place, text: str) -> None:
    stored = place.cache.store(Request(QUESTION), Answer("30 days."))
    assert place.cache.feedback(stored.entry_id, good=True, question=text)  # type: ignore[union-attr]


def _printed(place: Place, text: str) -> None:
    row = LookupRow(0.0, "", "", text, "exact", "", None, 1.0, 0.001, 0)
    table = tables.lookups([LoggedLookup(row, f"{text}?")])
    Console(file=io.StringIO(), width=100).print(plain(text)[:100], table.row_count)
    readable(text), shown(text), tables.short(text), marked(text, f"{text} x")


def _judged(place: Place, text: str) -> None:
    contradict(text, f"{text}s")
    AnswerJudge(BagOfWords())(QUESTION, text, f"{text}s")


def _compared(place: Place, text: str) -> None:
    other = text.replace("What is", "What was") + "s"
    failed_guard(text, other)
    learned_scorer().score(text, other, 0.97)


def _taught(place: Place, text: str) -> None:
    prompt_of(text, text)
    for said in (text, f"```json\n{text}", f"yes, {text}", f"<think>{text}"):
        verdict_of(said)


def _examples(place: Place, text: str) -> None:
    place.cache.examples.add(Example(text, text))
    place.redacting.examples.select(text)  # from a log that does not grow meanwhile


def _json(place: Place, text: str) -> None:
    held = json.dumps({"calls": [{"arguments": json.dumps({"said": [text]})}]})
    assert sum(1 for _ in _texts(held)) > 4


def _streamed(place: Place, text: str) -> None:
    for _ in chunks_of(CompletionResponse(text=text)):
        pass


ENTRIES: dict[str, Entry] = {
    "lookup and store": _core,
    "comparing": _compared,
    "evidence": lambda place, text: supporting(text, QUESTION, [Document("a", text), Document("b", "x")]),
    "examples": _examples,
    "redaction": lambda place, text: secrets(text),
    "personal details": lambda place, text: by_patterns(text),
    "flaws of answers": lambda place, text: flaw_of(text),
    "JSON": _json,
    "feedback": _feedback,
    "command line, report and review": _printed,
    "judging": _judged,
    "teaching": _taught,
    "pieces": lambda place, text: split_text(text),
    "LangChain, a message": lambda place, text: place.model.invoke(text),
    "LangChain, a question": lambda place, text: place.chain.invoke({"question": text[:4096], "text": text}),
    "LangChain, a text": lambda place, text: place.chain.invoke({"question": QUESTION, "text": text}),
    "LangChain, examples": lambda place, text: place.shots.invoke({"input": text[:4096], "text": text}),
    "LlamaIndex, chat": lambda place, text: place.llm.chat([ChatMessage(text)]),
    "LlamaIndex, complete": lambda place, text: place.llm.complete(text),
    "LlamaIndex, predict": lambda place, text: place.llm.predict(
        LlamaTemplate("Question: {query_str}\nText: {text}\n"), query_str=text[:4096], text=text
    ),
    "LlamaIndex, query": lambda place, text: place.engine.query(text),
    "LlamaIndex, stream": _streamed,
    "LlamaIndex, kinds of answers": lambda place, text: is_for_programs(CompletionResponse(text=text)),
}


# A longer text is no question: what is only done to questions is measured below.
OF_QUESTIONS = ("LangChain, a question", "LangChain, examples", "LlamaIndex, predict", "LlamaIndex, query")
LONG, SHORT = (4 * 1024, 64 * 1024), (128, 512)


@pytest.mark.parametrize(
    ("name", "sizes"), [*((n, LONG) for n in ENTRIES), *((n, SHORT) for n in OF_QUESTIONS)]
)
def test_any_text(name: str, sizes: tuple[int, int], place: Place) -> None:
    """The question, the documents, the answer, the prompt around them: of any shape."""
    entry = ENTRIES[name]

    def make(shape: str, size: int) -> Callable[[], object]:
        return partial(entry, place, text_of(shape, size))

    entry(place, text_of("a question", 200))
    base = seconds_of(partial(make, "a question"), 16, 10)
    wrong = {}
    for shape in SHAPES:
        call = partial(make, shape)
        if told := growth_of(call, sizes, min(base, seconds_of(call, 16))):  # some are sooner refused
            wrong[shape] = told
    assert not wrong


def _documents(size: int) -> list[Document]:
    """Documents that differ in little, of 64 characters; the number of the run makes them new ones."""
    run, count = next(_number), max(1, size // 64)
    told = f"of run {run} says that goods can be returned"
    return [Document(f"d{n}", f"Document {n} {told}".ljust(64, ".")) for n in range(count)]


def _many_stored(place: Place, documents: list[Document]) -> None:
    request = Request(QUESTION + documents[0].text, documents=tuple(documents))
    place.cache.store(request, Answer(" ".join(d.text for d in documents[::-1]), finish_reason="stop"))
    assert place.cache.lookup(request)


def _many_shown(place: Place, documents: list[Document], order: int = 1, separator: str = "\n\n") -> None:
    """All of them in one prompt, as a program that retrieves them would have it."""
    known = [Retrieved(d.id, d.text, (QUESTION,)) for d in documents]
    text = f"Answer from these.\n{separator.join(d.text for d in documents[::order])}\nQuestion: {QUESTION}"
    adapter = place.model.cache
    prompt = f"{text}"
    told = "[('model_name', 'm')]"
    request = adapter._requests.build(prompt, told, documents=known)  # type: ignore[union-attr]
    assert len(request.documents) == len(documents)


def _many_nodes(place: Place, documents: list[Document]) -> None:
    nodes = [Retrieved(d.id, d.text) for d in documents]
    assert len(documents_shown([d.text for d in documents], nodes)) == len(documents)
    assert len(documents_shown(["\n\n".join(d.text for d in documents)], nodes)) == len(documents)


MANY: dict[str, Callable[[Place, list[Document]], object]] = {
    "stored": _many_stored,
    "in a prompt": _many_shown,
    "in a prompt, the last first": partial(_many_shown, order=-1),
    "in a prompt, side by side": partial(_many_shown, separator=" "),
    "nodes": _many_nodes,
}


@pytest.mark.parametrize("name", MANY)
def test_many_documents(name: str, place: Place) -> None:
    """From 500 on, and an answer that grows with them."""
    make: Call = lambda size: partial(MANY[name], place, _documents(size))  # noqa: E731
    make(8 * 1024)()
    assert not growth_of(make, LONG, seconds_of(make, 64))


def _expressions() -> dict[str, Any]:
    found = {}
    for module in modules_of("ibidem", "ibidem_lab", "langchain_ibidem", "llama_index_ibidem"):
        if module.__name__.startswith("ibidem_lab.models."):  # these read our own data only
            continue
        for one in patterns_of(module):
            found[one.name] = one
    return found


EXPRESSIONS = _expressions()


def _searched(method: str, pattern: Any, text: str) -> None:
    if method == "sub":
        pattern.sub("", text)
    elif method == "finditer":
        for _ in pattern.finditer(text):
            pass
    else:
        getattr(pattern, method)(text)


def _of_expression(name: str) -> dict[str, str]:
    found = EXPRESSIONS[name]

    def make(text: Callable[[int], str], method: str, size: int) -> Callable[[], None]:
        return partial(_searched, method, found.pattern, text(size))

    tried = ((told, text, method) for told, text in texts_for(found.pattern) for method in found.methods)
    return {f"{m}: {told}": why for told, text, m in tried if (why := growth_of(partial(make, text, m)))}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expression(name: str) -> None:
    """Each regular expression, on what its own repeats take."""
    assert not _of_expression(name)


def test_expressions_are_found() -> None:
    """At the top of a module, within functions, put together of names."""
    for known in ("ibidem_lab.redaction._EMAIL", "langchain_ibidem.cache._STRUCTURED"):
        assert known in EXPRESSIONS
    written_in_place = [one for name, one in EXPRESSIONS.items() if name.startswith("ibidem_lab.redaction:")]
    assert any("\u00a0" in one.pattern.pattern for one in written_in_place)
    assert len(EXPRESSIONS) > 50


@pytest.mark.parametrize(
    "slow", [r"\s+:", r"^\s*a", r"a\s*b?\s*$", r"YES.*NO", r"x(.*?)\s*\Z", r"([a-z]+-)*?\w*-?!", r"\w+@"]
)
def test_slow_expressions_are_seen_to_be_slow(slow: str) -> None:
    """What this would not find, it would not find in the code."""
    pattern = re.compile(slow, re.MULTILINE | re.DOTALL)
    assert any(growth_of(lambda n, t=text: partial(pattern.search, t(n))) for _, text in texts_for(pattern))
