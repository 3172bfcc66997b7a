"""Decide whether the documents of a request allow a stored answer to be repeated. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Literal

from ibidem.lifecycle.told import Told
from ibidem.types import ANY_DOCUMENTS, Document, Entry, Request, Source

DocumentPolicy = Literal["unchanged", "supporting", "all", "ignore"]
NewDocuments = Literal["miss", "ignore"]
CHANGED, ADDED = "documents_changed", "documents_added"  # reasons of misses
NOTHING_TOLD = Told("")


@dataclass(frozen=True, slots=True)
class DocumentChange:
    """A document in which a request differs from a stored answer.

    Attributes:
        id: Of the document.
        source: Id of the file, or the like, that it is a part of; "" if unknown.
        change: `missing` in the request; `changed`, if it is there with another text, or may be; `added` to
            the request.
    """

    id: str
    source: str
    change: Literal["missing", "changed", "added"]


def document_objection(
    request: Request,
    entry: Entry,
    document_policy: DocumentPolicy,
    new_documents: NewDocuments = "miss",
    told: Told = NOTHING_TOLD,
) -> str:
    """Return why the documents of the request do not allow the stored answer: the reason of a miss, or "".

    Args:
        request: The question asked, with what was retrieved for it.
        entry: The stored answer, with its sources unless its documents are the same.
        document_policy: `unchanged`: a passage that supports the answer is retrieved again, none that it
            knows has changed, and none is new. `supporting`: all that support it are. `all`: the documents
            are the same. `ignore`: they do not matter.
        new_documents: Whether a passage that was added since the answer was made is an objection (`miss`).
        told: When the documents of the request that the answer does not know were told of.
    """
    if document_policy == "ignore" or entry.documents in (request.documents_digest, ANY_DOCUMENTS):
        return ""
    if document_policy == "all":
        return CHANGED
    retrieved, supporting = {document.digest for document in request.documents}, entry.supporting
    if document_policy == "supporting":
        return "" if supporting and supporting <= retrieved else CHANGED
    unknown = unknown_documents(request, entry)
    # What a person wrote rests on any of them.
    wanted = supporting if entry.pinned == "corrected" else supporting & retrieved
    if not wanted or not wanted <= retrieved or _changed(request, entry, unknown, told):
        return CHANGED
    new = new_documents == "miss" and any(told.is_new(one, entry.requested) for one in unknown)
    return ADDED if new else ""


def document_changes(
    request: Request,
    entry: Entry,
    document_policy: DocumentPolicy,
    new_documents: NewDocuments = "miss",
    told: Told = NOTHING_TOLD,
) -> tuple[DocumentChange, ...]:
    """List the documents because of which the stored answer is refused; arguments as above."""
    reason = document_objection(request, entry, document_policy, new_documents, told)
    unknown = unknown_documents(request, entry)
    if reason == ADDED:
        new = [one for one in unknown if told.is_new(one, entry.requested)]
        return tuple(DocumentChange(one.id, one.source, "added") for one in new)
    changed = _changed(request, entry, unknown, told) if document_policy == "unchanged" else []
    if changed:
        return tuple(DocumentChange(one.id, one.source, "changed") for one in changed)
    asked, names = {one.digest for one in request.documents}, {one.id for one in request.documents}
    every = document_policy == "all" or not entry.supporting
    gone = [one for one in entry.sources if one.digest not in asked and (one.supports or every)]
    found = [DocumentChange(one.id, one.source, "changed" if one.id in names else "missing") for one in gone]
    if every:
        seen = {one.id for one in gone}
        found += [DocumentChange(one.id, one.source, "added") for one in unknown if one.id not in seen]
    return tuple(found)


def unknown_documents(request: Request, entry: Entry) -> list[Document]:
    """Return the documents of a request whose text the answer was not made with."""
    if entry.documents == request.documents_digest:  # then the entry comes without its sources
        return []
    known = {source.digest for source in entry.sources}
    return [document for document in request.documents if document.digest not in known]


def _changed(request: Request, entry: Entry, unknown: Sequence[Document], told: Told) -> list[Source]:
    """Return the passages known to the answer that are retrieved with another text, or may be.

    One that is not retrieved may simply not have been found. It has changed if its id has another text now.
    If it supports the answer it may also have become any text of its source that the answer does not know,
    unless ids show that these are other passages: a shared passage of the source has the id that it had.
    """
    retrieved = {document.digest for document in request.documents}
    gone = [source for source in entry.sources if source.digest not in retrieved]
    if not gone or not unknown:
        return []
    ids = _Ids(request, entry)
    with_id = dict[str, set[str]]()  # the sources of unknown passages, by ids that stay
    successors, without_id = set[str](), set[str]()  # the sources of those that a passage may have become
    for one in unknown:
        stays = ids.stay_with(one)
        if stays:
            with_id.setdefault(one.id, set()).add(one.source)
        if not (_is_made(one.id, one.source) and told.has_id_before(one, entry.requested)):
            successors.add(one.source)
            if not stays:
                without_id.add(one.source)
    changed = []
    for source in gone:
        place, stays = source.source, ids.stay_with(source)
        if stays and _may_be_in(place, with_id.get(source.id, set())):
            changed.append(source)
        elif source.supports and (ids.sources_moved or _may_be_in(place, successors)):
            others = stays and place in ids.kept and not _may_be_in(place, without_id)
            if ids.sources_moved or not others:
                changed.append(source)
    return changed


def _may_be_in(source: str, sources: Set[str]) -> bool:
    """Return whether a source is among others; one that is not known may be any."""
    return bool(sources) and (not source or source in sources or "" in sources)


class _Ids:
    """What ids say, by those of the passages that the answer and the request share.

    Attributes:
        kept: The sources of which a shared passage has the id that it had: they were not cut anew.
        sources_moved: Whether a shared passage has another source than it had.
    """

    def __init__(self, request: Request, entry: Entry) -> None:
        self._several = _with_several_texts(entry.sources) | _with_several_texts(request.documents)
        sources, ids = dict[str, set[str]](), dict[tuple[str, str], set[str]]()
        for before in entry.sources:
            sources.setdefault(before.digest, set()).add(before.source)
            ids.setdefault((before.digest, before.source), set()).add(before.id)
        shared = [one for one in request.documents if one.digest in sources]
        self.sources_moved = not all(_may_be_in(one.source, sources[one.digest]) for one in shared)
        had = [(one, ids[one.digest, one.source]) for one in shared if (one.digest, one.source) in ids]
        self._renamed = {one.source for one, before in had if one.id not in before}
        self.kept = {one.source for one, before in had if one.id in before and self.stay_with(one)}

    def stay_with(self, one: Source | Document) -> bool:
        """Return whether the id of a passage stays with it when its text is edited.

        Not one that is made from text, source or position; nor if the same text has another one now.
        """
        if one.source in self._renamed or (one.source, one.id) in self._several or one.id == one.digest:
            return False
        uuid = _UUID.search(one.id)
        if not one.id or (one.source and (one.source in one.id or _is_number(one.id))):
            return False
        return uuid[1] not in _OF_TEXT if uuid else not _HASH.search(one.id)


_UUID = re.compile(r"(?i)[0-9a-f]{8}-[0-9a-f]{4}-([0-9a-f])[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
_OF_TEXT = "358"  # versions of a UUID that is a hash
_HASH = re.compile(r"(?i)[0-9a-f]{16}")
_LETTERS = re.compile(r"[^\W\d_]+")
_PARTS = frozenset("chunk chunks doc docs document documents node nodes page pages part parts".split())


def _is_number(id_: str) -> bool:
    """Return whether an id only counts the parts of its source: "12", "chunk-12"."""
    return id_[-1].isdecimal() and _PARTS.issuperset(word.lower() for word in _LETTERS.findall(id_))


def _is_made(id_: str, source: str) -> bool:
    """Return whether an id never stands for another text, as a hash and a random one do not."""
    own = id_.replace(source, "") if source else id_
    return bool(_UUID.search(own) or _HASH.search(own))


def _with_several_texts(passages: Iterable[Source | Document]) -> set[tuple[str, str]]:
    """Return the sources and ids that several texts have: they name no passage."""
    texts = {(one.source, one.id, one.digest) for one in passages}
    counted = Counter((source, id_) for source, id_, _ in texts)
    return {place for place, count in counted.items() if count > 1}
