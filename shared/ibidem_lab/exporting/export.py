"""`ibidem_lab.export`: the example log as training data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ibidem.errors import InvalidInput
from ibidem.example import DocumentRef
from ibidem.scope import effective_namespace
from ibidem_lab.exporting.choice import APART, NEAR, TEST_SHARE, Choice, Documents, Feedback, tuple_of
from ibidem_lab.exporting.folder import Manifest
from ibidem_lab.exporting.formats import Format
from ibidem_lab.redaction import secrets

if TYPE_CHECKING:
    from ibidem.examples.log import ExampleLog


def export(
    log: ExampleLog,
    out: str | Path,
    format: Format = "openai-chat",
    *,
    feedback: Feedback = "not-bad",
    models: Sequence[str] = (),
    namespace: str | None = None,
    since: float | None = None,
    tags: Sequence[str] = (),
    system: str = "",
    documents: Documents | None = None,
    texts: Callable[[DocumentRef], str | None] | None = None,
    redact: Callable[[str], str] | None = secrets,
    near: float = NEAR,
    apart: float = APART,
    test_share: float = TEST_SHARE,
    seed: int = 0,
    force: bool = False,
) -> Manifest:
    """Write the log as training data: `train.jsonl`, `test.jsonl`, `dropped.jsonl` and `manifest.json`.

    Of examples with one question, up to case and blanks, one is kept: a good one before an unknown one, then
    the newest. No question of the test belongs to one of the training: neither a pair of cosine
    similarity `apart` or more, nor one of 0.6 with the same answer. The same log gives the same bytes.

    Args:
        out: The directory: a new one, an empty one, or one that holds an export, which is replaced.
        format: `openai-chat`, `prompt-completion`, `alpaca` or `sharegpt`.
        feedback: `good` for what somebody called good, `not-bad` for all but what was called bad, or
            `any`.
        models: Only what these models answered; all if empty.
        namespace: Only this one; not given, that of `ibidem.scope`, or all: a model that learns from several
            namespaces may tell one what it learned from another.
        since: Only answers given at this time or later, in seconds since the epoch.
        tags: Only examples with all these tags.
        system: A system prompt that stands first in each example. The log does not hold that of the program.
        documents: `skip` leaves out what was answered from documents: a model that learns such answers
            without their documents learns to make up facts. `keep` and `only` export it. Default: `skip`,
            and `keep` if there are `texts`.
        texts: Returns the text of a document as the model saw it, or None. Then the prompt is rebuilt: the
            documents, a blank line, the question. An example is left out if a text is missing or is no
            longer the one that the model saw.
        redact: Applied to questions, answers and documents, after the cache's own. None to apply that alone.
        near: Cosine similarity from which a question is a repetition of another, unless a guard of the
            cache (numbers, dates, ...) or a negation keeps them apart; 1 to keep all.
        apart: Cosine similarity below which questions may stand on both sides of the split.
        test_share: Share of the questions for the test.
        seed: Of the split.
        force: Write into a directory that holds other files too. They stay, but for those of the same names.

    Raises:
        InvalidInput: A choice is wrong, nothing is left to export, or `out` is not free.
        StorageError: The database failed.
        EmbedderUnavailable: The embedding model does not work.
        OSError: `out` cannot be written.
        CacheClosed: The cache was closed.
    """
    namespace = effective_namespace(namespace)
    choice = Choice(
        format=format, feedback=feedback, models=tuple_of(models), namespace=namespace, since=since,
        tags=tuple_of(tags), system=system, documents=documents, near=near, apart=apart,
        test_share=test_share, seed=seed,
    )  # fmt: skip
    for name, given in (("redact", redact), ("texts", texts)):
        if given is not None and not callable(given):
            raise InvalidInput(f"{name} must be a function, not {type(given).__name__}")
    log.prepare_read(namespace)
    from ibidem_lab.exporting.run import Export

    shared, last = log._shared, redact or str
    both = partial(_both, log._redacted, last)
    found = Export(shared.table, shared.embedder, choice, both, texts)
    return found.run(Path(os.fspath(out)), force=force)


def _both(first: Callable[[str], str], then: Callable[[str], str], text: str) -> str:
    shown = then(first(text))
    if not isinstance(shown, str):
        raise InvalidInput(f"redact must return a str, not {type(shown).__name__}")
    return shown
