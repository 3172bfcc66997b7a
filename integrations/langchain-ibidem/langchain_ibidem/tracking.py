"""Remember what happens before a model is called: rendered templates and retrieved documents.

LangChain gives a cache the prompt and nothing else; not even context variables set by callbacks reach it (in
`batch` they hold another call's values). So one handler for the whole process remembers what passes by, under
the fingerprint of the rendered prompt, and the cache asks for it by that fingerprint. A wrong join does no
harm: what is remembered only counts if it is found in the prompt itself.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import islice
from types import MethodType
from typing import Any, TypeGuard
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, manager
from langchain_core.documents import Document
from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import PromptValue
from langchain_core.tracers.context import register_configure_hook

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem._util.faults import Faults
from ibidem.prompts.documents import RetrievalLog, Retrieved
from ibidem.prompts.few_shot import FewShotBlock
from ibidem.types import digest
from langchain_ibidem.messages import fingerprints_of

_RUNS = 4096
_PROMPTS = 2048
_PENDING_PROMPTS = 32  # whose fingerprints nobody has asked for yet
_DOCUMENTS_PER_SEARCH = 256
# Where loaders write what a document was cut from.
SOURCE_KEYS = ("source", "file_path", "url")

# Variables can hold whole conversations and images; those are in the prompt anyway.
_LONGEST_TEXT = 4096  # characters; a longer text is no question
_LEAVES = 4096
_DEPTH = 6


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A template that was filled in.

    Attributes:
        variables: Short texts by variable; a template of one variable may get it without a name.
        texts: All short texts inside variables.
        documents: Documents among the variables.
        run: The outermost run.
        run_input: The input of that run, if a text.
        few_shot: The examples that were selected for it, if any.
    """

    variables: Mapping[str, str]
    texts: frozenset[str]
    documents: tuple[Retrieved, ...]
    run: int
    run_input: str | None
    few_shot: FewShotBlock | None = None

    @classmethod
    def of(cls, variables: Any, run: int, run_input: str | None) -> RenderedPrompt:
        """Read the variables of a template."""
        given = variables if isinstance(variables, Mapping) else {"": variables}
        leaves = list(islice(_walk(given, _DEPTH), _LEAVES))
        return cls(
            {name: value for name, value in given.items() if _is_short(value)},
            frozenset(leaf for leaf in leaves if _is_short(leaf)),
            tuple(retrieved(leaf) for leaf in leaves if isinstance(leaf, Document)),
            run,
            run_input,
        )


def _is_short(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _walk(value: Any, depth: int) -> Iterator[str | Document]:
    if isinstance(value, (str, Document)):
        yield value
    elif isinstance(value, BaseMessage):
        yield from _walk(value.content, depth)
    elif depth and isinstance(value, Mapping):
        for inner in value.values():
            yield from _walk(inner, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner, depth - 1)


def retrieved(document: Document) -> Retrieved:
    """Convert a LangChain document; surrounding blanks are the template's business."""
    text = document.page_content.strip()
    source = _first_name(document.metadata.get(key) for key in SOURCE_KEYS)
    name = _first_name((document.id, document.metadata.get("id"), source))
    return Retrieved(name or digest(text), text, source=source)


def _first_name(values: Iterable[Any]) -> str:
    return next((value for value in values if isinstance(value, str) and value), "")


class _Done:
    """What an event that has already been handled returns to a caller that wants to await it."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE = _Done()
_AWAITING = getattr(getattr(manager, "_ahandle_event_for_handler", None), "__code__", None)


def _event(method: Callable[..., None]) -> Any:
    """Make a method an event handler: it never raises, and costs no thread in async runs.

    LangChain sends a plain method of a handler to an executor, at several times the cost of the method; a
    coroutine function it awaits in place. A function can be marked as one from Python 3.12 on; before, it is
    one for LangChain's code that awaits, and plain for all other. (`run_inline = True` would do the same
    everywhere, but hides `on_llm_start` from everybody else's handlers: langchain issue 39633.)
    """

    @functools.wraps(method)
    def handle(self: Tracker, *args: Any, **kwargs: Any) -> _Done:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.faults.note(f"follow {method.__name__}", error)
        return _DONE

    if sys.version_info >= (3, 12):
        return inspect.markcoroutinefunction(handle)

    async def awaited(*args: Any, **kwargs: Any) -> None:
        handle(*args, **kwargs)

    def by_caller(self: Tracker) -> MethodType:
        return MethodType(awaited if sys._getframe(1).f_code is _AWAITING else handle, self)

    return property(by_caller)


class Tracker(BaseCallbackHandler):
    """Remembers rendered prompts, documents and parents of recent runs. Bounded, thread-safe, never raises.

    Models, tools and agents are not listened to. Runs are known by the number of their UUID: a UUID itself
    takes its hash in Python, ten times a run.
    """

    run_inline = False
    raise_error = False
    ignore_llm = ignore_chat_model = ignore_agent = True
    ignore_retry = ignore_custom_event = True

    def __init__(self) -> None:
        self.faults = Faults()
        self._lock = ForkSafeLock()
        self.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return tracker, ()  # a copy of what asks it asks that of its process

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._outermost: BoundedDict[int, int] = BoundedDict(4 * _RUNS)
            self._inputs: BoundedDict[int, str] = BoundedDict(_RUNS)
            self._evaluating: BoundedDict[int, bool] = BoundedDict(_RUNS)
            self._rendering: BoundedDict[int, RenderedPrompt] = BoundedDict(_RUNS)
            self._queries: BoundedDict[int, str] = BoundedDict(_RUNS)
            self._pending: deque[tuple[RenderedPrompt, PromptValue]] = deque()
            self._prompts: BoundedDict[str, RenderedPrompt] = BoundedDict(_PROMPTS)
            self.retrievals: RetrievalLog[int] = RetrievalLog(_RUNS)

    # What is told of LangChain's runs

    @_event
    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note the parent of the run, the input of an outermost one, and the variables of a template."""
        run, evaluates = run_id.int, _is_evaluator(kwargs.get("name"))
        with self._lock:
            outermost = self._begin(run, parent_run_id, evaluates=evaluates)
            if parent_run_id is None and _is_short(inputs):
                self._inputs.put(run, inputs)
            run_input = self._inputs.get(outermost)
        if kwargs.get("run_type") == "prompt":
            rendering = RenderedPrompt.of(inputs, outermost, run_input)
            with self._lock:
                self._rendering.put(run, rendering)

    @_event
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the prompt that a template became."""
        rendered = self._end(run_id.int)
        if rendered is not None and isinstance(outputs, PromptValue):
            with self._lock:
                self._pending.append((rendered, outputs))
                if len(self._pending) > _PENDING_PROMPTS:
                    self._index_pending()

    @_event
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the failed run."""
        self._end(run_id.int)

    @_event
    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note the query."""
        with self._lock:
            self._begin(run_id.int, parent_run_id)
            self._queries.put(run_id.int, query)

    @_event
    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:
        """Note the documents."""
        found = [document for document in map(retrieved, documents) if document.text]
        with self._lock:
            query, outermost = self._queries.pop(run_id.int), self._outermost.get(run_id.int)
        self.retrievals.add(found[:_DOCUMENTS_PER_SEARCH], run=outermost, query=query)

    def examples_selected(self, run: int, few_shot: FewShotBlock) -> None:
        """Note examples that were selected while the run fills its template."""
        with self._lock:
            if (rendering := self._rendering.get(run)) is not None:
                few_shot = replace(few_shot, other_texts=few_shot.other_texts | rendering.texts)
                before = rendering.few_shot
                merged = few_shot if before is None else before.merge(few_shot)
                self._rendering.put(run, replace(rendering, few_shot=merged))

    # What the cache asks

    def rendered_prompt(self, fingerprint: str) -> RenderedPrompt | None:
        """Return how the prompt with this fingerprint was rendered."""
        with self._lock:
            self._index_pending()
            return self._prompts.get(fingerprint)

    def is_evaluating(self, run: UUID | None) -> bool:
        """Whether what a model says within the run is an evaluator's verdict."""
        with self._lock:
            return run is not None and self._evaluating.get(run.int) is not None

    def _begin(self, run: int, parent: UUID | None, *, evaluates: bool = False) -> int:
        """Note the parent of a run; return its outermost run. Those within an evaluator's are evaluating."""
        above = None if parent is None else parent.int
        if evaluates or (above is not None and self._evaluating.get(above)):
            self._evaluating.put(run, True)
        if above is None:
            return run
        outermost = self._outermost.get(above) or above
        self._outermost.put(run, outermost)
        return outermost

    def _end(self, run: int) -> RenderedPrompt | None:
        """Forget the run, but not what it retrieved; return what it rendered, if it filled a template."""
        self.retrievals.end_run(run)
        with self._lock:
            return self._rendering.pop(run)

    def _index_pending(self) -> None:
        """Index prompts by their fingerprints: not sooner, as many are never asked for."""
        while self._pending:
            rendered, prompt = self._pending.popleft()
            with suppress(Exception):  # unknown prompt type: ignore it
                for fingerprint in fingerprints_of(prompt):
                    self._prompts.put(fingerprint, rendered)


# Where LangChain's evaluators come from, of which `LLMEvalChain` asks a model.
_EVALUATION = ("langchain_classic.evaluation.schema", "langchain.evaluation.schema")


def _is_evaluator(name: object) -> bool:
    """Whether a run of this name is that of an evaluator: LangChain calls it by its class."""
    known = next((module for path in _EVALUATION if (module := sys.modules.get(path))), None)
    kinds = [known.LLMEvalChain] if known is not None else []
    while kinds:
        kind = kinds.pop()
        if kind.__name__ == name:
            return True
        kinds += kind.__subclasses__()
    return False


_lock = threading.Lock()
_tracker: Tracker | None = None


def tracker() -> Tracker:
    """Return the tracker of this process, attached to every LangChain run from the first call on."""
    global _tracker
    with _lock:
        if _tracker is None:
            _tracker = Tracker()
            # A context variable that *defaults* to the handler is set in every thread and task. There is no
            # way to unregister a hook, hence one per process.
            register_configure_hook(ContextVar("langchain_ibidem_tracker", default=_tracker), True)
        return _tracker
