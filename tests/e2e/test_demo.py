"""The demo checks itself; here it is made to pass, and to fail when it should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage, SystemMessage

import ibidem

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # as for a script that lies there
corpus, reader, report = map(import_module, ("common.corpus", "common.reader", "common.report"))
langchain_parts = import_module("common.langchain_parts")

EXCERPTS = """The "for" statement
*******************

The "for" statement iterates over a
sequence.  A "break" statement leaves the loop early.

The "while" statement repeats as long as an expression is true.

The "else" clause of a loop runs unless the loop was left by "break"."""


def run_demo(place: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / "langchain_rag.py", "--delay", "0", "--dir", place, *options],
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        cwd=place,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=90,
        check=False,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all runs, so that only the first has to index."""
    return tmp_path_factory.mktemp("demo")


@pytest.mark.slow
class TestDemo:
    def test_passes_its_own_checks(self, place: Path) -> None:
        done = run_demo(place)
        assert done.returncode == 0, done.stdout + done.stderr
        assert reader.LABEL in done.stdout
        assert "16 of 16 rewordings answered from the cache" in done.stdout
        assert "0 wrong among 17 near misses" in done.stdout
        assert "FAILED" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= report.WIDTH
        assert "\x1b" not in done.stdout
        assert done.stdout.count("hit, semantic") >= 4

    def test_kept_answers_are_answered_in_the_next_run(self, place: Path) -> None:
        first, second = run_demo(place, "--keep"), run_demo(place, "--keep")
        assert (first.returncode, second.returncode) == (0, 0), second.stdout + second.stderr
        assert "miss, empty" in first.stdout
        assert "Indexing" not in second.stdout
        assert second.stdout.count("documents_changed") == 1
        assert not any(reason in second.stdout for reason in ("miss, empty", "below_threshold", "guard:"))

    def test_fails_if_an_edit_goes_unnoticed(self, place: Path) -> None:
        done = run_demo(place, IBIDEM_CONTEXT="ignore")
        assert done.returncode == 1
        assert "FAILED edited where the answer comes from" in done.stdout

    def test_fails_if_a_near_miss_is_answered(self, place: Path) -> None:
        done = run_demo(place, "--threshold", "0.85", IBIDEM_CONTEXT="ignore")
        assert done.returncode == 1
        assert "WRONG HIT, semantic" in done.stdout


class TestQuestions:
    def test_are_enough_of_each_kind(self) -> None:
        questions = report.read_questions(EXAMPLES / "questions_python.json")
        counts = {
            part: sum(q.part == part for q in questions) for part in ("first time", "reworded", "near miss")
        }
        assert sum(counts.values()) >= 40
        assert min(counts.values()) >= 12

    @pytest.mark.parametrize("name", ["questions_python.json", "questions_hard.json"])
    def test_are_asked_once_and_after_their_neighbour(self, name: str) -> None:
        questions = report.read_questions(EXAMPLES / name)
        texts = [question.text for question in questions]
        assert len(set(texts)) == len(texts)
        assert all(q.neighbour is None or q.neighbour in texts[:at] for at, q in enumerate(questions))

    def test_are_json_that_users_can_write(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.json"
        path.write_text(json.dumps([{"first": "A?", "reworded": "a?", "near": {"other letter": "B?"}}]))
        near = report.read_questions(path)[-1]
        assert near == report.Question("B?", "near miss", "A?", "other letter")


class TestCorpus:
    def test_has_every_paragraph_once_in_passages_of_bounded_length(self) -> None:
        passages = corpus.language_reference()
        assert len({p.id for p in passages}) == len(passages) > 300
        assert len({p.text for p in passages}) == len(passages)
        assert max(len(p.text) for p in passages) <= corpus.LONGEST + 100
        assert all(p.text == p.text.strip() != "" for p in passages)


class TestReader:
    def test_quotes_the_sentence_with_the_rare_words(self) -> None:
        answer = reader.extract("When does a loop run its else clause?", EXCERPTS)
        assert 'The "else" clause of a loop runs unless the loop was left by "break".' in answer

    def test_joins_wrapped_lines_and_leaves_out_headings(self) -> None:
        assert (
            reader.extract("What is a sequence?", EXCERPTS) == 'The "for" statement iterates over a sequence.'
        )

    def test_says_so_if_nothing_fits(self) -> None:
        assert reader.extract("Who won?", EXCERPTS) == reader.extract("", "") == reader.NOTHING

    def test_as_a_chat_model_is_labelled_complete_and_counts_tokens(self) -> None:
        prompt = [SystemMessage(f"Use these.\n\n{EXCERPTS}"), HumanMessage("When does the else clause run?")]
        one, other = (langchain_parts.OfflineReader(delay=delay).invoke(prompt) for delay in (0, 0.01))
        assert one.content == other.content == reader.extract("When does the else clause run?", EXCERPTS)
        assert one.response_metadata["model_name"] == reader.LABEL
        assert one.response_metadata["finish_reason"] == "stop"
        assert one.usage_metadata is not None
        assert one.usage_metadata["input_tokens"] > one.usage_metadata["output_tokens"] > 0


class TestRow:
    @staticmethod
    def row(part: str, lookup: Any) -> Any:
        return report.Row(report.Question("asked", part, "neighbour"), "answer", lookup, 0.1)

    @staticmethod
    def hit(question: str) -> ibidem.Hit:
        answer = ibidem.Answer("text", input_tokens=5, output_tokens=2, seconds=0.3)
        return ibidem.Hit(answer, "id", "semantic", 0.97, question, age=1.0, seconds=0.1)

    @pytest.mark.parametrize(
        ("part", "question", "wrong"),
        [
            ("reworded", "neighbour", False),
            ("reworded", "another", True),
            ("near miss", "neighbour", True),
            ("near miss", "asked", False),
            ("first time", "another", True),
        ],
    )
    def test_a_hit_is_wrong_if_it_answers_another_question(
        self, part: str, question: str, wrong: bool
    ) -> None:
        assert self.row(part, self.hit(question)).wrong is wrong

    @pytest.mark.parametrize(
        ("reason", "explained"),
        [("below_threshold", True), ("guard:numbers", True), ("documents_changed", True), ("error", False)],
    )
    def test_a_miss_must_say_what_speaks_against_the_neighbour(self, reason: str, explained: bool) -> None:
        row = self.row("reworded", ibidem.Miss(reason, "neighbour", similarity=0.9))
        assert (row.explained, row.wrong, row.tokens_saved) == (explained, False, 0)
        assert row.outcome == f"miss, {reason}"

    def test_no_lookup_is_not_explained(self) -> None:
        assert not self.row("reworded", None).explained
        assert self.row("reworded", None).outcome == "not looked up"

    def test_savings(self) -> None:
        row = self.row("reworded", self.hit("neighbour"))
        assert (row.tokens_saved, round(row.seconds_saved, 3)) == (7, 0.2)
