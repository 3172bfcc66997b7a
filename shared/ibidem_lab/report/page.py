"""Render a report as one HTML page: no script, nothing to load, all stored text escaped."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ibidem.errors import MissingExtra
from ibidem_lab.report import remarks
from ibidem_lab.report.drawing import draw
from ibidem_lab.report.facts import BELOW, Facts
from ibidem_lab.report.figures import Drawn, age_rows, figures_of
from ibidem_lab.report.next_steps import NextStep
from ibidem_lab.report.remarks import Remark
from ibidem_lab.report.what_if import HEADS, WhatIf, rows_of, sentences_of

try:
    from markupsafe import Markup

    from ibidem_lab.html import environment
except ImportError as error:
    raise MissingExtra("a report", "report") from error

_HERE = Path(__file__).parent
_ROLES = re.compile(r' role="graphics-[a-z]+" aria-roledescription="[a-z ]+"')
_IDS = re.compile(r'(?<=[ (])(id="|url\(#)(\w+)')


def page(
    facts: Facts,
    version: str,
    steps: Sequence[NextStep] = (),
    worth: WhatIf | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> str:
    """Render the page; the sections on whether it is worth it and what to do next only if they are given.

    `progress` is told how many charts of how many are drawn.
    """
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = environment(_HERE).get_template("page.html")
    return template.render(
        facts=facts,
        version=version,
        style=Markup(style),  # noqa: S704 - ours
        style_digest=digest,
        figures=_svgs(figures_of(facts), progress),
        ages=age_rows(facts),
        said=_remarks(facts),
        steps=steps,
        worth=None if worth is None else (HEADS, rows_of(worth), sentences_of(worth)),
        near=_by_reason(facts),
        below=BELOW,
    )


def _svgs(drawn: dict[str, Drawn], progress: Callable[[int, int], object]) -> dict[str, dict[str, Markup]]:
    """Render both forms of each figure; ids are made unique, as all are in one document."""
    found: dict[str, dict[str, Markup]] = {}
    for name, one in drawn.items():
        progress(len(found), len(drawn))
        forms = (("wide", one.wide), ("narrow", one.narrow))
        found[name] = {form: _svg(f"{name}-{form}-", draw(spec)) for form, spec in forms}
    return found


def _svg(prefix: str, drawn: str) -> Markup:
    """Without Vega's roles, which have no names: the figure around is the image, and has one."""
    return Markup(_IDS.sub(rf"\1{prefix}\2", _ROLES.sub("", drawn)))  # noqa: S704 - Vega escapes what it draws


def _remarks(facts: Facts) -> dict[str, Remark]:
    told: tuple[Callable[[Facts], Remark], ...] = (
        remarks.hit_rate,
        remarks.saved,
        remarks.outcomes,
        remarks.similarity,
        remarks.wrong,
        remarks.near,
        remarks.valuable,
        remarks.suspicious,
        remarks.namespaces,
        remarks.models,
        remarks.holdings,
    )
    return {one.__name__: one(facts) for one in told}


def _by_reason(facts: Facts) -> list[tuple[str, int, list[Any]]]:
    """List reasons with examples and their number of misses, the commonest first."""
    found = [
        (reason, n, [one for one in facts.near if one.reason == reason])
        for reason, n in facts.reasons.items()
    ]
    return [(reason, n, some) for reason, n, some in found if some]
