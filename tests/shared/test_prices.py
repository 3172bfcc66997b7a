"""Prices: of the exact model or of none."""

from __future__ import annotations

import json
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem import Answer, Request, runtime
from ibidem.cache import SemanticCache
from ibidem.costs import SHIPPED, read_prices
from ibidem.errors import ConfigurationError
from tests import snapshot_prices


def write(folder: Path, content: object) -> Path:
    """A file of prices."""
    file = folder / "prices.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def of(model: str, prices=None) -> tuple[float, float] | None:
    """Read and said, per million tokens."""
    found = (prices or read_prices()).of(model)
    return None if found is None else (found.input, found.output)


def test_every_shipped_price_says_whose_it_is_and_of_when() -> None:
    """A price without a source and a day could not be checked."""
    prices = read_prices()

    assert len(prices.models) > 200
    assert prices.currency == "USD"
    assert date(2026, 11, 1) <= date.fromisoformat(prices.as_of)
    for price in prices.models.values():
        assert price.source.startswith("https://")
        assert price.provider in snapshot_prices.PROVIDERS
        assert 0 < price.input <= price.output


def test_the_shipped_prices_are_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is the version that the table names, it makes the same table; nothing is looked up."""
    shipped = json.loads(SHIPPED.read_text())
    if shipped["source"] != f"genai-prices {version('genai-prices')}":
        pytest.skip("another version of genai-prices is installed")
    monkeypatch.setattr(snapshot_prices, "SHIPPED", tmp_path / "prices.json")
    snapshot_prices.main()
    made = json.loads((tmp_path / "prices.json").read_text())
    later = [name for name, price in made["models"].items() if shipped["models"].get(name) != price]

    assert set(made["models"]) >= set(shipped["models"])
    assert len(later) < len(made["models"]) / 10  # the package knows prices that begin on a later day


@given(st.dates(date(2020, 1, 1), date(2039, 12, 31)), st.sampled_from(sorted(read_prices().models)))
def test_a_date_is_the_same_model_only_where_the_package_says_so(day: date, model: str) -> None:
    """As each provider writes dates; else the price of that day's model is unknown."""
    prices = read_prices()
    price = prices.models[model]
    for said in (f"-{day:%Y%m%d}", f"-{day:%Y-%m-%d}"):
        found = prices.of(snapshot_prices.dated_like(model, said))
        assert found in (
            (price,) if price.dated else (None, prices.models.get(snapshot_prices.dated_like(model, said)))
        )


def test_a_provider_before_the_name_is_that_of_the_model() -> None:
    """As LangChain names models; a deployment of another seller has no list price."""
    assert of("openai:gpt-4o-2024-08-06") == of("gpt-4o")
    assert of("anthropic:claude-sonnet-4-5-20250929") == of("claude-sonnet-4-5")
    assert of("google_genai:gemini-2.5-flash") == of("gemini-2.5-flash")
    assert of("bedrock:amazon.nova-pro-v1:0") == of("amazon.nova-pro-v1:0") == (0.8, 3.2)
    assert of("openai:claude-sonnet-4-5") is None
    assert of("azure_openai:gpt-4o") is None
    assert of("bedrock:gpt-4o") is None


def test_bedrock_sells_under_names_of_its_own() -> None:
    """With a date or without; another region is another price."""
    name = "global.anthropic.claude-opus-4-5-v1:0"
    assert of(name) == of("global.anthropic.claude-opus-4-5-20251101-v1:0") is not None
    assert of("moon.anthropic.claude-opus-4-5-v1:0") is None


def test_dated_names_are_of_their_model() -> None:
    """Those that are listed; one of another price has its own."""
    assert of("gpt-4o") == of("gpt-4o-2024-08-06") == of("gpt-4o-2024-11-20") == (2.5, 10.0)
    assert of("gpt-4o-2024-05-13") == (5.0, 15.0)
    assert of("claude-sonnet-4-5-20250929") == of("claude-sonnet-4-5") == (3.0, 15.0)
    assert of("models/gemini-2.5-flash") == of("gemini-2.5-flash") == (0.3, 2.5)


@pytest.mark.parametrize(
    "model",
    [
        "",
        "gpt-4o-2031-01-01",
        "gpt-4o-audio-preview",
        "ft:gpt-4o-mini:acme",
        "GPT-4O",
        "openai/gpt-4o",
        "azure/gpt-4o",
        "azure:gpt-4o",
        "my-gpt-4o-deployment",
        "us.anthropic.claude-sonnet-4-20250514-v9:0",
        "claude-sonnet-4-5-20250929 ",
        "mistral-large-latest",
    ],
)
def test_what_is_like_a_model_has_no_price(model: str) -> None:
    """Other snapshots, fine-tuned ones, other sellers, aliases that move: never a guess."""
    assert of(model) is None
    assert read_prices().cost(model, 1, 1) is None


def test_a_file_goes_before_the_shipped_prices(tmp_path: Path) -> None:
    """A model's own dated names follow it; models that are not in the file keep their prices."""
    models = {"gpt-4o": {"input": 2, "output": 8}, "mine": {"input": 0, "output": 0.5, "names": ["mine-2"]}}
    prices = read_prices(write(tmp_path, {"currency": "USD", "models": models}))

    assert of("gpt-4o-2024-08-06", prices) == of("gpt-4o", prices) == (2.0, 8.0)
    assert of("mine-2", prices) == (0.0, 0.5)
    assert of("gpt-4o-mini", prices) == of("gpt-4o-mini")
    assert prices.cost("mine", 1_000_000, 2_000_000) == 1.0


def test_another_currency_stands_alone(tmp_path: Path) -> None:
    """Euros and dollars have no sum."""
    models = {"mine": {"input": 1, "output": 1}}
    prices = read_prices(write(tmp_path, {"currency": "EUR", "models": models}))

    assert prices.currency == "EUR"
    assert of("gpt-4o", prices) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "it is not JSON"),
        ("[]", "the file"),
        ({"currency": "dollars", "models": {}}, "currency"),
        ({"currency": "USD", "models": {"m": {"input": -1, "output": 1}}}, "models.m.input"),
        ({"currency": "USD", "models": {"m": {"input": "1", "output": 1}}}, "models.m.input"),
        ('{"currency": "USD", "models": {"m": {"input": NaN, "output": 1}}}', "models.m.input"),
        ({"currency": "USD", "models": {"m": {"input": 1}}}, "models.m.output"),
        ({"currency": "USD", "models": {"m": {"input": 1, "output": 1, "cached": 1}}}, "models.m.cached"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: object, said: str) -> None:
    """The message says what is wrong."""
    with pytest.raises(ConfigurationError, match="cannot use the prices") as error:
        read_prices(write(tmp_path, content))

    assert said in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Named in the message."""
    with pytest.raises(ConfigurationError, match=r"cannot read the prices in .*nowhere\.json"):
        read_prices(tmp_path / "nowhere.json")


def test_a_cache_tells_of_its_money(open_cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own prices, from an argument, a file or the variable; else by the shipped ones."""
    table = {"currency": "EUR", "models": {"mine": {"input": 1, "output": 2}}}
    asked = Request("what is mine")
    with open_cache(path=tmp_path / "c") as cache:
        cache.store(asked, Answer("a", model="mine", input_tokens=100_000, output_tokens=100_000))
        assert cache.lookup(asked)
        assert cache.lookup(asked)
        without = cache.stats()
    monkeypatch.setenv("IBIDEM_PRICES", str(write(tmp_path, table)))
    told = []
    for prices in (None, table, tmp_path / "prices.json", str(tmp_path / "prices.json")):
        with open_cache(path=tmp_path / "c", prices=prices) as cache:
            told.append(cache.stats())

    assert (without.money_saved, without.currency, without.unpriced) == (None, "USD", {"mine": 2})
    assert {(stats.money_saved, stats.currency, len(stats.unpriced)) for stats in told} == {(0.6, "EUR", 0)}


def test_a_hit_of_unknown_tokens_has_no_known_money(cache: SemanticCache) -> None:
    """Although its model has a price."""
    cache.store(Request("what is it"), Answer("a", model="gpt-4o"))
    cache.lookup(Request("what is it"))

    assert (cache.stats().money_saved, cache.stats().unpriced) == (None, {"gpt-4o": 1})


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ({"models": {}}, "currency: Field required"),
        ("nowhere.json", "cannot read the prices"),
        (7, "prices: must be a file path"),
    ],
)
def test_a_cache_is_not_opened_with_wrong_prices(open_cache, prices: object, said: str) -> None:
    """The message says what is wrong, and no runtime stays open."""
    with pytest.raises(ConfigurationError, match=said):
        open_cache(prices=prices)
    assert runtime._open == {}
