"""The log of retrieved documents, and requests built from a prompt and what is known of it."""

from __future__ import annotations

from ibidem.prompts.documents import RECENT_DOCUMENTS, RetrievalLog, Retrieved, plain
from ibidem.prompts.key import ParsedPrompt, PromptContext, QuestionFinder, build_request
from ibidem.scope import EMPTY_SCOPE
from ibidem.types import Request

QUESTION = "What is the capital of France?"
PARIS = Retrieved("paris", "Paris is the capital of France.")


def build(context: PromptContext, question: str = QUESTION, **options: object) -> Request:
    prompt = plain(f"Answer from these:\n{PARIS.text}\nQuestion: {question}")
    known: dict[str, object] = {"model": {"model": "m"}, "scope": EMPTY_SCOPE, **options}
    return build_request(prompt, context, QuestionFinder(), **known)  # type: ignore[arg-type]


def test_a_run_and_the_recent_documents_know_the_queries() -> None:
    log = RetrievalLog[int](runs=2)
    log.add([PARIS], run=1, query="capital")
    log.add([PARIS], run=1, query="France")
    log.add([Retrieved("lyon", "Lyon is big.")], run=None)

    assert [(one.id, one.queries) for one in log.of_run(1)] == [("paris", ("capital", "France"))]
    assert [one.id for one in log.recent()] == ["paris", "lyon"]
    assert log.of_run(None) == log.of_run(2) == []


def test_documents_of_an_ended_run_stay_among_the_recent_ones() -> None:
    log = RetrievalLog[str](runs=2)
    log.add([PARIS], run="r")
    log.end_run("r")

    assert log.of_run("r") == []
    assert log.recent() == [PARIS]


def test_the_log_is_bounded() -> None:
    log = RetrievalLog[int](runs=2)
    for number in range(RECENT_DOCUMENTS + 5):
        log.add([Retrieved(str(number), f"Document {number}.")], run=number)

    assert len(log.recent()) == RECENT_DOCUMENTS
    assert log.of_run(RECENT_DOCUMENTS + 2) == []
    assert len(log.of_run(RECENT_DOCUMENTS + 4)) == 1


def test_question_and_documents_are_told_apart() -> None:
    context = PromptContext({"question": QUESTION}, documents=[PARIS])
    request = build(context)

    assert request.semantic
    assert request.question == QUESTION
    assert [document.id for document in request.documents] == ["paris"]
    other = PromptContext({"question": "Why?"}, documents=[PARIS])
    assert build(other, "Why?").scope_digest == request.scope_digest


def test_an_exact_request_takes_the_whole_prompt() -> None:
    context = PromptContext({"question": QUESTION}, documents=[PARIS])

    assert not build(context, exact=True).semantic
    assert not build(PromptContext()).semantic  # nothing says what the question is


def test_the_parsed_prompt_decides_whether_it_is_an_example() -> None:
    context = PromptContext({"question": QUESTION})

    def has_question(parsed: ParsedPrompt) -> bool:
        return parsed.masked is not None

    assert build(context, example=has_question).example
    assert not build(context, exact=True, example=has_question).example
