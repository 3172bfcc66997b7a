"""The data card of an export: `README.md` with a head in YAML, as Hugging Face's datasets have it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ibidem_lab.exporting.folder import CARD_FILE, TEST_FILE, TRAIN_FILE, Manifest
from ibidem_lab.files import write_private

# Why an example was left out, as people read it.
REASONS = {
    "feedback": "of another feedback",
    "model": "of another model",
    "since": "too old",
    "tag": "without the tags",
    "documents": "answered from documents, or not",
    "document_missing": "the text of a document is missing",
    "document_changed": "a document has changed",
    "refusal": "a refusal",
    "no_answer": "says that there is no answer",
    "error": "an error message",
    "truncated": "the answer is cut off",
    "redaction": "nothing left after redaction",
    "called_bad": "the same answer was called bad",
    "duplicate": "the same question and answer",
    "contradicted": "another answer to the same question",
    "near_duplicate": "nearly the same question",
    "between": "between training and test",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write `README.md` into the folder of an export."""
    write_private(folder / CARD_FILE, [f"{card(manifest)}\n".encode()])


def card(manifest: Manifest) -> str:
    """Return the data card of an export."""
    parts = (
        _head(manifest),
        "# Answered questions",
        "Questions and answers from the log of an Ibidem cache, exported as training data (`ibidem export`). "
        f"The lines have the form `{manifest.settings['format']}`.",
        _table("Counts", _counts(manifest)),
        _table("Left out", _left_out(manifest)),
        _table("Sources", _sources(manifest)),
        "## The split\n\n" + " ".join(_split(manifest)),
        "## Personal details\n\n" + " ".join(_redaction(manifest)),
        "## Licence\n\n" + _license(manifest),
    )
    return "\n\n".join(parts)


def _head(manifest: Manifest) -> str:
    """The metadata; JSON is YAML, so strings are written as JSON has them."""
    size = manifest.train + manifest.test
    splits = [("train", TRAIN_FILE), *((("test", TEST_FILE),) if manifest.test else ())]
    files = "".join(f"\n  - split: {split}\n    path: {file}" for split, file in splits)
    return (
        f"---\nlicense: {json.dumps(manifest.settings['license'] or 'unknown')}\n"
        "task_categories:\n- text-generation\n- question-answering\n"
        f"size_categories:\n- {next((name for most, name in _SIZES if size < most), '1M<n<10M')}\n"
        f"tags:\n- ibidem\n- {manifest.settings['format']}\n"
        f"configs:\n- config_name: default\n  data_files:{files}\n---"
    )


def _table(title: str, rows: Iterator[tuple[str, str]]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows] or ["| nothing | |"]
    return f"## {title}\n\n| | |\n|---|---|\n" + "\n".join(lines)


def _counts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "examples in the log", f"{manifest.read:,}"
    yield "left out", f"{sum(manifest.dropped.values()):,}"
    yield "training", f"{manifest.train:,}"
    yield "test", f"{manifest.test:,}"
    yield "called good by somebody", f"{manifest.good:,}"
    yield "with personal details replaced", f"{manifest.redacted:,}"


def _left_out(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for reason, count in manifest.dropped.items():
        yield f"{REASONS[reason]} (`{reason}`)", f"{count:,}"


def _sources(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for model, count in manifest.models.items():
        name = "`" + model.replace("`", "'").replace("|", "\\|").replace("\n", " ") + "`"
        yield f"answers of {name if model else 'an unknown model or person'}", f"{count:,}"
    yield "namespaces (tenants, users, applications)", f"{manifest.namespaces:,}"
    yield "scopes (system prompt, tools, parameters)", f"{manifest.scopes:,}"
    yield "answers given", f"{_day(manifest.oldest)} to {_day(manifest.newest)}"


def _split(manifest: Manifest) -> Iterator[str]:
    if not manifest.test:
        yield "All examples are for training."
        return
    apart, seed = manifest.settings["apart"], manifest.settings["seed"]
    yield (
        f"By question: questions with a cosine similarity of {apart:g} or more (embedder "
        f"`{manifest.embedder}`), or of 0.6 "
        f"with the same answer, are on one side, as are those that they are linked to by others "
        f"({manifest.clusters:,} "
        f"clusters, the largest of {manifest.largest_cluster:,}; seed {seed})."
    )
    if manifest.nearest is not None:
        yield f"The nearest pair across has {manifest.nearest:.3f}."
    yield (
        f"Of the {manifest.test:,} test questions {manifest.known_answers:,} have an answer of 24 "
        f"characters or more that the "
        f"training has word for word, and {manifest.known_documents:,} were answered over a document that "
        f"it has, too."
    )


def _redaction(manifest: Manifest) -> Iterator[str]:
    if manifest.redaction == "none":
        yield "Nothing was replaced at the export."
    else:
        yield f"Replaced by their kind in brackets, such as `[email]`; found by: {manifest.redaction}."
        yield "What no word announces may still be there: read some before you share."


def _license(manifest: Manifest) -> str:
    if manifest.settings["license"]:
        return f"`{manifest.settings['license']}`"
    return "Not told. Answers of a model come under the terms of its provider; questions are your users'."


def _day(at: float) -> str:
    try:
        day = datetime.fromtimestamp(at, UTC).date()
    except (ValueError, OverflowError, OSError):  # no such year
        return "unknown"
    return day.isoformat()
