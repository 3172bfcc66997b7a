"""What is exported and what is not, that no secret is, and that the folder is whole or not there."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import ibidem
import ibidem_lab
from ibidem import Answer, CacheClosed, Document, Example, InvalidInput, Request
from ibidem.cli.commands import app
from ibidem.embedding.base import CheckedEmbedder
from ibidem.storage.store import Store
from ibidem_lab.exporting.choice import Choice, Format
from ibidem_lab.exporting.export import Export
from ibidem_lab.exporting.rows import line
from tests.embedders import BagOfWords, Constant
from tests.helpers import eventually

GUIDE = Document("guide#1", "Hold the button for ten seconds.")
ANSWER = "A long answer that says much, number {}."


def add(cache: ibidem.SemanticCache, *examples: Example) -> None:
    for example in examples:
        assert cache.examples.add(example)


def topics(cache: ibidem.SemanticCache, count: int, wordings: int = 3) -> None:
    """Questions about so many things, each asked in some wordings that are alike."""
    for topic in range(count):
        for wording in range(wordings):
            words = " ".join(f"{part}{topic}" for part in ("alpha", "beta", "gamma", "delta"))
            add(cache, Example(f"{words} wording{wording}x{topic}", ANSWER.format(f"{topic}-{wording}")))


def read(folder: Path, name: str = "train.jsonl") -> list[Any]:
    file = folder / name
    return [json.loads(one) for one in file.read_text("utf-8").splitlines()] if file.exists() else []


def pairs(folder: Path) -> dict[str, str]:
    """Questions and answers of an export in the form openai-chat, of training and test."""
    found = [*read(folder), *read(folder, "test.jsonl")]
    return {one["messages"][-2]["content"]: one["messages"][-1]["content"] for one in found}


def reasons(folder: Path) -> dict[int, str]:
    return {one["id"]: one["reason"] for one in read(folder, "dropped.jsonl")}


def test_the_manifest_counts_and_hashes_what_is_written(cache, tmp_path: Path) -> None:
    """Every example is in one file or in `dropped.jsonl`; the sums agree with the files."""
    topics(cache, 30)
    add(cache, Example("alpha0 beta0 gamma0 delta0 wording0x0", "another answer", feedback=False))
    out = tmp_path / "out"
    found = ibidem_lab.export(cache.examples, out, test_share=0.2)
    told = json.loads((out / "manifest.json").read_text("utf-8"))

    assert found.read == found.train + found.test + sum(found.dropped.values()) == 91
    assert (len(read(out)), len(read(out, "test.jsonl"))) == (found.train, found.test) == (72, 18)
    assert set(found.files) == {"train.jsonl", "test.jsonl", "dropped.jsonl"}
    for name, file in found.files.items():
        written = (out / name).read_bytes()
        assert (hashlib.sha256(written).hexdigest(), len(written)) == (file.sha256, file.bytes)
        assert written.count(b"\n") == file.records
        assert told["files"][name]["sha256"] == file.sha256
    assert (found.clusters, found.largest_cluster) == (30, 3)
    assert told["ibidem_export"] == 1
    assert told["dropped"] == found.dropped == {"feedback": 1}
    assert told["embedder"] == BagOfWords().fingerprint


def test_no_topic_is_on_both_sides(cache, tmp_path: Path) -> None:
    """The wordings of a question stay together."""
    topics(cache, 40)
    ibidem_lab.export(cache.examples, tmp_path / "out", test_share=0.25)
    sides = [
        {re.findall("alpha[0-9]+", json.dumps(one))[0] for one in read(tmp_path / "out", name)}
        for name in ("train.jsonl", "test.jsonl")
    ]

    assert len(sides[1]) == 10
    assert not sides[0] & sides[1]


def test_the_same_log_gives_the_same_bytes(cache, tmp_path: Path) -> None:
    """Whether or not the log holds the vectors; another seed, another test."""
    topics(cache, 30)
    for folder in ("one", "two"):
        ibidem_lab.export(cache.examples, tmp_path / folder, test_share=0.2)
        while cache._runtime.store.examples.without_vectors("", cache._runtime.embedder.fingerprint, 1):
            cache.examples.select("alpha1")
            cache.flush()
    ibidem_lab.export(cache.examples, tmp_path / "three", test_share=0.2, seed=1)
    files = ["dropped.jsonl", "manifest.json", "test.jsonl", "train.jsonl"]
    one, two, three = (
        [(tmp_path / folder / name).read_bytes() for name in files[1:]] for folder in ("one", "two", "three")
    )

    assert one == two
    assert one != three


def test_one_question_has_one_answer(cache, tmp_path: Path) -> None:
    """Good before unknown, then the newest; `dropped.jsonl` says for whom a row went."""
    add(
        cache,
        Example("What is it?", "old", at=1.0),
        Example("what  is it? ", "praised", at=2.0, feedback=True),
        Example("WHAT IS IT?", "new", at=3.0),
        Example("What is it?", "Praised", at=4.0),
        Example("and that", "first", at=1.0),
        Example("and that", "second", at=2.0),
    )
    found = ibidem_lab.export(cache.examples, tmp_path / "out", test_share=0)

    assert pairs(tmp_path / "out") == {"what  is it?": "praised", "and that": "second"}
    assert found.dropped == {"contradicted": 3, "duplicate": 1}
    rows = {one["id"]: (one["reason"], one["kept"]) for one in read(tmp_path / "out", "dropped.jsonl")}
    assert rows == {
        1: ("contradicted", 2), 3: ("contradicted", 2), 4: ("duplicate", 2), 5: ("contradicted", 6),
    }  # fmt: skip
    assert not (tmp_path / "out" / "test.jsonl").exists()


def test_what_was_called_bad_is_not_learned_elsewhere(cache, tmp_path: Path) -> None:
    """The same answer to the same question, logged again, is as bad; another one is not."""
    add(
        cache,
        Example("q one", "wrong", feedback=False),
        Example("Q one", "Wrong"),
        Example("q one", "right"),
        Example("q two", "wrong"),
    )
    ibidem_lab.export(cache.examples, tmp_path / "out", test_share=0)
    assert pairs(tmp_path / "out") == {"q one": "right", "q two": "wrong"}
    assert reasons(tmp_path / "out") == {1: "feedback", 2: "called_bad"}

    ibidem_lab.export(cache.examples, tmp_path / "good", feedback="any", test_share=0)
    assert set(reasons(tmp_path / "good").values()) == {"contradicted"}


def test_nearly_the_same_question_is_kept_once(open_cache, tmp_path: Path) -> None:
    """Unless a guard keeps the two apart, or the embedder cannot read them, as it cannot what is too long."""
    cache = open_cache(embedder=Constant())
    long = "a question without end " * 100
    add(
        cache,
        Example("how do i close an account", "so"),
        Example("how do i close an account please", "so it is"),
        Example("how do i not close an account", "leave it"),
        Example("how do i close 2 accounts", "twice"),
        Example(f"{long} one", "1"),
        Example(f"{long} two", "2"),
    )
    out = tmp_path / "out"
    ibidem_lab.export(cache.examples, out, test_share=0)

    assert len(pairs(out)) == 5
    assert reasons(out) == {1: "near_duplicate"}
    assert ibidem_lab.export(cache.examples, tmp_path / "all", near=1, test_share=0).train == 6


FLAWED = {
    "I'm sorry, but I can't help with that.": "refusal",
    "The provided context does not mention it.": "no_answer",
    "Traceback (most recent call last):": "error",
    "Open the lid and then remove the": "truncated",
}


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 6),  # the subject
            st.sampled_from([*FLAWED, "wrong", "right", "By mail."]),
            st.sampled_from([True, None, False]),
            st.sampled_from(["", " please", "?"]),
        ),
        min_size=1,
        max_size=25,
    )
)
@settings(max_examples=40, deadline=None)
def test_no_flagged_answer_is_exported(rows: list[tuple[int, str, bool | None, str]]) -> None:
    """In any log: each example is in one file, and none that is flawed or was called bad anywhere."""
    with tempfile.TemporaryDirectory() as place:
        store = Store(f"sqlite:///{place}/log.sqlite3")
        asked = [f"alpha{n} beta{n} gamma{n} delta{n}{end}" for n, _, _, end in rows]
        store.examples.add(
            [Example(text, row[1], feedback=row[2]) for text, row in zip(asked, rows, strict=True)]
        )
        embedder = CheckedEmbedder(BagOfWords(4_096), lambda _, value: value)
        try:
            found = Export(store.examples, embedder, Choice(near=0.8, test_share=0.3), str).run(
                Path(place, "out")
            )
        except InvalidInput:
            return
        finally:
            store.close()
        kept, dropped = pairs(Path(place, "out")), reasons(Path(place, "out"))

    assert found.train + found.test == len(kept) == len(rows) - len(dropped)
    assert len({question.split()[0] for question in kept}) == len(kept)  # each subject once
    spoken = {(text.split()[0], row[1], row[2]) for text, row in zip(asked, rows, strict=True)}
    for question, answer in kept.items():
        subject = question.split()[0]
        assert answer not in FLAWED or (subject, answer, True) in spoken
        assert (subject, answer, False) not in spoken or (subject, answer, True) in spoken
    for number, (_, answer, feedback, _) in enumerate(rows, 1):
        if feedback is None and answer in FLAWED:
            assert dropped[number] == FLAWED[answer]


def test_a_correction_takes_the_place_of_what_it_corrects(cache, tmp_path: Path) -> None:
    """The former answer is in the export nowhere, also where such a question was asked in other words."""
    asked = "how can i send back the red shoes that i bought in your shop in london in the summer"
    stored = cache.store(Request(asked), Answer("Within a year."))
    add(cache, Example(f"{asked} please", "within a year."), Example("who is there", "Me."))
    cache.flush()
    cache.correct(stored, "Within 30 days.")
    found = ibidem_lab.export(cache.examples, tmp_path / "out", test_share=0)

    assert pairs(tmp_path / "out") == {asked: "Within 30 days.", "who is there": "Me."}
    assert found.dropped == {"feedback": 1, "called_bad": 1}
    assert found.good == 1


def test_if_all_that_is_left_was_called_bad_there_is_nothing(cache, tmp_path: Path) -> None:
    """Also where only the near question tells."""
    asked = " ".join(f"word{n}" for n in range(30))
    add(cache, Example(asked, "wrong", feedback=False), Example(f"{asked} please", "wrong"))
    with pytest.raises(InvalidInput, match=re.escape("left out (1 called_bad, 1 feedback)")):
        ibidem_lab.export(cache.examples, tmp_path / "out")


def test_the_card_says_what_the_folder_holds(cache, tmp_path: Path) -> None:
    """Counts by reason, sources, the licence, the split; the head is YAML that names the files."""
    topics(cache, 30)
    add(cache, *(Example(f"subject{n}x", answer, model="m|1") for n, answer in enumerate(FLAWED)))
    add(cache, Example("what of subject9y", "It is `fine`.", model="m|1", documents=(GUIDE,)))
    found = ibidem_lab.export(
        cache.examples, tmp_path / "out", test_share=0.2, documents="keep", license="cc-by-4.0"
    )
    written = (tmp_path / "out" / "README.md").read_text("utf-8")
    _, head, text = written.split("---\n", 2)
    told = yaml.safe_load(head)

    assert told["license"] == "cc-by-4.0"
    assert told["size_categories"] == ["n<1K"]
    assert told["configs"][0]["data_files"] == [
        {"split": "train", "path": "train.jsonl"},
        {"split": "test", "path": "test.jsonl"},
    ]
    for reason in FLAWED.values():
        assert f"(`{reason}`) | 1 |" in text
    assert f"| training | {found.train} |" in text
    assert f"| test | {found.test} |" in text
    assert "answers of `m\\|1` | 1 |" in text
    assert f"nearest pair across has {found.nearest:.3f}" in text
    assert "found by: patterns" in text
    ibidem_lab.export(cache.examples, tmp_path / "all", test_share=0, redact=None)
    bare = (tmp_path / "all" / "README.md").read_text("utf-8")
    assert 'license: "unknown"' in bare
    assert "Nothing was replaced" in bare
    assert "split: test" not in bare


def test_what_the_training_knows_of_the_test_is_counted(cache, tmp_path: Path) -> None:
    """Its answers word for word, and the documents behind them."""
    for n in range(20):
        words = " ".join(f"{part}{n}" for part in ("alpha", "beta", "gamma"))
        add(cache, Example(words, "Always the very same long answer.", documents=(GUIDE,)))
    found = ibidem_lab.export(cache.examples, tmp_path / "out", test_share=0.2, documents="keep")

    assert found.test == found.known_answers == found.known_documents == 4


def test_filters(cache, tmp_path: Path) -> None:
    """Feedback, model, namespace, age, tags; each says what it left out."""
    one = Example("q1", "a1", model="m1", namespace="n", at=10.0, tags=("x", "y"), feedback=True)
    add(
        cache,
        one,
        Example("q2", "a2", model="m2", at=20.0, tags=("x",)),
        Example("q3", "a3", feedback=False, at=30.0),
    )
    wanted: list[tuple[dict[str, Any], set[str], dict[str, int]]] = [
        ({}, {"q1", "q2"}, {"feedback": 1}),
        ({"feedback": "good"}, {"q1"}, {"feedback": 2}),
        ({"feedback": "any"}, {"q1", "q2", "q3"}, {}),
        ({"models": ["m1", "m3"]}, {"q1"}, {"feedback": 1, "model": 1}),
        ({"models": "m2"}, {"q2"}, {"feedback": 1, "model": 1}),
        ({"namespace": "n"}, {"q1"}, {}),
        ({"since": 20}, {"q2"}, {"feedback": 1, "since": 1}),
        ({"tags": ["y", "x"]}, {"q1"}, {"feedback": 1, "tag": 1}),
    ]
    for number, (choice, questions, dropped) in enumerate(wanted):
        found = ibidem_lab.export(cache.examples, tmp_path / str(number), **choice, test_share=0)
        assert set(pairs(tmp_path / str(number))) == questions, choice
        assert found.dropped == dropped, choice


class TestDocuments:
    """The log knows which documents were in the prompt, not what they said."""

    @pytest.fixture
    def asked(self, cache) -> ibidem.SemanticCache:
        add(
            cache,
            Example("how to reset", "Hold the button.", documents=(GUIDE,)),
            Example("hello there", "Hello."),
        )
        return cache

    def test_are_not_learned_by_heart(self, asked, tmp_path: Path) -> None:
        """Unless somebody wants it."""
        ibidem_lab.export(asked.examples, tmp_path / "skip", test_share=0)
        ibidem_lab.export(asked.examples, tmp_path / "keep", documents="keep", test_share=0)
        ibidem_lab.export(asked.examples, tmp_path / "only", documents="only", test_share=0)

        assert pairs(tmp_path / "skip") == {"hello there": "Hello."}
        assert reasons(tmp_path / "skip") == {1: "documents"}
        assert len(pairs(tmp_path / "keep")) == 2
        assert pairs(tmp_path / "only") == {"how to reset": "Hold the button."}

    def test_come_back_into_the_prompt(self, asked, tmp_path: Path) -> None:
        """If their texts are given; in Alpaca's form, as the input."""
        ibidem_lab.export(asked.examples, tmp_path / "chat", texts=lambda ref: GUIDE.text, test_share=0)
        ibidem_lab.export(
            asked.examples, tmp_path / "alpaca", "alpaca", texts=lambda ref: GUIDE.text, test_share=0
        )

        assert pairs(tmp_path / "chat")[f"{GUIDE.text}\n\nhow to reset"] == "Hold the button."
        assert read(tmp_path / "alpaca")[0] == {
            "instruction": "how to reset", "input": GUIDE.text, "output": "Hold the button.",
        }  # fmt: skip

    def test_must_be_what_the_model_saw(self, asked, tmp_path: Path) -> None:
        """A text that has changed, or is lost, leaves the example out."""
        ibidem_lab.export(
            asked.examples, tmp_path / "changed", texts=lambda ref: "Press twice.", test_share=0
        )
        ibidem_lab.export(asked.examples, tmp_path / "lost", texts=lambda ref: None, test_share=0)

        assert reasons(tmp_path / "changed") == {1: "document_changed"}
        assert reasons(tmp_path / "lost") == {1: "document_missing"}
        with pytest.raises(InvalidInput, match="texts must return a str or None, not int"):
            ibidem_lab.export(asked.examples, tmp_path / "x", texts=lambda ref: 1)


SECRETS = {
    "key": "sk-proj-Abc123Def456Ghi789Jkl012",
    "mail": "jane.doe@example.org",
    "card": "4111 1111 1111 1111",
    "account": "DE89370400440532013000",
    "password": "hunter2!X",
    "phone": "+49 171 1234567",
    "name": "Ludmila Harrington",
    "address": "84.17.45.112",
    "born": "12.03.1984",
}


@pytest.mark.parametrize("form", get_args(Format))
def test_planted_secrets_are_in_no_byte(cache, tmp_path: Path, form: str) -> None:
    """In question, answer, documents, namespace, model and tag; in no file of the folder."""
    text = (
        f"{SECRETS['key']} {SECRETS['mail']}, {SECRETS['card']}; {SECRETS['account']} tel {SECRETS['phone']}"
    )
    text = f"{text} password={SECRETS['password']} from {SECRETS['address']}, born too"
    text = f"{text}. Date of birth {SECRETS['born']}. My name is {SECRETS['name']}."
    document = Document("doc", f"Contact: {text}")
    mail = SECRETS["mail"]
    for n in range(12):
        words = f"number{n} about{n} topic{n}"
        add(
            cache,
            Example(
                f"{words} {text}",
                f"{words}: {text}",
                namespace=mail,
                model=mail,
                tags=(mail,),
                documents=(document,),
            ),
        )
    found = ibidem_lab.export(cache.examples,
        tmp_path / "out", form, namespace=mail, models=[mail], tags=[mail], texts=lambda ref: document.text,
        near=1, test_share=0.3,
    )  # fmt: skip
    written = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    assert found.redacted == found.train + found.test
    assert found.train > 0
    assert b"[key]" in written["train.jsonl"]
    for secret in SECRETS.values():
        assert not [name for name, raw in written.items() if secret.encode() in raw], secret


def test_own_redaction_comes_on_top(open_cache, tmp_path: Path) -> None:
    """What the cache's `redact` fails on goes nowhere; None leaves that alone."""

    def forget(text: str) -> str:
        if "poison" in text:
            raise ValueError
        return text.replace("Acme", "[client]")

    cache, log = open_cache(redact=forget), open_cache()
    assert eventually(lambda: not cache._runtime._masking)  # else it would redact the log before we do
    add(log, Example("what of Acme", "Acme, a@b.org"), Example("poison", "x y"), Example("third one", "Oslo"))
    assert [example.question for example in log.examples.recent()] == ["third one", "poison", "what of Acme"]
    ibidem_lab.export(cache.examples, tmp_path / "all", test_share=0)
    ibidem_lab.export(cache.examples, tmp_path / "alone", redact=None, test_share=0)
    ibidem_lab.export(
        cache.examples, tmp_path / "own", redact=lambda text: text.replace("Oslo", ""), test_share=0
    )

    assert pairs(tmp_path / "all") == {"what of [client]": "[client], [email]", "third one": "Oslo"}
    assert pairs(tmp_path / "alone")["what of [client]"] == "[client], a@b.org"
    assert reasons(tmp_path / "own") == {2: "redaction", 3: "redaction"}
    with pytest.raises(InvalidInput, match="redact must return a str, not int"):
        ibidem_lab.export(cache.examples, tmp_path / "x", redact=len)


class TestFolder:
    """Whole, or not there."""

    def test_a_strangers_folder_is_left_alone(self, cache, tmp_path: Path) -> None:
        """Unless forced; then what is there stays."""
        topics(cache, 2)
        out = tmp_path / "out"
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        (out / "test.jsonl").write_text("mine")
        with pytest.raises(InvalidInput, match="holds files that no export wrote"):
            ibidem_lab.export(cache.examples, out)
        with pytest.raises(InvalidInput, match="is a file"):
            ibidem_lab.export(cache.examples, out / "thesis.txt")
        assert not (out / "train.jsonl").exists()

        ibidem_lab.export(cache.examples, out, test_share=0, force=True)
        assert (out / "thesis.txt").read_text() == "years of work"
        assert (out / "test.jsonl").read_text() == "mine"

    def test_an_earlier_export_is_replaced(self, cache, tmp_path: Path) -> None:
        """All of it; other files beside it stay."""
        topics(cache, 30)
        out = tmp_path / "out"
        ibidem_lab.export(cache.examples, out, test_share=0.2)
        (out / "adapter").mkdir()
        ibidem_lab.export(cache.examples, out, "alpaca", test_share=0)

        assert sorted(file.name for file in out.iterdir()) == [
            "README.md", "adapter", "manifest.json", "train.jsonl",
        ]  # fmt: skip
        assert set(read(out)[0]) == {"instruction", "input", "output"}

    def test_nothing_is_left_of_a_failure(
        self, cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither a new folder nor a half one; an earlier export stays as it was."""
        topics(cache, 3)
        out = tmp_path / "place" / "out"
        ibidem_lab.export(cache.examples, out)
        before = {file.name: file.read_bytes() for file in out.iterdir()}

        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("ibidem_lab.exporting.folder.Manifest.write", fails)
        for place in (out, out.parent / "new"):
            with pytest.raises(OSError, match="No space"):
                ibidem_lab.export(cache.examples, place, "alpaca")
        assert [file.name for file in out.parent.iterdir()] == ["out"]
        assert {file.name: file.read_bytes() for file in out.iterdir()} == before

    def test_a_leak_is_not_exported(self, cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the split promises is checked on the result."""
        topics(cache, 20)
        monkeypatch.setattr(
            "ibidem_lab.exporting.export.split",
            lambda ties, *_: (np.arange(len(ties.vectors)) % 2).astype(np.int8),
        )
        with pytest.raises(AssertionError, match="belong together"):
            ibidem_lab.export(cache.examples, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"format": "csv"}, "format must be one of openai-chat"),
        ({"feedback": "best"}, "feedback must be one of good, not-bad, any"),
        ({"documents": "some"}, "documents must be one of keep, skip, only"),
        ({"models": [1]}, "models must be a list of names"),
        ({"tags": 3}, "tags must be a list of names"),
        ({"namespace": 1}, "namespace must be a str"),
        ({"namespace": "\0"}, "no database"),
        ({"since": "3d"}, "since must be a number of at least 0"),
        ({"apart": 0.3}, "apart must be a number from 0.5 to 1"),
        ({"near": 0.7}, "near must be a number from 0.8 to 1"),
        ({"test_share": 0.9}, "test_share must be a number from 0 to 0.5"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"license": "Apache License"}, "license must be an identifier"),
        ({"redact": "yes"}, "redact must be a function"),
        ({"texts": "yes"}, "texts must be a function"),
        ({"feedback": "good"}, "all examples were left out (1 feedback)"),
        ({"namespace": "elsewhere"}, "the example log is empty"),
    ],
)
def test_a_wrong_choice_is_named(cache, tmp_path: Path, choice: dict[str, Any], says: str) -> None:
    """And nothing is written."""
    add(cache, Example("q", "a"))
    with pytest.raises(InvalidInput, match=re.escape(says)):
        ibidem_lab.export(cache.examples, tmp_path / "out", **choice)
    assert not (tmp_path / "out").exists()


def test_a_closed_cache_exports_nothing(cache, tmp_path: Path) -> None:
    """As it does nothing else."""
    cache.close()
    with pytest.raises(CacheClosed):
        ibidem_lab.export(cache.examples, tmp_path / "out")


spoken = st.text(st.characters(codec="utf-8"), min_size=1)


@given(
    form=st.sampled_from(get_args(Format)),
    question=spoken,
    answer=spoken,
    context=st.text("ab\n\u2028"),
    system=spoken,
)
def test_a_line_is_a_line(form: Any, question: str, answer: str, context: str, system: str) -> None:
    """However lines are told apart, and it holds the answer as it was."""
    written = line(form, question, answer, context, system).decode()

    assert len(written.splitlines()) == 1
    assert written.endswith("\n")
    record = json.loads(written)
    last = list(record.values())[-1] if form != "alpaca" else record["output"]
    assert answer == (last if isinstance(last, str) else list(last[-1].values())[-1])


class TestCommand:
    """`ibidem export`."""

    @pytest.fixture(autouse=True)
    def _embedder(self, monkeypatch: pytest.MonkeyPatch, wide_console: None) -> None:
        monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda _: BagOfWords())

    @staticmethod
    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["export", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    def test_says_what_it_wrote(self, open_cache, tmp_path: Path) -> None:
        """As a table with what one should know, and as JSON; redacted unless told otherwise."""
        cache = open_cache()
        topics(cache, 20)
        add(cache, Example("mail me", "a@b.org", namespace="other"), Example("rag", "x", documents=(GUIDE,)))
        cache.close()
        place = ("--path", str(tmp_path / "cache"))
        shown = self.run(*place, "--out", str(tmp_path / "out"), "--test-share", "0.2", "--license", "mit")
        assert 'license: "mit"' in (tmp_path / "out" / "README.md").read_text("utf-8")
        told = json.loads(self.run(*place, "--out", str(tmp_path / "out"), "--json", "--no-redact"))

        assert "left out: answered from documents" in shown
        assert "They come from 2 namespaces" in shown
        assert "ibidem_lab.export(cache.examples, texts=...)" in shown
        assert re.search("test +\N{BOX DRAWINGS LIGHT VERTICAL} +12 ", shown)
        assert (told["read"], told["redacted"]) == (62, 0)
        assert pairs(tmp_path / "out")["mail me"] == "a@b.org"
        assert self.run(
            *place, "--out", str(tmp_path / "o"), "--documents", "keep", "--since", "3d", "--tag", "t", code=2
        )

    def test_says_when_the_test_is_small(self, open_cache, tmp_path: Path) -> None:
        """If all questions are alike, there is nothing to hold out."""
        cache = open_cache()
        for n in range(30):
            add(cache, Example(f"the same question again and again number{n}", "a"))
        cache.close()
        shown = self.run("--path", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--near", "1")

        assert "The test has 0.0\N{NO-BREAK SPACE}% instead of 10.0\N{NO-BREAK SPACE}%" in shown

    def test_says_what_is_wrong(self, open_cache, tmp_path: Path) -> None:
        """In one sentence, with exit code 2."""
        open_cache().close()
        place = ("--path", str(tmp_path / "cache"))
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()

        assert "the example log is empty" in self.run(*place, "--out", str(tmp_path / "o"), code=2)
        assert "holds files that no" in self.run(*place, "--out", str(tmp_path / "full"), code=2)
        assert "--since must be a time" in self.run(
            *place, "--out", str(tmp_path / "o"), "--since", "x", code=2
        )
        assert not (tmp_path / "o").exists()


def test_vectors_and_answers_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in files: an export takes less than all vectors would, once."""
    count, width = 300, 4_096
    monkeypatch.setattr("ibidem_lab.exporting.clusters.TILE", 64)
    embedder = CheckedEmbedder(BagOfWords(width), lambda _, value: value)
    store = Store(f"sqlite:///{tmp_path / 'log.sqlite3'}")
    table = store.examples
    table.add([Example(f"what about subject{n}", f"it is good, {n} " * 50) for n in range(count)])
    vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # others count as damaged, and are made anew
    ids = [example.id or 0 for example, _ in table.each(None, "")]
    table.set_vectors(list(zip(ids, vectors, strict=True)), embedder.fingerprint)
    del vectors
    tracemalloc.start()
    try:
        found = Export(table, embedder, Choice(near=1.0), str).run(tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    store.close()

    assert found.train + found.test == count
    assert peak < count * width * 4
