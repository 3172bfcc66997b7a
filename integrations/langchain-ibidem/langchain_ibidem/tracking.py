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
from typing import Any
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
class Variables:
    """Template variables: texts by name, all texts anywhere inside them, and the documents among them."""

    named: Mapping[str, str]
    texts: frozenset[str]
    documents: tuple[Document, ...]


def collect_variables(variables: Any) -> Variables:
    """Collect short texts and documents; a template of one variable may get it without a name."""
    given = variables if isinstance(variables, Mapping) else {"": variables}
    leaves = list(islice(_walk(given, _DEPTH), _LEAVES))
    return Variables(
        {name: value for name, value in given.items() if isinstance(value, str) and _is_short(value)},
        frozenset(leaf for leaf in leaves if isinstance(leaf, str) and _is_short(leaf)),
        tuple(leaf for leaf in leaves if isinstance(leaf, Document)),
    )


def _is_short(text: str) -> bool:
    return len(text) <= _LONGEST_TEXT


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


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A template that was filled in.

    Attributes:
        variables: Texts by variable; `texts` are all texts inside variables.
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


class RunHistory:
    """Rendered prompts, documents and parents of recent runs. Bounded and thread-safe.

    Runs are known by the number of their UUID: a UUID itself takes its hash in Python, ten times a run.
    """

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._create()

    def __reduce__(self) -> tuple[Any, ...]:
        return run_history, ()  # a copy of what asks it asks that of its process

    def _create(self) -> None:
        self._outermost: BoundedDict[int, int] = BoundedDict(4 * _RUNS)
        self._inputs: BoundedDict[int, str] = BoundedDict(_RUNS)
        self._evaluating: BoundedDict[int, bool] = BoundedDict(_RUNS)
        self._rendering: BoundedDict[int, Variables] = BoundedDict(_RUNS)
        self._queries: BoundedDict[int, str] = BoundedDict(_RUNS)
        self._few_shot: BoundedDict[int, FewShotBlock] = BoundedDict(_RUNS)
        self._pending: deque[tuple[RenderedPrompt, PromptValue]] = deque()
        self._prompts: BoundedDict[str, RenderedPrompt] = BoundedDict(_PROMPTS)
        self.retrievals: RetrievalLog[int] = RetrievalLog(_RUNS)

    def run_started(self, run: int, parent: int | None, inputs: Any, *, evaluates: bool = False) -> None:
        """Note that a run began inside `parent`, or an outermost one with these inputs.

        All runs within an evaluator's are evaluating too.
        """
        with self._lock:
            if evaluates or (parent is not None and self._evaluating.get(parent)):
                self._evaluating.put(run, True)
            if parent is not None:
                self._outermost.put(run, self._outermost.get(parent) or parent)
            elif isinstance(inputs, str) and _is_short(inputs):
                self._inputs.put(run, inputs)

    def rendering_started(self, run: int, variables: Variables) -> None:
        """Note that the run fills a template with `variables`."""
        with self._lock:
            self._rendering.put(run, variables)

    def examples_selected(self, run: int, few_shot: FewShotBlock) -> None:
        """Note examples that were selected while the run fills its template."""
        with self._lock:
            if self._rendering.get(run) is not None:
                before = self._few_shot.get(run)
                self._few_shot.put(run, few_shot if before is None else before.merge(few_shot))

    def run_ended(self, run: int) -> RenderedPrompt | None:
        """Forget the run, but not what it retrieved; return what it rendered, if it filled a template."""
        self.retrievals.end_run(run)
        with self._lock:
            if (variables := self._rendering.pop(run)) is None:
                return None
            few_shot, outermost = self._few_shot.pop(run), self._outermost.get(run) or run
            run_input = self._inputs.get(outermost)
        documents = tuple(map(retrieved, variables.documents))
        few_shot = few_shot and replace(few_shot, other_texts=few_shot.other_texts | variables.texts)
        return RenderedPrompt(variables.named, variables.texts, documents, outermost, run_input, few_shot)

    def prompt_rendered(self, rendered: RenderedPrompt, prompt: PromptValue) -> None:
        """Note the prompt that a template became."""
        with self._lock:
            self._pending.append((rendered, prompt))
            if len(self._pending) > _PENDING_PROMPTS:
                self._index_pending()

    def _index_pending(self) -> None:
        """Index prompts by their fingerprints: not sooner, as many are never asked for."""
        while self._pending:
            rendered, prompt = self._pending.popleft()
            with suppress(Exception):  # unknown prompt type: ignore it
                for fingerprint in fingerprints_of(prompt):
                    self._prompts.put(fingerprint, rendered)

    def is_evaluating(self, run: UUID | None) -> bool:
        """Whether what a model says within the run is an evaluator's verdict."""
        with self._lock:
            return run is not None and self._evaluating.get(run.int) is not None

    def search_started(self, run: int, query: str) -> None:
        """Note that the run searches documents for `query`."""
        with self._lock:
            self._queries.put(run, query)

    def search_ended(self, run: int, documents: Sequence[Retrieved]) -> None:
        """Note what the run retrieved."""
        with self._lock:
            query, outermost = self._queries.pop(run), self._outermost.get(run)
        self.retrievals.add(documents[:_DOCUMENTS_PER_SEARCH], run=outermost, query=query)

    def rendered_prompt(self, fingerprint: str) -> RenderedPrompt | None:
        """Return how the prompt with this fingerprint was rendered."""
        with self._lock:
            self._index_pending()
            return self._prompts.get(fingerprint)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._create()


class _Done:
    """What an event that has already been handled returns to a caller that wants to await it."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE = _Done()
_AWAITING = getattr(getattr(manager, "_ahandle_event_for_handler", None), "__code__", None)


class _ByCaller:
    """A method that is a coroutine function for the code of LangChain that awaits, else a plain one."""

    def __init__(self, handle: Callable[..., Any]) -> None:
        async def awaited(*args: Any, **kwargs: Any) -> None:
            handle(*args, **kwargs)

        self._handle, self._awaited = handle, awaited
        self.__doc__ = handle.__doc__

    def __get__(self, tracker: Tracker | None, owner: type[Tracker]) -> Any:
        if tracker is None:
            return self
        awaits = sys._getframe(1).f_code is _AWAITING
        return MethodType(self._awaited if awaits else self._handle, tracker)


def _event(method: Callable[..., None]) -> Any:
    """Make a method an event handler: it never raises, and costs no thread in async runs.

    LangChain sends a plain method of a handler to an executor, at several times the cost of the method; a
    coroutine function it awaits in place. A function can be marked as one from Python 3.12 on. (`run_inline =
    True` would do the same everywhere, but hides `on_llm_start` from everybody else's handlers: langchain
    issue 39633.)
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
    return _ByCaller(handle)


def _always(self: Tracker) -> bool:
    return True


class Tracker(BaseCallbackHandler):
    """Records templates and retrievers in a `RunHistory`. Models, tools and agents are not listened to."""

    run_inline = False
    raise_error = False
    ignore_llm = ignore_chat_model = ignore_agent = property(_always)
    ignore_retry = ignore_custom_event = property(_always)

    def __init__(self) -> None:
        self.history = RunHistory()
        self.faults = Faults()

    @_event
    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note the parent of the run, and the variables of a template."""
        evaluates = _is_evaluator(kwargs.get("name"))
        self.history.run_started(run_id.int, _number(parent_run_id), inputs, evaluates=evaluates)
        if kwargs.get("run_type") == "prompt":
            self.history.rendering_started(run_id.int, collect_variables(inputs))

    @_event
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the prompt that a template became."""
        rendered = self.history.run_ended(run_id.int)
        if rendered is not None and isinstance(outputs, PromptValue):
            self.history.prompt_rendered(rendered, outputs)

    @_event
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget the failed run."""
        self.history.run_ended(run_id.int)

    @_event
    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note the query."""
        self.history.run_started(run_id.int, _number(parent_run_id), None)
        self.history.search_started(run_id.int, query)

    @_event
    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:
        """Note the documents."""
        found = map(retrieved, documents)
        self.history.search_ended(run_id.int, [document for document in found if document.text])


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


def _number(run: UUID | None) -> int | None:
    return None if run is None else run.int


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


def run_history() -> RunHistory:
    """Return what the tracker of this process remembers."""
    return tracker().history
