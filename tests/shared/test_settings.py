"""Settings that are refused, and how it is said."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from llama_index.core import Settings as LlamaIndexSettings
from llama_index.core import get_response_synthesizer
from llama_index.core.llms import MockLLM
from typer.testing import CliRunner

import ibidem
import langchain_ibidem
import llama_index_ibidem
from ibidem import ConfigurationError, InvalidInput
from ibidem._util import renamed
from ibidem.cli.commands import app
from ibidem.embedding.model_files import CACHE_VARIABLE
from ibidem.opening import build_parts
from ibidem.settings import ELSEWHERE, Settings, checked_settings, read_settings
from tests.helpers import ROOT, Child


@pytest.mark.parametrize("given", ["news=10", '{"news"'])
def test_a_mapping_in_the_environment_that_is_no_json_is_named(given: str, monkeypatch) -> None:
    """As any other wrong setting: not with an error of the library that reads it."""
    monkeypatch.setenv("IBIDEM_NAMESPACE_TTL", given)
    with pytest.raises(ConfigurationError, match="namespace_ttl.*JSON"):
        read_settings()


def test_a_damaged_header_in_the_environment_is_not_quoted(monkeypatch) -> None:
    """It holds a token."""
    monkeypatch.setenv("IBIDEM_CHROMA_HEADERS", '{"Authorization": "Bearer secret')
    with pytest.raises(ConfigurationError, match="chroma_headers.*JSON") as caught:
        read_settings()
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "name",
    [
        "ttl",
        "stale_while_revalidate",
        "max_entries",
        "max_writes_per_hour",
        "max_temperature",
        "single_flight",
    ],
)
def test_a_switch_is_no_number(name: str) -> None:
    """`max_entries=True` would keep one answer."""
    with pytest.raises(ConfigurationError, match=f"{name}.*number"):
        read_settings(**{name: True})


# names of version 0.1 ------------------------------------------------------------------------------------


CALLERS = {
    "open": lambda **options: ibidem.open(**options),
    "IbidemCache": lambda **options: langchain_ibidem.IbidemCache(**options),
    "langchain install": lambda **options: langchain_ibidem.install(**options),
    "CachedLLM": lambda **options: llama_index_ibidem.CachedLLM(MockLLM(), **options),
    "CachedSynthesizer": lambda **options: llama_index_ibidem.CachedSynthesizer(
        get_response_synthesizer(llm=MockLLM()), **options
    ),
    "llama-index install": lambda **options: llama_index_ibidem.install(**options),
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("old", renamed.ARGUMENTS)
def test_an_old_argument_names_the_new_one(caller: str, old: str, tmp_path: Path, monkeypatch) -> None:
    """Whatever opens a cache."""
    monkeypatch.setattr(LlamaIndexSettings, "_llm", MockLLM())
    with pytest.raises(InvalidInput, match=f"{old} is called {renamed.ARGUMENTS[old]} since version 0.2"):
        CALLERS[caller](path=tmp_path / "cache", **{old: 1})
    assert not (tmp_path / "cache").exists()


OLD_SETTINGS = {old: new for old, new in renamed.ARGUMENTS.items() if new in Settings.model_fields}


@pytest.mark.parametrize("old", OLD_SETTINGS)
def test_an_old_variable_names_the_new_one(old: str, tmp_path: Path, monkeypatch) -> None:
    """A cache must not fall back to a default in silence; `ibidem doctor` fails with the same message."""
    monkeypatch.setenv(f"IBIDEM_{old.upper()}", "0.01")
    message = f"IBIDEM_{old.upper()} (is called IBIDEM_{OLD_SETTINGS[old].upper()} since version 0.2)"
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        ibidem.open(tmp_path / "cache")
    done = CliRunner().invoke(app, ["doctor"])
    assert (done.exit_code, message in " ".join(done.output.split())) == (2, True)


@pytest.mark.parametrize("old", OLD_SETTINGS)
def test_a_setting_of_an_old_pickle_names_the_new_one(old: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{old}: is called {OLD_SETTINGS[old]} since version 0.2"):
        checked_settings({old: 0.01})


@pytest.mark.parametrize("hook", sorted(renamed.ARGUMENTS.keys() - OLD_SETTINGS.keys()))
def test_a_function_of_an_old_pickle_names_the_new_one(hook: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=f"{hook} is called {renamed.ARGUMENTS[hook]} since version 0.2"):
        build_parts(read_settings(path=tmp_path), {hook: bool})


@pytest.mark.parametrize(
    ("setting", "old", "new"),
    [(setting, old, new) for setting, values in renamed.VALUES.items() for old, new in values.items()],
)
def test_an_old_value_names_the_new_one(setting: str, old: str, new: str, monkeypatch) -> None:
    """As an argument and in the environment."""
    message = f"{setting}: is called '{new}' since version 0.2"
    with pytest.raises(ConfigurationError, match=message):
        read_settings(**{setting: old})
    monkeypatch.setenv(f"IBIDEM_{setting.upper()}", old)
    with pytest.raises(ConfigurationError, match=message):
        read_settings()


def test_an_old_option_of_a_command_names_the_new_one() -> None:
    done = CliRunner().invoke(app, ["replay", "workload.jsonl", "--max-wrong", "0.01"])
    assert done.exit_code == 2
    assert "--max-wrong is called --max-error-rate since version 0.2" in " ".join(done.output.split())


# variables ----------------------------------------------------------------------------------------------

KNOWN = sorted({f"IBIDEM_{name.upper()}" for name in Settings.model_fields} | set(ELSEWHERE))


def mistyped(name: str, draw: random.Random) -> str:
    """The name with one letter left out, put in, exchanged with the next, or another; no known one."""
    bare = name.removeprefix("IBIDEM_")
    at, letter = draw.randrange(len(bare) - 1), draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    made = draw.choice(
        [
            bare[:at] + bare[at + 1 :],
            bare[:at] + letter + bare[at:],
            bare[:at] + bare[at + 1] + bare[at] + bare[at + 2 :],
            bare[:at] + letter + bare[at + 1 :],
        ]
    )
    return mistyped(name, draw) if f"IBIDEM_{made}" in KNOWN else f"IBIDEM_{made}"


@pytest.mark.parametrize("name", KNOWN)
def test_a_mistyped_variable_is_an_error_that_names_the_right_one(name: str, monkeypatch) -> None:
    """In any case of letters; its value, which may be a secret, is not quoted."""
    draw = random.Random(name)
    for case in (str.upper, str.lower, str.title):
        wrong = mistyped(name, draw)
        with monkeypatch.context() as patch:
            patch.setenv(case(wrong), "hunter2")
            with pytest.raises(ConfigurationError) as caught:
                read_settings()
        assert wrong in str(caught.value)
        assert f"did you mean {name}?" in str(caught.value) or len(name) < 11
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IBIDEM_TLL", ""),
        ("ibidem_ttl", "60"),
        ("IBIDEM_MODEL_CACHE", "/models"),
        ("IBIDEMTTL", "1"),
        ("MY_IBIDEM_TTL", "1"),
        # a service of Kubernetes called ibidem, ibidem-demo
        ("IBIDEM_SERVICE_HOST", "10.0.0.1"),
        ("IBIDEM_SERVICE_PORT", "80"),
        ("IBIDEM_SERVICE_PORT_HTTP", "80"),
        ("IBIDEM_PORT", "tcp://10.0.0.1:80"),
        ("IBIDEM_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("IBIDEM_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("IBIDEM_DEMO_SERVICE_HOST", "10.0.0.1"),
        ("IBIDEM_DEMO_PORT_80_TCP_PROTO", "tcp"),
    ],
)
def test_what_means_no_setting_is_no_error(name: str, value: str, monkeypatch) -> None:
    """Nothing is refused that nobody mistyped."""
    monkeypatch.setenv(name, value)
    read_settings()


def test_variables_of_another_version_can_be_named(monkeypatch) -> None:
    """So that a deployment of two versions has one environment; all others are still looked at."""
    monkeypatch.setenv("IBIDEM_SHINY", "1")
    monkeypatch.setenv("IBIDEM_NEWER", "1")
    with pytest.raises(ConfigurationError, match="IBIDEM_IGNORE=IBIDEM_NEWER,IBIDEM_SHINY"):
        read_settings()
    for named in ("IBIDEM_NEWER,IBIDEM_SHINY", "ibidem_shiny; IBIDEM_NEWER", " IBIDEM_SHINY IBIDEM_NEWER "):
        monkeypatch.setenv("IBIDEM_IGNORE", named)
        read_settings()
    monkeypatch.setenv("IBIDEM_IGNORE", "IBIDEM_SHINY")
    with pytest.raises(ConfigurationError, match="IBIDEM_NEWER"):
        read_settings()


def test_all_variables_in_the_code_are_known() -> None:
    """Also those that another module reads, or a message names."""
    named = set()
    for folder in ("shared/ibidem", "integrations"):
        for path in (ROOT / folder).rglob("*.py"):
            named |= set(re.findall(r"\bIBIDEM_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")))
    assert CACHE_VARIABLE in named
    assert named - set(KNOWN) == {"IBIDEM_SERVICE_HOST"} & named


def test_an_import_never_fails_and_an_opening_says_what_is_wrong(tmp_path: Path, monkeypatch) -> None:
    """Where a cache is opened, by a program or a command; help and a version can always be had."""
    monkeypatch.setenv("IBIDEM_MIN_PROBABILTY", "0.9")
    with Child("import ibidem.cli.commands, ibidem_lab.review.app; print('imported')") as child:
        assert child.line() == "imported"
    for make in (ibidem.open, langchain_ibidem.IbidemCache, langchain_ibidem.install):
        with pytest.raises(ConfigurationError, match="mean IBIDEM_MIN_PROBABILITY?"):
            make(path=tmp_path / "cache")

    workload = tmp_path / "workload.jsonl"
    workload.write_text('{"text": "How long?", "meaning": 1}\n')
    commands = (["stats"], ["promote", "--status"], ["doctor"], ["rebuild"], ["replay", str(workload)])
    for arguments in (*commands, ["--help"], ["--version"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == (2 if arguments in commands else 0), done.output
        assert ("IBIDEM_MIN_PROBABILTY" in done.output) == (arguments in commands)
    assert not (tmp_path / "cache").exists()


def test_a_path_that_is_no_text_is_named(tmp_path: Path) -> None:
    """Its bytes are of another encoding than the system's; no database takes it."""
    with pytest.raises(ConfigurationError, match="path: cannot be used: .*encoding"):
        ibidem.open(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9"))
