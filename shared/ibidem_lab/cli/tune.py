"""`ibidem learn encoder` and `ibidem learn compare`: a better embedding, and how models compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ibidem.cli.formatting import percent
from ibidem.cli.output import JsonOption, bars, err, out, print_json, sentences, text_option
from ibidem.embedding import Embedder, resolve_embedder
from ibidem.errors import InvalidInput
from ibidem_lab.fitting.labels import Label, read_labels
from ibidem_lab.minilm import MODEL_NAME
from ibidem_lab.replay import LEVELS, Row
from ibidem_lab.tuning.card import figure_rows, most_hits_at
from ibidem_lab.tuning.evaluate import StreamMetrics, compare_on_pairs, measure_on_stream
from ibidem_lab.tuning.metrics import PairMetrics

PairsOption = Annotated[
    list[Path],
    typer.Option(help='Lines of {"a", "b", "same"} or {"asked", "stored", "right"}; may be given again.'),
]
OutOption = Annotated[Path, typer.Option("--out", help="Directory for the model; must be new or empty.")]
BaseOption = Annotated[
    str,
    text_option(help="The base model: this name, a directory written by tune, or one of its architecture."),
]
LambdaOption = Annotated[
    float | None, typer.Option("--lambda", help="In sigmoid(cosine / lambda - c); default: learned.")
]
OffsetOption = Annotated[float | None, typer.Option("--c", help="As above; default: learned.")]
EpochsOption = Annotated[int, typer.Option(min=1, help="Maximum epochs (early stopping, patience 2).")]
BatchOption = Annotated[int, typer.Option(min=2, help="Batch size.")]
RateOption = Annotated[float, typer.Option(min=1e-7, max=1.0, help="Learning rate of the encoder.")]
BlendOption = Annotated[
    float,
    typer.Option(min=0.05, max=1.0, help="Interpolation from the base weights (0) to the tuned ones (1)."),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of split, order and dropout.")]
DeviceOption = Annotated[str | None, text_option(help="cpu, cuda, ...; default: the best available.")]
Workloads = Annotated[
    list[Path],
    typer.Argument(metavar="FILE.jsonl...", help='Pairs of {"a", "b", "same"}, or {"text", "meaning"}.'),
]
Models = Annotated[
    list[str] | None,
    text_option(
        "--model",
        "-m",
        help="Name or directory; again for each. The first is the reference.",
    ),
]


def tune_model(
    pairs: PairsOption,
    directory: OutOption,
    base: BaseOption = MODEL_NAME,
    temperature: LambdaOption = None,
    offset: OffsetOption = None,
    epochs: EpochsOption = 4,
    batch_size: BatchOption = 32,
    learning_rate: RateOption = 1e-4,
    blend: BlendOption = 0.5,
    seed: SeedOption = 0,
    device: DeviceOption = None,
) -> None:
    """Fine-tune the embedding on labelled pairs; writes a model for `promote`. Needs the extra `tune`."""
    with sentences():
        from ibidem_lab.tuning import tune as tuning

        given = [label for path in pairs for label in _pairs_in(path)]
        recipe = tuning.recipe(
            temperature=temperature,
            offset=offset,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            blend=blend,
            seed=seed,
            device=device,
        )
        with _bar() as show:
            report = tuning.tune(given, directory, base=base, recipe=recipe, progress=show)
    out.print(_pair_table("held-out pairs", ["before", "after"], [report.before, report.after]))
    change, low, high = report.gain
    out.print(f"Gain in AUC: {change:+.3f} ({low:+.3f} to {high:+.3f}).")
    out.print(f"Threshold: {report.threshold}", soft_wrap=True)
    out.print(f"The model is in {report.directory}; ibidem promote uses it.", soft_wrap=True)


@contextmanager
def _bar() -> Iterator[Callable[[int, int, float | None], None]]:
    with bars() as bar:
        task = bar.add_task("Training", total=None)

        def show(step: int, steps: int, auc: float | None) -> None:
            if auc is not None:
                bar.console.print(f"step {step:,} of {steps:,}: validation AUC {auc:.3f}")
            bar.update(task, completed=step, total=steps)

        yield show


def _pairs_in(path: Path) -> list[Label]:
    labels = [label for label in read_labels(path) if isinstance(label, Label)]
    if not labels:
        raise InvalidInput(
            f"{path} holds questions with meanings; tune takes pairs, as ibidem learn pairs writes them"
        )
    return labels


def evaluate_models(workloads: Workloads, models: Models = None, as_json: JsonOption = False) -> None:
    """Compare embedding models on labelled pairs or questions, by cosine alone: AUC, hits, P-CHR AUC."""
    with sentences():
        names = models or [MODEL_NAME]
        read = {str(path): read_labels(path) for path in workloads}
        with err.status("Embedding"):
            found = _compare(read, names)
    if as_json:
        print_json([one for file, rows in found.items() for one in _plainly(file, names, rows)])
        return
    for file, rows in found.items():
        out.print(_table(file, names, rows))


Figures = list[PairMetrics] | list[StreamMetrics]


def _plainly(
    file: str, names: list[str], rows: Sequence[PairMetrics | StreamMetrics]
) -> list[dict[str, Any]]:
    return [{"file": file, "model": name, **asdict(row)} for name, row in zip(names, rows, strict=True)]


def _compare(read: dict[str, list[Label] | list[Row]], names: list[str]) -> dict[str, Figures]:
    embedders: list[Embedder] = [resolve_embedder(name) for name in names]
    found: dict[str, Figures] = {}
    for file, labels in read.items():
        rows = [label for label in labels if isinstance(label, Row)]
        pairs = [label for label in labels if isinstance(label, Label)]
        if len({pair.right for pair in pairs}) == 1:
            raise InvalidInput(f"{file} holds pairs of one kind only; a comparison needs both")
        found[file] = (
            [measure_on_stream(rows, one) for one in embedders]
            if rows
            else compare_on_pairs(pairs, embedders)
        )
    return found


def _table(file: str, names: list[str], rows: Figures) -> Table:
    pairs = [row for row in rows if isinstance(row, PairMetrics)]
    if pairs:
        title = f"{file}: {pairs[0].pairs:,} pairs, {percent(pairs[0].right, 0)} right"
        return _pair_table(title, names, pairs)
    streams = [row for row in rows if isinstance(row, StreamMetrics)]
    title = f"{file}: {streams[0].requests:,} questions, a perfect cache hits {percent(streams[0].perfect)}"
    table = _columns(title, names)
    table.add_row("AUC of the nearest", *(f"{row.auc:.3f}" for row in streams))
    for level in LEVELS:
        table.add_row(most_hits_at(level), *(percent(row.hits[level]) for row in streams))
    table.add_row("P-CHR AUC", *(f"{row.p_chr:.3f}" for row in streams))
    return table


def _pair_table(title: str, names: list[str], rows: list[PairMetrics]) -> Table:
    table = _columns(title, names)
    for name, cells in figure_rows(rows):
        table.add_row(name, *cells)
    return table


def _columns(title: str, names: list[str]) -> Table:
    table = Table("", *names, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    return table
