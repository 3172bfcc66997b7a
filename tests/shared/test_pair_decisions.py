"""`cache.decide` and `ibidem decide`: what a cache would do with pairs of questions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ibidem import Answer, InvalidInput, Request
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app
from ibidem.matching.decisions import PairDecision
from ibidem.matching.scorers import Candidate
from ibidem_lab.decisions import read_labelled_pairs, report_decisions
from tests.embedders import BagOfWords, Broken
from tests.helpers import rounds

SUITES = Path(__file__).parent.parent / "benchmarks" / "suites"
OpenCache = Callable[..., SemanticCache]


def suite_pairs(count: int) -> list[tuple[str, str]]:
    """Every so many pairs of the two suites: rewordings, and near misses of all kinds."""
    rows = [
        row for name in ("must_hit", "must_miss") for row in json.loads((SUITES / f"{name}.json").read_text())
    ]
    return [(row["a"], row["b"]) for row in rows[:: len(rows) // count]]


class Overlap:
    """A verifier of one's own: the share of the words that both questions have."""

    name = "overlap-1"

    def verify(self, question: str, candidates: Sequence[Candidate]) -> list[float]:
        return [
            len(set(question.split()) & set((one.entry.question or "").split())) / len(set(question.split()))
            for one in candidates
        ]


def test_models_are_loaded_before_the_first_lookup(open_cache: OpenCache) -> None:
    """All of them, and nothing is stored or logged by it."""
    cache = open_cache(embedder="all-MiniLM-L6-v2", min_similarity=None)
    cache.load_models()
    models = (cache._runtime.embedder._embedder._model, cache._runtime.semantic_index.scorer._model)

    assert all(model._loaded is not None for model in models)
    assert (cache.stats().entries, cache.recent(), cache.stats().faults) == (0, [], {})
    with pytest.raises(RuntimeError, match="down"):
        open_cache(embedder=Broken()).load_models()


@pytest.mark.parametrize(
    "options", [{}, {"max_error_rate": 0.03}, {"verifier": Overlap(), "min_probability": 0.6}]
)
def test_a_decision_is_what_a_lookup_does(open_cache: OpenCache, options: dict[str, object]) -> None:
    """With the same score and reason, for pairs of all kinds and each rule; and it leaves nothing behind."""
    cache = open_cache(**{"embedder": "all-MiniLM-L6-v2", **options})
    pairs = [
        *suite_pairs(rounds(30, 120)),
        ("What is the capital of France?", " what is  the capital of France?"),
        ("What is the capital of France?", "Was ist die Hauptstadt von Frankreich?"),
        ("long " * 400 + "question", "long " * 399 + "question"),
        ("What is the capital of France?", "什么是法国的首都"),
        ("How do I bake bread?", "How do I bake\u200b bread?"),
    ]
    decided = cache.decide(pairs)
    assert cache.stats().entries == 0
    assert cache.recent() == []

    for number, ((stored, asked), decision) in enumerate(zip(pairs, decided, strict=True)):
        namespace = f"pair-{number}"
        cache.store(Request(stored, namespace=namespace), Answer("an answer"))
        found = cache.lookup(Request(asked, namespace=namespace))
        assert decision.served == bool(found), decision
        if found:
            assert decision.score == pytest.approx(found.score, abs=1e-3)
        elif decision.reason.startswith(("guard:", "question_")):
            assert decision.reason == found.reason
    assert 5 < sum(one.served for one in decided) < len(pairs) - 5


def test_a_private_question_is_not_compared(open_cache: OpenCache) -> None:
    """As in a lookup: what redact would change is not embedded."""
    cache = open_cache(redact=lambda text: text.replace("Ada", "***"))
    (found,) = cache.decide([("what does Ada owe us", "what does Ada owe us now")])

    assert (found.served, found.reason) == (False, "question_private")
    assert math.isnan(found.score)


def test_with_audits_the_budget_sets_the_threshold(open_cache: OpenCache) -> None:
    """While nothing is proved, nothing but the same request is served."""
    cache = open_cache(audit_rate=0.1)
    same, near = cache.decide(
        [("how do I bake bread", "how do I bake bread"), ("bake a bread", "bake bread")]
    )

    assert same.served
    assert not near.served
    assert near.reason == "below_threshold"


@pytest.mark.parametrize("pair", ["ab", ("one",), ("one", "two", "three"), ("", "two"), (1, "two")])
def test_what_is_no_pair_is_said(open_cache: OpenCache, pair: object) -> None:
    """Before anything is embedded."""
    embedder = BagOfWords()
    with pytest.raises(InvalidInput):
        open_cache(embedder=embedder).decide([pair])  # type: ignore[list-item]
    assert embedder.calls <= 1  # to try it, when the cache is opened


def decision(score: float, served: bool, reason: str = "") -> PairDecision:
    return PairDecision("stored", "asked", served, score, 0.9, reason)


def test_the_report_counts_by_label() -> None:
    """Guards are told apart by whether they refuse rightly; no threshold serves what they refuse."""
    decisions = [
        decision(0.99, True),
        decision(0.98, True),
        decision(0.97, True),
        decision(0.99, False, "guard:numbers"),
        decision(0.99, False, "guard:numbers"),
        decision(0.90, False, "below_threshold"),
        decision(math.nan, False, "question_too_long"),
        decision(0.95, True),
    ]
    found = report_decisions(decisions, [True, True, False, True, False, True, False, None], 0.1)

    assert (found.pairs, found.served, found.labelled, found.same) == (8, 4, 7, 4)
    assert found.reasons["guard:numbers"] == (2, 1, 1)
    assert list(found.reasons) == ["guard:numbers", "below_threshold", "question_too_long"]
    assert found.served_same.value == pytest.approx(2 / 4)
    assert found.served_different.value == pytest.approx(1 / 3)
    assert found.wrong_per_hit.value == pytest.approx(1 / 3)
    assert found.threshold == pytest.approx(0.98)
    assert found.served_at is not None
    assert found.served_at.value == pytest.approx(2 / 4)
    # Of the twelve pairs of one same and one different: 0.99 beats 0.97 and NaN, ties with 0.99, and so on.
    assert found.auc == pytest.approx((2.5 + 2 + 2.5 + 1) / 12)


def test_without_a_threshold_that_holds_there_is_none() -> None:
    """All that would be served is wrong."""
    found = report_decisions([decision(0.9, True), decision(0.8, True)], [False, False], 0.02)

    assert found.threshold is found.served_at is None
    assert math.isnan(found.auc)


LINES = '{"a": "how do I bake bread", "b": "how do I bake a bread", "same": true, "kind": "food"}\n'


@pytest.mark.parametrize(
    ("name", "text", "label", "extra"),
    [
        ("p.jsonl", LINES, True, {"kind": "food"}),
        ("p.jsonl", "\ufeff\n" + LINES.replace("true", "1"), True, {"kind": "food"}),
        ("p.jsonl", '{"stored": "one", "asked": "two", "right": false}', False, {}),
        ("p.jsonl", '{"a": "one", "b": "two", "same": null}', None, {}),
        ("p.csv", "a,b,same\none,two,0\n", False, {}),
        ("p.CSV", 'a,b,same,kind\r\n"one, or\nthree",two,Yes,x\r\n', True, {"kind": "x"}),
        ("p.csv", "a,b\none,two\n", None, {}),
    ],
)
def test_pairs_are_read_from_lines_and_tables(
    tmp_path: Path, name: str, text: str, label: bool | None, extra: dict[str, str]
) -> None:
    """JSON lines, and what a spreadsheet writes."""
    (tmp_path / name).write_bytes(text.encode())
    (pair,) = read_labelled_pairs(tmp_path / name)

    assert (pair.same, pair.extra) == (label, extra)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.jsonl", "", "holds no pairs"),
        ("p.jsonl", LINES + "{", "line 2: invalid JSON"),
        ("p.jsonl", LINES + '["a", "b"]', "line 2: must be"),
        ("p.jsonl", '{"a": "one"}', "line 1: must be"),
        ("p.jsonl", '{"a": "one", "b": " "}', "line 1: must be"),
        ("p.jsonl", '{"a": "one", "b": "two", "same": "perhaps"}', "'perhaps'"),
        ("p.csv", "question,answer\none,two\n", "line 2: must be"),
        ("p.csv", "a,b\none\n", "line 2: must be"),
        ("none.jsonl", None, "cannot read"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    """By the command, with code 2 and no traceback."""
    if text is not None:
        (tmp_path / name).write_text(text)
    result = CliRunner().invoke(app, ["decide", str(tmp_path / name)])

    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_the_command_needs_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one the defaults decide, and none is left behind."""
    monkeypatch.setenv("IBIDEM_PATH", str(tmp_path / "nowhere"))
    file = tmp_path / "pairs.jsonl"
    rows = [{"a": a, "b": b, "same": n < 20, "number": n} for n, (a, b) in enumerate(suite_pairs(40))]
    file.write_text("\n".join(map(json.dumps, rows)))
    table = CliRunner().invoke(app, ["decide", str(file)])
    lines = CliRunner().invoke(app, ["decide", str(file), "--json"])

    assert table.exit_code == 0, table.output
    assert "served" in table.output
    assert "wrong per hit" in table.output
    found = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [one["number"] for one in found] == [row["number"] for row in rows]
    assert {"a", "b", "same", "served", "score", "similarity", "reason"} <= found[0].keys()
    assert not (tmp_path / "nowhere").exists()


def test_the_command_asks_the_cache_that_is_named(tmp_path: Path, open_cache: OpenCache) -> None:
    """And none is made where none is."""
    file = tmp_path / "pairs.jsonl"
    file.write_text(LINES)
    result = CliRunner().invoke(app, ["decide", str(file), "--path", str(tmp_path / "nowhere")])

    assert result.exit_code == 2
    assert "no cache" in result.output
    assert not (tmp_path / "nowhere").exists()
