"""Prices of models, and the savings of hits.

The table in `prices.json` holds list prices of one day, from the package `genai-prices`
(`tests/snapshot_prices.py`); a file of the user takes precedence. Nothing is fetched. A price is found by the
exact name of a model, also after that of its provider (`openai:gpt-4o`), or with a date where dated names
mean the same model; the price of every other model is unknown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ibidem.errors import ConfigurationError

if TYPE_CHECKING:
    from ibidem.storage.statistics import LookupSums, OpinionSums


SHIPPED = Path(__file__).with_name("prices.json")
MILLION = 1_000_000
# A date in the name of a model, at its end or before the version in Bedrock's names.
_DATE = re.compile(r"-(?:20\d{6}|20\d\d-\d\d-\d\d)(?=$|-v\d)")
# Providers as LangChain and others name them, and as the table does.
_SELLERS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "google": "google",
    "google_genai": "google",
    "google-gla": "google",
    "mistral": "mistral",
    "mistralai": "mistral",
    "cohere": "cohere",
    "deepseek": "deepseek",
    "groq": "groq",
    "xai": "x-ai",
    "grok": "x-ai",
    "perplexity": "perplexity",
    "bedrock": "aws",
    "bedrock_converse": "aws",
}
_Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Price(BaseModel):
    """The price of a million input and output tokens.

    `names` are other names of the same model; if `dated`, so is its name with any date. `provider` sells it,
    `source` and `as_of` are source and date of the price.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    input: _Amount
    output: _Amount
    names: tuple[str, ...] = Field(default=(), strict=False)
    dated: bool = False
    provider: str = ""
    source: str = ""
    as_of: str = ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    as_of: str = ""
    source: str = ""
    models: dict[str, Price]


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of models by name, in one currency (three letters, ISO 4217).

    `as_of` is the day of the shipped prices among them, "" if there are none.
    """

    currency: str
    models: Mapping[str, Price]
    as_of: str = ""

    def of(self, model: str) -> Price | None:
        """Find the price of a model by its name; None if unknown.

        `provider:model` is the model of that provider only.
        """
        if model in self.models:
            return self.models[model]
        seller, colon, name = model.partition(":")
        if colon and seller in _SELLERS:
            found = self._named(name)
            return found if found is not None and found.provider in ("", _SELLERS[seller]) else None
        return self._named(model)

    def _named(self, model: str) -> Price | None:
        name = model.removeprefix("models/")  # as Google's API names its models
        if (exact := self.models.get(name)) is not None:
            return exact
        found = self.models.get(_DATE.sub("", name, count=1))
        return found if found is not None and found.dated else None

    @property
    def dated(self) -> str:
        """The date of the prices, for display."""
        return f"list prices of {self.as_of}" if self.as_of else "your prices"

    def cost(self, model: str, input_tokens: int, output_tokens: int) -> float | None:
        """Compute the cost of tokens; None if the model has no price."""
        price = self.of(model)
        if price is None:
            return None
        return (input_tokens * price.input + output_tokens * price.output) / MILLION


@dataclass(frozen=True, slots=True)
class Savings:
    """The savings of hits: money is known of `priced` of them, time of `timed`; the others are left out.

    `unpriced` counts, by model, the hits without a known price. The second opinions (`opinions`) took
    `tokens_spent` and `spent`, which are subtracted from `tokens` and `money`; of `unpriced_opinions` of
    them the price is unknown.
    """

    hits: int = 0
    tokens: int = 0
    money: float = 0.0
    priced: int = 0
    seconds: float = 0.0
    timed: int = 0
    unpriced: dict[str, int] = field(default_factory=dict)
    opinions: int = 0
    tokens_spent: int = 0
    spent: float = 0.0
    unpriced_opinions: int = 0

    @property
    def known_spent(self) -> float | None:
        """What second opinions took; None if there were none of a known price."""
        return self.spent if self.opinions > self.unpriced_opinions else None


def savings(rows: Iterable[LookupSums], prices: Prices, opinions: Iterable[OpinionSums] = ()) -> Savings:
    """Sum up the hits among these rows, and subtract what second opinions took."""
    hits = tokens = priced = timed = 0
    money = seconds = 0.0
    unpriced: dict[str, int] = {}
    for row in rows:
        if not row.tier:
            continue
        hits, tokens = hits + row.count, tokens + row.tokens
        seconds, timed = seconds + row.seconds, timed + row.timed
        cost = prices.cost(row.model, row.input, row.output)
        known = row.priced if cost is not None else 0
        money, priced = money + (cost or 0.0), priced + known
        if known < row.count:
            unpriced[row.model] = unpriced.get(row.model, 0) + row.count - known
    asked = spent_tokens = unknown = 0
    spent = 0.0
    for one in opinions:
        cost = prices.cost(one.model, one.input, one.output)
        asked, spent_tokens = asked + one.count, spent_tokens + one.input + one.output
        spent, unknown = spent + (cost or 0.0), unknown + one.count - (0 if cost is None else one.known)
    return Savings(
        hits,
        tokens - spent_tokens,
        money - spent,
        priced,
        seconds,
        timed,
        unpriced,
        opinions=asked,
        tokens_spent=spent_tokens,
        spent=spent,
        unpriced_opinions=unknown,
    )


def read_prices(own: Path | Mapping[str, Any] | None = None) -> Prices:
    """Read the shipped prices, overridden by those of a file, or of a mapping like it.

    Prices in another currency replace the shipped ones, as sums of both would be meaningless.

    Raises:
        ConfigurationError: The file cannot be read, or is not a table of prices; the message says why.
    """
    shipped = _shipped()
    if own is None:
        return shipped
    given = _read(own.expanduser()) if isinstance(own, Path) else _checked(own, "prices")
    if given.currency != shipped.currency:
        return given
    # The price of a model is meant for its dated names as well.
    dated = {
        other: price
        for name, price in given.models.items()
        for other in (shipped.models[name].names if name in shipped.models else ())
    }
    return Prices(shipped.currency, {**shipped.models, **dated, **given.models}, shipped.as_of)


@cache
def _shipped() -> Prices:
    return _read(SHIPPED)


def _read(file: Path) -> Prices:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the prices in {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"cannot use the prices in {file}: it is not JSON ({error})") from None
    return _checked(found, f"the prices in {file}")


def _checked(given: object, where_from: str) -> Prices:
    try:
        found = _File.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigurationError(
            f"cannot use {where_from}: {where}: {first['msg']}; it must be like "
            '{"currency": "EUR", "models": {"my-model": {"input": 0.4, "output": 1.6}}}, per million tokens'
        ) from None
    models: dict[str, Price] = {}
    for name, price in found.models.items():
        models.update(dict.fromkeys(price.names, price))
        models[name] = price
    return Prices(found.currency, models, found.as_of)
