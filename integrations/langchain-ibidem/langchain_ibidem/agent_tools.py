"""What may be done with an agent's tools: be called again, or nothing be kept of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from langchain.agents.middleware import ModelRequest
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool

from ibidem._util.faults import Faults
from ibidem.errors import InvalidInput
from ibidem.types import require_text
from langchain_ibidem import agent_steps as steps
from langchain_ibidem.agent_runs import Call, again, is_as_before

_CALL = "call a tool again"


class Tools:
    """The tools of agents, by what is said of them here or in their metadata.

    Args:
        read_only: Names of those that may be called again.
        volatile: Names of those whose results nothing is kept of.
        faults: Where failures of tools that are called again are counted.

    Raises:
        InvalidInput: A tool is both, or a name is none.
    """

    def __init__(self, read_only: Iterable[str], volatile: Iterable[str], faults: Faults) -> None:
        repeatable, passing = _names(read_only, "read_only"), _names(volatile, "volatile")
        if both := repeatable & passing:
            raise InvalidInput(f"a tool is read_only or volatile, not both: {sorted(both)}")
        self._marks = dict.fromkeys(repeatable, "read_only") | dict.fromkeys(passing, "volatile")
        self._faults = faults

    def volatile(self, request: ModelRequest[Any], names: Iterable[str]) -> bool:
        """Whether one of these is volatile."""
        return any(self._mark(request, name) == "volatile" for name in names)

    def volatile_called(self, request: ModelRequest[Any]) -> bool:
        """Whether a volatile tool was called since the user's last message."""
        _, run = steps.split(request.messages)
        said = (message for message in run if isinstance(message, AIMessage))
        return self.volatile(request, (call["name"] for message in said for call in message.tool_calls))

    def read_only(self, request: ModelRequest[Any], names: Iterable[str]) -> bool:
        """Whether all of these may be called again."""
        return all(self._to_call(request, name) is not None for name in names)

    def some_read_only(self, request: ModelRequest[Any]) -> bool:
        """Whether the agent has a tool that may be called again."""
        return any(self._to_call(request, name) is not None for name in steps.tools_of(request))

    def return_the_same(self, request: ModelRequest[Any], calls: Sequence[Call]) -> bool:
        """Whether these calls, made again, return what they returned. They are made one after the other."""
        return all(self._faults.attempt(_CALL, partial(self._returns_the_same, request, c)) for c in calls)

    async def areturn_the_same(self, request: ModelRequest[Any], calls: Sequence[Call]) -> bool:
        """As `return_the_same`."""
        try:
            for call in calls:
                tool = self._to_call(request, call.tool)
                if tool is None or not is_as_before(call, await tool.ainvoke(again(call))):
                    return False
        except Exception as error:
            self._faults.note(_CALL, error)
            return False
        return True

    def _returns_the_same(self, request: ModelRequest[Any], call: Call) -> bool:
        tool = self._to_call(request, call.tool)
        return tool is not None and is_as_before(call, tool.invoke(again(call)))

    def _to_call(self, request: ModelRequest[Any], name: str) -> BaseTool | None:
        return steps.tools_of(request).get(name) if self._mark(request, name) == "read_only" else None

    def _mark(self, request: ModelRequest[Any], name: str) -> object:
        tool = steps.tools_of(request).get(name)
        return self._marks.get(name) or ((tool.metadata or {}).get("ibidem") if tool else None)


def _names(given: Iterable[str], what: str) -> frozenset[str]:
    names = frozenset((given,) if isinstance(given, str) else given)
    for name in names:
        require_text(f"a name in {what}", name)
    return names
