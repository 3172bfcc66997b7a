"""Learning, measuring and reporting around a cache; no lookup ever imports it.

What a program calls is here: each function is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ibidem_lab.exporting.export import export
    from ibidem_lab.fitting.learning import drop_fit, fit
    from ibidem_lab.labelling.mining import pairs
    from ibidem_lab.labelling.teach import teach
    from ibidem_lab.learning.learn import learn
    from ibidem_lab.promotion import promote, rollback
    from ibidem_lab.report.next_steps import next_steps

__all__ = ["drop_fit", "export", "fit", "learn", "next_steps", "pairs", "promote", "rollback", "teach"]

_MODULES = {
    "drop_fit": "ibidem_lab.fitting.learning",
    "export": "ibidem_lab.exporting.export",
    "fit": "ibidem_lab.fitting.learning",
    "learn": "ibidem_lab.learning.learn",
    "next_steps": "ibidem_lab.report.next_steps",
    "pairs": "ibidem_lab.labelling.mining",
    "promote": "ibidem_lab.promotion",
    "rollback": "ibidem_lab.promotion",
    "teach": "ibidem_lab.labelling.teach",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
