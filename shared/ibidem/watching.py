"""Whether what was read of living objects is still so, for less than reading them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_
from typing import Any


class Watch:
    """Notes what was read. Objects are compared by identity: an equal number of another type is a change.

    A container is noted with what it holds; what is in the containers therein must be noted as well.
    """

    def __init__(self) -> None:
        self._checks: list[Callable[[], bool]] | None = []
        self._noted: set[int] = set()  # of objects that the checks keep alive

    @property
    def is_whole(self) -> bool:
        """Whether all that was read can be looked at again."""
        return self._checks is not None

    def is_unchanged(self) -> bool:
        """Whether all that was read is as it was."""
        if self._checks is None:
            return False
        return all(check() for check in self._checks)

    def give_up(self) -> None:
        """Something was read that cannot be looked at again."""
        self._checks = None

    def add(self, check: Callable[[], bool]) -> None:
        """Something was read that is as it was if `check` says so."""
        if self._checks is not None:
            self._checks.append(check)

    def reading(self, read: Callable[[], Any], value: Any) -> None:
        """`read` gave this object."""
        self.add(lambda: read() is value)

    def mapping(self, held: Mapping[str, Any]) -> None:
        """A dictionary or the like, such as the attributes of an object."""
        if self._is_noted(held):
            return
        names, values = tuple(held), tuple(held.values())
        self.add(lambda: tuple(held) == names and all(map(is_, held.values(), values)))

    def sequence(self, held: list[Any]) -> None:
        """A list."""
        if self._is_noted(held):
            return
        items = tuple(held)
        self.add(lambda: len(held) == len(items) and all(map(is_, held, items)))

    def members(self, held: set[Any]) -> None:
        """A set, whose members stay alive in it."""
        if self._is_noted(held):
            return
        items = tuple(held)
        numbers = frozenset(map(id, items))
        self.add(lambda: len(held) == len(items) and numbers.issuperset(map(id, held)))

    def _is_noted(self, held: Any) -> bool:
        known = id(held) in self._noted
        self._noted.add(id(held))
        return known
