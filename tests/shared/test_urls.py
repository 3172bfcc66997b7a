"""Passwords in URLs of servers: hidden in errors, representations and titles, wherever they stand."""

from __future__ import annotations

import re
import string
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import ibidem
from ibidem._util.urls import redact_secrets, redact_url
from ibidem.cli.commands import app
from ibidem.errors import ConfigurationError, IbidemError, StorageError
from ibidem.settings import Settings, read_settings
from tests.embedders import BagOfWords

SECRET = "Xq7" + "zwv9" * 3  # part of no word, so that it can be looked for
NAMES = (
    "password", "PASSWORD", "sslpassword", "passfile", "sslkey", "scram_client_key", "scram_server_key",
    "oauth_client_secret", "options", "token", "pass%77ord", "x", "sslmode&password", "sslmode=require&key",
)  # fmt: skip
CHARACTERS = st.text(string.ascii_letters + "?=&@:/%+ #;é", max_size=4)
SCHEMES = ("postgresql+psycopg", "postgresql", "mysql", "nonsense+driver")


@st.composite
def urls(draw: st.DrawFn) -> str:
    """A URL with the secret in some place, sound or not, among characters that people forget to quote."""
    secret = f"{draw(CHARACTERS)}{SECRET}{draw(CHARACTERS)}"
    secret = draw(st.sampled_from((quote, quote_plus, str)))(secret)
    scheme = draw(st.sampled_from(SCHEMES))
    place = draw(st.sampled_from(("127.0.0.1:1/x", "[::1]:1/x", "127.0.0.1:port/x", "/x", "localhost", "")))
    return draw(
        st.sampled_from(
            (
                f"{scheme}://u:{secret}@{place}",
                f"{scheme}://u:{secret}@{place}?sslmode=require",
                f"{scheme}://:{secret}@{place}",
                f"{scheme}://u:{secret.replace('@', '')}/x",  # the @ and the host were forgotten
                f"{scheme}://{place}?{draw(st.sampled_from(NAMES))}={secret}",
                f"{scheme}://u:other@{place}?a=b&{draw(st.sampled_from(NAMES))}={secret}&application_name=x",
                f"u:{secret}@{place}",
            )
        )
    )


@given(urls())
@settings(deadline=None, max_examples=150)
def test_no_password_is_shown(url: str) -> None:
    """Whatever the URL is, nothing of the password is left of it."""
    assert SECRET not in redact_url(url)


@given(CHARACTERS, st.sampled_from(("u:{}@h/x", "h/x?password={}", "h/x?a=b&sslmode={}")))
@settings(deadline=None)
def test_no_message_of_a_driver_quotes_it(more: str, url: str) -> None:
    """As libpq does with a value that it does not take."""
    secret = f"#{SECRET}{more}"
    written = "postgresql://" + url.format(quote(secret, safe=""))

    assert SECRET not in redact_secrets(f'invalid sslmode value: "{secret}" in {written}', written)


@given(urls())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_unusable_url_is_a_storage_error_without_its_password(tmp_path: Path, url: str) -> None:
    """Also in the traceback, which shows what an error came from."""
    with pytest.raises(IbidemError) as caught:  # MissingExtra where the driver is not installed
        ibidem.open(tmp_path / "c", database=url, embedder=BagOfWords()).close()

    assert isinstance(caught.value, StorageError) or "postgres" in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:p%40ss@db.org:5432/x?sslmode=require", "postgresql://me:***@db.org:5432/x?sslmode=require"),
        ("postgresql://db/x?user=me&password=p", "postgresql://db/x?user=me&password=***"),
        ("postgresql:///x?host=/run/pg&passfile=/root/.pgpass", "postgresql:///x?host=/run/pg&passfile=***"),
        ("sqlite:////home/a@b=c:d/x.sqlite3", "sqlite:////home/a@b=c:d/x.sqlite3"),
        ("sqlite:///file:x?mode=ro&uri=true", "sqlite:///file:x?mode=ro&uri=true"),
        ("postgresql://[::1]/x", "postgresql://[::1]/x"),
        ("no url", "no url"),
    ],
)  # fmt: skip
def test_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    """Who has several databases must see which one is meant."""
    assert redact_url(url) == shown


@pytest.mark.parametrize("port", ["notaport", "99999999", "-1", "5432x", "٣"])
def test_a_wrong_port_is_a_storage_error(tmp_path: Path, port: str) -> None:
    """And neither ValueError nor OverflowError."""
    with pytest.raises(StorageError):
        ibidem.open(
            tmp_path, database=f"postgresql+psycopg://u:{SECRET}@127.0.0.1:{port}/x", embedder=BagOfWords()
        )


@pytest.mark.parametrize("command", ["ls", "stats", "doctor", "log"])
def test_commands_hide_it_too(tmp_path: Path, command: str) -> None:
    """In the titles of what works, and in the errors of what does not."""
    file = tmp_path / "c" / "ibidem.sqlite3"
    with ibidem.open(file.parent, embedder=BagOfWords()):
        pass
    works = f"sqlite:///file:{file}?uri=true&password={SECRET}"  # SQLite leaves what it does not know alone
    for url in (works, f"postgresql://u@127.0.0.1:1/x?password={SECRET}"):
        said = CliRunner().invoke(app, [command, "--database", url])
        assert SECRET not in said.output
        assert said.exception is None or isinstance(said.exception, SystemExit)


def test_an_open_cache_hides_it(tmp_path: Path) -> None:
    """In its representation, and in that of the settings."""
    url = f"sqlite:///file:{tmp_path / 'x'}?uri=true&password={SECRET}"
    with ibidem.open(tmp_path / "c", database=url, embedder=BagOfWords()) as cache:
        assert "password=***" in repr(cache)
    assert SECRET not in repr(read_settings(database=url, chroma=f"http://me:{SECRET}@127.0.0.1:1"))


@pytest.mark.parametrize(
    "given",
    [
        {"chroma": f"htp://me:{SECRET}@localhost"},
        {"chroma": f"http://{SECRET}@:8000"},
        {"chroma": f"http://localhost:8000?token={SECRET}"},
        {"chroma": f"http://localhost:8000#token={SECRET}"},
        {"chroma": f"http://u:{SECRET}@localhost:port"},
        {"database": Path(f"postgresql://u:{SECRET}@h/x")},
        {"chroma_headers": {"authorization": f"Bearer {SECRET}\n"}},
    ],
)
def test_a_refused_setting_is_not_quoted(given: dict[str, Any]) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigurationError, match=re.escape(next(iter(given)))) as caught:
        read_settings(**given)

    assert SECRET not in str(caught.value)
    assert isinstance(Settings(), Settings)
