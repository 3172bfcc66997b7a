"""The values of a cache: `Request`, `Answer`, the results of a lookup and of a store, `Entry`.

A request has four parts. Only `question` is compared by meaning; `scope` and `namespace` are compared
exactly, `documents` by the document policy. Of the scope, which can hold secrets (system prompts, headers),
only digests are kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ibidem._util.text import unicode_normalize
from ibidem.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Tier = Literal["exact", "semantic"]
Pin = Literal["", "corrected", "warmed"]  # where a vetted answer comes from; "" for one of a model
SECOND_OPINION = "second_opinion"  # in reasons: of hits that needed one, and of misses, with the outcome


def digest(*parts: str) -> str:
    """Return a 128-bit blake2b hash of the parts in hex; `("ab", "c")` and `("a", "bc")` differ."""
    hashed = blake2b(digest_size=16)
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        hashed.update(len(raw).to_bytes(8, "big"))
        hashed.update(raw)
    return hashed.hexdigest()


def normalise(question: str) -> str:
    """Return the form of a question that the exact tier compares: composed Unicode, no blanks around it.

    Case, punctuation and blanks within stay: the matching policy decides whether they matter.
    """
    composed = question if question.isascii() else unicode_normalize("NFC", question)
    return composed.strip()


def key_of(namespace: str, scope: str, question: str, documents: str, *, semantic: bool = True) -> str:
    """Return the entry id of a normalised question, from the digests of its scope and documents."""
    return digest("semantic" if semantic else "exact", namespace, scope, question, documents)


def digest_of(documents: Iterable[str]) -> str:
    """Return the digest of a set of documents, from their digests."""
    return digest(*sorted(set(documents)))


PART_BYTES = 4  # of the digest of a part of a scope that are kept: it tells why scopes differ, not whether


def digest_scope(scope: object) -> tuple[str, dict[str, str]]:
    """Return the digest of a scope, and the beginning of that of each of its parts, if they have names.

    Raises:
        InvalidInput: It is neither a text nor a mapping of texts by name.
    """
    if isinstance(scope, str):
        return digest(scope), {}
    if not isinstance(scope, Mapping):
        raise InvalidInput(f"scope must be a str, or a mapping of texts by name, not {type(scope).__name__}")
    parts = {
        require_name("scope", name): blake2b(
            require_text("scope", text).encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()
        for name, text in scope.items()
    }
    whole = b"".join(f"{len(name)}:{name}".encode() + parts[name] for name in sorted(parts))
    hashed = blake2b(b"parts" + whole, digest_size=16).hexdigest()
    return hashed, {name: part[:PART_BYTES].hex() for name, part in parts.items()}


def parts_text(parts: Mapping[str, str]) -> str:
    """Format the digests of the parts of a scope for the database; "" if there are none."""
    return json.dumps(dict(parts), separators=(",", ":")) if parts else ""


def differing_parts(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, ...]:
    """Name the parts in which two scopes differ; none if the parts of either are unknown."""
    names = dict.fromkeys((*one, *other)) if one and other else {}
    return tuple(name for name in names if one.get(name) != other.get(name))


def read_parts(text: str) -> dict[str, str]:
    """Read the output of `parts_text`; none of a damaged text."""
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def require_text(name: str, value: object) -> str:
    """Return `value` if it is a str, else raise `InvalidInput` naming the argument."""
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a str, not {type(value).__name__}")
    return value


def storable(text: str) -> bool:
    """Return whether an SQL column can hold the text: not with lone surrogates or NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def require_name(name: str, value: object) -> str:
    """Return `value` if it is a str that can be stored, else raise `InvalidInput` naming the argument."""
    if not storable(text := require_text(name, value)):
        raise InvalidInput(f"{name} holds what no database does: NUL, or half a character")
    return text


def require_bool(name: str, value: object) -> None:
    """Raise `InvalidInput` naming the argument if `value` is not a bool."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{name} must be a bool, not {type(value).__name__}")


def require_seconds(name: str, value: object) -> float | None:
    """Return `value` if it is a number of seconds or None, else raise `InvalidInput` naming the argument."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
    if value is not None and not usable:
        raise InvalidInput(f"{name} must be a number of seconds above 0, not {value!r}")
    return value  # type: ignore[return-value]


def require_tags(given: object) -> tuple[str, ...]:
    """Return the tags as a tuple if they are names, else raise `InvalidInput`."""
    tags = tuple(given) if isinstance(given, (list, tuple, set, frozenset)) else (None,)
    if not all(isinstance(tag, str) and tag.strip() for tag in tags):
        raise InvalidInput(f"tags must be a list of names, not {given!r}")
    return tuple(require_name("tags", tag) for tag in tags)


_USER = "/user="  # between a namespace and its user


def namespace_of(namespace: str, user: str = "") -> str:
    """Return the name under which the answers of a user in a namespace are stored, listed and cleared.

    `acme/user=ann`; without a user it is `acme` itself. No two pairs have the same name: ambiguous characters
    are escaped as in a URL.

    Raises:
        InvalidInput: One is not a str, or cannot be stored: it holds NUL, or half a character.
    """
    outer, inner = require_name("namespace", namespace), require_name("user", user)
    if inner:
        return f"{_escaped(outer)}{_USER}{_escaped(inner)}"
    return _escaped(outer) if "%" in outer or _USER in outer else outer


def is_in_namespace(name: str, namespace: str) -> bool:
    """Return whether a name is that of the namespace, or of a user in it; `namespace` as stored."""
    return name == namespace or name.startswith(user_prefix(namespace))


def user_prefix(namespace: str) -> str:
    """Return the prefix of the names of the users in a namespace; `namespace` as stored."""
    return f"{namespace if '%' in namespace else _escaped(namespace)}{_USER}"


def tenant_of(name: str) -> str:
    """Return the namespace in a name made by `namespace_of`."""
    return name.partition(_USER)[0].replace("%2F", "/").replace("%25", "%")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F")


@dataclass(frozen=True, slots=True)
class Scope:
    """The values of `ibidem.scope`: "", None or () where not given."""

    namespace: str = ""
    user: str = ""
    bypass: bool = False
    max_age: float | None = None
    ttl: float | None = None
    tags: tuple[str, ...] = ()

    def merge(self, inner: Scope) -> Scope:
        """Return the scope of a nested block: the inner one wins, tags add up, a bypass stays one."""
        return Scope(
            namespace=inner.namespace or self.namespace,
            user=inner.user or self.user,
            bypass=inner.bypass or self.bypass,
            max_age=self.max_age if inner.max_age is None else inner.max_age,
            ttl=self.ttl if inner.ttl is None else inner.ttl,
            tags=tuple(dict.fromkeys((*self.tags, *inner.tags))),
        )

    def name(self, own: str = "") -> str:
        """Return the namespace to ask in; `own` is an adapter's, used if the scope has none."""
        return namespace_of(self.namespace or own, self.user)

    def covers(self, name: str) -> bool:
        """Return whether the scope may touch what is stored under this name; all of it without a tenant.

        A namespace covers its users. A user without a namespace is in an adapter's, which is not known here.
        """
        if self.user and not self.namespace:
            return name.partition(_USER)[2] == _escaped(self.user)
        if self.user:
            return name == self.name()
        return not self.namespace or is_in_namespace(name, self.name())


@dataclass(frozen=True, slots=True)
class Document:
    """A retrieved document in the prompt. `digest` identifies its content.

    `source` is the id of the file, or the like, that it is a part of, if known: answers can be invalidated by
    it too.
    """

    id: str
    text: str = field(repr=False)
    source: str = field(default="", kw_only=True)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        require_text("Document.id", self.id)
        require_text("Document.source", self.source)
        object.__setattr__(self, "digest", digest(require_text("Document.text", self.text)))


def renamed(document: Document, id_: str, source: str) -> Document:
    """Return a copy with another id and source; the text is not hashed again."""
    other = copy(document)
    object.__setattr__(other, "id", require_text("Document.id", id_))
    object.__setattr__(other, "source", require_text("Document.source", source))
    return other


def _documents(given: object) -> tuple[Document, ...]:
    """Return any iterable of documents, such as a generator, as a tuple."""
    usable = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
    found: tuple[Any, ...] | None = tuple(given) if usable else None  # type: ignore[arg-type]
    if found is None or not all(isinstance(document, Document) for document in found):
        raise InvalidInput("documents must be a sequence of ibidem.Document")
    return found


def turn_digest(question: str, answer: str) -> str:
    """Return the digest of a turn of a conversation; blanks around its texts do not count."""
    return digest(normalise(question), answer.strip())


def conversation_digests(turns: Iterable[str], before: str = "") -> list[str]:
    """Return the digests of the conversation up to each of these turns, which follow on `before`."""
    return list(accumulate(turns, digest, initial=before))[1:]


Turns: TypeAlias = tuple[tuple[str, str], ...]  # what the user said in each, and what was answered


@dataclass(frozen=True, slots=True)
class History:
    """The earlier turns of the conversation that a request belongs to, as digests.

    Attributes:
        base: The digest of the scope without them.
        turns: The digests of the turns.
        asked: What the user said last, as the next request will have it among its turns.
        alone: Whether the question stands alone: then the turns are not compared.
        said: What the user said in these turns, if it must be on other subjects for the question to do so.
        stored: The digest of the conversation in which answered turns have the stored wording; None before
            the database was asked for it.
        words: The turns themselves, to be compared with those of other conversations; None if none of these
            may serve.
    """

    base: str
    turns: tuple[str, ...]
    asked: str
    alone: bool = False
    said: tuple[str, ...] = ()
    stored: str | None = None
    words: Turns | None = None

    @property
    def conversation(self) -> str:
        """The digest of the conversation so far; "" before the first turn."""
        return (conversation_digests(self.turns) or [""])[-1] if self.stored is None else self.stored


_HISTORY = "history"  # the part of a scope


@dataclass(frozen=True, slots=True)
class Request:
    """A question with everything its answer depends on.

    Args:
        question: The user's question alone, without template, history or documents.
        scope: Everything else the answer depends on (system prompt, history, tools, model, parameters), in
            any stable textual form: one text, or texts by name, so that `cache.why` can name those that
            differ. Compared exactly; only digests are kept.
        namespace: Tenant, user or application. Compared exactly; stored in clear.
        documents: The retrieved documents in the prompt, in any order.
        semantic: False if the question could not be separated from the rest of the prompt: then only the
            identical request is a hit, and the text of the question is not stored.
        temperature: Sampling temperature of the model, if known; only used when an answer is to be stored.
        made: When the question was asked, in seconds since the epoch; by default now. Not compared: an answer
            to a question asked before its documents were invalidated is not stored.
        example: False if the answer is an intermediate step of a program, such as a rewritten question: it
            may be stored, but is no example.
        scope_context: The `ibidem.scope` that holds for the request; by default the current one.

    Raises:
        InvalidInput: A part has the wrong type, or the question is empty.
    """

    question: str
    scope: str | Mapping[str, str] = field(default="", kw_only=True, repr=False)
    namespace: str = field(default="", kw_only=True)
    documents: tuple[Document, ...] = field(default=(), kw_only=True)
    semantic: bool = field(default=True, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True, compare=False)
    made: float = field(default_factory=time.time, kw_only=True, compare=False, repr=False)
    example: bool = field(default=True, kw_only=True, compare=False, repr=False)
    scope_context: Scope | None = field(default=None, kw_only=True, compare=False, repr=False)
    scope_digest: str = field(init=False)
    scope_parts: Mapping[str, str] = field(init=False, compare=False, repr=False)
    documents_digest: str = field(init=False)
    key: str = field(init=False)
    history: History | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        question = require_text("question", self.question)
        if not question.strip():
            raise InvalidInput("question is empty; pass the user's question, or do not ask the cache")
        documents = _documents(self.documents)
        require_bool("semantic", self.semantic)
        require_bool("example", self.example)
        normal = normalise(question) if self.semantic else question
        scope_digest, scope_parts = digest_scope(self.scope)
        documents_digest = digest_of(d.digest for d in documents)
        namespace = require_text("namespace", self.namespace)
        key = key_of(namespace, scope_digest, normal, documents_digest, semantic=self.semantic)
        set_field = object.__setattr__
        set_field(self, "question", normal)
        set_field(self, "documents", documents)
        set_field(self, "scope", "")
        set_field(self, "scope_digest", scope_digest)
        set_field(self, "scope_parts", scope_parts)
        set_field(self, "documents_digest", documents_digest)
        set_field(self, "key", key)


def with_history(request: Request, history: History) -> Request:
    """Return a copy of the request in this conversation: the turns are a part of its scope, if compared."""
    scope, parts = history.base, dict(request.scope_parts)
    parts.pop(_HISTORY, None)
    if history.turns and not history.alone:
        scope = digest(history.base, history.conversation)
        parts[_HISTORY] = history.conversation[: 2 * PART_BYTES]
    copied = copy(request)
    key = (request.namespace, scope, request.question, request.documents_digest)
    set_field = object.__setattr__
    set_field(copied, "history", history)
    set_field(copied, "scope_digest", scope)
    set_field(copied, "scope_parts", parts)
    set_field(copied, "key", key_of(*key, semantic=request.semantic))
    return copied


ANY_DOCUMENTS = "*"  # in place of their digest, of a vetted answer that stands for itself


def vetted_key(request: Request) -> str:
    """Return the id of a vetted answer to this question that stands for itself, whatever was retrieved."""
    parts = (request.namespace, request.scope_digest, request.question, ANY_DOCUMENTS)
    return key_of(*parts, semantic=request.semantic)


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer.

    Args:
        text: The answer as a reader sees it.
        payload: The adapter's serialised form (tool calls, usage, ...); opaque to the core.
        model: Name of the model.
        input_tokens: Prompt tokens, if known.
        output_tokens: Completion tokens, if known.
        finish_reason: Why the model stopped, in its own words; only complete answers are stored.
        seconds: How long the model took, if known.
        semantic: False if the answer fits the identical question only (tool calls, structured output).
        documents: Retrieved after the lookup, which knows none: not compared, but they can be invalidated.
    """

    text: str
    payload: str = field(default="", kw_only=True, repr=False)
    model: str = field(default="", kw_only=True)
    input_tokens: int | None = field(default=None, kw_only=True)
    output_tokens: int | None = field(default=None, kw_only=True)
    finish_reason: str = field(default="", kw_only=True)
    seconds: float | None = field(default=None, kw_only=True)
    semantic: bool = field(default=True, kw_only=True)
    documents: tuple[Document, ...] = field(default=(), kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("text", "payload", "model", "finish_reason"):
            require_text(f"Answer.{name}", getattr(self, name))
        object.__setattr__(self, "documents", _documents(self.documents))
        for name in ("input_tokens", "output_tokens", "seconds"):
            value = getattr(self, name)
            if not isinstance(value, (int, float if name == "seconds" else int, type(None))):
                raise InvalidInput(f"Answer.{name} must be a number or None, not {type(value).__name__}")
        require_bool("Answer.semantic", self.semantic)

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens, 0 where unknown."""
        return (self.input_tokens or 0) + (self.output_tokens or 0)


@dataclass(frozen=True, slots=True)
class Hit:
    """A stored answer that may be repeated, and why.

    `question` is the one it was given to (None if its text is not kept), `similarity` the cosine of the two
    questions, `score` that of the verifier, `threshold` the least score that was served (None for the
    identical request), `age` the seconds since the answer was stored, `seconds` the duration of the lookup,
    `stale` whether it is served beyond its lifetime while another caller refreshes it, `place` the id of the
    cache location, `pinned` whether a person vouches for it, and how, `second_opinion` whether its score left
    doubt, and a small model said that it serves.
    """

    answer: Answer
    entry_id: str
    tier: Tier
    similarity: float
    question: str | None
    age: float
    seconds: float = 0.0
    score: float = 1.0
    stale: bool = False
    place: str = ""
    pinned: Pin = ""
    threshold: float | None = None
    second_opinion: bool = False

    def __bool__(self) -> bool:
        return True

    def provenance(self) -> dict[str, Any]:
        """Return the marker of a repeated answer, in JSON values: frameworks store messages."""
        spent, said = self.answer.input_tokens or 0, self.answer.output_tokens or 0
        told = {
            "entry_id": self.entry_id,
            "tier": self.tier,
            "similarity": round(float(self.similarity), 4),
            "score": round(float(self.score), 4),
            "age_seconds": round(float(self.age), 3),
            "stale": self.stale,
            "saved_tokens": {"input_tokens": spent, "output_tokens": said, "total_tokens": spent + said},
        }
        names = ("place", "question", "pinned", SECOND_OPINION)
        return told | {name: value for name in names if (value := getattr(self, name))}


@dataclass(frozen=True, slots=True)
class Miss:
    """No answer, and the reason; with the nearest candidate, if there was one.

    `score` is that of the candidate, None if it has none; `threshold` the least that would have done,
    infinite while audits serve nothing.

    Reasons: `empty`, `below_threshold`, `guard:<name>`, `documents_changed`, `documents_added` (see
    `docs/invalidation.md`), `expired`, `question_unknown`, `question_private` (see `ibidem.open`'s `redact`),
    `answer_exact_only` (tool calls and the like), `audit` and `below_budget` (see `ibidem.audits.auditor`),
    `question_too_long`, `question_not_covered` (in a language or script that the model does not know),
    `question_hides_text` (invisible characters), `second_opinion:<outcome>` (in doubt, a small model did not
    say yes: `no`, `unsure`, `late`, `failed`, `not_asked`, `gone`), `no_index` (another process owns it, or
    its server is down), `bypassed` (see `ibidem.scope`), `answer_invalid` (the program no longer accepts its
    form), `other_cache` (the database has become another cache, as by a failover), `error`.
    """

    reason: str
    nearest: str | None = None
    entry_id: str | None = None
    similarity: float | None = None
    seconds: float = 0.0
    score: float | None = None
    threshold: float | None = None

    def __bool__(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer is stored as `entry_id`, and survives a killed process; `place` is the location's id."""

    entry_id: str
    place: str = field(default="", compare=False)

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Rejected:
    """The answer was not stored, and the reason.

    Reasons: `empty`, `finish_reason:<reason>`, `invalid_text`, `temperature`, `private`, `not_admitted` and
    `write_quota` (`max_writes_per_hour` of `ibidem.open`), `invalidated` (one of its documents was, while it
    was generated), `pinned` (there is a vetted answer), `bypassed`, `other_cache` (as in `Miss`), `moved`
    (`ibidem copy` has moved the cache to another place), `error`; of a vetted answer also `pins_full` (pinned
    answers fill the bounds) and `unknown_entry`.
    """

    reason: str

    def __bool__(self) -> bool:
        return False


Vector: TypeAlias = "NDArray[np.float32]"
ROUNDED = 0.1  # tolerance of the squared length of a vector in half precision


def to_bytes(vector: Vector) -> bytes:
    """Encode a vector in half precision, little-endian: 768 bytes for 384 dimensions, cosines to 1e-3."""
    return vector.astype("<f2").tobytes()


def to_vector(raw: bytes) -> Vector:
    """Decode the output of `to_bytes` to float32.

    Raises:
        ValueError: The bytes are no unit vector. A NaN would pass for a similarity of 1.
    """
    import numpy as np  # not above: importing Ibidem stays fast

    vector = np.frombuffer(raw, dtype="<f2").astype(np.float32)
    if not abs(float(vector @ vector) - 1.0) < ROUNDED:
        raise ValueError("no unit vector")
    return vector


def cosine(vector: Vector, stored: Vector) -> float:
    """Return the cosine of a unit vector and a stored, rounded one; 1 if they are the same."""
    found = min(1.0, float(stored @ vector))
    return 1.0 if found > 0.99 and (stored == to_vector(to_bytes(vector))).all() else found


def point_of(namespace: str, scope: str, vector: Vector) -> str:
    """Return the id of the point of the vector index for this vector in this scope.

    Entries with the same question (over other documents) share a point: an HNSW graph does not reliably find
    one of several identical vectors (39 of 300 were lost in a test).
    """
    return digest(namespace, scope, to_bytes(vector).hex())


@dataclass(frozen=True, slots=True)
class Source:
    """A document of a stored answer: its id, the digest of its content, and whether it supports the answer.

    `source` is the id of the file, or the like, that it is a part of; empty if unknown.
    """

    id: str
    digest: str
    supports: bool
    source: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored answer with its request.

    `question` is None if the request was exact-only. `documents` is the digest of the document set, `sources`
    are the documents. Times are seconds since the epoch: `created`, `used` (when it was stored or last
    served) and `expires` (when it is deleted); `ttl` is its lifetime in seconds, None for ever. `vector` is
    the embedding of the question, shape (d,), unit length; None before it is embedded. A `pinned` answer was
    vetted by a person: it has no lifetime, is not evicted, and no model's answer takes its place.
    `scope_parts` are the digests of the parts of the scope, as `Request` has them, in JSON; "" if unknown.
    `requested` is when its request was made: what was told of documents since, the answer does not know.
    `base` is the digest of the scope without the `turns` before the question, if other conversations are
    compared with them; else "" and none.
    """

    id: str
    namespace: str
    scope: str
    question: str | None
    documents: str
    semantic: bool
    answer: Answer
    created: float
    expires: float | None = None
    ttl: float | None = None
    used: float = 0.0
    hits: int = 0
    tags: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    pinned: Pin = ""
    scope_parts: str = ""
    requested: float = 0.0
    base: str = ""
    turns: Turns = ()
    vector: Vector | None = field(default=None, repr=False, compare=False)

    @property
    def supporting(self) -> frozenset[str]:
        """The digests of the documents that support the answer."""
        return frozenset(source.digest for source in self.sources if source.supports)

    @property
    def point(self) -> str | None:
        """The id of its point in the vector index; None without a vector."""
        return None if self.vector is None else point_of(self.namespace, self.scope, self.vector)
