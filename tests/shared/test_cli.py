"""The command line on real caches."""

from __future__ import annotations

import io
import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ibidem
from ibidem import Answer, Document, Example, Request, __version__
from ibidem.cli import plugins
from ibidem.cli.commands import app
from ibidem.cli.output import Console, err, progress
from tests.embedders import BagOfWords
from tests.helpers import Child

pytestmark = pytest.mark.usefixtures("wide_console")

SHOWN_AGAIN = "\x1b[?25h"  # the cursor, when what moved has ended

# Owns the index of a cache until its input ends.
OWNER = """
import sys
import ibidem
from ibidem.index import search
from tests.embedders import BagOfWords

search.EXACT_LIMIT = 0  # as in a large cache
cache = ibidem.open(sys.argv[1], embedder=BagOfWords())
cache.lookup(ibidem.Request("opens the index"))
print("ready", flush=True)
sys.stdin.read()
"""

DOCUMENT = Document("guide#3", "Hold the button for ten seconds until the light is green.")


@pytest.fixture
def filled(open_cache, tmp_path: Path) -> str:
    """The path of a cache with two entries and three lookups."""
    cache = open_cache()
    cache.lookup(Request("how do I reset it"))
    cache.store(
        Request("how do I reset it", documents=(DOCUMENT,), namespace="acme"),
        Answer("Hold the button until the light is green.", model="gpt", input_tokens=10, output_tokens=9),
    )
    cache.store(Request("a [red]prompt[/red] \x1b[31mwith codes"), Answer("b"))
    cache.lookup(Request("how do I reset it", documents=(DOCUMENT,), namespace="acme"))
    cache.lookup(Request("the prompt", semantic=False))
    cache.close()
    return str(tmp_path / "cache")


def run(*arguments: str, code: int = 0) -> str:
    """Output of `ibidem` with these arguments, errors included."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


def test_stats_counts_entries_hits_and_misses(filled: str) -> None:
    """As a table and as JSON."""
    told = json.loads(run("stats", "--path", filled, "--json"))

    assert (told["entries"], told["hits"], told["tokens_saved"]) == (2, {"exact": 1}, 19)
    assert told["misses"] == {"empty": 1, "question_unknown": 1}
    assert told["hit_rate"] == pytest.approx(1 / 3)
    assert "miss: question_unknown" in run("stats", "--path", filled)


def test_stats_are_watched_until_ctrl_c(filled: str, cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes is shown with how much; other processes' changes too."""
    pauses = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        cache.store(Request("one more"), Answer("yes"))

    monkeypatch.setattr("ibidem.cli.commands.pause", pause)
    monkeypatch.setattr("ibidem.cli.commands.out", Console(width=200, force_terminal=True, color_system=None))
    first, _, last = run("stats", "--watch", "7", "--path", filled).rpartition("change")

    assert pauses == [7.0, 7.0]
    assert re.search(r"entries +│ +2 │ +│", first)
    assert re.search(r"entries +│ +3 │ +\+1 │", last)
    assert "every 7 s; Ctrl-C ends it" in last


def test_watched_stats_survive_a_database_that_is_away(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As lines for programs; the error is told, and the figures when it is back."""
    from ibidem.errors import StorageUnavailable
    from ibidem.storage.store import Store

    totals, pauses = Store.totals, []

    def away(store: Store) -> object:
        raise StorageUnavailable("the server is down")

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        monkeypatch.setattr(Store, "totals", away if len(pauses) == 1 else totals)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("ibidem.cli.commands.pause", pause)
    lines = list(map(json.loads, run("stats", "--watch", "--json", "--path", filled).splitlines()))

    assert [line.get("entries") for line in lines] == [2, None, 2]
    assert lines[1]["error"] == "the server is down"
    assert pauses == [2.0] * 3


def test_seconds_without_watch_are_a_mistake(filled: str) -> None:
    """Said, not ignored."""
    assert "SECONDS are for --watch" in run("stats", "5", "--path", filled, code=2)


def test_stats_say_whose_price_is_unknown(filled: str) -> None:
    """By model, and how many hits."""
    shown = run("stats", "--path", filled)

    assert re.search(r"money saved, known of 0\s% of the hits +│ +- │", shown)
    assert re.search(r"unknown: hits of gpt +│ +1 │", shown)
    assert json.loads(run("stats", "--path", filled, "--json"))["saved"]["unpriced"] == {"gpt": 1}


def test_ls_lists_the_newest_first(filled: str) -> None:
    """Filtered by namespace if asked; whose an answer is stands in a column, if it is anybody's.

    The answer stands below its question.
    """
    shown = run("ls", "--path", filled, "--namespace", "acme")
    assert "namespace" in shown
    assert "answer: " in shown
    newest, oldest = json.loads(run("ls", "--path", filled, "--json"))

    assert oldest["question"] == "how do I reset it"
    assert newest["question"].startswith("a [red]")
    assert [e["id"] for e in json.loads(run("ls", "--path", filled, "--json", "--namespace", "acme"))] == [
        oldest["id"]
    ]


def test_hostile_text_is_shown_as_text(filled: str) -> None:
    """Markup is printed, control characters are not."""
    shown = run("ls", "--path", filled)

    assert "[red]prompt[/red]" in shown
    assert "\x1b" not in shown


def test_show_tells_all_about_one_entry(filled: str) -> None:
    """Found by the beginning of its id, with the documents behind it."""
    oldest = json.loads(run("ls", "--path", filled, "--json"))[1]
    shown = run("show", oldest["id"][:6], "--path", filled)

    assert "guide#3 (supports)" in shown
    assert "Hold the button until the light is green." in shown
    assert "no entry begins with 'zzz'" in run("show", "zzz", "--path", filled, code=2)
    assert "several entries begin so" in run("show", "", "--path", filled, code=2)


def test_log_says_what_came_of_each_lookup(filled: str) -> None:
    """And whose it was, if it was anybody's. The text of exact-only prompts is not kept."""
    shown = run("log", "--path", filled)

    assert re.search(r"hit: exact +acme", shown)
    assert "miss: question_unknown" in shown
    assert "the prompt" not in shown


def test_examples_are_listed_the_newest_first(filled: str, open_cache) -> None:
    """When, from whom, for how many tokens; long texts are cut, and harmless to the terminal."""
    cache = open_cache()
    assert run("examples", "--path", filled, "--namespace", "n").strip() == "No examples yet."
    cache.examples.add(Example("how long", "30\n days", at=1.0, namespace="n", documents=(DOCUMENT,)))
    cache.examples.add(Example("and now", "long " * 99, input_tokens=1000, streamed=True, model="[red]gpt"))
    cache.examples.add(Example("once more", "\x1b[31m30 days", entry_id="0123456789abcdef"))
    cache.close()
    lines = [
        line.rstrip() for line in run("examples", "-n", "3", "--path", filled).splitlines() if line.strip()
    ]

    assert len(lines) == 5  # the head, a rule, three examples
    assert lines[2].split()[0] == "5"
    assert "01234567" in lines[2]
    assert "\x1b" not in lines[2]
    assert [part in lines[3] for part in (", streamed", "[red]gpt", "1,000", "and now")] == [True] * 4
    assert lines[3].endswith("\N{HORIZONTAL ELLIPSIS}")
    assert lines[4].split()[0] == "3"
    assert lines[4].split()[3:] == ["1", "how", "long", "30", "days"]

    (told,) = json.loads(run("examples", "--path", filled, "--json", "--namespace", "n"))
    assert (told["question"], told["answer"], told["at"]) == ("how long", "30\n days", 1.0)
    assert told["documents"] == [{"id": "guide#3", "digest": DOCUMENT.digest, "source": ""}]
    assert len(json.loads(run("examples", "--path", filled, "--json", "-n", "2"))) == 2
    assert json.loads(run("stats", "--path", filled, "--json"))["examples"] == 5


def test_examples_are_selected_judged_and_counted(filled: str, open_cache, monkeypatch) -> None:
    """What a prompt would get, with the embedder of the settings; feedback counts at once."""
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda spec: BagOfWords())
    cache = open_cache()
    for n, said in enumerate(("return a coat", "return a hat", "painted the ceiling")):
        cache.examples.add(
            Example(f"how to {said}", "[red]so", namespace="few", model="m", tags=("t", str(n)))
        )
    cache.close()
    at = ("--path", filled, "--json")
    select = ("examples", "select", "how to return a shoe", "--namespace", "few", *at)

    assert json.loads(run("examples", "select", "how to return a shoe", *at, "--namespace", "b")) == []
    found = json.loads(run(*select, "-k", "2"))
    assert [one["question"] for one in found] == ["how to return a hat", "how to return a coat"]
    assert run("examples", "feedback", str(found[0]["id"]), "--bad", "--path", filled).strip() == "Noted."
    assert run("examples", "feedback", str(found[1]["id"]), "--good", "--path", filled).strip() == "Noted."
    assert [one["id"] for one in json.loads(run(*select, "--good"))] == [found[1]["id"]]
    assert [one["id"] for one in json.loads(run(*select, "-k", "1"))] == [found[1]["id"]]
    assert [one["tags"] for one in json.loads(run(*select, "--tag", "2"))] == [["t", "2"]]
    assert json.loads(run(*select, "--model", "n")) == json.loads(run(*select, "--max-tokens", "5")) == []
    assert "[red]so" in run("examples", "select", "how to return", "--namespace", "few", "--path", filled)
    told = json.loads(run("examples", "stats", *at, "--namespace", "few"))
    assert (told["total"], told["good"], told["bad"], told["unknown"]) == (3, 1, 1, 1)
    assert (told["namespaces"], told["models"]) == ({"few": 3}, {"m": 3})
    assert "namespace few" in run("examples", "stats", "--path", filled)
    assert "there is no example 99" in run("examples", "feedback", "99", "--good", "--path", filled, code=2)
    assert "--good" in run("examples", "feedback", "1", "--path", filled, code=2)


def test_clear_asks_first(filled: str) -> None:
    """And deletes one namespace or everything."""
    assert "Aborted" in run("clear", "--path", filled, code=1)
    assert "Deleted 1 entry." in run("clear", "--path", filled, "--namespace", "acme", "--yes")
    assert "Deleted 1 entry." in run("clear", "--path", filled, "--yes")
    assert "No entries." in run("ls", "--path", filled)


def test_invalidate_says_what_goes_and_asks(filled: str, tmp_path: Path) -> None:
    """By the name of a document; what the file says now stays."""
    now = tmp_path / "guide.md"
    now.write_text(DOCUMENT.text)
    command = ("invalidate", "--path", filled, "--document", "guide#3")
    assert "how do I reset it" in run(*command, "--dry-run")
    assert "No entries." in run(*command, "--current", str(now), "--dry-run")
    assert "Aborted" in run(*command, code=1)
    told = json.loads(run(*command, "--model", "gpt", "--before", "2999-01-01T00:00Z", "--yes", "--json"))
    assert (told["count"], told["dry_run"]) == (1, False)
    assert [entry["question"] for entry in told["newest"]] == ["how do I reset it"]
    (left,) = json.loads(run("ls", "--path", filled, "--json"))
    assert "No entries." in run("invalidate", "--path", filled, "--before", "3d", "--dry-run")
    nothing = run("invalidate", "--path", filled, "--document", "guide.md", code=1)
    assert "`ibidem show ID` names the documents" in nothing
    assert "Delete the examples that match?" in nothing
    assert "Deleted 1 entry." in run("invalidate", "--path", filled, "--entry", left["id"][:6], "--yes")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "say what to invalidate"),
        (("--before", "2026-01-01T00:00"), "a time with its zone"),
        (("--before", "soon"), "or an age like"),
        (("--entry", "zzz"), "no entry begins with 'zzz'"),
        (("--document", "d", "--current", "missing.txt"), "cannot read missing.txt as text: No such file"),
        (("--current", "README.md"), "say which one with document="),
    ],
    ids=str,
)
def test_invalidate_explains_itself(filled: str, arguments, says) -> None:
    """In one sentence, and nothing is deleted."""
    assert says in run("invalidate", "--path", filled, "--yes", *arguments, code=2)
    assert len(json.loads(run("ls", "--path", filled, "--json"))) == 2


def test_feedback_deletes_what_is_bad(filled: str) -> None:
    """And keeps what was said."""
    newest, oldest = json.loads(run("ls", "--path", filled, "--json"))
    assert "Noted." in run("feedback", newest["id"][:8], "--good", "--path", filled)
    assert "deleted entry" in run("feedback", oldest["id"], "--bad", "--path", filled)
    assert [one["id"] for one in json.loads(run("ls", "--path", filled, "--json"))] == [newest["id"]]
    assert "Missing option" in run("feedback", newest["id"], "--path", filled, code=2)
    told = json.loads(run("audit", "--path", filled, "--json"))
    assert [(row["source"], row["right"]) for row in told["judgements"]] == [
        ("feedback", False),
        ("feedback", True),
    ]
    assert told["namespaces"] == []


def test_correct_puts_an_answer_in_place_of_a_stored_one(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned; where that is not possible it says why, and changes nothing."""
    newest, oldest = json.loads(run("ls", "--path", filled, "--json"))
    said = run("correct", newest["id"][:8], "Within 14 days.", "--path", filled)
    shown = json.loads(run("show", newest["id"], "--path", filled, "--json"))
    monkeypatch.setenv("IBIDEM_MAX_ENTRIES", "1")
    full = run("correct", oldest["id"], "Never.", "--path", filled, code=2)
    unchanged = json.loads(run("show", oldest["id"], "--path", filled, "--json"))

    assert "is corrected, and pinned" in said
    assert "Within 14 days." in json.dumps(shown)
    assert "corrected" in json.dumps(shown)
    assert "pinned answers fill max_entries" in " ".join(full.split())
    assert "Never." not in json.dumps(unchanged)
    assert "no entry begins with" in run("correct", "zz", "Never.", "--path", filled, code=2)


def test_looking_does_not_create(tmp_path: Path) -> None:
    """A wrong path is an error, not a new empty cache."""
    assert "there is no cache in" in run("stats", "--path", str(tmp_path / "typo"), code=2)
    assert not (tmp_path / "typo").exists()


def test_doctor_finds_a_sound_cache_sound(filled: str, monkeypatch) -> None:
    """Exit code 0; the model is part of the check."""
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda _: BagOfWords())
    findings = {f["check"]: f for f in json.loads(run("doctor", "--path", filled, "--json"))}

    assert findings["database"]["text"].startswith("2 entries")
    assert re.search(r", schema \d+, cache \w{8}, answers in [\d.]+ ms$", findings["database"]["text"])
    assert findings["vector index"]["text"] == "1 vectors, few enough to be searched in memory"
    assert all(finding["ok"] for finding in findings.values())


def test_doctor_takes_an_index_in_use_for_sound(filled: str, monkeypatch) -> None:
    """The normal state while the application runs, of a large cache; a small one is in no one's way."""
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda _: BagOfWords())
    with Child(OWNER, filled) as owner:
        owner.line()
        assert "few enough to be searched in memory" in " ".join(run("doctor", "--path", filled).split())
        monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)
        said = " ".join(run("doctor", "--path", filled).split())

    assert f"in use by another process (process {owner.process.pid})" in said


def test_doctor_names_a_damaged_database(filled: str, monkeypatch) -> None:
    """Pages overwritten in the middle of the file."""
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda _: BagOfWords())
    file = Path(filled) / "ibidem.sqlite3"
    content = bytearray(file.read_bytes())
    content[4096 * 3 : 4096 * 5] = b"\xff" * 8192
    file.write_bytes(content)

    assert "problem" in run("doctor", "--path", filled, code=1)


def test_version_and_help() -> None:
    """What a new user types first."""
    assert run("--version").strip() == f"ibidem {__version__}"
    assert "answer cache" in run("--help")


def test_a_plugin_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the list of commands, and when it is called; the other commands go on."""
    missing = EntryPoint("grow", "tests.needs_more:grow", plugins.GROUP)
    monkeypatch.setattr(plugins, "_plugins", lambda: {"grow": missing})
    monkeypatch.setitem(sys.modules, "tests.needs_more", None)

    helped = run("--help")
    assert re.search(r"grow +Not installed: import of tests.needs_more halted", helped)
    assert helped.index("grow") > helped.index("doctor")  # what has no panel comes last
    assert "error: import of tests.needs_more halted" in run("grow", "--fast", "much", code=2)
    assert "No such command" in run("shrink", code=2)


def test_errors_are_sentences(monkeypatch) -> None:
    """No traceback for a wrong setting."""
    monkeypatch.setenv("IBIDEM_MIN_SIMILARITY", "0.1")

    assert "min_similarity: is a cosine similarity" in run("stats", code=2)


@pytest.mark.parametrize("arguments", [("examples", "-n"), ("ls", "-n"), ("examples", "feedback", "--good")])
def test_a_number_that_no_database_holds_is_an_error(filled: str, arguments: tuple[str, ...]) -> None:
    """And no traceback."""
    assert "Error" in run(*arguments, str(10**20), "--path", filled, code=2)


@pytest.fixture
def _bag_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line opens caches with the embedder of these tests."""
    monkeypatch.setattr("ibidem.active_model.resolve_embedder", lambda _: BagOfWords())


@pytest.mark.usefixtures("_bag_of_words")
def test_rebuild_fills_a_new_index(filled: str, monkeypatch) -> None:
    """From the database alone."""
    monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)  # as in a large cache
    assert "The index holds 1 vector." in run("rebuild", "--path", filled)
    assert "1 vectors, 0 waiting" in run("doctor", "--path", filled)


@pytest.mark.usefixtures("_bag_of_words")
def test_the_doctor_counts_what_is_missing_and_what_is_left_over(
    open_cache, filled: str, monkeypatch
) -> None:
    """And the rebuild it advises heals both."""
    monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)  # as in a large cache
    run("rebuild", "--path", filled)
    with open_cache() as cache:
        cache.lookup(Request("opens the index"))
        index = cache._runtime.vectors._index
        index.delete(index.ids(0, 1))
        index.upsert(["left over"], BagOfWords(288).embed(["a"]))
    said = run("doctor", "--path", filled, code=1)
    assert "1 vectors are missing" in said
    assert "1 belong to no entry" in said
    assert "ibidem rebuild" in said
    run("rebuild", "--path", filled)

    assert "1 vectors, 0 waiting to be indexed" in run("doctor", "--path", filled)


@pytest.mark.usefixtures("_bag_of_words")
def test_rebuild_says_who_has_the_index(filled: str, monkeypatch) -> None:
    """Another process's index is left alone; a small cache has none."""
    with Child(OWNER, filled) as owner:
        owner.line()
        assert "The index holds 1 vector." in run("rebuild", "--path", filled)
        monkeypatch.setattr("ibidem.index.search.EXACT_LIMIT", 0)

        assert f"process {owner.process.pid}" in run("rebuild", "--path", filled, code=2)


@pytest.mark.slow
def test_what_takes_its_time_shows_that_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command that loads a model or reads a log: on the terminal's stderr, and nowhere else."""
    pairs, workload, here = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl", str(tmp_path / "cache")
    pairs.write_text('{"a": "What does it cost?", "b": "How much is it?", "same": true}\n' * 2)
    workload.write_text('{"text": "What does it cost?", "meaning": 1}\n' * 2)
    with ibidem.open(here) as cache:
        cache.store(Request("How long can I return goods?"), Answer("30 days."))
        cache.lookup(Request("How long can I return shoes?"))
    commands = (
        "stats", "stats --json", "why shoes?", "doctor", "report", "rebuild", "export --out {tmp}/out",
        "decide {pairs}", "learn --dry-run", "learn pairs --out {tmp}/mined", "learn threshold --dry-run",
        "learn compare {pairs}", "examples select shoes?", "invalidate --tag terms --yes", "clear --yes",
    )  # fmt: skip

    def said(command: str, *, terminal: bool) -> str:
        stream = io.StringIO()
        monkeypatch.setattr(err, "_file", stream)
        monkeypatch.setattr(err, "_force_terminal", terminal)
        words = [one.format(tmp=tmp_path, pairs=pairs) for one in command.split()]
        result = CliRunner().invoke(app, words, env={"IBIDEM_PATH": here})
        assert isinstance(result.exception, SystemExit | None), command
        return stream.getvalue()

    monkeypatch.chdir(tmp_path)
    assert [one for one in commands if SHOWN_AGAIN not in said(one, terminal=True)] == []
    assert SHOWN_AGAIN not in said("stats", terminal=False)


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere nothing is written, not even at the end."""
    for terminal in (True, False):
        stream = io.StringIO()
        monkeypatch.setattr(err, "_file", stream)
        monkeypatch.setattr(err, "_force_terminal", terminal)
        with progress("read") as show:
            show("embed", 3, 4)
            show("embed", 5, 4)

        assert (SHOWN_AGAIN in stream.getvalue(), bool(stream.getvalue())) == (terminal,) * 2
