"""The benchmarks run, on a small workload made here, and what they claim holds at that size."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import ibidem
from ibidem.embedding import resolve_embedder
from ibidem.errors import EmbedderUnavailable
from ibidem.index import search
from ibidem.matching.shipped import learned_scorer
from ibidem_lab.fitting.thresholds import GRID, smoothed, thresholds
from ibidem_lab.replay import Outcome, p_chr_auc
from tests.benchmarks import budget as budget_benchmark
from tests.benchmarks import documents as documents_benchmark
from tests.benchmarks import few_shot, pair_decisions, suites, wheels
from tests.benchmarks import fit as fit_benchmark
from tests.benchmarks.conversations import __main__ as conversations
from tests.benchmarks.field import __main__ as field
from tests.benchmarks.field.encoders import Encoder
from tests.benchmarks.field.page import Page
from tests.benchmarks.field.results import Results
from tests.benchmarks.fit_scorer import fit, judged, scores, with_probability, without
from tests.benchmarks.pairs import NAMES, Pairs, pairs_of
from tests.benchmarks.servers import laws, worker
from tests.benchmarks.streams import Stream
from tests.embedders import BagOfWords
from tests.helpers import ROOT, question
from tests.labelled import CHATTER, DIMENSION, KEYS
from tests.labelled import rows as labelled_rows
from tests.labelled import stream as labelled_stream

NBSP = "\N{NO-BREAK SPACE}"  # before a per cent sign


def _model_missing() -> str:
    """Why the default embedder cannot be used; "" if it can."""
    try:
        resolve_embedder(None)
    except EmbedderUnavailable as error:
        return f"the default embedder is not available: {error}"
    return ""


MISSING = _model_missing()
needs_model = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def run(*arguments: object, program: str = "scopes", fails: bool = False) -> str:
    """What a benchmark prints; why it ends, if it `fails`."""
    command = [sys.executable, "-m", f"tests.benchmarks.{program}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) is not fails, done.stderr[-2000:]
    return done.stderr if fails else done.stdout


@needs_model
def test_conversations() -> None:
    """More hits than with `exact`, and hardly a trap; what is not there is left out, and said."""
    pairs = [pair for pair in conversations.own("held_out") if pair.kind in ("other history", "told fact")]
    alone, exact = (conversations.served(pairs, mode) for mode in ("standalone", "exact"))
    right = sum(hit for hit, pair in zip(alone, pairs, strict=True) if pair.same)
    told = run(
        "--set", "development", "--history", "--fow-cache", "nowhere", program="conversations", fails=True
    )

    assert right >= 4
    assert sum(alone) <= right + 1
    assert not any(exact)
    assert "no conversations of fow-cache below nowhere" in told


@pytest.mark.slow
def test_copying() -> None:
    """Two ways, each compared."""
    told = run("--entries", 300, "--rate", 5, "--before", 1, program="copying")

    assert len(re.findall(r"│ [\d,]+ rows, all the same │ [\d.]+ / [\d.]+ ", told)) == 2


def test_telemetry() -> None:
    """Two rows: without an SDK and with one."""
    told = run("--lookups", 500, program="telemetry")

    assert re.search(r"without an SDK +│ [\d.]+ +│ [\d.]+ +│", told)
    assert re.search(r"with one +│ [\d.]+ +│ [\d.]+ +│", told)


def test_few_shot(tmp_path: Path) -> None:
    """Copying the nearest example gets better as the log grows, and is better than a random one."""
    rows, embedder = labelled_rows(1_200), BagOfWords()
    texts = [row.text for row in rows]
    stream = Stream("labelled", texts, [row.meaning for row in rows], embedder.embed(texts))
    found = few_shot.curve(stream, embedder, tmp_path, (20, 100, 1_000), 200)
    few, more, most = (found[size].nearest for size in (20, 100, 1_000))

    assert few < more < most
    assert most > 0.5
    assert all(one.nearest > one.chance + 0.1 for one in found.values())
    assert found[1_000].majority > found[1_000].chance + 0.1


def test_langchain_streams() -> None:
    """Each case has its times."""
    said = run("--chunks", 20, "--runs", 2, program="langchain_streams")
    cases = re.findall(r"(a?stream), (no cache|stored|replayed) +│ +[\d.]+ +│ +[\d.]+ +│ +[\d.]+", said)
    assert len(set(cases)) == 6, said


@needs_model
def test_workers(tmp_path: Path) -> None:
    """If one of two is killed nothing acknowledged is lost, and the next one finds by meaning at once."""
    things = "coat hat scarf lamp chair desk vase bowl spoon knife".split()
    ways = "sell repair paint rent lend clean pack ship store insure".split()
    kinds, places = "red blue green white black old new small".split(), "Rome Oslo Lima Bern Bonn".split()
    lines = [
        json.dumps({"question": f"do you {way} a {kind} {thing} in {place}"})
        for way, kind, thing, place in itertools.product(ways, kinds, things, places)
    ]
    (tmp_path / "nq_questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    few = "--servers uvicorn --entries 30 --workers 2 --stores 0.5 --kill 0.06 --every 1.2".split()
    said = run(*few, "--data", tmp_path, "--work", tmp_path, program="workers")

    assert "2 workers killed" in said
    assert "the longest without meaning after a first answer: 0.00 s" in said
    assert re.search(r"acknowledged: [1-9]\d*, lost: 0;", said), said
    assert "damage to the database: none" in said


def test_scopes(tmp_path: Path) -> None:
    """The right entry is found for 99 % of the lookups, no answer of another scope is served."""
    lines = [json.dumps({"question": question(n)}) for n in range(300)]
    (tmp_path / "nq_questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = run("--quick", "--embedder", "words", "--data", tmp_path, "--work", tmp_path)
    found = re.search(r"scope code, unfiltered \(Ibidem\) \| [\d.]+% \| ([\d.]+)% \|", said)
    assert found, said
    assert float(found.group(1)) >= 99.0
    assert "other scopes': 0." in said
    assert "| whole SemanticCache.lookup |" in said
    assert "| Chroma's `where` filter |" in said
    assert [file.name for file in tmp_path.iterdir()] == ["nq_questions.jsonl"]


def test_scopes_without_data(tmp_path: Path) -> None:
    """Says which file is missing and is no failure."""
    assert f"skipped: there is no {tmp_path / 'nq_questions.jsonl'}" in run("--data", tmp_path)


def write_streams(folder: Path, **streams: list[tuple[str, str]]) -> None:
    """Labelled questions where the benchmarks look for them."""
    (folder / "streams").mkdir()
    for name, rows in streams.items():
        lines = [json.dumps({"text": text, "meaning": meaning}) for text, meaning in rows]
        (folder / "streams" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


FLIGHTS = [
    ("flights from Boston to Denver on Monday", "to Denver"),
    ("flights from Denver to Boston on Monday", "to Boston"),
    ("Flights from Boston to Denver on Monday?", "to Denver"),
]


@needs_model
def test_decisions(tmp_path: Path) -> None:
    """Every rule has its line: hits and wrong hits are told apart, and what the guards refused."""
    write_streams(tmp_path, flights=FLIGHTS)
    said = run("--data", tmp_path, "--min-probability", "0.93", program="decisions")
    lines = [[cell.strip() for cell in line.split("│")] for line in said.splitlines() if "flights" in line]
    found = {cells[4]: cells[5:8] for cells in lines}

    assert found["cosine 0.90"][0] == "66.7%"
    assert found["cosine 0.90"][1].startswith(f"50.0{NBSP}% (")
    assert found["Ibidem 0.93"] == ["33.3%", f"0.0{NBSP}% (0.0 to 97.5)", f"0.0{NBSP}% (0.0 to 70.8)"]
    assert found["scorer 0.955, held out"][0] == "-"
    assert found["perfect"][0] == "33.3%"
    assert "cosine, hindsight" in found
    assert "guard:roles: refused 1 rightly, 0 wrongly" in said


def test_decisions_without_data(tmp_path: Path) -> None:
    """Says which files are missing."""
    command = [sys.executable, "-m", "tests.benchmarks.decisions", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1
    assert "no streams/*.jsonl in" in done.stderr


def easy(count: int, seed: int) -> list[tuple[str, str]]:
    """Questions of eight meanings, each with five words of its own and two that say nothing."""
    draw = random.Random(seed)
    meanings = [draw.randrange(8) for _ in range(count)]
    return [(" ".join([*CHATTER[5 * n : 5 * n + 5], *draw.sample(KEYS, 2)]), str(n)) for n in meanings]


def lines_of(said: str) -> dict[tuple[str, str], list[str]]:
    """Stream and rule -> the other cells, of what a benchmark tells as it goes."""
    cells = [line.split(" | ") for line in said.splitlines() if line.count(" | ") > 3]
    return {(one[0], one[1]): one[2:] for one in cells}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> BagOfWords:
    """An embedder in the place of the default one."""
    embedder = BagOfWords(DIMENSION)
    for program in (budget_benchmark, fit_benchmark):
        monkeypatch.setattr(program, "resolve_embedder", lambda _: embedder)
    return embedder


@pytest.mark.usefixtures("words")
def test_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every stream has a line, those that break and drift too; of answers that went stale more are wrong."""
    write_streams(tmp_path, banking77=easy(600, 1), clinc150=easy(600, 2), atis=easy(600, 3))
    options = ("--requests", "600", "--seeds", "1", "--max-error-rate", "0.1", "--audit-rate", "0.1")
    monkeypatch.setattr("sys.argv", ["budget", "--data", str(tmp_path), *options])
    budget_benchmark.main()
    found = lines_of(capsys.readouterr().err)

    names = {"banking77", "banking77, broken", "banking77 -> atis", "clinc150", "clinc150, broken", "atis"}
    assert {name for name, _ in found} == names
    assert {rule.rstrip("*") for _, rule in found} == {"Ibidem", "cosine"}
    hits, audits, probes, wrong = found["clinc150", "cosine"][:4]
    assert all(float(cell.rstrip("%")) > 1.0 for cell in (hits, audits, probes))
    assert wrong.startswith("0/")
    assert not found["clinc150, broken", "cosine"][3].startswith("0/")
    assert found["clinc150, broken", "cosine"][7] != ""


@pytest.mark.usefixtures("words")
def test_fit_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One table for all rules; where pairs are right far below the shipped threshold, a fit finds that."""
    write_streams(tmp_path, some=[(row.text, str(row.meaning)) for row in labelled_stream(3200)])
    monkeypatch.setattr("sys.argv", ["fit", "--data", str(tmp_path), "--seeds", "1"])
    fit_benchmark.main()
    told = capsys.readouterr()
    found = lines_of(told.err)

    assert [rule for _, rule in found] == [
        "cosine 0.90",
        "cosine 0.95",
        "cosine, hindsight",
        "guards 0.95",
        "shipped 0.955",
        "shipped, hindsight",
        "fitted",
        "perfect",
    ]
    assert "; moved" in told.err
    hits = {rule: float(cells[0].rstrip("%")) for (_, rule), cells in found.items()}
    assert hits["fitted"] > hits["shipped 0.955"] + 20
    assert hits["perfect"] > 95
    assert "of cosine" in told.out


# fitting the scorer -----------------------------------------------------------------------------------


def pairs(seed: int, requests: int = 2_000) -> Pairs:
    """As a stream would yield them in which one thing matters: "not", and the cosine."""
    draw = np.random.default_rng(seed)
    cosine = draw.uniform(0.85, 1.0, requests)
    found = np.zeros((requests, len(NAMES)))
    found[:, NAMES.index("one_word")] = draw.random(requests) < 0.4
    chance = 1 / (1 + np.exp(-(40 * (cosine - 0.92) - 4 * found[:, NAMES.index("one_word")])))
    yes, no = np.ones(requests, bool), np.zeros(requests, bool)
    right = draw.random(requests) < chance
    return Pairs(np.arange(requests), yes, cosine, right, no, no, yes, found, requests)


def test_fit_finds_what_matters() -> None:
    """A replaced word that mostly changes the meaning costs, "not" costs whatever the streams say."""
    pytest.importorskip("scipy")
    scorer = fit({"a": pairs(1), "b": pairs(2)}, "test")
    held_out = pairs(3)
    by_cosine = p_chr_auc(judged(held_out, held_out.cosine), held_out.requests)
    by_score = p_chr_auc(judged(held_out, scores(held_out, scorer)), held_out.requests)

    assert scorer.weights["one_word"] < -0.3
    assert scorer.weights["negation"] <= -1.5
    assert abs(scorer.weights["inserted"]) < 0.1
    assert by_score > by_cosine


def test_scores_are_those_of_the_scorer() -> None:
    """What is fitted in bulk is what is served one by one."""
    texts = [
        "how do I bake bread",
        "how can I bake the bread please",
        "how do I bake no bread",
        "wie backt man",
    ]
    stream = Stream("x_y", texts, [1, 1, 2, 3], np.full((4, 4), 0.5, np.float32))
    found = pairs_of(stream)
    one_by_one = [
        learned_scorer().nearness(texts[asked], texts[stored], 1.0)
        for asked in range(1, 4)
        for stored in range(asked)
    ]

    assert sorted(scores(found, learned_scorer())) == pytest.approx(sorted(one_by_one), abs=1e-9)
    assert (stream.family, found.right.sum(), found.requests) == ("x", 1, 4)


def test_nothing_is_learned_from_what_is_tested() -> None:
    """Nor, ever, from `atis`."""
    assert without({"a": 1, "b": 2, "atis": 3}, "a") == {"b": 2}


def test_calibration_is_monotone() -> None:
    """A few unlucky hits at the strictest threshold do not count for more than the many below it."""
    counts = zip(
        GRID, range(100, 10_000, 100), (6, 6, 6, 6, 6, 8, 12, 16, 20, 30, 40, 60, 80, 100, 120), strict=False
    )
    found = {threshold: Outcome(hits=hits, wrong=wrong) for threshold, hits, wrong in counts}
    rows = thresholds({"one": found, "other": {at: Outcome(hits=100) for at in GRID[:15]}})

    assert rows[0] == (0.0, 1.0)
    assert rows == sorted(rows, key=lambda row: (row[0], -row[1]))
    assert len({level for level, _ in rows}) == len(rows)
    assert smoothed(found)[0] < 0.06


def test_a_probability_is_fitted_to_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Likelier right the nearer, and the least score for a share follows from what was wrong above it."""
    monkeypatch.setattr("tests.benchmarks.fit_scorer.REPLAYED", (7,))
    draw = np.random.default_rng(1)

    def stream(name: str) -> Stream:
        centres = draw.normal(size=(60, 16))
        meanings = [number % 60 for number in range(240)]
        spread = [0.05, 0.15, 0.3, 0.5]
        vectors = np.array(
            [
                centres[meaning] + draw.normal(size=16) * spread[number // 60]
                for number, meaning in enumerate(meanings)
            ]
        )
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        names = [
            f"{a}{b}" for a in ("bor", "cal", "del", "fen", "gim", "hur") for b in ("ab", "ec", "id", "of")
        ]
        words = ("flour", "sugar", "yeast", "honey")
        texts = [
            f"tell me of {names[n % 24]} and {words[n // 60]} in {names[n % 60 // 3]}" for n in range(240)
        ]
        return Stream(name, texts, list(meanings), vectors.astype(np.float32))

    said: list[str] = []
    found = with_probability(
        learned_scorer(), [stream("banking77"), stream("clinc150")], lambda _: learned_scorer(), said.append
    )

    assert found.slope > 0
    assert found.thresholds.table[0] == (0.0, 1.0)
    assert list(found.thresholds.table) == sorted(found.thresholds.table, key=lambda row: (row[0], -row[1]))
    assert said[0].startswith("banking77 ")


# suites of pairs --------------------------------------------------------------------------------------


@needs_model
@pytest.mark.parametrize("suite", [suites.MUST_MISS, suites.MUST_HIT])
def test_suites(suite: str) -> None:
    """Of pairs that must not share an answer at most 1 % do, of those that should at least 70 %."""
    counted = suites.by_kind(suites.load(suite))
    Console(width=100).print(suites.table({suite: counted}, suite))
    served = suites.total(counted).value

    assert served <= suites.MOST_WRONG if suite == suites.MUST_MISS else served >= suites.LEAST_RIGHT


@needs_model
def test_odd_questions_are_no_hits(tmp_path: Path) -> None:
    """Homoglyphs, invisible characters, other scripts, emoji, word salads, novels: no crash, no hit."""
    odd = suites.odd_pairs()
    with ibidem.open(tmp_path) as cache:
        decided = cache.decide([both for pair in odd for both in ((pair.a, pair.b), (pair.b, pair.a))])

    assert [one for one in decided if one.served] == []


@needs_model
def test_pair_decisions(tmp_path: Path) -> None:
    """Two rules of ours and two cosines for each set; one of a single kind has no AUC."""
    lines = [
        {"a": "how do I reset my password", "b": "how can I reset my password", "same": True},
        {"a": "how do I reset my password", "b": "how do I reset my router", "same": False},
        {"a": "flights to Boston on Monday", "b": "flights to Denver on Monday", "same": False},
    ]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sets = {
        name: pairs
        for name, pairs in pair_decisions.load_sets(tmp_path).items()
        if name in ("mixed", suites.MUST_MISS)
    }
    found = {name: (len(pairs), list(pair_decisions.compare(pairs[:40]))) for name, pairs in sets.items()}

    assert {name: len(rows) for name, (_, rows) in found.items()} == {"mixed": 6, suites.MUST_MISS: 5}
    ours, _, generous, _, _, matched = found["mixed"][1]
    assert ours.same.startswith(f"100.0{NBSP}%")
    assert ours.different.startswith(f"0.0{NBSP}%")
    assert float(generous.same.split("%")[0]) >= float(ours.same.split("%")[0])
    assert matched.different.startswith(f"0.0{NBSP}%")
    assert np.isnan(found[suites.MUST_MISS][1][0].auc)
    Console(width=130).print(pair_decisions.table(found))


class Words:
    """Stands in for a model of sentence-transformers."""

    def encode(self, texts: str | list[str], **_: object) -> np.ndarray:
        rows = BagOfWords().embed([texts] if isinstance(texts, str) else texts)
        return rows[0] if isinstance(texts, str) else rows


@needs_model
def test_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of set is counted; what is not here is said; a cache measured alone leaves others' rows."""
    monkeypatch.setattr(field, "minilm", lambda: Encoder(Words()))
    write_streams(tmp_path, atis=[("flights to Boston", "boston"), ("flights to Denver", "denver")] * 2)
    (tmp_path / "test.csv").write_text(
        "question1,question2,is_duplicate\n"
        "how do I reset my password,how can I reset my password,1\n"
        "flights to Boston on Monday,flights to Denver on Monday,0\n"
    )
    sample = {"a cache keeps answers": "answers are kept by a cache", "tea is a drink": "tea: a drink"}
    (tmp_path / "mock_data.json").write_text(
        json.dumps([{"origin": one, "similar": other} for one, other in sample.items()])
    )
    page, results = tmp_path / "field.md", tmp_path / "results.json"
    names = ("meancache", "gptcache-sample", "atis", "clinc150")
    blocks = (f"<!-- figures: {name} -->\n-\n<!-- end of figures -->\n" for name in ("at a glance", *names))
    page.write_text("".join(blocks))
    places = ["--results", results, "--page", page, "--chart", tmp_path / "field.svg"]
    folders = [word for name in ("data", "meancache", "gptcache") for word in (f"--{name}", tmp_path)]

    def run_field(*arguments: object) -> str:
        field.main([str(word) for word in (*places, *arguments)])
        return capsys.readouterr().out

    said = run_field(*folders, "--only", "ibidem", "cosine", "redisvl", "langchain", "--sets", *names)
    shown = page.read_text()
    ours, cosine = (json.loads(results.read_text())["meancache"][key]["rows"] for key in ("ibidem", "cosine"))

    assert "left out: RedisVL SemanticCache: pip install redisvl" in said
    assert "left out: the set clinc150: there is no clinc150.jsonl" in said
    assert ours["default"]["same"] == [1, 1]
    assert ours["default"]["different"] == [0, 1]
    assert cosine["0.80"]["different"] == [1, 1]
    assert json.loads(results.read_text())["atis"]["langchain"]["rows"]["exact"]["hits"] == 2
    assert (
        "| Ibidem |  |  | 100\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}0 |" in shown
    )  # at a glance: neither questions nor conversations
    assert "| LangChain InMemoryCache |" not in shown
    assert "| plain cosine, all-MiniLM-L6-v2" in shown
    assert "*Not measured.*" in shown
    run_field(*folders, "--only", "langchain", "--sets", "meancache")
    run_field("--page-only")
    assert page.read_text() == shown


def test_the_page_of_the_field_has_the_figures_that_are_kept() -> None:
    """Tables and chart are made of the file, and nothing was changed by hand."""
    page = Page(ROOT / "docs/field.md", ROOT / "docs/img/field.svg", list(field.CONTENDERS))
    results = Results.read(field.HERE / "results.json")

    assert page.file.read_text(encoding="utf-8") == page.text(results)
    assert page.chart.read_text(encoding="utf-8") == page.drawing(results)


@needs_model
def test_documents() -> None:
    """Each policy serves no more than the next one, and near misses no more than without documents."""
    passages = [
        one for one in documents_benchmark.language_reference() if one.topic in ("for", "break", "while")
    ]
    retriever = documents_benchmark.Retriever(resolve_embedder(None), passages)
    questions = documents_benchmark.load()[:3]
    found = documents_benchmark.measure(questions, retriever, "hashes, told", extracted=True)
    Console(width=110).print(documents_benchmark.table({"hashes, told": found}, questions, "some"))

    served = [found[policy].reworded for policy in ("ignore", "unchanged", "supporting", "all")]
    assert served == sorted(served, reverse=True)
    assert served[0] > 0
    assert found["ignore"].perfect == 9 >= found["unchanged"].perfect >= found["supporting"].perfect
    assert found["unchanged"].near <= found["ignore"].near


def test_eviction(tmp_path: Path) -> None:
    """On streams with lasting favourites no published rule saves more, but with room for 20 answers only."""
    trace = tmp_path / "azure_llm_trace_conv.csv"
    rows = [f"x,{100 + 37 * n % 4000},{1 + 91 * n % 700}" for n in range(500)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    printed = run("--data", tmp_path, "--requests", 20_000, "--answers", 2000, program="eviction")
    lasting = [line.split("\u2502") for line in printed.splitlines() if "never" in line]

    assert len(lasting) == 9
    assert all(float(cells[-2]) >= (0.95 if "1%" in cells[3].split() else 1.0) for cells in lasting)


def test_report(tmp_path: Path) -> None:
    """A page is written, and its size is told; times are those of the machine."""
    printed = run("--lookups", 500, "--out", tmp_path / "report.html", program="report")

    assert "report in all, s" in printed
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.fixture
def nq(tmp_path: Path) -> Path:
    """A folder with questions enough for the smallest workload."""
    places = [f"{one} {other}" for one in NAMES for other in KEYS]
    texts = [f"where is the {place} of number {at}" for at, place in enumerate(places * 40)]
    lines = "\n".join(json.dumps({"question": text}) for text in texts[:3_300])
    (tmp_path / "nq_questions.jsonl").write_text(lines)
    return tmp_path


@needs_model
def test_speed(nq: Path) -> None:
    """Everything stored is found again, beside a floor that does as little as can be done."""
    small = ("--entries", 100, "--rounds", 1, "--calls", 5, "--seconds", 0.1, "--data", nq)
    printed = run(*small, "--contenders", "ibidem", "floor", program="speed")
    cells = [line.split("|") for line in printed.splitlines() if line.startswith(("| Ibidem", "| numpy"))]

    assert [len(row) for row in cells] == [9, 9, 11, 11]
    assert all(float(row[2].split()[0]) < float(row[3].split()[0]) for row in cells[:2])


@pytest.mark.thorough
@needs_model
def test_speed_in_langchain(nq: Path) -> None:
    printed = run("--calls", 3, "--data", nq, program="speed.in_langchain")

    assert printed.count("| RAG chain") == 3
    assert "async" in printed


def test_the_plan_says_what_a_machine_does_not_have() -> None:
    """A hundred million entries need more connections than PostgreSQL gives, with each engine."""
    largest = [line for line in laws.plan() if line.startswith("| 100,000,000,")]

    assert len(largest) == 3
    assert all("**1,600**" in line for line in largest)


@pytest.mark.thorough
def test_laws() -> None:
    printed = run("--engines", "memory", "chroma", "--entries", 40, 80, program="servers.laws")

    assert printed.count("each further") == 2
    assert "slowest lookup" in printed


def test_a_worker_whose_answers_are_gone_finds_nothing_and_fails_at_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without a search, where a thread asks the very words of an answer before anything else."""
    monkeypatch.setattr(worker, "STORES", 0.0)
    monkeypatch.setattr(worker, "IDENTICAL", 1.0)
    monkeypatch.setattr(search, "EXACT_LIMIT", search.EXACT_LIMIT)  # which the worker sets
    np.save(nearest := tmp_path / "nearest.npy", np.array([["0" * 32]] * 20, "S32"))
    one = worker.Worker(0, 20, 1, str(nearest), "", {"path": str(tmp_path / "c")})

    for stub in (True, False):
        said = one.run(0.1, 0.0, 2, stub=stub)

        assert said["faults"] == {}
        assert said["outcomes"].keys() <= {"identical: empty", "invalidated"}
    one.cache.close()


@pytest.mark.thorough
def test_servers() -> None:
    """What one of two workers stores the other one finds, with pgvector at once; nothing fails."""
    few = "--setups pgvector postgres+chroma --workers 2 --entries 200 --seconds 0.5 --rounds 1 --stores 4"
    cells = [line.split(" | ") for line in run(*few.split(), program="servers").splitlines()]
    found = {cell[0]: cell for cell in cells if len(cell) > 7 and cell[1] == "2"}

    assert {row[7] for row in found.values()} == {"0"}
    assert found["| pgvector"][10] == "4 of 4"
    assert "| postgres+chroma" in found


@pytest.mark.thorough
def test_search_in_postgresql() -> None:
    printed = run("--entries", 300, "--scopes", 1, 10, program="servers.search")
    shares = [float(line.split()[4]) for line in printed.splitlines() if line.split()[0] == "300"]

    assert len(shares) == 4
    assert min(shares) > 0.9


@pytest.mark.thorough
def test_at_once() -> None:
    printed = run("--requests", 40, program="at_once")

    assert printed.count("| 40 stored |") == printed.count("| 40 exact |") == 2
    assert "| 40 no_index |" in printed


@pytest.mark.thorough
@needs_model
def test_growth(nq: Path) -> None:
    small = ("--calls", 3, "--few", 20, "--most", 100, "--entries", 50, 100, "--seconds", 0.1, "--data", nq)
    printed = run(*small, "--plot", nq / "growth.svg", program="speed.growth")

    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == 5 + 2 + 4 + 4 + 5 + 3
    assert (nq / "growth.svg").read_text(encoding="utf-8").startswith("<svg")


@needs_model
@pytest.mark.slow
@pytest.mark.parametrize("name", wheels.PROGRAMS)
def test_the_five_lines_of_a_wheel_hit(name: str, tmp_path: Path) -> None:
    """Offline; it ends if the second answer is not the first, found by meaning."""
    assert wheels.first_hit(name, wheels.OTHERWISE, "semantic", Path(sys.executable), tmp_path) > 0
