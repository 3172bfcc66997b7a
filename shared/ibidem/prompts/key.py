"""Turn a prompt into the request that the cache compares, with what is known of it and of its documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem.prompts.documents import Retrieved, match_documents
from ibidem.prompts.masking import ParsedPrompt, parse_exact, parse_prompt
from ibidem.prompts.prompt import Prompt
from ibidem.prompts.question import PromptContext, QuestionFinder
from ibidem.types import Request, Scope

RECENT_DOCUMENTS = 256
_DOCUMENTS_PER_RUN = 256
_QUERIES_PER_DOCUMENT = 32


def build_request(
    prompt: Prompt,
    context: PromptContext,
    finder: QuestionFinder,
    *,
    model: Sequence[str],
    scope: Scope,
    namespace: str = "",
    exact: bool = False,
    temperature: float | None = None,
    example: bool | Callable[[ParsedPrompt], bool] = True,
) -> Request:
    """Build the request for a call of a model.

    Args:
        prompt: What the model is shown.
        context: What is known about the prompt.
        finder: Finds its question.
        model: Texts that describe the model and its parameters. They may hold headers with secrets: the
            request keeps only their hash. Never log them.
        scope: The scope of the call (`ibidem.scope`).
        namespace: The namespace of the adapter, before that of the scope.
        exact: Compare the whole prompt exactly.
        temperature: At which the model samples, if known.
        example: Whether the answer may become an example; a function decides by the parsed prompt.
    """
    parsed = parse(prompt, context, finder, exact=exact)
    return Request(
        parsed.question,
        scope=json.dumps([*model, parsed.masked]),
        namespace=scope.name(namespace),
        documents=parsed.documents,
        semantic=parsed.masked is not None,
        temperature=temperature,
        example=example(parsed) if callable(example) else example,
        scope_context=scope,
    )


def parse(
    prompt: Prompt, context: PromptContext, finder: QuestionFinder, *, exact: bool = False
) -> ParsedPrompt:
    """Split a prompt into question, documents and the rest; the whole is the question if `exact`."""
    values = context.variables if context.values is None else context.values
    documents = match_documents(prompt, context.documents, context.recent, values)
    if exact or not prompt.known:
        return parse_exact(prompt, documents)
    return parse_prompt(prompt, documents, finder.find(prompt, context, documents), context.few_shot)


Run = TypeVar("Run", bound=Hashable)


class RetrievalLog(Generic[Run]):
    """Remembers retrieved documents with their queries: by run, and the latest of all runs.

    Bounded and thread-safe.

    Args:
        runs: How many runs are remembered.
    """

    def __init__(self, runs: int) -> None:
        self._lock = ForkSafeLock()
        # Documents by id and text: several may have the same text, and one may have changed.
        self._of_run: BoundedDict[Run, dict[tuple[str, str], Retrieved]] = BoundedDict(runs)
        self._recent: BoundedDict[tuple[str, str], Retrieved] = BoundedDict(RECENT_DOCUMENTS)

    def add(self, documents: Iterable[Retrieved], *, run: Run | None, query: str | None = None) -> None:
        """Record documents that were retrieved within an outermost run, for a query if there was one."""
        with self._lock:
            in_run = (self._of_run.get(run) if run is not None else None) or {}
            for document in documents:
                key = (document.id, document.text)
                known = self._recent.get(key) or document
                if query and query not in known.queries:
                    known = replace(known, queries=(*known.queries, query)[-_QUERIES_PER_DOCUMENT:])
                self._recent.put(key, known)
                if len(in_run) < _DOCUMENTS_PER_RUN:
                    in_run[key] = known
            if run is not None:
                self._of_run.put(run, in_run)

    def of_run(self, run: Run | None) -> list[Retrieved]:
        """Return what was retrieved within an outermost run, while it is remembered."""
        with self._lock:
            return list((self._of_run.get(run) or {}).values()) if run is not None else []

    def recent(self) -> list[Retrieved]:
        """Return what any run retrieved lately."""
        with self._lock:
            return list(self._recent)

    def end_run(self, run: Run) -> None:
        """Forget the documents of a run; they stay among the recent ones."""
        with self._lock:
            self._of_run.pop(run)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._of_run.clear()
            self._recent.clear()
