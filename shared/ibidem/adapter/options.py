"""The options that the constructors of all adapters take."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ibidem
from ibidem._util.renamed import require_new_names
from ibidem.errors import InvalidInput
from ibidem.prompts.history import HistoryMode, mode_of
from ibidem.types import require_bool, require_name, require_text

if TYPE_CHECKING:
    from ibidem.cache import SemanticCache


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """How an adapter makes requests of calls. Two that compare equal make the same requests.

    Args:
        namespace: Tenant, user or application, where `ibidem.scope` names none.
        question_keys: Names of template variables that hold the question, before the usual ones; one or many.
        model_id: Names the model and its settings, where its own description does not.
        any_message: Whether every line of the user is taken for a question.
        semantic: Whether reworded questions are answered; else identical prompts only.
        require_namespace: Whether only calls whose scope names a namespace are cached.
        history: How the earlier turns of a conversation are compared: `exact`, not where the last message
            stands alone (`standalone`), by their meaning (`meaning`), or never (`ignore`); by default as
            `IBIDEM_HISTORY` says.

    Raises:
        InvalidInput: A value has the wrong type, or the namespace cannot be stored.
    """

    namespace: str = ""
    question_keys: Sequence[str] = ()
    model_id: str = ""
    any_message: bool = False
    semantic: bool = True
    require_namespace: bool = False
    history: HistoryMode = field(default_factory=mode_of)

    def __post_init__(self) -> None:
        require_bool("require_namespace", self.require_namespace)
        require_name("namespace", self.namespace)
        require_text("model_id", self.model_id)
        keys = (self.question_keys,) if isinstance(self.question_keys, str) else tuple(self.question_keys)
        object.__setattr__(self, "question_keys", keys)
        mode_of(self.history)


def open_or_use(cache: SemanticCache | None, options: Mapping[str, Any], owner: str) -> SemanticCache:
    """Return the open cache, or open one with these options of `ibidem.open`.

    `owner` names, in messages, what the options were passed to.

    Raises:
        InvalidInput: There are both, or an option does not exist, or has another name since 0.2.
        IbidemError: The cache cannot be opened.
    """
    require_new_names(options, owner)
    if cache is not None:
        if options:
            raise InvalidInput(f"pass an open cache or options to open one, not both (got {sorted(options)})")
        return cache
    known = inspect.signature(ibidem.open).parameters
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise InvalidInput(f"{owner} has no option {name!r}; {hint}")
    return ibidem.open(**options)
