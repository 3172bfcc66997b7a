"""Settings that are refused, and how it is said."""

from __future__ import annotations

import pytest

from ibidem import ConfigurationError
from ibidem.settings import read_settings


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
