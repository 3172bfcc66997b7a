"""The headings under which `ibidem --help` lists the commands, in the order in which they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

DAILY = "Daily use"
ENTRIES = "Stored answers"
MEASURING = "Measuring"
LEARNING = "Learning"
OPERATING = "Operating"
OTHER = "Other commands"  # of plugins that name none
PANELS = (DAILY, ENTRIES, MEASURING, LEARNING, OPERATING)

_Function = TypeVar("_Function", bound=Callable[..., Any])


def in_panel(panel: str) -> Callable[[_Function], _Function]:
    """Put a plugin's command under a heading; `typer.Typer` takes it as `rich_help_panel`."""

    def mark(function: _Function) -> _Function:
        vars(function)["rich_help_panel"] = panel
        return function

    return mark


def place(command: Any) -> int:
    """Return the place of a command's heading; headings of other packages come last."""
    panel = getattr(command, "rich_help_panel", None)
    return PANELS.index(panel) if panel in PANELS else len(PANELS)
