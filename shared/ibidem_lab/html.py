"""HTML pages from templates; all stored text is escaped."""

from __future__ import annotations

from pathlib import Path

from ibidem.cli import formatting
from ibidem.errors import MissingExtra

try:
    import jinja2
    from markupsafe import Markup
except ImportError as error:
    raise MissingExtra("a page", "report") from error

_FILTERS = (
    "shown",
    "named",
    "percent",
    "amount",
    "duration",
    "period",
    "size",
    "moment",
    "saved_money",
    "money",
    "plural",
)


def environment(folder: Path) -> jinja2.Environment:
    """Load the templates of a folder, with the filters of `ibidem.cli.formatting`."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update({name: getattr(formatting, name) for name in _FILTERS}, prose=prose)
    return found


def prose(text: str) -> Markup:
    """Escape a sentence, with what stands in backticks as code."""
    parts = text.split("`")
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if at % 2 else part for at, part in enumerate(parts))
