"""The shipped prices anew, from the package `genai-prices` as it is installed; nothing is fetched.

    python -m tests.snapshot_prices

Taken are the prices of text in and text out, per million tokens, of providers that sell under their own
names. Left out are a name that two of them sell at different prices, and a model that does not answer in text
alone, or whose price depends on the time of day, or rises within `FIRST_TIER` tokens. Of other tiers the
first is taken, which is the least that a long prompt costs; cached input and batches count as ordinary ones.
A name is known exactly, or with a date where the package says that dates mean the same model.
"""

from __future__ import annotations

import json
import re
from datetime import date
from importlib.metadata import version
from typing import Any

from genai_prices import data, types

from ibidem.costs import SHIPPED

PROVIDERS = (
    "openai",
    "anthropic",
    "google",
    "mistral",
    "cohere",
    "deepseek",
    "groq",
    "x-ai",
    "perplexity",
    "aws",
)
FIRST_TIER = 128_000  # tokens: nearly every prompt is shorter
NOT_TEXT = re.compile("audio|image|realtime|tts|transcribe|embed|sonic|live")  # other prices than these count
DATES = ("-20310203", "-2031-02-03")
_VERSION = re.compile(r"(?=-v\d+(?::\d+)?$)|$")


def price_of(model: Any, today: date) -> Any:
    """The price in force, None if there is no single one."""
    prices = model.prices
    if not isinstance(prices, list):
        return prices
    found = None
    for one in prices:
        if one.constraint is None:
            found = one.prices
        elif not isinstance(one.constraint, types.StartDateConstraint):
            return None
        elif one.constraint.start_date <= today:
            found = one.prices
    return found


def flat(value: Any) -> float | None:
    """The first tier, None if there is no price or it rises within it."""
    if isinstance(value, types.TieredPrices):
        return float(value.base) if all(tier.start >= FIRST_TIER for tier in value.tiers) else None
    return None if value is None else float(value)


def names_of(clause: Any) -> set[str]:
    """The names that a clause knows exactly."""
    if isinstance(clause, types.ClauseEquals):
        return {clause.equals}
    if isinstance(clause, types.ClauseOr):
        return {name for one in clause.or_ for name in names_of(one)}
    return set()


def dated_like(model: str, day: str) -> str:
    """Insert a date, such as `-20251101`, into a model's name where its provider puts it."""
    return _VERSION.sub(day, model, count=1)


def is_dated(model: Any) -> bool:
    """Whether the model's name with any date in it is the same model."""
    return any(model.match.is_match(dated_like(model.id, day)) for day in DATES)


def sold(provider: Any, today: date) -> dict[str, dict[str, Any]]:
    """The models of a provider by name."""
    found = {}
    for model in provider.models:
        price = price_of(model, today)
        read, said = (flat(getattr(price, name, None)) for name in ("input_mtok", "output_mtok"))
        theirs = (
            provider.id == "aws" or provider.model_match is None or provider.model_match.is_match(model.id)
        )
        if not read or not said or read > said or not theirs or NOT_TEXT.search(model.id):
            continue
        names = sorted(
            {name for name in names_of(model.match) if not re.search(r"latest$", name)} - {model.id}
        )
        entry: dict[str, Any] = {"input": read, "output": said}
        entry |= {"names": names} if names else {}
        entry |= {"dated": True} if is_dated(model) else {}
        found[model.id] = {**entry, "provider": provider.id, "source": provider.pricing_urls[0]}
    return found


def main() -> None:
    """Write the table."""
    today = date.today()
    models: dict[str, dict[str, Any]] = {}
    doubtful: set[str] = set()
    for provider in data.providers:
        if provider.id not in PROVIDERS:
            continue
        for name, price in sold(provider, today).items():
            known = models.setdefault(name, price)
            if (known["input"], known["output"]) != (price["input"], price["output"]):
                doubtful.add(name)
    kept = {
        name: price for name, price in sorted(models.items()) if name not in doubtful and "latest" not in name
    }
    head = {
        "currency": "USD",
        "as_of": today.isoformat(),
        "source": f"genai-prices {version('genai-prices')}",
    }
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(price)}" for name, price in kept.items())
    begin = json.dumps(head, indent=2).removesuffix("\n}")
    SHIPPED.write_text(f'{begin},\n  "models": {{\n{lines}\n  }}\n}}\n', encoding="utf-8")
    print(f"{len(kept)} models; left out, as sellers differ: {', '.join(sorted(doubtful)) or 'none'}")


if __name__ == "__main__":
    main()
