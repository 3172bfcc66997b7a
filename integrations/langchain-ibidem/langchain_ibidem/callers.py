"""Who called the cache: the model, the arguments of this one call, and the metadata of its run.

LangChain hands a cache two strings. What else it knows lies one frame up, in
`BaseChatModel._generate_with_cache`, which calls `lookup` and `update` itself, as `get_prompts` and
`update_cache` do for `BaseLLM.generate`. Nothing else tells reliably which tenant a call is for: a callback
handler learns it too, but two tenants who ask the same at once have the same prompt by which its knowledge
could be joined, and a context variable that it sets does not arrive (`batch`, completion models).

Nothing is guessed. A frame counts if it runs the very code of the installed LangChain, and its model and
arguments only if it holds the very two strings that the cache was given. If there is no such frame (a direct
call, a cache around this one that works in another thread), the caller is not known and all goes on without
him. An async caller must be looked for in the coroutine itself, before another thread takes over.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import CodeType, FrameType
from typing import Any
from uuid import UUID

from langchain_core.language_models import BaseChatModel, BaseLLM, llms

from ibidem.errors import NotCacheable

_Reader = Callable[[Mapping[str, Any], FrameType | None], "Caller | None"]
_DEPTH = 12  # frames between the model and us: those of a cache around this one


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """One call of a model.

    `parameters` and `stop` are those of this call alone; `metadata` is that of its run, `inherited` the part
    that it was given from above, `run` LangChain's manager of it, `parent` the id of the run around it, if
    there is one. The run of a completion model begins after the lookup: until then `run` is what will begin
    it, and `begin` does so. `model` is None where a cache around this one has changed what is asked. For code
    that has the model at hand and needs no frames: `Caller.of`.
    """

    model: Any
    parameters: Mapping[str, Any] = field(default_factory=dict)
    stop: list[str] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inherited: Mapping[str, Any] = field(default_factory=dict)
    run: Any = None
    parent: UUID | None = None
    begin: Callable[[], Any] | None = None

    @classmethod
    def of(
        cls,
        model: Any,
        run_manager: Any = None,
        parameters: Mapping[str, Any] | None = None,
        stop: list[str] | None = None,
    ) -> Caller:
        """The call of this model in this run."""
        metadata = getattr(run_manager, "metadata", None) or {}
        inherited = getattr(run_manager, "inheritable_metadata", None) or {}
        parent = getattr(run_manager, "parent_run_id", None)
        return cls(model, parameters or {}, stop, metadata, inherited, run_manager, parent)

    @property
    def completes(self) -> bool:
        """Whether it is a completion model: it does not tell caches the arguments of a call."""
        return isinstance(self.model, BaseLLM)


def caller_of(prompt: str, llm_string: str) -> Caller | None:
    """Who asks for this prompt in this thread or task, if it is one of LangChain's models.

    Raises:
        NotCacheable: This version of LangChain keeps elsewhere whose call it is.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return None
        read = next((read for code, read in _READERS if frame.f_code is code), None)
        if read is not None:
            return _read(read, frame, prompt, llm_string)
        frame = frame.f_back
    return None


def run_of_stream(owner: object) -> Any:
    """The manager of the run whose stream LangChain begins right above us; None if there is none.

    `owner` is that of the `_stream` of the model there, which is set on the model itself: of a stream around
    this one, by another model, the run is not ours.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return None
        if any(frame.f_code is code for code in _STREAM):
            held = frame.f_locals
            begun = getattr(held.get("self"), "__dict__", {}).get("_stream")
            return held.get("run_manager") if getattr(begun, "__self__", None) is owner else None
        frame = frame.f_back
    return None


def caller_of_stream(model: Any, run: Any, given: Mapping[str, Any], stop: list[str] | None) -> Caller:
    """Who reads the stream of this run, which was begun with these parameters.

    Raises:
        NotCacheable: The run is not known, so nobody can say whose call it is.
    """
    if run is None:
        raise NotCacheable("caller_unreadable", "nothing says to which run the stream belongs")
    return Caller.of(model, run, given, stop)


def _read(read: _Reader, frame: FrameType, prompt: str, llm_string: str) -> Caller | None:
    try:
        held = frame.f_locals
        found = read(held, frame.f_back)
        if found is None or (held["llm_string"] == llm_string and held["prompt"] == prompt):
            return found
        return Caller(None, metadata=found.metadata, inherited=found.inherited, run=found.run)
    except (KeyError, IndexError, AttributeError) as error:
        raise NotCacheable(
            "caller_unreadable", f"the installed langchain-core keeps elsewhere whose call it is ({error!r})"
        ) from None


def _of_chat(held: Mapping[str, Any], above: FrameType | None) -> Caller | None:
    return Caller.of(held["self"], held["run_manager"], held["kwargs"], held["stop"])


def _of_lookup(held: Mapping[str, Any], above: FrameType | None) -> Caller | None:
    return _of_completion(held["i"], above)


def _of_update(held: Mapping[str, Any], above: FrameType | None) -> Caller | None:
    return _of_completion(held["missing_prompt_idxs"][held["i"]], above)


def _of_completion(number: int, above: FrameType | None) -> Caller | None:
    """From `generate`, for one of its prompts."""
    if above is None or not any(above.f_code is code for code in _GENERATE):
        return None
    held = above.f_locals
    manager = held["callback_managers"][number]
    caller = Caller.of(held["self"], manager, held["kwargs"], held["stop"])
    return replace(caller, begin=partial(_begin_run, manager, held, number))


def _begin_run(manager: Any, held: Mapping[str, Any], number: int) -> Any:
    """Begin the run of one prompt, as `generate` does for what it asks the model."""
    begun = manager.on_llm_start(
        held["self"]._serialized,
        [held["prompts"][number]],
        invocation_params=held["params"],
        options=held["options"],
        name=held["run_name_list"][number],
        batch_size=len(held["prompts"]),
    )
    return _first(begun) if inspect.isawaitable(begun) else begun[0]


async def _first(begun: Awaitable[list[Any]]) -> Any:
    return (await begun)[0]


def _code(owner: object, name: str) -> CodeType | None:
    """The code of LangChain's own function, whatever was wrapped around it; None if there is none."""
    function = getattr(owner, name, None)
    return getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None


_STREAM = tuple(_code(kind, name) for kind in (BaseChatModel, BaseLLM) for name in ("stream", "astream"))
_GENERATE = (_code(BaseLLM, "generate"), _code(BaseLLM, "agenerate"))
_READERS: tuple[tuple[CodeType | None, _Reader], ...] = (
    (_code(BaseChatModel, "_generate_with_cache"), _of_chat),
    (_code(BaseChatModel, "_agenerate_with_cache"), _of_chat),
    (_code(llms, "get_prompts"), _of_lookup),
    (_code(llms, "aget_prompts"), _of_lookup),
    (_code(llms, "update_cache"), _of_update),
    (_code(llms, "aupdate_cache"), _of_update),
)
