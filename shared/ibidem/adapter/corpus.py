"""The corpus that a program searches, and calls of a whole program that are looked up before it searches.

An answer that is repeated without a search says what the corpus said when it was given. So the state of the
corpus is read before the lookup, and again when the program has answered: only if it is the same, it is known
what the answer rests on.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar, cast

from ibidem._util.concurrency import in_thread
from ibidem.adapter.call import AdapterCache, CachedCall, CallsWithin, aattempt
from ibidem.errors import InvalidInput, NotCacheable
from ibidem.lifecycle.warming import current_run
from ibidem.matching.documents import NewDocuments
from ibidem.scope import current
from ibidem.types import Answer, Document, Hit, Request, Stored, digest

Found = TypeVar("Found")

#: A version, or by the id of each document what tells its contents apart.
State = str | Mapping[str, str]

RESTS_ON = "rests_on"  # in a payload: the documents of an answer with what told their contents apart
_BY_IDENTITY = re.compile(r'\{"is": "([^"]+)", "this": ')
_log = logging.getLogger("ibidem")
_told_of: set[frozenset[str]] = set()  # kinds of objects without a name, of which the log was told
_ADVICE = "return a version as a text or a number, or a mapping of document ids to versions"


@dataclass(frozen=True)
class Corpus:
    """A corpus whose state can be read at any time.

    Args:
        name: Which corpus it is: answers from one are never repeated for another.
        read: Returns the state: a version, or a mapping of document ids to versions. It may be async.
        aread: The same for async code, if that is another function.
        new_documents: `miss`: an answer is repeated while nothing was added, changed or deleted. `ignore`:
            while the documents that it was given with are unchanged.

    Raises:
        InvalidInput: `new_documents` is neither.
    """

    name: str
    read: Callable[[], Any]
    aread: Callable[[], Awaitable[Any]] | None = None
    new_documents: NewDocuments = "miss"

    def __post_init__(self) -> None:
        if self.new_documents not in ("miss", "ignore"):
            raise InvalidInput(f'new_documents must be "miss" or "ignore", not {self.new_documents!r}')

    @classmethod
    def of(cls, given: object, new_documents: NewDocuments) -> Corpus:
        """Make a corpus of a version, or of a function that returns the state.

        Raises:
            InvalidInput: It is neither, or cannot tell what `new_documents` asks for.
        """
        if isinstance(given, str) and given.strip():
            if new_documents == "ignore":
                raise InvalidInput(
                    'new_documents="ignore" needs to know each document: pass a RecordManager or a document '
                    "store as the corpus, or a function that returns a mapping of document ids to versions"
                )
            return cls("version", partial(str, given), new_documents=new_documents)
        if callable(given):
            return cls("function", given, new_documents=new_documents)
        raise InvalidInput(
            f"corpus must not be a {type(given).__name__}: pass a version (a text that is not empty), a "
            "function that returns it, LangChain's RecordManager, or a document store or index of LlamaIndex"
        )

    def state(self) -> State:
        """Read the state.

        Raises:
            NotCacheable: It can only be read in async code, or is none.
            Exception: Whatever reading raises.
        """
        found = self.read()
        if inspect.isawaitable(found):
            if inspect.iscoroutine(found):
                found.close()
            raise NotCacheable(
                "async_corpus",
                "the corpus is read by an async function: use the async methods of the program",
            )
        return self._checked(found)

    async def astate(self) -> State:
        """As `state`, for async code: what is not async is read in a thread."""
        if self.aread is not None:
            return self._checked(await self.aread())
        if inspect.iscoroutinefunction(self.read):
            return self._checked(await self.read())
        found = await in_thread(self.read)
        return self._checked(await found if inspect.isawaitable(found) else found)

    def describe(self, state: State) -> str:
        """Describe the corpus as a part of a scope."""
        if self.new_documents == "ignore":
            return json.dumps([self.name, "ignore"])
        version = state if isinstance(state, str) else _digest(state)
        return json.dumps([self.name, isinstance(state, str), version])

    def objection(self, state: State, hit: Hit) -> str:
        """Say why a stored answer must not be repeated in this state; "" if it may."""
        if self.new_documents == "miss" or hit.pinned:
            return ""
        rests_on = json.loads(hit.answer.payload).get(RESTS_ON)
        known = isinstance(state, Mapping) and isinstance(rests_on, dict) and bool(rests_on)
        same = known and all(cast(Any, state).get(name) == rests_on[name] for name in rests_on)
        return "" if same else "documents_changed"

    def rests_on(self, before: State, after: State, documents: Sequence[Document]) -> dict[str, str]:
        """Return what an answer rests on, to be stored with it; empty if the version is all of it.

        Args:
            before: The state before the program ran.
            after: The state after it.
            documents: What it retrieved.

        Raises:
            NotCacheable: The corpus changed meanwhile, or does not know one of the documents.
        """
        if isinstance(before, str) or isinstance(after, str):
            if before != after:
                raise NotCacheable("corpus_changed", "the corpus changed while a question was answered")
            return {}
        names = [_name_in(after, document) for document in documents]
        if None in names or (self.new_documents == "ignore" and not names):
            raise NotCacheable(
                "unknown_document",
                "the answer rests on documents whose ids the corpus does not have (or that are just being "
                "indexed), or none was seen; give the corpus a version instead",
            )
        found = {name: after[name] for name in names if name is not None}
        unchanged = all(before.get(name) == found[name] for name in found)
        if not unchanged or (self.new_documents == "miss" and before != after):
            raise NotCacheable("corpus_changed", "the corpus changed while a question was answered")
        return found if self.new_documents == "ignore" else {}

    def _checked(self, found: object) -> State:
        if isinstance(found, Mapping):
            return {str(key): str(value) for key, value in found.items()}
        if self.new_documents == "ignore":
            raise NotCacheable(
                "corpus_unknown",
                'with new_documents="ignore" the function of the corpus must return a mapping of document '
                f"ids to versions, not a {type(found).__name__}",
            )
        usable = isinstance(found, (str, int, float)) and not isinstance(found, bool) and str(found).strip()
        if not usable:
            kind = type(found).__name__
            raise NotCacheable("corpus_unknown", f"the function of the corpus returned a {kind}; {_ADVICE}")
        return str(found)


@lru_cache(64)
def description_digest(described: str) -> str:
    """Return the digest of the description of a program, the same text as long as the program is."""
    return digest(described)


def _digest(state: Mapping[str, str]) -> str:
    """Return the digest of a mapping, in which there may be many documents: 3 ms for 10,000."""
    names = sorted(state)
    return digest(str(len(names)), "\0".join(names), "\0".join(map(state.__getitem__, names)))


def _name_in(state: Mapping[str, str], document: Document) -> str | None:
    """Return the name under which the corpus knows the document: its own, or that of its source."""
    return next((name for name in (document.id, document.source) if name in state), None)


class ProgramCall(CachedCall[Found], Generic[Found]):
    """One call of a whole program, looked up before it retrieves anything; used as `CachedCall`.

    Args:
        adapter: The cache to ask.
        corpus: What the program searches.
        build_request: Builds the request from the description of the corpus; None if there is nothing to ask.
        read_hit: Makes the program's response of a hit.

    Attributes:
        within: The calls of models within, as `collect_calls` notes them.
    """

    def __init__(
        self,
        adapter: AdapterCache,
        corpus: Corpus,
        build_request: Callable[[str], Request | None],
        read_hit: Callable[[Hit], Found | None],
    ) -> None:
        super().__init__(adapter, self._of_corpus, read_hit, self._objection)
        self._corpus, self._build_of = corpus, build_request
        self._before: State | None = None
        self._after: State | None = None
        self._unreadable = False
        self.within = CallsWithin()

    async def alookup(self) -> Found | None:
        """As `CachedCall.alookup`."""
        if not _steps_aside():
            self._before = await aattempt(
                self._adapter.faults, self._adapter.lookup_operation, self._corpus.astate()
            )
            self._unreadable = self._before is None
        return await super().alookup()

    async def aread(self) -> None:
        """Read the state of the corpus after the program has answered, in async code."""
        if self.request is not None:
            self._after = await aattempt(
                self._adapter.faults, self._adapter.store_operation, self._corpus.astate()
            )
            self._unreadable = self._after is None

    def store(self, answer: Callable[[], Answer | None], response: object = None) -> Stored | None:
        """As `CachedCall.store`; no example, if the call of a model within has left one."""
        if self.request is not None and self.within.example:
            object.__setattr__(self.request, "example", False)  # nobody else has it
        return super().store(answer, response)

    async def astore(self, answer: Callable[[], Answer | None], response: object = None) -> Stored | None:
        """As `CachedCall.astore`."""
        await self.aread()
        return await super().astore(answer, response)

    def rests_on(self, documents: Sequence[Document]) -> dict[str, str] | None:
        """As `Corpus.rests_on`, of this call; None if the answer must not be stored.

        That is so if the corpus could not be read, or if a call of a model within was answered for another
        wording, too late, or by a person: under this question such an answer would drift away from its own.
        """
        if self._unreadable or self._before is None:
            return None
        if any(hit.tier != "exact" or hit.stale or hit.pinned for hit in self.within.hits):
            return None
        after = self._corpus.state() if self._after is None else self._after
        return self._corpus.rests_on(self._before, after, documents)

    def tokens(self, spent: tuple[int | None, int | None]) -> tuple[int | None, int | None]:
        """Return input and output tokens of the answer: what models `spent`, and what hits within saved."""
        said = [(hit.answer.input_tokens, hit.answer.output_tokens) for hit in self.within.hits]
        return cast(tuple[int | None, int | None], tuple(map(_sum, zip(spent, *said, strict=True))))

    def _of_corpus(self) -> Request | None:
        if self._unreadable or _steps_aside():
            return None
        if self._before is None:
            self._before = self._corpus.state()
        return self._build_of(self._corpus.describe(self._before))

    def _objection(self, hit: Hit) -> str:
        return self._corpus.objection(cast(State, self._before), hit)


def _steps_aside() -> bool:
    """Whether nothing is asked: in a bypass, and while known answers are given to the calls of models."""
    return current().bypass or current_run() is not None


def _sum(counts: tuple[int | None, ...]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def warn_unnamed(strict: str, lenient: str, program: str, advice: str) -> None:
    """Log, once for the same kinds of objects, that answers are found in this process only.

    Args:
        strict: The description of a program, with what counts by identity.
        lenient: The same if somebody vouches for that.
        program: What it is.
        advice: How to name it.
    """
    kinds = frozenset(kind.rpartition(".")[2] for kind in _BY_IDENTITY.findall(strict))
    if strict != lenient and kinds not in _told_of:
        _told_of.add(kinds)
        _log.warning(
            "Ibidem finds the answers of %s in this process only: nothing describes what is in its %s; name "
            "it with %s if it is the same in other processes, and after a restart",
            program,
            ", ".join(sorted(kinds)) or "functions",
            advice,
        )
