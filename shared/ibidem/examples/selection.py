"""Selection of examples near a question by maximal marginal relevance; their vectors are held in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ibidem._util.concurrency import BoundedDict, ForkSafeLock
from ibidem.embedding.adapters import estimate_tokens
from ibidem.errors import InvalidInput
from ibidem.example import Example
from ibidem.examples.flaws import flaw_of
from ibidem.matching.guards import failed_guard
from ibidem.matching.text import parse_question
from ibidem.types import Vector, normalise, require_name, require_tags, require_text

if TYPE_CHECKING:
    from ibidem.embedding.base import CheckedEmbedder
    from ibidem.storage.examples import ExampleTable


NAMESPACES = 256  # with vectors in memory; the least recently used are read again when needed
AT_ONCE = 64  # newest questions without a vector that a selection embeds; the rest in the background
COUNT_SECONDS = 1.0  # between two counts of the vectors; additions are seen at once
_POOL, _POOL_PER_EXAMPLE = 64, 16  # minimum number of nearest examples to choose from
_WIDER = 4  # factor if too few of them are usable


@dataclass(frozen=True, slots=True)
class Wanted:
    """The criteria of a selection; see `ExampleLog.select`."""

    question: str
    k: int
    max_tokens: int | None = None
    namespace: str = ""
    good: bool = False
    diversity: float = 0.3
    tags: tuple[str, ...] = ()
    model: str | None = None
    count_tokens: Callable[[str], int] | None = None

    @classmethod
    def checked(cls, question: object, k: object, **given: Any) -> Wanted:
        """Validate the arguments of a user.

        Raises:
            InvalidInput: Something has the wrong type or is out of range.
        """
        budget, model, count = given["max_tokens"], given["model"], given["count_tokens"]
        if count is not None and not callable(count):
            raise InvalidInput(f"count_tokens must be callable, not {type(count).__name__}")
        return cls(
            normalise(require_text("question", question)),
            _whole("k", k),
            max_tokens=None if budget is None else _whole("max_tokens", budget),
            namespace=require_name("namespace", given["namespace"]),
            good=_only_good(given["min_feedback"]),
            diversity=_share("diversity", given["diversity"]),
            tags=require_tags(given["tags"]),
            model=None if model is None else require_name("model", model),
            count_tokens=count,
        )

    @property
    def filtered(self) -> bool:
        """Whether only some examples of the namespace qualify."""
        return self.good or bool(self.tags) or self.model is not None


class Selector:
    """Selects examples of one database. Thread-safe; raises what the database or the embedder does.

    Vectors are held as float32: 1.5 KB an example with 384 dimensions.
    """

    def __init__(self, table: ExampleTable, embedder: CheckedEmbedder) -> None:
        self._table, self._embedder = table, embedder
        self._lock = ForkSafeLock()
        self._held: BoundedDict[str, _Matrix] = BoundedDict(NAMESPACES)
        self._behind: set[str] = set()  # namespaces with questions left to embed

    def select(self, wanted: Wanted) -> list[Example]:
        """Select examples; none for a question that the embedder cannot read."""
        if not wanted.k or self._embedder.refusal(wanted.question) is not None:
            return []
        vector = self._embedder.vector_of(wanted.question)
        self.embed_some(wanted.namespace)
        allowed = self._allowed(wanted)
        pool = max(_POOL, _POOL_PER_EXAMPLE * wanted.k)
        while True:
            found, exhausted = self._nearest(wanted.namespace, vector, pool, allowed)
            left = usable(found, wanted.question)
            if exhausted or len(left) >= _WIDER * wanted.k:
                break
            pool *= _WIDER
        diversity, budget = wanted.diversity, wanted.max_tokens
        return pick(left, wanted.k, diversity=diversity, max_tokens=budget, count=wanted.count_tokens)

    def work(self) -> bool:
        """Embed some questions of a namespace that was selected from; return whether there are more."""
        for namespace in tuple(self._behind):
            self.embed_some(namespace)
            break
        return bool(self._behind)

    def embed_some(self, namespace: str, limit: int = AT_ONCE) -> bool:
        """Embed the newest questions without a vector of this embedder; return whether there may be more."""
        rows = self._table.without_vectors(namespace, self._embedder.fingerprint, limit)
        if rows:
            readable = [(id_, text) for id_, text in rows if self._embedder.refusal(text) is None]
            vectors = self._embedder.embed([text for _, text in readable]) if readable else ()
            made = dict(zip((id_ for id_, _ in readable), vectors, strict=True))
            self._table.set_vectors([(id_, made.get(id_)) for id_, _ in rows], self._embedder.fingerprint)
            self._changed(namespace)
        if more := len(rows) == limit:
            self._behind.add(namespace)
        else:
            self._behind.discard(namespace)
        return more

    def _changed(self, namespace: str) -> None:
        with self._lock:
            if (matrix := self._held.get(namespace)) is not None:
                matrix.due_at = 0.0

    @property
    def behind(self) -> bool:
        """Whether questions are left to embed."""
        return bool(self._behind)

    def _allowed(self, wanted: Wanted) -> NDArray[np.int64] | None:
        if not wanted.filtered:
            return None
        ids = self._table.matching(wanted.namespace, model=wanted.model, tags=wanted.tags, good=wanted.good)
        return np.fromiter(ids, dtype=np.int64, count=len(ids))

    def _nearest(
        self, namespace: str, vector: Vector, count: int, allowed: NDArray[np.int64] | None
    ) -> tuple[list[Candidate], bool]:
        """Find the nearest existing examples, and whether there are no others."""
        with self._lock:
            matrix = self._fresh(namespace)
            near = matrix.nearest(vector, count, allowed)
        # A restored database may have reused an id.
        there = (one for one in self._table.of_ids([id_ for id_, _, _ in near]) if one.namespace == namespace)
        found = {example.id: example for example in there}
        here = [Candidate(found[id_], row, cosine) for id_, cosine, row in near if id_ in found]
        return here, len(near) < count

    def _fresh(self, namespace: str) -> _Matrix:
        """Return the vectors of a namespace as in the database; only changes are read."""
        fingerprint, table = self._embedder.fingerprint, self._table
        matrix = self._held.get(namespace) or _Matrix()
        self._held.put(namespace, matrix)
        ends = table.vector_range(namespace, fingerprint)
        if ends[1] > (last := matrix.last):
            matrix.add(table.vectors(namespace, fingerprint, after=last))
        matrix.drop_before(ends[0])  # of a full log the oldest go
        if matrix.is_due() and matrix.live != table.count_vectors(namespace, fingerprint):
            # Some were deleted, or embedded after later ones.
            missing = matrix.keep(table.vector_ids(namespace, fingerprint))
            matrix.add(table.vectors(namespace, fingerprint, ids=missing))
        return matrix


class _Matrix:
    """Vectors by id: rows of a matrix with spare capacity."""

    def __init__(self) -> None:
        self._ids = np.zeros(0, dtype=np.int64)
        self._rows = np.zeros((0, 0), dtype=np.float32)
        self._made = np.zeros(0, dtype=bool)  # whether there is a vector
        self._here = np.zeros(0, dtype=bool)  # False: dropped
        self._count = 0
        self.live = 0  # not dropped
        self.last = 0  # the highest id so far
        self.due_at = 0.0  # when they are counted again

    def is_due(self) -> bool:
        """Return, now and then, whether to look for deleted vectors, and for those embedded late."""
        due = time.monotonic() >= self.due_at
        if due:
            self.due_at = time.monotonic() + COUNT_SECONDS
        return due

    def add(self, vectors: Sequence[tuple[int, bytes | None]]) -> None:
        """Append vectors as the database has them."""
        if not vectors:
            return
        raw = [row for _, row in vectors if row is not None]
        self._reserve(len(vectors), len(raw[0]) // 2 if raw else self._rows.shape[1])
        fitting = 2 * self._rows.shape[1]  # bytes; others are damaged
        vectors = [(id_, row if row and len(row) == fitting else None) for id_, row in vectors]
        raw = [row for _, row in vectors if row is not None]
        new = slice(self._count, self._count + len(vectors))
        self._ids[new] = [id_ for id_, _ in vectors]
        self._made[new] = [row is not None for _, row in vectors]
        self._here[new] = True
        if raw:
            filled = self._count + np.flatnonzero(self._made[new])
            self._rows[filled] = np.frombuffer(b"".join(raw), dtype="<f2").reshape(len(raw), -1)
        self._count, self.live = new.stop, self.live + len(vectors)
        self.last = max(self.last, int(self._ids[new].max()))

    def drop_before(self, first: int) -> None:
        """Drop those with lower ids."""
        self._drop(self._ids[: self._count] < first)

    def keep(self, ids: Iterable[int]) -> list[int]:
        """Drop all but these; return those that are missing."""
        wanted = np.fromiter(ids, dtype=np.int64)
        held = self._ids[: self._count]
        self._drop(~np.isin(held, wanted))
        return [int(id_) for id_ in np.setdiff1d(wanted, held[self._here[: self._count]])]

    def nearest(
        self, vector: Vector, count: int, allowed: NDArray[np.int64] | None
    ) -> list[tuple[int, float, Vector]]:
        """Find ids, cosines and vectors of the nearest, nearest first, ties by age, newest first."""
        if not self._rows.shape[1]:
            return []
        ids, cosines = self._ids[: self._count], self._rows[: self._count] @ vector
        may = self._made[: self._count] & self._here[: self._count]
        places = np.flatnonzero(may if allowed is None else may & np.isin(ids, allowed))
        if len(places) > count:
            places = places[np.argpartition(-cosines[places], count - 1)[:count]]
        order = np.lexsort((-ids[places], -np.round(cosines[places], 6)))
        return [(int(ids[at]), float(cosines[at]), self._rows[at].copy()) for at in places[order]]

    def _drop(self, gone: NDArray[np.bool_]) -> None:
        here = self._here[: self._count]
        here &= ~gone
        self.live = int(np.count_nonzero(here))
        if self._count - self.live > self._count // 8:  # moving the rows costs too much to do it each time
            stay = np.flatnonzero(here)
            for column in (self._ids, self._rows, self._made, self._here):
                column[: len(stay)] = column[stay]
            self._count = len(stay)

    def _reserve(self, more: int, dimension: int) -> None:
        if self._count + more <= len(self._rows) and self._rows.shape[1] == dimension:
            return
        size = max(self._count + more, len(self._rows) * 5 // 4)
        self._ids, self._made, self._here = (
            np.resize(column, size) for column in (self._ids, self._made, self._here)
        )
        rows = np.zeros((size, dimension), dtype=np.float32)
        if self._rows.shape[1] == dimension:
            rows[: self._count] = self._rows[: self._count]
        self._rows = rows


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidInput(f"{name} must be a whole number from 0, not {value!r}")
    return value


def _share(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise InvalidInput(f"{name} must be a number from 0 to 1, not {value!r}")
    return float(value)


def _only_good(value: object) -> bool:
    if value is not None and value is not True:
        raise InvalidInput(f"min_feedback must be True (only good ones) or None, not {value!r}")
    return value is True


# How much nearer an example counts that was rated good: enough to break ties. By 0.2 answers get worse, by
# less there is no difference beyond chance (tests/benchmarks/few_shot.py).
GOOD_BONUS = 0.05
# Cosine of two questions from which on one may repeat the other: of the pairs of 6,000 questions to a bank
# (banking77) that are as near 98 % have one intent.
NEAR = 0.95


@dataclass(frozen=True, slots=True)
class Candidate:
    """An example, the unit vector of its question, shape (d,), and its cosine to the question asked."""

    example: Example
    vector: Vector
    cosine: float

    @property
    def relevance(self) -> float:
        """The cosine, slightly more if the example was rated good."""
        return self.cosine + (GOOD_BONUS if self.example.feedback else 0.0)


def tokens_of(example: Example, count: Callable[[str], int] | None = None) -> int:
    """Count the tokens of question and answer, by default as `estimate_tokens` bounds them from above.

    Its bound has 8 to spare for each example, room for labels before question and answer.
    """
    count = count or estimate_tokens
    return count(example.question) + count(example.answer)


def usable(candidates: Sequence[Candidate], question: str) -> list[Candidate]:
    """Filter out what is no example, the question itself and repetitions; sort by relevance.

    No example is what somebody called bad, the same answer to such a question given again, and, unless
    somebody called it good, an answer with a flaw (`ibidem.examples.flaws`). An answer to the question itself
    is none either: a model would copy it, even if outdated. Of examples with one question, or with questions
    that repeat one another (`repeats`), one stays: one rated good if there is one, else the nearest, the
    newest.
    """
    bad = _Near([one for one in candidates if one.example.feedback is False])
    rest = [one for one in candidates if one.example.feedback is not False]
    seen, left = {_plain(question)}, _Near([])
    for candidate in sorted(rest, key=lambda one: (-round(one.relevance, 6), -(one.example.id or 0))):
        said = _plain(candidate.example.question)
        if said in seen or not _is_fit(candidate, bad):
            continue
        seen.add(said)
        if not any(left.repeated_by(candidate)):
            left.add(candidate)
    return left.candidates


def repeats(question: str, other: str) -> bool:
    """Return whether of two questions as near as `NEAR` one repeats the other: nothing keeps them apart.

    Guards of the cache do (numbers, dates, ...), and a negation, which embeddings hardly see.
    """
    is_negated = parse_question(question).negations != parse_question(other).negations
    return not is_negated and failed_guard(question, other) is None


class _Near:
    """Candidates, to be asked which of them another one repeats."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self.candidates = list[Candidate]()
        self._vectors = np.zeros((0, 0), dtype=np.float32)  # with spare rows
        for one in candidates:
            self.add(one)

    def add(self, candidate: Candidate) -> None:
        """Add a candidate."""
        count, width = len(self.candidates), len(candidate.vector)
        if count == len(self._vectors):
            self._vectors = np.resize(self._vectors, (max(16, 2 * count), width))
        self._vectors[count] = candidate.vector
        self.candidates.append(candidate)

    def repeated_by(self, other: Candidate) -> Iterator[Example]:
        """Yield the examples whose questions it repeats."""
        if self.candidates:
            cosines = self._vectors[: len(self.candidates)] @ other.vector
            for at in np.flatnonzero(cosines >= NEAR):
                if repeats(self.candidates[at].example.question, other.example.question):
                    yield self.candidates[at].example


def _is_fit(candidate: Candidate, bad: _Near) -> bool:
    """Return whether it is an example: somebody called it good, or nothing is wrong with it."""
    if candidate.example.feedback:
        return True
    answer = _plain(candidate.example.answer)
    is_bad = any(_plain(one.answer) == answer for one in bad.repeated_by(candidate))
    return not is_bad and flaw_of(candidate.example.answer) is None


def pick(
    candidates: Sequence[Candidate],
    k: int,
    *,
    diversity: float,
    max_tokens: int | None = None,
    count: Callable[[str], int] | None = None,
) -> list[Example]:
    """Pick up to `k` candidates by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    Each time the one with the highest (1 - diversity) * relevance - diversity * s, where s is its cosine to
    the nearest of those picked before; one that the token budget has no room for is passed over.
    """
    if not candidates:
        return []
    vectors = np.stack([candidate.vector for candidate in candidates])
    relevance = np.array([candidate.relevance for candidate in candidates])
    nearest = np.zeros(len(candidates))  # to what was picked
    open_ = np.ones(len(candidates), dtype=bool)
    left, picked = max_tokens, list[Example]()
    while len(picked) < k and open_.any():
        scores = (1.0 - diversity) * relevance - diversity * nearest
        best = int(np.argmax(np.where(open_, np.round(scores, 6), -np.inf)))
        open_[best] = False
        example = candidates[best].example
        if left is not None:
            tokens = tokens_of(example, count)
            if tokens > left:
                continue
            left -= tokens
        picked.append(example)
        nearest = np.maximum(nearest, vectors @ vectors[best])
    return picked


def _plain(question: str) -> str:
    return " ".join(question.casefold().split()).rstrip("?!. ")
