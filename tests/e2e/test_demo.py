"""The demos check themselves; here they are made to pass, and to fail when they should."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.prompts.chat_prompts import CHAT_TEXT_QA_PROMPT
from llama_index.core.schema import MetadataMode

import ibidem
from llama_index_ibidem import CachedLLM
from tests.embedders import BagOfWords
from tests.helpers import rounds

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))  # as for a script that lies there
corpus, reader, report, demo = map(
    import_module, ("common.corpus", "common.reader", "common.report", "common.demo")
)
langchain_parts = import_module("common.langchain_parts")
llama_index_parts = import_module("common.llama_index_parts")

LANGCHAIN, LLAMA_INDEX = "langchain_rag.py", "llama_index_rag.py"
SCRIPTS = (LANGCHAIN, LLAMA_INDEX)

EXCERPTS = """The "for" statement
*******************

The "for" statement iterates over a
sequence.  A "break" statement leaves the loop early.

The "while" statement repeats as long as an expression is true.

The "else" clause of a loop runs unless the loop was left by "break"."""

Done = subprocess.CompletedProcess[str]


# A third of the reference is embedded in a third of the time; `make thorough` indexes all of it.
STARTER = f"""
import runpy, sys
sys.path.insert(0, {str(EXAMPLES)!r})
from common import corpus
whole = corpus.language_reference()
corpus.language_reference = lambda: whole[::{rounds(3, 1)}]
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_demo(script: str, place: Path, *options: str, **environment: str) -> Done:
    command = [sys.executable, "-c", STARTER, str(EXAMPLES / script)]
    return subprocess.run(
        [*command, "--delay", "0", *options, "--dir", str(place)],
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        cwd=place,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
        check=False,
    )


def from_the_cache(done: Done) -> dict[str, tuple[int, int]]:
    """Of each part how many were asked and how many of them were answered from the cache."""
    rows = re.findall(r"^ ([a-z ]+?) {2,}(\d+) +(\d+) +\d+ +[\d,]+ +-?[\d.]+ s *$", done.stdout, re.MULTILINE)
    return {part: (int(asked), int(hits)) for part, asked, hits in rows}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Done]]:
    """Both demos with the same kept answers, then both again: the two runs of each.

    They index, which takes long: once for all processes that run tests.
    """
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo"
    with FileLock(f"{place}.lock"):
        told = place / "runs.json"
        if not told.exists():
            place.mkdir(exist_ok=True)
            runs = [(script, run_demo(script, place, "--keep")) for _ in range(2) for script in SCRIPTS]
            told.write_text(json.dumps([(s, r.args[-1], r.returncode, r.stdout, r.stderr) for s, r in runs]))
        found: dict[str, list[Done]] = {script: [] for script in SCRIPTS}
        for script, directory, *rest in json.loads(told.read_text()):
            found[script].append(Done([directory], *rest))
    return found


@pytest.fixture(scope="module")
def place(kept: dict[str, list[Done]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which both demos have indexed."""
    copy = tmp_path_factory.mktemp("indexed") / "demo"
    return Path(shutil.copytree(kept[LANGCHAIN][0].args[0], copy))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
class TestDemo:
    def test_passes_its_own_checks(self, script: str, kept: dict[str, list[Done]]) -> None:
        done, _ = kept[script]
        assert done.returncode == 0, done.stdout + done.stderr
        assert reader.LABEL in done.stdout
        assert "16 of 16 rewordings answered from the cache" in done.stdout
        assert "0 wrong among 17 near misses" in done.stdout
        assert "FAILED" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= report.WIDTH
        assert "\x1b" not in done.stdout
        assert done.stdout.count("hit, semantic") >= 4

    def test_fails_if_an_edit_goes_unnoticed_or_a_near_miss_is_answered(
        self, script: str, place: Path
    ) -> None:
        """By the rule: the pair model knows all of these near misses even there."""
        lax = {"IBIDEM_DOCUMENT_POLICY": "ignore", "IBIDEM_VERIFIER": "none"}
        done = run_demo(script, place, "--min-probability", "0.2", **lax)
        assert done.returncode == 1
        assert "FAILED edited where the answer comes from" in done.stdout
        assert "WRONG HIT, semantic" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
class TestKeptAnswers:
    def test_are_not_shared_with_another_framework(self, script: str, kept: dict[str, list[Done]]) -> None:
        first, _ = kept[script]
        assert first.returncode == 0, first.stdout + first.stderr
        assert from_the_cache(first)["first time"] == (16, 0)
        assert first.stdout.count("miss, empty") == 1
        assert max(map(len, first.stdout.splitlines())) <= report.WIDTH

    def test_are_answered_in_the_next_run(self, script: str, kept: dict[str, list[Done]]) -> None:
        _, second = kept[script]
        assert second.returncode == 0, second.stdout + second.stderr
        assert "Indexing" not in second.stdout
        assert from_the_cache(second)["all"] == (53, 52)
        assert second.stdout.count("miss, documents_changed") == 1  # the edited document


@pytest.mark.slow
class TestAgent:
    def test_passes_its_own_checks(self, place: Path) -> None:
        done = run_demo("langchain_agent.py", place)
        assert done.returncode == 0, done.stdout + done.stderr
        assert reader.LABEL in done.stdout
        assert done.stdout.count("ok    ") == 4
        assert max(map(len, done.stdout.splitlines())) <= report.WIDTH

    @pytest.mark.parametrize(
        ("tool", "says", "failed"),
        [
            ("read_clock", lambda: "It is noon.", "what the clock says is not kept"),
            ("search_reference", lambda: f"{random.random()} clauses", "the same question"),
            ("search_reference", lambda: "There is one clause.", "when the reference says something else"),
        ],
    )
    def test_fails_if_it_is_not_as_it_must_be(
        self, tool: str, says: Callable[[], str], failed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def search_reference(self: Any, words: str) -> str:
            """Search Python's language reference."""
            return says()

        def read_clock(self: Any) -> str:
            """Tell what time it is."""
            return says()

        agent = import_module("langchain_agent")
        monkeypatch.setattr(agent.Reference, tool, locals()[tool])
        options = demo.Namespace(model="", delay=0.0, min_probability=None)
        console = report.make_console(plain=True)
        with console.capture() as shown:
            assert not agent.run(options, tmp_path, console)
        assert f"FAILED {failed}" in shown.get()


class TestModelOfLlamaIndex:
    """What `--model` says if there is none."""

    @staticmethod
    def refusal(name: str) -> str:
        with pytest.raises(SystemExit) as refused:
            llama_index_parts.choose_model(name, llama_index_parts.OfflineReaderLLM())
        return str(refused.value.code)

    def test_names_the_package_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "llama_index.llms.openai", None)
        assert "pip install llama-index-llms-openai" in self.refusal("gpt-4o-mini")

    def test_asks_for_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        assert "OPENAI_API_KEY" in self.refusal("gpt-4o-mini")

    def test_knows_the_names_of_models(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        assert "Unknown model 'gpt-none'" in self.refusal("gpt-none")


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


class TestReaderOfLlamaIndex:
    QUESTION = "When does the else clause run?"
    PROMPT = CHAT_TEXT_QA_PROMPT.format_messages(context_str=EXCERPTS, query_str=QUESTION)

    def test_says_what_the_other_says(self) -> None:
        one, other = (llama_index_parts.OfflineReaderLLM(delay).chat(self.PROMPT) for delay in (0, 0.01))
        assert one.message.content == other.message.content == reader.extract(self.QUESTION, EXCERPTS)

    def test_is_labelled_complete_and_counts_tokens(self) -> None:
        raw = llama_index_parts.OfflineReaderLLM().chat(self.PROMPT).raw
        assert (raw["model"], raw["finish_reason"]) == (reader.LABEL, "stop")
        assert raw["usage"]["prompt_tokens"] > raw["usage"]["completion_tokens"] > 0

    def test_says_in_pieces_what_it_says_at_once(self) -> None:
        model = llama_index_parts.OfflineReaderLLM()
        *_, last = model.stream_chat(self.PROMPT)
        assert last.message.content == model.chat(self.PROMPT).message.content

    def test_finds_the_excerpts_among_lines_of_dashes(self) -> None:
        table = f"{EXCERPTS}\n\n{'-' * 21}\n\nQuery: a heading\n\nAnswer: another"
        prompt = CHAT_TEXT_QA_PROMPT.format_messages(context_str=table, query_str=self.QUESTION)
        told = llama_index_parts.OfflineReaderLLM().chat(prompt).message.content
        assert told == reader.extract(self.QUESTION, table)

    def test_says_so_if_it_does_not_know_the_prompt(self) -> None:
        assert llama_index_parts.OfflineReaderLLM().complete("Who won?").text == reader.NOTHING

    def test_its_tokens_are_saved_by_a_hit(self, cache: ibidem.SemanticCache) -> None:
        found: list[int] = []
        for _ in range(2):
            model = CachedLLM(llama_index_parts.OfflineReaderLLM(), cache)
            found.append(model.chat(self.PROMPT).raw["usage"]["total_tokens"])
        assert found[0] > found[1] == 0
        assert cache.stats().tokens_saved == found[0]


def in_langchain() -> Any:
    store = InMemoryVectorStore(langchain_parts.LocalEmbeddings(BagOfWords()))
    store.add_documents([langchain_parts.as_document(passage) for passage in PASSAGES])
    return langchain_parts.StoredPassages(store)


def in_llama_index() -> Any:
    nodes = [llama_index_parts.as_node(passage) for passage in PASSAGES]
    embedding = llama_index_parts.LocalEmbedding(BagOfWords())
    return llama_index_parts.IndexedPassages(VectorStoreIndex(nodes, embed_model=embedding))


PASSAGES = [
    corpus.Passage("for#0", "for", 'The "for" statement iterates over a sequence.'),
    corpus.Passage("while#0", "while", 'The "while" statement repeats as long as an expression is true.'),
]


class TestDocuments:
    @pytest.mark.parametrize("documents_in", [in_langchain, in_llama_index])
    def test_are_edited_for_a_while(self, documents_in: Callable[[], Any]) -> None:
        documents, question = documents_in(), "Which statement iterates over a sequence?"
        assert documents.nearest(question, 2) == PASSAGES
        with suppress(KeyboardInterrupt), demo.edited(documents, PASSAGES[0]):
            assert "was edited on" in documents.nearest(question, 2)[0].text
            assert documents.nearest("passage was edited on", 1)[0].id == "for#0"
            raise KeyboardInterrupt
        assert documents.nearest(question, 2) == PASSAGES

    def test_answers_rest_on_those_they_are_taken_from(self) -> None:
        question = "What does a while statement do?"
        assert demo.resting_on("It repeats while an expression is true.", question, PASSAGES) == PASSAGES[1:]
        assert demo.resting_on("Nobody knows.", question, PASSAGES) == PASSAGES

    def test_of_llama_index_are_embedded_and_shown_without_their_metadata(self) -> None:
        node = llama_index_parts.as_node(PASSAGES[0])
        assert node.get_content(MetadataMode.LLM) == node.get_content(MetadataMode.EMBED) == PASSAGES[0].text


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
