"""`ibidem export`: the example log as training data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ibidem.active_model import checked_active_embedder
from ibidem.cli.formatting import percent
from ibidem.cli.output import (
    DatabaseOption,
    JsonOption,
    NamespaceOption,
    PathOption,
    existing_store,
    fail,
    moment,
    out,
    print_json,
    progress,
    settings_of,
    text_option,
)
from ibidem.cli.panels import LEARNING, in_panel
from ibidem.examples.selection import NEAR
from ibidem_lab.exporting.card import REASONS
from ibidem_lab.exporting.choice import APART, TEST_SHARE, Choice, Documents, Feedback, Format, tuple_of
from ibidem_lab.exporting.folder import Manifest
from ibidem_lab.personal import personal_details

Out = Annotated[Path, typer.Option("--out", help="Directory: new, empty, or of an earlier export.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Form of the lines.")]
FeedbackOption = Annotated[Feedback, typer.Option("--feedback", help="Which; not-bad: all but the bad.")]
Models = Annotated[
    list[str] | None,
    text_option("--model", help="Only what this model answered; may be repeated."),
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="Not older: than 2026-01-31T12:00Z, or than 3d, 12h."),
]
Tags = Annotated[
    list[str] | None,
    text_option("--tag", help="Only with this tag; with each, if repeated."),
]
System = Annotated[str, text_option("--system", help="A system prompt to stand first in each example.")]
DocumentsOption = Annotated[
    Documents,
    typer.Option(
        "--documents",
        help="Examples that were answered from documents. The log holds no texts of documents: a model that "
        "learns such answers without them learns to make up facts.",
    ),
]
Near = Annotated[float, typer.Option("--near", help="Cosine similarity of a repetition; 1 to keep all.")]
Apart = Annotated[float, typer.Option("--apart", help="Cosine similarity of what is kept on one side.")]
TestShare = Annotated[float, typer.Option("--test-share", help="Share of the questions for the test.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the split.")]
NoRedact = Annotated[bool, typer.Option("--no-redact", help="Leave keys, passwords and personal details in.")]
License = Annotated[str, text_option("--license", help="For the data card: an identifier such as cc-by-4.0.")]
Force = Annotated[bool, typer.Option("--force", help="Also into a directory with other files; they stay.")]


@in_panel(LEARNING)
def export_examples(
    target: Out,
    form: FormatOption = "openai-chat",
    feedback: FeedbackOption = "not-bad",
    model: Models = None,
    namespace: NamespaceOption = None,
    since: Since = None,
    tag: Tags = None,
    system: System = "",
    documents: DocumentsOption = "skip",
    near: Near = NEAR,
    apart: Apart = APART,
    test_share: TestShare = TEST_SHARE,
    seed: Seed = 0,
    license: License = "",
    no_redact: NoRedact = False,
    force: Force = False,
    path: PathOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the examples as training data, with a test that holds no paraphrase of what is trained."""
    with existing_store(path, database) as store:
        choice = Choice(
            format=form, feedback=feedback, models=tuple_of(model or ()), namespace=namespace,
            since=None if since is None else moment("--since", since), tags=tuple_of(tag or ()),
            system=system, documents=documents, near=near, apart=apart, test_share=test_share, seed=seed,
            license=license,
        )  # fmt: skip
        from ibidem_lab.exporting.export import Export, redaction_of

        redact = None if no_redact else personal_details

        with progress("read") as show:
            embedder = checked_active_embedder(settings_of(path, database), store)
            export = Export(
                store.examples, embedder, choice, redact or str, progress=show, redaction=redaction_of(redact)
            )
            try:
                found = export.run(target, force=force)
            except OSError as error:
                fail(f"cannot write {target}: {error.strerror or error}")
    if as_json:
        print_json(asdict(found))
    else:
        out.print(_table(found, target))
        for note in _notes(found):
            out.print(note)


def _table(found: Manifest, target: Path) -> Table:
    table = Table("what", "examples", title=f"{found.settings['format']} in {target}")
    table.columns[1].justify = "right"
    table.add_row("read", f"{found.read:,}")
    for reason, count in found.dropped.items():
        table.add_row(f"  left out: {REASONS[reason]}", f"{count:,}")
    table.add_row("training", f"{found.train:,}")
    table.add_row("test", f"{found.test:,}")
    table.add_row("  redacted", f"{found.redacted:,}")
    table.add_row("clusters", f"{found.clusters:,}")
    table.add_row("  questions in the largest", f"{found.largest_cluster:,}")
    if found.nearest is not None:
        table.add_row("  nearest of training and test", f"{found.nearest:.3f}")
    return table


def _notes(found: Manifest) -> Iterator[str]:
    wanted = found.settings["test_share"]
    share = found.test / (found.train + found.test)
    if share < 0.8 * wanted:
        yield (
            f"The test has {percent(share)} instead of {percent(wanted)}: the questions are too alike to be "
            "kept apart. A higher --apart, or more examples, give more."
        )
    if found.namespaces > 1:
        yield (
            f"They come from {found.namespaces:,} namespaces: a model that learns from all may tell one what "
            "it learned from another. --namespace exports one."
        )
    if found.scopes > 1:
        yield (
            f"They were answered under {found.scopes:,} scopes (system prompt, tools, parameters), which the "
            "training data do not tell apart. --tag or --model choose among them."
        )
    if found.settings["documents"] == "skip" and (documents := found.dropped.get("documents")):
        yield (
            f"{documents:,} were answered from documents; ibidem_lab.export(cache.examples, texts=...) adds "
            "these."
        )
