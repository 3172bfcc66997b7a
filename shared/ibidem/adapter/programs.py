"""Run a program of any kind for one question: a chain, an engine, an agent or a function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from ibidem.errors import InvalidInput
from ibidem.explanation.trial import Explained, ModelNeeded, TrialRun, trying
from ibidem.scope import NOT_GIVEN, scope

_QUESTION_KEYS = ("question", "query", "input", "user_input", "query_str")
_ANSWER_KEYS = ("messages", "answer", "output", "result", "response", "text", "content")


@dataclass(frozen=True, slots=True)
class ExplainedRun:
    """What a program asked the cache for one question, in order, and what it returned.

    `answer` is None if the run was ended where a model would have been asked.
    """

    requests: tuple[Explained, ...]
    answer: str | None


def explain_run(
    app: Any,
    question: str,
    *,
    namespace: str | None = None,
    ask_models: bool = False,
    make_input: Callable[[str], Any] | None = None,
) -> ExplainedRun:
    """Run a program for a question, and explain each of its requests; nothing is stored, logged or audited.

    Answers of the cache are repeated. Where it has none the run ends, before a model is asked. What the
    program does in threads that it starts itself is done as ever.

    Args:
        app: As of `warm`.
        question: What is asked.
        namespace: As of `ibidem.scope`, in which the program runs; None or "" for its own.
        ask_models: Go on instead, with what the models answer.
        make_input: As of `warm`.

    Raises:
        InvalidInput: An argument cannot be used.
        Exception: What the program raises.
    """
    ask, run, answer = asker(app, make_input), TrialRun(ask_models), None
    with scope(namespace=namespace or NOT_GIVEN), trying(run), suppress(ModelNeeded):
        answer = text_in(ask(question))
    return ExplainedRun(tuple(run.explained), answer)


def asker(app: Any, make_input: Callable[[str], Any] | None) -> Callable[[str], Any]:
    """Return a function that asks the program a question."""
    if callable(invoke := getattr(app, "invoke", None)):
        made = make_input or _input_of(app)
        return lambda question: invoke(made(question))
    made = make_input or (lambda question: question)
    if callable(query := getattr(app, "query", None)):
        return lambda question: query(made(question))
    if callable(chat := getattr(app, "chat", None)):

        def ask(question: str) -> Any:
            if callable(reset := getattr(app, "reset", None)):
                reset()  # each question begins a conversation
            return chat(made(question))

        return ask
    if callable(run := getattr(app, "run", None)):

        async def finished(question: str) -> Any:
            return await run(made(question))

        return lambda question: _completed(finished, question)
    if callable(app):
        return lambda question: app(made(question))
    raise InvalidInput(
        f"cannot ask a {type(app).__name__}: pass a chain, an engine, an agent, or a function of a question"
    )


def _completed(ask: Callable[[str], Coroutine[Any, Any, Any]], question: str) -> Any:
    """Return what a coroutine function returns, also where an event loop runs, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(ask(question))
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, asyncio.run, ask(question)).result()


def _input_of(app: Any) -> Callable[[str], Any]:
    """Return what makes the input of a LangChain runnable, by its schema."""
    schema: Mapping[str, Any] = {}
    with suppress(Exception):  # of a runnable that has none
        schema = app.get_input_jsonschema()
    names = list(schema.get("properties") or ())
    if not names:
        return lambda question: question
    if "messages" in names:
        return lambda question: {"messages": [{"role": "user", "content": question}]}
    key = names[0] if len(names) == 1 else next((name for name in _QUESTION_KEYS if name in names), None)
    if key is None:
        raise InvalidInput(f"which of {', '.join(names)} is the question? Say it with make_input")
    return lambda question: {key: question}


def text_in(output: Any) -> str:
    """Return the text of what a program returned."""
    if isinstance(output, str):
        return str(output)
    if isinstance(output, Mapping):
        held = next((output[name] for name in _ANSWER_KEYS if name in output), None)
        return "" if held is None else text_in(held)
    if isinstance(output, (list, tuple)):
        return text_in(output[-1]) if output else ""
    if callable(whole := getattr(output, "get_response", None)):  # of a stream
        return text_in(whole())
    for name in ("text", "content", "response"):
        held = getattr(output, name, None)
        if isinstance(held, str) or (held is not None and name == "response"):
            return text_in(held)
    return str(output)
