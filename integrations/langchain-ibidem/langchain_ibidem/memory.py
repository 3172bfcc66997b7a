"""What the tracker remembers for a while: renders of templates, documents, which run belongs to which."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from langchain_core.documents import Document
from langchain_core.prompt_values import PromptValue

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem.prompts.documents import Retrieved
from ibidem.prompts.few_shot import FewShotBlock
from ibidem.types import digest
from langchain_ibidem.prompt import fingerprints_of
from langchain_ibidem.variables import LONGEST_TEXT, Variables

RECENT_DOCUMENTS = 256
_RUNS = 4096
_RENDERS = 2048
_RENDERED = 32  # whose fingerprints nobody has asked for yet
_DOCUMENTS_PER_RUN = 256
_QUERIES_PER_DOCUMENT = 32
# Where loaders write what a document was cut from.
SOURCE_KEYS = ("source", "file_path", "url")


@dataclass(frozen=True, slots=True)
class Render:
    """A template that was filled: with which texts and documents, and in which outermost run.

    `named` are the texts by variable, `texts` all of them; `asked` is the input of that run, if a text;
    `shown` are the examples that were selected for it, if any.
    """

    named: Mapping[str, str]
    texts: frozenset[str]
    documents: tuple[Retrieved, ...]
    run: int
    asked: str | None
    shown: FewShotBlock | None = None


def retrieved(document: Document) -> Retrieved:
    """The adapter's view of a LangChain document; surrounding blanks are the template's business."""
    text = document.page_content.strip()
    source = _first_name(document.metadata.get(key) for key in SOURCE_KEYS)
    name = _first_name((document.id, document.metadata.get("id"), source))
    return Retrieved(name or digest(text), text, source=source)


def _first_name(values: Iterable[Any]) -> str:
    return next((value for value in values if isinstance(value, str) and value), "")


class Memory:
    """Bounded and thread-safe. Nothing here is slow, so one lock is enough.

    Runs are known by the number of their UUID: a UUID itself takes its hash in Python, ten times a run.
    """

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._create()

    def __reduce__(self) -> tuple[Any, ...]:
        from langchain_ibidem.tracker import memory

        return memory, ()  # a copy of what asks it asks that of its process

    def _create(self) -> None:
        self._outermost: BoundedDict[int, int] = BoundedDict(4 * _RUNS)
        self._asked: BoundedDict[int, str] = BoundedDict(_RUNS)
        self._judging: BoundedDict[int, bool] = BoundedDict(_RUNS)
        self._rendering: BoundedDict[int, Variables] = BoundedDict(_RUNS)
        self._queries: BoundedDict[int, str] = BoundedDict(_RUNS)
        self._shown: BoundedDict[int, FewShotBlock] = BoundedDict(_RUNS)
        self._rendered: deque[tuple[Render, PromptValue]] = deque()
        self._renders: BoundedDict[str, Render] = BoundedDict(_RENDERS)
        # Documents by id and text: several may have the same text, and one may have changed.
        self._of_run: BoundedDict[int, dict[tuple[str, str], Retrieved]] = BoundedDict(_RUNS)
        self._recent: BoundedDict[tuple[str, str], Retrieved] = BoundedDict(RECENT_DOCUMENTS)

    def run_started(self, run: int, parent: int | None, inputs: Any, *, judging: bool = False) -> None:
        """A run began inside `parent`, or is an outermost one that was asked `inputs`.

        An evaluator's is `judging`, and so is all within.
        """
        with self._lock:
            if judging or (parent is not None and self._judging.get(parent)):
                self._judging.put(run, True)
            if parent is not None:
                self._outermost.put(run, self._outermost.get(parent) or parent)
            elif isinstance(inputs, str) and len(inputs) <= LONGEST_TEXT:
                self._asked.put(run, inputs)

    def render_started(self, run: int, variables: Variables) -> None:
        """The run fills a template with `variables`."""
        with self._lock:
            self._rendering.put(run, variables)

    def selected(self, run: int, shown: FewShotBlock) -> None:
        """These examples were selected while the run fills its template."""
        with self._lock:
            if self._rendering.get(run) is not None:
                before = self._shown.get(run)
                self._shown.put(run, shown if before is None else before.merge(shown))

    def run_ended(self, run: int) -> Render | None:
        """Nothing will happen in the run any more; its documents stay among the recent ones.

        Returns what it rendered, None if it did not fill a template.
        """
        with self._lock:
            self._of_run.pop(run)
            if (variables := self._rendering.pop(run)) is None:
                return None
            shown, outermost = self._shown.pop(run), self._outermost.get(run) or run
            asked = self._asked.get(outermost)
        documents = tuple(map(retrieved, variables.documents))
        shown = shown and replace(shown, other_texts=shown.other_texts | variables.texts)
        return Render(variables.named, variables.texts, documents, outermost, asked, shown)

    def render_gave(self, render: Render, prompt: PromptValue) -> None:
        """The render gave this prompt."""
        with self._lock:
            self._rendered.append((render, prompt))
            if len(self._rendered) > _RENDERED:
                self._take_up()

    def _take_up(self) -> None:
        """Note renders by the fingerprints of their prompts: not sooner, as many are never asked for."""
        while self._rendered:
            render, prompt = self._rendered.popleft()
            with suppress(Exception):  # a prompt of a foreign kind: as if nobody had told of it
                for fingerprint in fingerprints_of(prompt):
                    self._renders.put(fingerprint, render)

    def judges(self, run: UUID | None) -> bool:
        """Whether what a model says within the run is an evaluator's verdict."""
        with self._lock:
            return run is not None and self._judging.get(run.int) is not None

    def search_started(self, run: int, query: str) -> None:
        """The run searches documents for `query`."""
        with self._lock:
            self._queries.put(run, query)

    def search_ended(self, run: int, found: Sequence[Retrieved]) -> None:
        """The run found these documents."""
        with self._lock:
            query, outermost = self._queries.pop(run), self._outermost.get(run)
            mine = (self._of_run.get(outermost) if outermost else None) or {}
            for document in found[:_DOCUMENTS_PER_RUN]:
                key = (document.id, document.text)
                known = self._recent.get(key) or document
                if query and query not in known.queries:
                    known = replace(known, queries=(*known.queries, query)[-_QUERIES_PER_DOCUMENT:])
                self._recent.put(key, known)
                if len(mine) < _DOCUMENTS_PER_RUN:
                    mine[key] = known
            if outermost:
                self._of_run.put(outermost, mine)

    def render_of(self, fingerprint: str) -> Render | None:
        """The render that gave the prompt with this fingerprint."""
        with self._lock:
            self._take_up()
            return self._renders.get(fingerprint)

    def documents_of(self, run: int) -> list[Retrieved]:
        """What was found inside the outermost run `run`, while it lasts."""
        with self._lock:
            return list((self._of_run.get(run) or {}).values())

    def recent_documents(self) -> list[Retrieved]:
        """What was found lately, by anybody."""
        with self._lock:
            return list(self._recent)

    def forget(self) -> None:
        """Forget everything."""
        with self._lock:
            self._create()
