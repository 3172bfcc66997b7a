"""What happened before a model was called: which template was rendered, which documents were retrieved.

LangChain gives a cache the prompt and nothing else; not even context variables set by callbacks reach it (in
`batch` they hold another call's values). So one handler for the whole process remembers what passed by, under
the fingerprint of the rendered prompt, and the cache asks for it by that fingerprint. A wrong join does no
harm: what is remembered only counts if it is found in the prompt itself.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from types import MethodType
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler, manager
from langchain_core.documents import Document
from langchain_core.prompt_values import PromptValue
from langchain_core.tracers.context import register_configure_hook

from ibidem._util.faults import Faults
from langchain_ibidem import calls
from langchain_ibidem.memory import Memory, retrieved
from langchain_ibidem.variables import take


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


def _nobody_waits(self: Tracker) -> bool:
    return not calls.are_listened_for()


class Tracker(BaseCallbackHandler):
    """Tells `memory` about templates and retrievers, and those who wait for a model's answer of its failure.

    What tools and agents do is not looked at. Models are not listened to while nobody can wait for them, so
    that a stream does not call us with each token.
    """

    run_inline = False
    raise_error = False
    ignore_llm = property(_nobody_waits)
    ignore_chat_model = ignore_agent = property(_always)
    ignore_retry = ignore_custom_event = property(_always)

    def __init__(self) -> None:
        self.memory = Memory()
        self.faults = Faults()

    @_event
    def on_chain_start(
        self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note whose child the run is, and what a template is filled with."""
        judging = _is_evaluator(kwargs.get("name"))
        self.memory.run_started(run_id.int, _number(parent_run_id), inputs, judging=judging)
        if kwargs.get("run_type") == "prompt":
            self.memory.render_started(run_id.int, take(inputs))

    @_event
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the prompt that a template became."""
        render = self.memory.run_ended(run_id.int)
        if render is not None and isinstance(outputs, PromptValue):
            self.memory.render_gave(render, outputs)

    @_event
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Forget what the failed run had begun."""
        self.memory.run_ended(run_id.int)

    @_event
    def on_retriever_start(
        self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None, **kwargs: Any
    ) -> None:
        """Note what is searched for."""
        self.memory.run_started(run_id.int, _number(parent_run_id), None)
        self.memory.search_started(run_id.int, query)

    @_event
    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:
        """Note what was found."""
        found = map(retrieved, documents)
        self.memory.search_ended(run_id.int, [document for document in found if document.text])

    @_event
    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        """Let somebody else ask."""
        calls.failed()


# Where LangChain's evaluators come from, of which `LLMEvalChain` asks a model.
_EVALUATION = ("langchain_classic.evaluation.schema", "langchain.evaluation.schema")


def _is_evaluator(name: object) -> bool:
    """Whether a run of this name is that of an evaluator: LangChain calls it by its class."""
    known = next((module for path in _EVALUATION if (module := sys.modules.get(path))), None)
    found = [known.LLMEvalChain] if known is not None else []
    while found:
        kind = found.pop()
        if kind.__name__ == name:
            return True
        found += kind.__subclasses__()
    return False


def _number(run: UUID | None) -> int | None:
    return None if run is None else run.int


_install_lock = threading.Lock()
_installed: Tracker | None = None


def install() -> Tracker:
    """The tracker of this process, attached to every LangChain run from the first call on."""
    global _installed
    with _install_lock:
        if _installed is None:
            _installed = Tracker()
            # A context variable that *defaults* to the handler is set in every thread and task. There is no
            # way to unregister a hook, hence one per process.
            register_configure_hook(ContextVar("langchain_ibidem_tracker", default=_installed), True)
        return _installed


def memory() -> Memory:
    """What the tracker of this process remembers."""
    return install().memory
