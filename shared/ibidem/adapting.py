"""What the adapters of all frameworks do alike."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ibidem
from ibidem.errors import InvalidInput

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


def open_or_use(cache: SemanticCache | None, options: Mapping[str, Any], who: str) -> SemanticCache:
    """The open cache, or a new one with these options of `ibidem.open`; `who` was given them.

    Raises:
        InvalidInput: There are both, or an option does not exist.
        IbidemError: The cache cannot be opened.
    """
    if cache is not None:
        if options:
            raise InvalidInput(f"pass an open cache or options to open one, not both (got {sorted(options)})")
        return cache
    known = inspect.signature(ibidem.open).parameters
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InvalidInput(f"{who} has no option {name!r}; {hint}")
    return ibidem.open(**options)
