"""Names that no database holds, at every entry: refused at once, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models import FakeListChatModel
from llama_index.core import get_response_synthesizer
from llama_index.core.llms import MockLLM
from typer.main import get_command
from typer.testing import CliRunner

import ibidem
import ibidem_lab
import langchain_ibidem
import llama_index_ibidem
from ibidem import Answer, Document, Example, InvalidInput, Rejected, Request
from ibidem.cache import SemanticCache
from ibidem.cli.commands import app

DRAW = random.Random(8)
LETTERS = "ab/=% é東\N{GRINNING FACE}"


def unstorable(draw: random.Random) -> str:
    """A name with NUL or half a character somewhere."""
    wrong = draw.choice(["\0", chr(draw.randrange(0xD800, 0xE000)), "\udcff", "\ude00\ud83d"])
    around = ["".join(draw.choices(LETTERS, k=draw.randrange(4))) for _ in range(2)]
    return wrong.join(around)


def enter(**terms: Any) -> None:
    """Say so for a block."""
    with ibidem.scope(**terms):
        pass


ASKED, SAID = Request("How long?"), Answer("30 days.")
ENTRIES: dict[str, Callable[[SemanticCache, str], object]] = {
    "scope(namespace)": lambda cache, name: enter(namespace=name),
    "scope(user)": lambda cache, name: enter(user=name),
    "scope(tags)": lambda cache, name: enter(tags=("good", name)),
    "namespace_of": lambda cache, name: ibidem.namespace_of(name),
    "namespace_of(user)": lambda cache, name: ibidem.namespace_of("acme", name),
    "store(tags)": lambda cache, name: cache.store(ASKED, SAID, tags=[name]),
    "clear": lambda cache, name: cache.clear(name),
    "recent(namespace)": lambda cache, name: cache.recent(namespace=name),
    "recent(reason)": lambda cache, name: cache.recent(reason=name),
    "Request(scope)": lambda cache, name: Request("How long?", scope={name: "text"}),
    "judgements": lambda cache, name: cache.judgements(namespace=name),
    "pairs": lambda cache, name: ibidem_lab.pairs(cache, namespace=name),
    "next_steps": lambda cache, name: ibidem_lab.next_steps(cache, namespace=name),
    "invalidate(document)": lambda cache, name: cache.invalidate(document=name),
    "invalidate(documents)": lambda cache, name: cache.invalidate(document=["good", name]),
    "invalidate(Document)": lambda cache, name: cache.invalidate(document=Document(name, "text")),
    "invalidate(tag)": lambda cache, name: cache.invalidate(tag=name),
    "invalidate(namespace)": lambda cache, name: cache.invalidate(namespace=name),
    "invalidate(model)": lambda cache, name: cache.invalidate(model=name),
    "invalidate(entry)": lambda cache, name: cache.invalidate(entry=name),
    "examples.recent": lambda cache, name: cache.examples.recent(namespace=name),
    "examples.count": lambda cache, name: cache.examples.count(name),
    "examples.stats": lambda cache, name: cache.examples.stats(name),
    "examples.select(namespace)": lambda cache, name: cache.examples.select("How?", namespace=name),
    "examples.select(tags)": lambda cache, name: cache.examples.select("How?", tags=(name,)),
    "examples.select(model)": lambda cache, name: cache.examples.select("How?", model=name),
    "examples.export(tags)": lambda cache, name: ibidem_lab.export(cache.examples, "out", tags=name),
    "examples.export(models)": lambda cache, name: ibidem_lab.export(cache.examples, "out", models=[name]),
    "examples.export(namespace)": lambda cache, name: ibidem_lab.export(
        cache.examples, "out", namespace=name
    ),
    "examples.export(system)": lambda cache, name: ibidem_lab.export(cache.examples, "out", system=name),
    "Example(tags)": lambda cache, name: Example("q", "a", tags=(name,)),
    "IbidemCache": lambda cache, name: langchain_ibidem.IbidemCache(namespace=name),
    "IbidemExampleSelector": lambda cache, name: langchain_ibidem.IbidemExampleSelector(
        cache, namespace=name
    ),
    "CachedLLM": lambda cache, name: llama_index_ibidem.CachedLLM(MockLLM(), namespace=name),
    "CachedSynthesizer": lambda cache, name: llama_index_ibidem.CachedSynthesizer(
        get_response_synthesizer(llm=MockLLM()), namespace=name
    ),
}


def test_a_name_that_cannot_be_stored_is_refused(cache: SemanticCache, tmp_path: Path, monkeypatch) -> None:
    """Whatever the name is for: not taken for another name, nor for an error of the database later."""
    monkeypatch.chdir(tmp_path)
    cache.store(ASKED, SAID, tags=["good"])
    for use in ENTRIES.values():
        for name in ("\0", "a\ud83d", *(unstorable(DRAW) for _ in range(3))):
            with pytest.raises(InvalidInput, match="no database"):
                use(cache, name)

    assert cache.lookup(ASKED)
    assert cache.stats().faults == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["namespace", "user", "tags"])
def test_metadata_of_a_call_costs_a_miss_only(tmp_path, name: str) -> None:
    """It may come from a client: the model is asked, nothing is cached, and the reason is counted."""
    cache = langchain_ibidem.IbidemCache(path=tmp_path / "cache")
    model = FakeListChatModel(responses=["one", "two"], cache=cache)
    value: Any = ["a\ud83d"] if name == "tags" else "a\ud83d"
    config: Any = {"metadata": {f"ibidem_{name}": value}}

    assert [model.invoke("How long?", config=config).content for _ in range(2)] == ["one", "two"]
    assert cache.faults().keys() == {"metadata_invalid"}
    cache.close()


def test_questions_and_answers_lose_nothing(cache: SemanticCache) -> None:
    """They are not ours to refuse: with half a character they are asked as ever, and spoil nothing."""
    calls: list[str] = []

    def model(request: Request) -> Answer:
        calls.append(request.question)
        return Answer(request.question)

    for _ in range(20):
        odd = f"what {unstorable(DRAW)}?"
        assert [cache.answer(Request(odd), model).text for _ in range(2)] == [odd, odd] == calls[-2:]
        assert cache.store(Request(odd), SAID) == Rejected("invalid_text")
        assert not cache.feedback(odd, good=True)
    cache.store(ASKED, SAID)
    assert cache.lookup(ASKED)
    assert (cache.stats().faults, cache.stats().entries) == ({}, 1)


def _takes_any_text(parameter: Any) -> bool:
    if (described := getattr(parameter, "type_descriptor", None)) is None:  # typer before 0.29
        return str(parameter.type.name) == "text"
    return described.annotation in (str, list[str]) and not described.is_choice


def texts(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """All options and arguments of all commands that take any text, with how they are given."""
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from texts(command.get_command(None, name), (*path, name))
    for parameter in command.params:
        if _takes_any_text(parameter):
            yield path, parameter.opts[0] if parameter.param_type_name == "option" else ""


COMMANDS = get_command(app)
TEXTS = sorted(set(texts(COMMANDS)))


def test_options_that_take_text_are_found() -> None:
    """The next test looks at all of them."""
    assert {(("ls",), "--namespace"), (("show",), ""), (("learn", "ask"), "--teacher")} <= set(TEXTS)
    assert len(TEXTS) > 40


def test_commands_refuse_half_characters(open_cache, tmp_path: Path, monkeypatch) -> None:
    """Bytes of another encoding on the command line come so: a sentence and code 2, no traceback."""
    open_cache().close()
    monkeypatch.setattr("typer.testing._get_command", lambda app: COMMANDS)  # typer makes them anew each time
    for command, option in TEXTS:
        given = [option, "a\udcff"] if option else ["a\udcff"]
        done = CliRunner(env={"IBIDEM_PATH": str(tmp_path / "cache")}).invoke(app, [*command, *given])

        assert done.exit_code == 2, (command, option, done.output)
        assert isinstance(done.exception, SystemExit)
        assert "\\udcff" in done.output or option in ("--since", "--before"), (command, option)
