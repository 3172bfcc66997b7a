"""Few-shot selection: whether a program that copies the selected examples answers better as the log grows.

For each size of the log, questions that are not in it are answered with the label of the nearest selected
example, with the most frequent label of four, and with that of an example drawn at random. Then a part of the
log is wrong, as answers of models are, and people judged some: by how much nearer should those count that
they call good? And what does a selection cost, by the size of the log?

    python -m tests.benchmarks.few_shot --data DIRECTORY [--stream banking77] [--quick]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ibidem.embedding import Embedder, resolve_embedder
from ibidem.embedding.base import CheckedEmbedder
from ibidem.example import Example
from ibidem.examples import selection
from ibidem.examples.selection import Selector, Wanted
from ibidem.storage.examples import EmbeddedExample, ExampleTable
from ibidem.storage.store import Store
from tests.benchmarks.streams import Stream, load_streams
from tests.embedders import BagOfWords

SIZES = (100, 200, 500, 1_000, 2_000, 4_000, 8_000)
ASKED = 1_000
WRONG, JUDGED = 0.2, 0.3  # shares of the log: with a wrong label, and judged by somebody
BONUSES = (0.0, 0.02, 0.05, 0.1, 0.2, 1.0)
DIVERSITIES = (0.0, 0.1, 0.3, 0.5, 0.7)
COSTS = (1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers: of the nearest example, of the majority of four, of a random one."""

    nearest: float
    majority: float
    chance: float


def log_of(
    store: Store, embedder: str, stream: Stream, labels: Sequence[str], said: Sequence[object]
) -> None:
    """Write the rows of the stream as examples, with these labels and judgements."""
    rows = [
        EmbeddedExample(Example(text, label, at=1.0, feedback=good), vector, embedder)
        for text, label, good, vector in zip(stream.texts, labels, said, stream.vectors, strict=True)
    ]
    for start in range(0, len(rows), 500):
        store.examples.add(rows[start : start + 500])


def accuracy(
    selector: Selector, table: ExampleTable, asked: Stream, wanted: Wanted, seed: int = 0
) -> Accuracy:
    """How often the answerers are right."""
    draw, everything = random.Random(seed), [example.answer for example in table.recent(10**6)]
    right = Counter[str]()
    for text, meaning in zip(asked.texts, asked.meanings, strict=True):
        found = selector.select(replace(wanted, question=text))
        answers = [example.answer for example in found]
        right["nearest"] += bool(answers) and answers[0] == str(meaning)
        right["majority"] += bool(answers) and Counter(answers).most_common(1)[0][0] == str(meaning)
        right["chance"] += draw.choice(everything) == str(meaning)
    return Accuracy(*(right[name] / len(asked.texts) for name in ("nearest", "majority", "chance")))


def parts_of(stream: Stream, size: int, asked: int, seed: int) -> tuple[Stream, Stream]:
    """A log of this size, and questions that are not in it."""
    drawn = stream.sample(size + asked, seed)
    cut = len(drawn.texts) - asked
    return _part(drawn, slice(0, cut)), _part(drawn, slice(cut, None))


def _part(stream: Stream, at: slice) -> Stream:
    return Stream(stream.name, stream.texts[at], stream.meanings[at], stream.vectors[at])


def curve(
    stream: Stream, embedder: Embedder, work: Path, sizes: Sequence[int], asked: int
) -> dict[int, Accuracy]:
    """Accuracy by the size of the log."""
    found = {}
    biggest, questions = parts_of(stream, max(sizes), asked, seed=0)
    for size in sizes:
        part = _part(biggest, slice(0, size))
        store, selector = _opened(work / f"curve-{size}.sqlite3", embedder)
        log_of(store, embedder.fingerprint, part, list(map(str, part.meanings)), [None] * len(part.texts))
        found[size] = accuracy(selector, store.examples, questions, Wanted("", 4))
        store.close()
    return found


def feedback(stream: Stream, embedder: Embedder, work: Path, size: int, asked: int) -> dict[float, Accuracy]:
    """Accuracy over a log with mistakes, some of it judged, by how much nearer a good example counts."""
    log, questions = parts_of(stream, size, asked, seed=1)
    draw, names = random.Random(1), sorted({str(meaning) for meaning in log.meanings})
    labels = [draw.choice(names) if draw.random() < WRONG else str(meaning) for meaning in log.meanings]
    said = [
        label == str(meaning) if draw.random() < JUDGED else None
        for label, meaning in zip(labels, log.meanings, strict=True)
    ]
    store, selector = _opened(work / "feedback.sqlite3", embedder)
    log_of(store, embedder.fingerprint, log, labels, said)
    kept, found = selection.GOOD_BONUS, {}
    try:
        for bonus in BONUSES:
            selection.GOOD_BONUS = bonus
            found[bonus] = accuracy(selector, store.examples, questions, Wanted("", 4))
    finally:
        selection.GOOD_BONUS = kept
    store.close()
    return found


def diversity(
    stream: Stream, embedder: Embedder, work: Path, size: int, asked: int
) -> dict[float, tuple[Accuracy, float]]:
    """Accuracy, and different labels among four examples, by diversity."""
    log, questions = parts_of(stream, size, asked, seed=2)
    store, selector = _opened(work / "diversity.sqlite3", embedder)
    log_of(store, embedder.fingerprint, log, list(map(str, log.meanings)), [None] * len(log.texts))
    found = {}
    for share in DIVERSITIES:
        wanted = Wanted("", 4, diversity=share)
        kinds = [
            len({example.answer for example in selector.select(replace(wanted, question=text))})
            for text in questions.texts[:200]
        ]
        found[share] = (accuracy(selector, store.examples, questions, wanted), float(np.mean(kinds)))
    store.close()
    return found


def cost(work: Path, size: int) -> dict[str, float]:
    """Milliseconds: the first selection, later ones at the median, and one after an example was added."""
    embedder = BagOfWords(384)
    draw = np.random.default_rng(0)
    store, selector = _opened(work / f"cost-{size}.sqlite3", embedder)
    for start in range(0, size, 500):
        vectors = draw.standard_normal((500, 384)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        store.examples.add(
            [
                EmbeddedExample(
                    Example(f"question {start + n}", "answer " * 20, at=1.0), vectors[n], embedder.fingerprint
                )
                for n in range(500)
            ]
        )
    checked = selector._embedder
    for n in range(60):
        checked.vector_of(f"asked {n}")
    first = _milliseconds(selector, 0)
    later = [_milliseconds(selector, n) for n in range(1, 31)]
    after = []
    for n in range(31, 60):
        vector = checked.vector_of(f"asked {n}")
        added = EmbeddedExample(Example(f"new {n}", "a", at=1.0), vector, embedder.fingerprint)
        store.examples.add([added])
        after.append(_milliseconds(selector, n))
    held = next(iter(selector._held))._rows.nbytes / 1e6
    store.close()
    return {"first": first, "later": float(np.median(later)), "after": float(np.median(after)), "MB": held}


def _milliseconds(selector: Selector, n: int) -> float:
    started = time.perf_counter()
    assert len(selector.select(Wanted(f"asked {n}", 4))) == 4
    return 1000 * (time.perf_counter() - started)


def _opened(file: Path, embedder: Embedder) -> tuple[Store, Selector]:
    file.unlink(missing_ok=True)
    store = Store(f"sqlite:///{file}")
    return store, Selector(store.examples, CheckedEmbedder(embedder, store.meta.set_default))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*columns, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def _shares(found: Accuracy) -> tuple[str, str, str]:
    return f"{found.nearest:.1%}", f"{found.majority:.1%}", f"{found.chance:.1%}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="directory with streams/*.jsonl")
    parser.add_argument("--stream", default="banking77", help="name of a stream")
    parser.add_argument("--embedder", default="", help="'words' for a bag of words; default: that of Ibidem")
    parser.add_argument("--kept", type=Path, help="directory for vectors, to use them again")
    parser.add_argument("--quick", action="store_true", help="small logs, no costs")
    given = parser.parse_args()
    embedder = BagOfWords() if given.embedder == "words" else resolve_embedder(None)
    streams = load_streams(given.data, embedder, given.kept)
    stream = next((one for one in streams if one.name == given.stream), None)
    if stream is None:
        raise SystemExit(f"no streams/{given.stream}.jsonl in {given.data}")
    sizes, asked = (SIZES[:3], 100) if given.quick else (SIZES, ASKED)
    names = ("nearest", "majority of 4", "random")
    out = Console(width=100)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        rows = [
            (f"{size:,}", *_shares(one)) for size, one in curve(stream, embedder, work, sizes, asked).items()
        ]
        out.print(_table(f"{stream.name}: right answers by the size of the log", ("examples", *names), rows))
        size = sizes[-1] // 4
        bonuses = feedback(stream, embedder, work, size, asked)
        rows = [(f"{bonus:g}", *_shares(one)) for bonus, one in bonuses.items()]
        title = f"{size:,} examples, {WRONG:.0%} wrong, {JUDGED:.0%} judged: right answers"
        out.print(_table(title, ("good counts nearer by", *names), rows))
        mixed = diversity(stream, embedder, work, size, asked)
        rows = [(f"{share:g}", *_shares(one)[:2], f"{kinds:.2f}") for share, (one, kinds) in mixed.items()]
        out.print(_table(f"{size:,} examples: diversity", ("diversity", *names[:2], "labels among 4"), rows))
        if not given.quick:
            costs = {count: cost(work, count) for count in COSTS}
            rows = [
                (f"{count:,}", *(f"{one[name]:.1f}" for name in ("first", "later", "after", "MB")))
                for count, one in costs.items()
            ]
            columns = ("examples", "first (ms)", "later (ms)", "after one more (ms)", "held (MB)")
            out.print(_table("cost of a selection, the question's vector known", columns, rows))


if __name__ == "__main__":
    main()
