"""A stream of questions to a shop with their meanings: five ways to ask each of six things about a product.

Products that sound alike must not be mixed up, and the ways to ask share few words: a general embedding is
poor at both, and both can be learned from other products.
"""

from __future__ import annotations

import random

from ibidem_lab.replay import Row

WAYS = {
    "price": (
        "how much is the {}",
        "what does the {} cost",
        "price of the {} please",
        "what would I have to pay for the {}",
        "is the {} expensive, what do you charge for it",
    ),
    "delivery": (
        "when will the {} arrive",
        "how long does shipping of the {} take",
        "delivery time of the {}",
        "how many days until I get the {}",
        "how soon can you send me the {}",
    ),
    "return": (
        "how do I send the {} back",
        "can I return the {}",
        "I want my money back for the {}",
        "what is the return policy for the {}",
        "how can I get a refund for the {}",
    ),
    "warranty": (
        "how long is the {} under warranty",
        "what guarantee comes with the {}",
        "is the {} covered if it breaks",
        "warranty period of the {}",
        "for how many years is the {} guaranteed",
    ),
    "stock": (
        "do you have the {} in stock",
        "is the {} available",
        "can I buy the {} right now",
        "is the {} sold out",
        "how many of the {} are left",
    ),
    "colour": (
        "which colours does the {} come in",
        "is there a red {}",
        "can I get the {} in another colour",
        "what colours are there for the {}",
        "colour options of the {}",
    ),
}
KINDS = ("lamp", "chair", "kettle", "toaster", "desk", "sofa", "mixer", "fan", "heater", "shelf")
MAKES = ("Aldera", "Borun", "Castell", "Dovano", "Elmet")


def products() -> list[str]:
    """Fifty, such as "Borun lamp"."""
    return [f"{make} {kind}" for kind in KINDS for make in MAKES]


def stream(names: list[str], seed: int = 0) -> list[Row]:
    """Every question about these products once, shuffled; the meaning is the product and what is asked."""
    rows = [
        Row(way.format(name), f"{thing} of the {name}")
        for name in names
        for thing, ways in WAYS.items()
        for way in ways
    ]
    random.Random(seed).shuffle(rows)
    return rows
