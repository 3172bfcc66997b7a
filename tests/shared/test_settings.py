"""Settings that are refused, and how it is said."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import ibidem
import langchain_ibidem
from ibidem import ConfigurationError
from ibidem.cli.main import app
from ibidem.embedding.minilm_files import CACHE_VARIABLE
from ibidem.settings import ELSEWHERE, Settings, read_settings
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
    "name", ["ttl", "grace", "max_entries", "write_quota", "max_temperature", "single_flight"]
)
def test_a_switch_is_no_number(name: str) -> None:
    """`max_entries=True` would keep one answer."""
    with pytest.raises(ConfigurationError, match=f"{name}.*number"):
        read_settings(**{name: True})


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
    monkeypatch.setenv("IBIDEM_TRESHOLD", "0.9")
    with Child("import ibidem.cli.main, ibidem_lab.review.app; print('imported')") as child:
        assert child.line() == "imported"
    for make in (ibidem.open, langchain_ibidem.IbidemCache, langchain_ibidem.install):
        with pytest.raises(ConfigurationError, match="mean IBIDEM_THRESHOLD?"):
            make(path=tmp_path / "cache")

    workload = tmp_path / "workload.jsonl"
    workload.write_text('{"text": "How long?", "meaning": 1}\n')
    commands = (["stats"], ["promote", "--status"], ["doctor"], ["rebuild"], ["replay", str(workload)])
    for arguments in (*commands, ["--help"], ["--version"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == (2 if arguments in commands else 0), done.output
        assert ("IBIDEM_TRESHOLD" in done.output) == (arguments in commands)
    assert not (tmp_path / "cache").exists()


def test_a_path_that_is_no_text_is_named(tmp_path: Path) -> None:
    """Its bytes are of another encoding than the system's; no database takes it."""
    with pytest.raises(ConfigurationError, match="path: cannot be used: .*encoding"):
        ibidem.open(os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9"))
