"""Train the models step by step: `python -m ibidem_lab.models STEP --data DIR`.

Each step writes into the work folder; one that was killed goes on from its last checkpoint, one that is
done is not done again.
"""

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ibidem.embedding import resolve_embedder
from ibidem.embedding.base import CheckedEmbedder
from ibidem.embedding.model_files import MODEL_FILE, TOKENIZER_FILE, shipped_folder
from ibidem.matching.pair_model import PairModel
from ibidem.matching.scorers import Thresholds
from ibidem_lab.fitting.thresholds import Sample, thresholds
from ibidem_lab.fitting.thresholds import measure as measure_thresholds
from ibidem_lab.minilm import WEIGHTS_FILE, export_model
from ibidem_lab.models import base, export, teacher, verifier
from ibidem_lab.models.calibration import (
    RememberedLogits,
    calibrated_on_streams,
    compared_pairs,
    deciles,
)
from ibidem_lab.models.export import OnStreams, Scores
from ibidem_lab.models.groups import DATA, Pair, load_groups, pair_hash
from ibidem_lab.models.measure import (
    Measured,
    Sets,
    development_sets,
    embedded_cosines,
    measure,
    table,
    test_sets,
)
from ibidem_lab.models.network import CrossEncoder, TextEncoder, Tokens, cosines, device, scores, vectors
from ibidem_lab.models.pairs import (
    LABELLED,
    NEIGHBOURS,
    Encode,
    Workloads,
    groups_as_stream,
    labelled_pairs,
    near_questions,
    unlabelled_pairs,
)
from ibidem_lab.models.readings import Readings
from ibidem_lab.models.teacher import TeacherScores
from ibidem_lab.models.training import Schedule, load
from ibidem_lab.replay import Row, vectors_of

TEACHER_SCORES = DATA / "teacher_scores.npz"
UNLABELLED = 65_536  # pairs that the teacher labels
SCORED_AT_ONCE = 8_192  # of them; what has been scored is kept if the step is killed
FURTHER = (105_000, 105_000)  # examples of each round of a model that goes on from the one that ships
TRAINED_SHARE = 2 / 3  # of the weights after these rounds, in their mean with those before
READ_TIMES = 3  # how often a pair that was read is seen in a round: they are few
SCORED_ONE_IN = 10  # of a round, as many as one in so many are pairs that the teacher has scored
READ_OF_SAME = 0.99  # of natural pairs with one answer, the share that the verifier reads
VALIDATED = 150  # pairs of each set that are looked at, eight times, while a model is trained
REPLAYED = 2_000  # questions of each half of a stream, to calibrate by and to measure thresholds on
CHECKED = 2_000  # the next ones of each stream, on which these thresholds are only looked at
LEVELS = (0.005, 0.02, 0.05)  # shares of wrong hits whose thresholds are looked at
CALIBRATED = 500  # pairs of each set by which digits and calibration of the model that ships are chosen


class Steps:
    """The trainings in order. Their results lie in the folder `work`.

    Args:
        data: The folder of workloads.
        work: Where base models and checkpoints are kept.
        share: Of the number of examples that the models that ship have seen.
        seeds: Of the teachers.
        public: Folder of further pairs to measure on, one `.jsonl` for each set.
    """

    def __init__(
        self, data: Path, work: Path, share: float, seeds: Sequence[int], public: Path | None
    ) -> None:
        self.workloads, self.work, self.share, self.seeds = Workloads(data), work, share, seeds
        self.groups = load_groups()
        self.development = development_sets(self.groups, self.workloads)
        self.test = test_sets(self.workloads, public)
        self.sets = self.development | self.test

    def teacher(self) -> None:
        """Train the teacher, once for each seed, on all labels."""
        tokens, pairs = Tokens(self._mpnet), labelled_pairs(self.groups, self.workloads)
        say(f"{len(pairs):,} labelled pairs, {np.mean([pair.same for pair in pairs]):.0%} the same")
        for seed in self.seeds:
            torch.manual_seed(seed)
            model = CrossEncoder(self._mpnet)
            schedule = self._schedule(64_000, 32, 4e-5, seed)
            teacher.train_cross_encoder(
                model,
                tokens,
                pairs,
                schedule,
                self._checkpoint(f"teacher-{seed}"),
                say,
                self._validate(tokens),
            )

    def label(self) -> None:
        """Let the teacher score the unlabelled pairs, some thousands at a time."""
        tokens, teachers = self._teachers()
        pairs = self._unlabelled()[: int(UNLABELLED * self.share)]
        self._scored(TEACHER_SCORES, tokens, teachers, pairs)

    def verifier(self) -> None:
        """Distil the verifier from the labels and from what the teachers say of other pairs."""
        tokens, (first, *_) = self._teachers()
        labelled = labelled_pairs(self.groups, self.workloads)
        scored = TeacherScores.read(TEACHER_SCORES).label(self._unlabelled())
        say(f"{len(labelled):,} labelled pairs, {len(scored):,} that the teacher has scored")
        student = verifier.start_from(first, self._mpnet)
        schedule = self._schedule(222_000, 64, 8e-5, 3)
        verifier.distil(
            student,
            first,
            tokens,
            teacher.smoothed(labelled) + scored,
            schedule,
            self._checkpoint("verifier"),
            say,
            self._validate(tokens),
        )

    def further(self) -> None:
        """Go on with the verifier that ships, from its int8 weights, on labels that it is not certain of.

        Before each round the model reads all labels anew. The rate falls in the last one only. What comes out
        is the mean of the weights before and after, which forgets less.
        """
        shipped, tokens = shipped_folder("verifier"), Tokens(self._mpnet)
        if shipped is None:
            raise base.BaseUnavailable("ibidem-models is not installed: pip install ibidem-models")
        student = verifier.from_graph(shipped / MODEL_FILE, self._mpnet).to(device())
        before = {name: value.clone() for name, value in student.state_dict().items()}
        near = near_questions(self.groups, self.workloads, self._encode())
        read = Readings.load().label(near) * READ_TIMES
        scored = TeacherScores.read(TEACHER_SCORES).label(near)
        for number, examples in enumerate(FURTHER):
            pairs = self._uncertain(student, tokens, seed=number) + read
            pairs += scored[: len(pairs) // SCORED_ONE_IN]
            say(f"{len(pairs):,} pairs")
            last = number == len(FURTHER) - 1
            teacher.train_cross_encoder(
                student,
                tokens,
                pairs,
                replace(self._schedule(examples, 64, 4e-5, 3 + number), cooldown=0.5 if last else 0.0),
                self._checkpoint(f"round-{number}"),
                say,
                self._validate(tokens),
            )
        averaged = verifier.averaged(before, student.state_dict(), TRAINED_SHARE)
        torch.save({"model": averaged}, self._checkpoint("verifier"))

    def _uncertain(self, student: CrossEncoder, tokens: Tokens, seed: int) -> list[Pair]:
        """The labelled pairs that a student is not certain of, and some of the others."""
        labelled = labelled_pairs(self.groups, self.workloads, seed)
        own = self._scored(self.work / f"own_scores-{seed}.npz", tokens, [student], labelled)
        return verifier.worth_reading(labelled, own.logits(labelled), seed)

    @staticmethod
    def _scored(
        kept: Path, tokens: Tokens, models: Sequence[CrossEncoder], pairs: Sequence[Pair]
    ) -> TeacherScores:
        """What models say of pairs, some thousands at a time; what is kept in the file is not asked again."""
        of = teacher.teacher_name(models)
        scored = TeacherScores.none(of)
        if kept.exists():
            before = TeacherScores.read(kept)
            scored = before if before.of == of else scored
        lacking = list({pair_hash(pair): pair for pair in scored.lacking(pairs)}.values())
        say(f"{len(lacking):,} pairs to score, {len(scored):,} have been")
        for start in range(0, len(lacking), SCORED_AT_ONCE):
            block = lacking[start : start + SCORED_AT_ONCE]
            scored = scored.and_of(block, teacher.average_scores(models, tokens, block))
            scored.write(kept)
        return scored

    def encoder(self) -> None:
        """Write the encoder as it ships: all-MiniLM-L6-v2 in int8."""
        source = base.minilm()
        export_model(source / WEIGHTS_FILE, source / TOKENIZER_FILE, self.work / "export" / "encoder")

    def export(self) -> None:
        """Write the verifier as it ships, into `export` in the work folder, and say what it scores so.

        The cosines are those of the default embedder.
        """
        embedder = CheckedEmbedder(resolve_embedder(None), lambda _, value: value)
        chosen_by = some_of(self.development, CALIBRATED)
        sets = chosen_by | self.test
        near = {name: embedded_cosines(embedder, pairs) for name, pairs in sets.items()}
        student = CrossEncoder(self._mpnet, verifier.LAYERS)
        load(student, self._checkpoint("verifier"))
        pair_model = export.export_verifier(
            student,
            self._mpnet,
            self.work / "export" / "verifier",
            chosen_by,
            lambda made, logits: self._measured_on_streams(made, chosen_by, logits, near, embedder),
            say,
        )
        logits = {name: export.pair_logits(pair_model, pairs) for name, pairs in sets.items()}
        told = {name: pair_model.calibration.probabilities(logits[name], near[name]) for name in sets}
        say(f"{pair_model.calibration}, {pair_model.thresholds}")
        say(table({"cosine": measure(sets, near), "as they ship": measure(sets, told)}))
        for name, pairs in self.test.items():
            same = np.array([pair.same == 1 for pair in pairs])
            say(
                f"{name}: pairs, mean probability and share of the same by tenth: {deciles(told[name], same)}"
            )

    def _measured_on_streams(
        self, made: PairModel, sets: Sets, logits: Scores, near: Scores, embedder: CheckedEmbedder
    ) -> OnStreams:
        """Calibrate, and measure thresholds, by replaying streams as a cache with this model decides."""
        halves, later = self._streams(embedder)
        pairs = {name: compared_pairs(known, logits[name], near[name]) for name, known in sets.items()}
        reader, least = RememberedLogits(made), self._least_cosine(sets, near)
        calibration, measured = calibrated_on_streams(reader, pairs, halves, least)
        for name, outcomes in measured.items():
            for at, one in outcomes.items():
                say(f"{name} {at}: hits {one.hit_ratio}, wrong per hit {one.wrong_per_hit}")
        found = Thresholds(tuple(thresholds(measured)))
        reader.calibration = calibration
        for name, sample in later.items():
            told = measure_thresholds(reader, [sample], [found.at(level) for level in LEVELS], least)
            for at, one in told.items():
                say(f"{name}, later, {at:.3f}: hits {one.hit_ratio}, wrong per hit {one.wrong_per_hit}")
        return OnStreams(calibration, found.table, least)

    def _streams(self, embedder: CheckedEmbedder) -> tuple[list[dict[str, Sample]], dict[str, Sample]]:
        """Two halves of streams of questions, and what comes later in those that are longer."""

        def sample(rows: Sequence[Row]) -> Sample:
            return rows, vectors_of(rows, embedder)

        rows = {name: self.workloads.stream(name) for name in NEIGHBOURS}
        groups = [group for group in self.groups if group.held_out]
        halves = [
            {name: sample(found[half * REPLAYED : (half + 1) * REPLAYED]) for name, found in rows.items()}
            | {"groups": sample(groups_as_stream(groups[half::2]))}
            for half in (0, 1)
        ]
        later = {name: sample(found[2 * REPLAYED : 2 * REPLAYED + CHECKED]) for name, found in rows.items()}
        return halves, later

    def _least_cosine(self, sets: Sets, near: Mapping[str, NDArray[np.float32]]) -> float:
        """The cosine above which `READ_OF_SAME` of the natural pairs with one answer are."""
        same = [near[name][[pair.same == 1 for pair in sets[name]]] for name in LABELLED]
        return round(float(np.nanquantile(np.concatenate(same), 1 - READ_OF_SAME)), 2)

    def table(self) -> None:
        """Print what the base models and all that has been trained score on the held-out sets."""
        rows = {
            "cosine, all-MiniLM-L6-v2": self._by_cosine(TextEncoder(base.minilm()), base.minilm()),
            "cosine, all-mpnet-base-v2": self._by_cosine(TextEncoder(self._mpnet), self._mpnet),
        }
        for path in sorted(self.work.glob("*.pt")):
            cross = CrossEncoder(self._mpnet, None if path.stem.startswith("teacher") else verifier.LAYERS)
            load(cross, path)
            cross.to(device())
            rows[path.stem] = self._measured(partial(scores, cross, Tokens(self._mpnet)))
        say(table(rows))

    @cached_property
    def _mpnet(self) -> Path:
        return base.mpnet(self.work)

    def _checkpoint(self, name: str) -> Path:
        return self.work / f"{name}.pt"

    def _schedule(self, examples: int, batch: int, rate: float, seed: int) -> Schedule:
        return Schedule(int(examples * self.share), batch, rate, seed)

    def _unlabelled(self) -> list[Pair]:
        """The pairs without a label. To find them takes minutes, so they are kept in the work folder."""
        kept, of = self.work / "unlabelled.json", self._sources()
        if kept.exists():
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["of"] == of:
                return [Pair(a, b, 0.5) for a, b in found["pairs"]]
        pairs = unlabelled_pairs(self.groups, self.workloads, self._encode())[:UNLABELLED]
        kept.write_text(
            json.dumps({"of": of, "pairs": [(pair.a, pair.b) for pair in pairs]}), encoding="utf-8"
        )
        return pairs

    def _encode(self) -> Encode:
        model, tokens = TextEncoder(base.minilm()).to(device()), Tokens(base.minilm())
        return partial(vectors, model, tokens)

    def _sources(self) -> str:
        """A digest of all texts that unlabelled pairs are made of."""
        texts = [text for group in self.groups for text in group.texts]
        texts += [text for found in self.workloads.questions().values() for text in found]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()

    def _teachers(self) -> tuple[Tokens, list[CrossEncoder]]:
        models = [CrossEncoder(self._mpnet) for _ in self.seeds]
        for model, seed in zip(models, self.seeds, strict=True):
            load(model, self._checkpoint(f"teacher-{seed}"))
            model.to(device())
        return Tokens(self._mpnet), models

    def _by_cosine(self, model: TextEncoder, folder: Path) -> dict[str, Measured]:
        tokens = Tokens(folder)
        model.to(device())
        return self._measured(partial(cosines, model, tokens))

    def _measured(self, score: Callable[[Sequence[Pair]], NDArray[np.float32]]) -> dict[str, Measured]:
        return measure(self.sets, {name: score(pairs) for name, pairs in self.sets.items()})

    def _validate(self, tokens: Tokens) -> Callable[[CrossEncoder], str]:
        """AUC by set on some of the pairs to choose by."""
        sets = some_of(self.development, VALIDATED)

        def told(model: CrossEncoder) -> str:
            found = measure(sets, {name: scores(model, tokens, pairs) for name, pairs in sets.items()})
            return json.dumps({name: round(one.auc, 4) for name, one in found.items()})

        return told


def some_of(sets: Sets, most: int) -> dict[str, list[Pair]]:
    """At most so many pairs of each set, at random; the same at each call."""
    rng = random.Random(0)  # noqa: S311
    return {name: rng.sample(pairs, min(len(pairs), most)) for name, pairs in sets.items()}


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(prog="python -m ibidem_lab.models", description=__doc__)
    steps = ("teacher", "label", "verifier", "further", "encoder", "export", "table")
    parser.add_argument("step", choices=steps)
    parser.add_argument("--data", type=Path, required=True, help="folder of the workloads")
    parser.add_argument(
        "--work", type=Path, default=Path(".models"), help="folder for base models and checkpoints"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the examples; less to try things, more for better models"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[3], help="of the teachers")
    parser.add_argument("--public", type=Path, help="folder of further pairs to measure on, a .jsonl a set")
    given = parser.parse_args()
    if not (given.data / "keep_out.txt").is_file():
        sys.exit(f"{given.data} holds no keep_out.txt: --data must name the folder of the workloads")
    getattr(Steps(given.data, given.work, given.share, given.seeds, given.public), given.step)()


if __name__ == "__main__":
    main()
