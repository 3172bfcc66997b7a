"""Training and measuring, with networks that take a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from ibidem_lab.models import network, teacher, training, verifier  # noqa: E402
from ibidem_lab.models.groups import Pair, pair_hash  # noqa: E402
from ibidem_lab.models.measure import measure, table  # noqa: E402
from ibidem_lab.models.network import CrossEncoder, TextEncoder, Tokens  # noqa: E402
from ibidem_lab.models.readings import Readings  # noqa: E402
from ibidem_lab.models.training import Schedule  # noqa: E402
from ibidem_lab.models.verifier_graph import Digits, build_verifier  # noqa: E402

COLOURS = ("red", "green", "blue", "black", "white", "brown", "pink", "grey")
PAIRS = [
    Pair(f"a {one} car", f"my {other} car {end}", float(end == "please"))
    for one in COLOURS
    for other in COLOURS
    for end in ("please", "never")
]
SCHEDULE = Schedule(examples=3_200, batch=32, rate=3e-3, seed=3, warmup=6)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # beside other tests, two threads wait for each other


def trained(
    tiny: Path, checkpoint: Path, report: Callable[[str], None] = print, schedule: Schedule = SCHEDULE
) -> tuple[CrossEncoder, Tokens]:
    torch.manual_seed(schedule.seed)
    model, tokens = CrossEncoder(tiny), Tokens(tiny)
    teacher.train_cross_encoder(model, tokens, PAIRS, schedule, checkpoint, report)
    return model, tokens


def test_a_cross_encoder_learns_what_it_is_told(tiny: Path, tmp_path: Path) -> None:
    said: list[str] = []
    model, tokens = trained(tiny, tmp_path / "one.pt", said.append)
    found = network.scores(model, tokens, PAIRS)
    same = np.array([pair.same == 1 for pair in PAIRS])
    assert found[same].min() > found[~same].max()
    assert len(said) in (8, 9)
    assert "examples a second" in said[-1]

    again, _ = trained(tiny, tmp_path / "one.pt", said.append)
    assert len(said) in (8, 9), "what is done is not done again"
    assert np.array_equal(network.scores(again, tokens, PAIRS), found)


def test_a_killed_training_goes_on(tiny: Path, tmp_path: Path) -> None:
    """With the steps that are left, and to the same end as one that ran through."""

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("step 48 "):
            raise Killed

    often = replace(SCHEDULE, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        trained(tiny, tmp_path / "one.pt", kill, often)
    assert torch.load(tmp_path / "one.pt", weights_only=True)["step"] == 47
    said: list[str] = []
    model, tokens = trained(tiny, tmp_path / "one.pt", said.append, often)
    assert said[0].startswith("step 48 ")
    found = network.scores(model, tokens, PAIRS)
    same = np.array([pair.same == 1 for pair in PAIRS])
    assert found[same].min() > found[~same].max()
    assert {path.name for path in tmp_path.iterdir()} == {"one.pt", "one.stable"}


def test_a_longer_training_goes_on_before_the_cooldown(tiny: Path, tmp_path: Path) -> None:
    """And sees what it would have seen from the start."""
    shorter = replace(SCHEDULE, examples=1_600)
    said: list[str] = []
    trained(tiny, tmp_path / "one.pt", print, shorter)
    model, tokens = trained(tiny, tmp_path / "one.pt", said.append)
    assert said[0].startswith("step 48 of 100"), "37 are done"
    whole, _ = trained(tiny, tmp_path / "other.pt")
    found, expected = (network.scores(one, tokens, PAIRS) for one in (model, whole))
    same = np.array([pair.same == 1 for pair in PAIRS])
    assert found[same].min() > found[~same].max()
    assert np.corrcoef(found, expected)[0, 1] > 0.99

    trained(tiny, tmp_path / "one.pt", said.append, shorter)
    assert said[-1].startswith("step 50 of 50"), "what is kept is beyond its cooldown"


def test_the_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(examples=32_000, warmup=10, cooldown=0.25)
    factors = [schedule.factor(step) for step in range(schedule.steps)]
    assert factors == sorted(factors[:750]) + sorted(factors[750:], reverse=True)
    assert factors[0] < 0.1
    assert set(factors[10:750]) == {1.0}
    assert 0 < factors[-1] < 0.01


def test_a_checkpoint_of_another_training_is_not_used(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, tmp_path / "one.pt")
    said: list[str] = []
    model, tokens = CrossEncoder(tiny), Tokens(tiny)
    other = Schedule(examples=320, batch=32, rate=1e-3, seed=4)
    teacher.train_cross_encoder(model, tokens, PAIRS, other, tmp_path / "one.pt", said.append)
    assert said[-1].startswith("step 10 of 10")


def test_batches_are_of_like_lengths_and_the_same_for_a_seed() -> None:
    lengths = [n % 37 for n in range(1_000)]
    one, other = (training.batches_of(lengths, 10, 5) for _ in range(2))
    first = [next(one) for _ in range(100)]
    assert first == [next(other) for _ in range(100)]
    assert sorted(place for batch in first for place in batch) == list(range(1_000))
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in first]
    assert np.mean(spread) < 3


def test_what_is_beyond_the_window_gets_no_score(tiny: Path) -> None:
    tokens, long = Tokens(tiny), Pair("word " * network.PAIR_WINDOW, "b", 1.0)
    assert np.isnan(network.scores(CrossEncoder(tiny), tokens, [PAIRS[0], long])).tolist() == [False, True]
    assert np.isnan(network.cosines(TextEncoder(tiny), tokens, [PAIRS[0], long])).tolist() == [False, True]
    with pytest.raises(network.TooLong):
        network.vectors(TextEncoder(tiny), tokens, [long.a])


def test_a_score_does_not_depend_on_what_is_scored_beside(tiny: Path) -> None:
    """Padding and batches change nothing but the last bits."""
    model, tokens = CrossEncoder(tiny), Tokens(tiny)
    longer = [Pair(f"{pair.a} and a much longer text behind it", pair.b, pair.same) for pair in PAIRS]
    together = network.scores(model, tokens, [*PAIRS[:9], *longer[:9]], size=10_000)
    alone = [network.scores(model, tokens, [pair])[0] for pair in PAIRS[:9]]
    assert together[:9] == pytest.approx(alone, abs=0.02)  # bf16


def test_scores_are_found_by_pair_in_either_order(tmp_path: Path) -> None:
    logits = np.linspace(-7, 7, len(PAIRS), dtype=np.float32)
    logits[5] = np.nan
    none = teacher.TeacherScores.none("a teacher")
    assert none.label(PAIRS) == []
    half = len(PAIRS) // 2
    one, other = (PAIRS[:half], logits[:half]), (PAIRS[half:], logits[half:])
    none.and_of(*one).and_of(*other).write(tmp_path / "scores.npz")
    read = teacher.TeacherScores.read(tmp_path / "scores.npz")
    turned = [Pair(pair.b, pair.a, 0.5) for pair in PAIRS]
    found = read.label([*turned, Pair("never", "seen", 0.5)])
    assert len(read) == len(found) == len(PAIRS) - 1
    assert read.of == "a teacher"
    assert read.lacking([*turned, Pair("never", "seen", 0.5)]) == [turned[5], Pair("never", "seen", 0.5)]
    expected = np.delete(1 / (1 + np.exp(-logits)), 5)
    assert [pair.same for pair in found] == pytest.approx(expected.tolist(), abs=2e-3)
    assert [(pair.b, pair.a) for pair in found] == [(p.a, p.b) for i, p in enumerate(PAIRS) if i != 5]


def test_a_student_begins_as_layers_of_its_teacher(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers of it are the teacher; with fewer it learns to score as he does."""
    monkeypatch.setattr(verifier, "LAYERS", (0, 1, 2, 3))
    own, tokens = trained(tiny, tmp_path / "teacher.pt")
    expected = network.scores(own, tokens, PAIRS)
    assert np.array_equal(network.scores(verifier.start_from(own, tiny), tokens, PAIRS), expected)

    monkeypatch.setattr(verifier, "LAYERS", (0, 3))
    student = verifier.start_from(own, tiny)
    soft = [Pair(p.a, p.b, float(1 / (1 + np.exp(-z)))) for p, z in zip(PAIRS, expected, strict=True)]
    verifier.distil(student, own, tokens, soft, SCHEDULE, tmp_path / "student.pt", print)
    found = network.scores(student, tokens, PAIRS)
    same = np.array([pair.same == 1 for pair in PAIRS])
    assert found[same].min() > found[~same].max()


def test_a_student_goes_on_from_the_graph_that_ships(model: CrossEncoder, tiny: Path, tmp_path: Path) -> None:
    """It says what the graph says; rounding to 8 bits is all that was lost."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    graph = build_verifier(weights, model.body.config.num_attention_heads, Digits(1, 1, 1, 1))
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    student = verifier.from_graph(tmp_path / "model.onnx", tiny, range(4))
    tokens = Tokens(tiny)
    own, shipped = (network.scores(one, tokens, PAIRS) for one in (model, student))
    assert np.corrcoef(own, shipped)[0, 1] > 0.99


def test_what_a_model_is_certain_of_is_seldom_seen_again() -> None:
    pairs = [Pair(f"{number}", "asked", float(number % 2)) for number in range(4_000)]
    right = np.array([6.0 if pair.same else -6.0 for pair in pairs], np.float32)
    seen = verifier.worth_reading(pairs, right, seed=3)
    assert len(seen) == pytest.approx(len(pairs) / verifier.SEEN_AGAIN, rel=0.15)
    for unsure in (-right, right / 6, np.full_like(right, np.nan)):
        assert verifier.worth_reading(pairs, unsure, seed=3) == pairs


def test_readings_are_kept_without_texts(tmp_path: Path) -> None:
    read = {pair_hash(pair): pair.same == 1 for pair in PAIRS[::2]}
    path = tmp_path / "readings.txt"
    Readings(read).write(path)
    turned = [Pair(pair.b, pair.a, 0.5) for pair in PAIRS]
    found = Readings.load(path).label(turned)
    assert found == [Pair(pair.b, pair.a, pair.same) for pair in PAIRS[::2]]
    path.write_text(path.read_text() + "beef perhaps\n")
    with pytest.raises(ValueError, match=r"readings\.txt, line 65: no reading: 'beef perhaps'"):
        Readings.load(path)


def test_the_average_is_over_models(tiny: Path) -> None:
    models, tokens = [CrossEncoder(tiny), CrossEncoder(tiny)], Tokens(tiny)
    each = [network.scores(model, tokens, PAIRS) for model in models]
    assert teacher.average_scores(models, tokens, PAIRS) == pytest.approx(np.mean(each, axis=0), abs=1e-5)


def test_a_pair_is_read_in_one_order(tiny: Path) -> None:
    """Whichever of the two is asked, it has the same tokens and so the same score."""
    tokens = Tokens(tiny)
    turned = [Pair(pair.b, pair.a, pair.same) for pair in PAIRS]
    assert tokens.pairs(turned) == tokens.pairs(PAIRS)


def test_weights_are_averaged(tiny: Path) -> None:
    """Two models of one kind; what only counts tokens stays whole numbers."""
    before, after = CrossEncoder(tiny).state_dict(), CrossEncoder(tiny).state_dict()
    found = verifier.averaged(before, after, 0.75)
    name = "head.weight"
    assert torch.allclose(found[name], 0.25 * before[name] + 0.75 * after[name])
    assert {key: value.dtype for key, value in found.items()} == {k: v.dtype for k, v in after.items()}
    CrossEncoder(tiny).load_state_dict(found)


def test_figures_are_those_counted_by_hand() -> None:
    """Thresholds come from the near misses of groups; a pair without a score is served nowhere."""
    rng = np.random.default_rng(0)
    sets = {
        name: [Pair("a", "b", float(n % 3 == 0)) for n in range(900)] for name in ("groups", "code", "nq")
    }
    scores = {
        name: np.array([rng.normal(2 * pair.same) for pair in pairs], dtype=np.float32)
        for name, pairs in sets.items()
    }
    scores["nq"][0] = np.nan
    found = measure(sets, scores)
    misses = np.sort(
        np.concatenate(
            [[s for s, p in zip(scores[n], sets[n], strict=True) if not p.same] for n in ("groups", "code")]
        )
    )
    for place, share in enumerate((0.02, 0.05)):
        at = misses[-1 - round(share * len(misses))]
        same = [s > at for s, p in zip(scores["nq"], sets["nq"], strict=True) if p.same]
        assert found["nq"].served[place][0] == pytest.approx(np.mean(same), abs=0.01)
        both = [found[name].served[place][1] for name in ("groups", "code")]
        assert np.mean(both) == pytest.approx(share, abs=0.002)
    assert "| a score | " in table({"a score": found})
