"""One run of a program in which nothing is stored, and no model asked: what its requests find, and why."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field

from ibidem._util.concurrency import context_value
from ibidem.explanation.explainer import Explainer
from ibidem.explanation.result import Explanation
from ibidem.types import Hit, Miss, Request


class ModelNeeded(BaseException):
    """Ends the run of a program where a model would be asked. No `except Exception` on the way holds it."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A request that a program made, and what a lookup does with it."""

    request: Request
    explanation: Explanation


@dataclass(slots=True)
class TrialRun:
    """One run of a program: hits are served, and leave no trace.

    Attributes:
        asks: Whether the program may ask its models, to go on after a miss; their answers are not stored.
        explained: The requests, in order.
    """

    asks: bool = False
    explained: list[Explained] = field(default_factory=list)

    def lookup(self, request: Request, explainer: Explainer, max_age: float | None) -> Hit | Miss:
        """Explain a lookup, and return its result."""
        found = explainer.of_request(request, max_age)
        self.explained.append(Explained(request, found))
        return explainer.hit_of(found) or Miss(found.reason)

    def looked_up(self, request: Request, result: Hit | Miss) -> None:
        """Go on after a hit; after a miss a model would be asked.

        Raises:
            ModelNeeded: It must not be.
        """
        if not isinstance(result, Miss):
            return
        last = next((one for one in reversed(self.explained) if one.request is request), None)
        if last is not None and last.explanation and result.reason:  # a hit that the adapter did not accept
            step = f"Its answer is of no use to the program: {result.reason}."
            told = last.explanation
            changed = Explanation(told.question, reason=result.reason, steps=(*told.steps, step))
            self.explained[self.explained.index(last)] = Explained(request, changed)
        if not self.asks:
            raise ModelNeeded


_running: ContextVar[TrialRun | None] = ContextVar("ibidem_trial", default=None)
current_trial: Callable[[], TrialRun | None] = _running.get


def trying(run: TrialRun) -> AbstractContextManager[TrialRun]:
    """Explain the calls of a block in `run`."""
    return context_value(_running, run)
