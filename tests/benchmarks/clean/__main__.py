"""Precision and recall of what keeps examples clean, with 95 % intervals.

    python -m tests.benchmarks.clean
    python -m tests.benchmarks.clean --annotated FOLDER --spans FILE --data FOLDER

FOLDER holds answers of models that people have annotated, as `datasets/Review/Human/*.csv` of Do-Not-Answer
has them (columns `response` and `action`; 0: the model declines, 5: it does what was asked). FILE holds texts
with spans, as `data/synth_dataset_v2.json` of presidio-research has them; every second text is counted, the
others were looked at while the rules were written. DATA holds streams of questions, as all benchmarks read
them: messages of users, of which none is an answer that declines.
"""

from __future__ import annotations

import csv
import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ibidem._util.intervals import clopper_pearson
from ibidem.examples.flaws import flaw_of
from ibidem_lab.personal import by_patterns, description, personal_details
from tests.benchmarks.clean.labelled import Found, answers, judged_answers, judged_texts

# Kinds of spans that are personal details; the others (organisations, countries, dates, ages) are left alone.
_KINDS = (
    "EMAIL_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "US_SSN", "IP_ADDRESS", "US_DRIVER_LICENSE", "PHONE_NUMBER",
    "STREET_ADDRESS", "PERSON",
)  # fmt: skip
_DECLINES, _COMPLIES = "0", "5"


def share(count: int, total: int) -> str:
    """Format a share with its interval."""
    low, high = clopper_pearson(count, total)
    return f"{count} of {total}: {count / max(1, total):.1%} ({low:.1%} to {high:.1%})"


def labelled(redact: Callable[[str], str]) -> Table:
    """Measure what was labelled here."""
    table = Table("file", "recall", "precision")
    rows: dict[str, Found] = {
        name: judged_answers(answers(name)) for name in ("answers.txt", "answers_held_out.txt")
    }
    rows |= {name: judged_texts(name, redact) for name in ("personal.txt", "personal_held_out.txt")}
    for name, one in rows.items():
        recall = share(one.right, one.right + one.missed)
        table.add_row(name, recall, share(one.right, one.right + one.wrong))
    return table


def annotated(folder: Path) -> Table:
    """Measure on answers that people have annotated."""
    table = Table("model", "declining answers found", "complying answers taken for others")
    for file in sorted(folder.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as opened:
            rows = [(row["action"], flaw_of(row["response"])) for row in csv.DictReader(opened)]
        flawed, all_ = Counter(action for action, flaw in rows if flaw), Counter(action for action, _ in rows)
        table.add_row(file.stem, *(share(flawed[one], all_[one]) for one in (_DECLINES, _COMPLIES)))
    return table


def messages(folder: Path) -> Table:
    """Count messages of users that are taken for answers with a flaw."""
    table = Table("stream", "messages", "taken for one that is no answer", "such as")
    for file in sorted((folder / "streams").glob("*.jsonl")):
        texts = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
        found = [text for text in texts if flaw_of(text)]
        table.add_row(file.stem, f"{len(texts):,}", share(len(found), len(texts)), *found[:1])
    return table


def spans(file: Path, redact: Callable[[str], str]) -> Table:
    """Measure on texts with marked spans."""
    texts = json.loads(file.read_text("utf-8"))[1::2]
    gone, all_, untouched = Counter[str](), Counter[str](), list[bool]()
    for text in texts:
        shown = redact(text["full_text"])
        for span in text["spans"]:
            all_[span["entity_type"]] += 1
            gone[span["entity_type"]] += span["entity_value"] not in shown
        if not {span["entity_type"] for span in text["spans"]} & {*_KINDS}:
            untouched.append(shown == text["full_text"])
    table = Table("kind", "share")
    for kind in _KINDS:
        table.add_row(f"{kind} gone", share(gone[kind], all_[kind]))
    table.add_row("texts without any, unchanged", share(sum(untouched), len(untouched)))
    return table


def main() -> None:
    """Print the tables."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--annotated", type=Path, metavar="FOLDER")
    parser.add_argument("--spans", type=Path, metavar="FILE")
    parser.add_argument("--data", type=Path, metavar="DATA")
    parser.add_argument("--patterns", action="store_true", help="without Presidio, if it is installed")
    options = parser.parse_args()
    redact = by_patterns if options.patterns else personal_details
    console = Console(width=120)
    console.print(f"redaction: {'patterns' if options.patterns else description()}")
    console.print(labelled(redact))
    if options.annotated:
        console.print(annotated(options.annotated))
    if options.data:
        console.print(messages(options.data))
    if options.spans:
        console.print(spans(options.spans, redact))


if __name__ == "__main__":
    main()
