"""What models cost, and what answers served from the cache saved.

The table in `prices.json` holds list prices as of a month; a file of the user's goes before it. A model that
is not in it by its exact name has no price.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ibidem.errors import ConfigurationError

if TYPE_CHECKING:
    from ibidem.storage.figures import Served

SHIPPED = Path(__file__).with_name("prices.json")
MILLION = 1_000_000
_Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Price(BaseModel):
    """What a million tokens cost: read, and said.

    `names` are other names of the same model (dated ones), `source` and `as_of` say who said so, and when.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    input: _Amount
    output: _Amount
    names: tuple[str, ...] = Field(default=(), strict=False)
    source: str = ""
    as_of: str = ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    models: dict[str, Price]


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of models by name, in one currency (three letters, ISO 4217)."""

    currency: str
    models: Mapping[str, Price]

    def of(self, model: str) -> Price | None:
        """The price of the model of exactly this name; None if it is not known."""
        return self.models.get(model.removeprefix("models/"))  # as Google's API says its models

    def cost(self, model: str, read: int, said: int) -> float | None:
        """What so many tokens cost; None if the model has no price."""
        price = self.of(model)
        return None if price is None else (read * price.input + said * price.output) / MILLION


@dataclass(frozen=True, slots=True)
class Savings:
    """What hits saved; of these money is known of `priced` and time of `timed`, the others are left out.

    `unpriced` counts those of which money is not known, by model.
    """

    hits: int = 0
    tokens: int = 0
    money: float = 0.0
    priced: int = 0
    seconds: float = 0.0
    timed: int = 0
    unpriced: dict[str, int] = field(default_factory=dict)


def savings(rows: Iterable[Served], prices: Prices) -> Savings:
    """The sum over the hits among these rows."""
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
    return Savings(hits, tokens, money, priced, seconds, timed, unpriced)


def read_prices(own: Path | Mapping[str, Any] | None = None) -> Prices:
    """The shipped prices, and before them those of a file, or of what such a file would hold.

    Prices in another currency replace the shipped ones, as sums of both would mean nothing.

    Raises:
        ConfigurationError: The file cannot be read, or is no table of prices; the message says why.
    """
    shipped = _shipped()
    if own is None:
        return shipped
    given = _read(own.expanduser()) if isinstance(own, Path) else _checked(own, "prices")
    if given.currency != shipped.currency:
        return given
    # Who gives a price for a model means the dated names of it as well.
    dated = {
        other: price
        for name, price in given.models.items()
        for other in (shipped.models[name].names if name in shipped.models else ())
    }
    return Prices(shipped.currency, {**shipped.models, **dated, **given.models})


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
    return Prices(found.currency, models)
