"""The charts of a report, in Vega-Lite. Their names must be escaped before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ibidem.cli.formatting import percent

Spec = dict[str, Any]

ACCENT, MIDDLE, HOLLOW, INK = "var(--accent)", "var(--middle)", "var(--soft)", "var(--ink)"
QUIET, GRID, PAPER = "var(--quiet)", "var(--grid)", "var(--paper)"
_EDGE = {"strokeWidth": 1}
BAR_HEIGHT = 26
KINDS = ("served", "below", "refused")
CHARACTER = 7.5  # CSS pixels of a character in the widest of usual fonts: the reader's is not known here
# Small amounts as they are, others with k, M or bn.
_SHORT = "abs(datum.value) < 1 ? format(datum.value, '~g') : replace(format(datum.value, '~s'), 'G', 'bn')"
_PERCENT = "format(100 * datum.value, '~g') + '\N{NO-BREAK SPACE}%'"

_APART = {"labelOverlap": "greedy", "labelSeparation": 18}
_QUANTITY = {"type": "quantitative"}
_CONFIG: Spec = {
    "aria": False,
    "background": None,
    "font": "sans-serif",
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        "domainColor": GRID, "gridColor": GRID, "tickColor": GRID, "labelColor": QUIET, "titleColor": QUIET,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelPadding": 6,
        "titlePadding": 10,
    },
    "axisY": {"domain": False, "ticks": False},
    "axisX": {"grid": False},
    "text": {"fontSize": 12, "color": INK},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a chart with its axes and legend, in CSS pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Moment:
    """A period of a chart over time, by its start in seconds since the epoch; None: no lookups."""

    at: float
    end: float
    value: float | None


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with its interval."""

    name: str
    low: float
    value: float
    high: float


def line(moments: Sequence[Moment], size: Size) -> Spec:
    """Draw a share over time."""
    values = [{"at": _middle(one), "value": one.value} for one in moments]
    encoding = {"x": _time(moments, size), "y": _amount("value", _PERCENT)}
    area = {"type": "area", "color": ACCENT, "opacity": 0.12}
    mark = {"type": "line", "color": ACCENT, "strokeWidth": 2, "point": {"color": ACCENT, "size": 22}}
    return _chart(size, values, encoding=encoding, layer=[{"mark": area}, {"mark": mark}])


def columns(moments: Sequence[Moment], size: Size) -> Spec:
    """Draw an amount over time."""
    values = [{"at": 1000 * one.at, "end": 1000 * one.end, "value": one.value or 0} for one in moments]
    y = {"y": _amount("value"), "y2": {"datum": 0}}
    mark = {"type": "rect", "color": ACCENT, "stroke": PAPER, "strokeWidth": 1}
    return _chart(size, values, mark=mark, encoding={"x": _time(moments, size), "x2": {"field": "end"}, **y})


def shares(rows: Sequence[tuple[str, float, bool]], width: int) -> Spec:
    """Draw named shares of a whole; the marked ones stand out."""
    values = [
        {"name": name, "share": share, "told": percent(share), "marked": marked}
        for name, share, marked in rows
    ]
    most = max((share for _, share, _ in rows), default=1.0)
    color = {"condition": {"test": "datum.marked", "value": ACCENT}, "value": MIDDLE}
    x = {
        "field": "share",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [0, most * (1.12 if width > 500 else 1.6)]},
    }
    bars = {"mark": {"type": "bar", "height": {"band": 0.62}}, "encoding": {"x": x, "color": color}}
    label = {
        "mark": {"type": "text", "align": "left", "dx": 6},
        "encoding": {"x": x, "text": {"field": "told"}},
    }
    size = Size(width, BAR_HEIGHT * max(1, len(rows)) + 8)
    return _chart(size, values, encoding={"y": _names(rows, width)}, layer=[bars, label])


def histogram(bins: Sequence[tuple[float, float, Sequence[int]]], boundary: float | None, size: Size) -> Spec:
    """Draw lookups by bins of similarity in three kinds, and the threshold."""
    values = [
        {"from": low, "to": high, "kind": kind, "count": count, "order": order}
        for low, high, counts in bins
        for order, (kind, count) in enumerate(zip(KINDS, counts, strict=True))
        if count
    ]
    ends = [min(low for low, _, _ in bins), max(high for _, high, _ in bins)]
    axis = {"format": ".2f", "title": "cosine of the nearest stored question", "tickCount": size.width // 90}
    x = {
        **_QUANTITY,
        "field": "from",
        "bin": "binned",
        "axis": axis,
        "scale": {"domain": ends, "nice": False},
    }
    encoding = {
        "x": x,
        "x2": {"field": "to"},
        "y": {**_amount("count"), "stack": "zero"},
        **_colors(KINDS, [ACCENT, HOLLOW, MIDDLE]),
        "order": {**_QUANTITY, "field": "order"},
    }
    bars = {"mark": {"type": "bar", "binSpacing": 1, **_EDGE}, "encoding": encoding}
    return _chart(size, values, layer=[bars, *_line_at(boundary, ends, "serves from about {:.3f}")])


def intervals(found: Sequence[Interval], budget: float, width: int) -> Spec:
    """Draw shares with their intervals, and the budget."""
    values = [{"name": one.name, "low": one.low, "value": one.value, "high": one.high} for one in found]
    most = max([budget, *(one.high for one in found)]) * 1.05
    x = {
        "field": "low", "type": "quantitative", "title": "wrong per hit by meaning",
        "axis": {"labelExpr": _PERCENT, "tickCount": width // 90, "grid": True},
        "scale": {"domain": [0, most], "nice": False},
    }  # fmt: skip
    y = {"y": _names([(one.name,) for one in found], width)}
    rule = {"type": "rule", "color": ACCENT, "strokeWidth": 3, "strokeCap": "round"}
    bars = {"mark": rule, "encoding": {**y, "x": x, "x2": {"field": "high"}}}
    point = {"type": "point", "filled": True, "color": ACCENT, "size": 90, "opacity": 1}
    points = {"mark": point, "encoding": {**y, "x": {**x, "field": "value"}}}
    size = Size(width, 34 * len(found) + 76)
    return _chart(
        size, values, layer=[bars, points, *_line_at(budget, [0.0, most], f"budget {percent(budget)}")]
    )


def stacks(rows: Sequence[tuple[str, int, int]], size: Size) -> Spec:
    """Draw amounts of the first two kinds side by side."""
    values = [
        {"name": name, "kind": kind, "count": count, "order": order}
        for name, *counts in rows
        for order, (kind, count) in enumerate(zip(KINDS, counts, strict=False))
    ]
    x = {
        "field": "name",
        "type": "nominal",
        "sort": None,
        "axis": {"labelAngle": 0, "title": None, "ticks": False},
    }
    y, order = {**_amount("count"), "stack": "zero"}, {**_QUANTITY, "field": "order"}
    encoding = {"x": x, "y": y, **_colors(KINDS[:2], [ACCENT, HOLLOW]), "order": order}
    return _chart(size, values, mark={"type": "bar", "width": {"band": 0.7}, **_EDGE}, encoding=encoding)


def _colors(kinds: Sequence[str], colors: Sequence[str]) -> Spec:
    """Fill the kinds, and edge them, so that they differ by more than their color: some are hollow."""
    edges = [MIDDLE if color == HOLLOW else PAPER for color in colors]
    kind = {"field": "kind", "type": "nominal", "legend": None}
    scales = {"fill": colors, "stroke": edges}
    return {name: {**kind, "scale": {"domain": kinds, "range": range_}} for name, range_ in scales.items()}


def _chart(size: Size, values: Sequence[Spec], **parts: Any) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": size.width,
        "height": size.height,
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": list(values)},
        "config": _CONFIG,
        **parts,
    }


def _amount(name: str, labels: str = _SHORT) -> Spec:
    return {
        **_QUANTITY,
        "field": name,
        "axis": {"title": None, "tickCount": 4, "labelExpr": labels},
        "scale": {"zero": True},
    }


def _names(rows: Sequence[Sequence[Any]], width: int) -> Spec:
    room = int(0.6 * width)
    extent = min(room, int(CHARACTER * max(len(row[0]) for row in rows)))
    axis = {"title": None, "labelColor": INK, "labelLimit": room, "minExtent": extent}
    axis |= {"domain": False, "labelPadding": 10}
    return {"field": "name", "type": "nominal", "sort": None, "axis": axis}


def _middle(one: Moment) -> float:
    return 500 * (one.at + one.end)


def _time(moments: Sequence[Moment], size: Size) -> Spec:
    """Return a time axis in UTC; Vega counts in milliseconds."""
    days = moments[-1].end - moments[0].at >= 3 * 86_400
    axis = {"format": "%-d %b" if days else "%H:%M", "title": None, "tickCount": max(2, size.width // 90)}
    scale = {"type": "utc", "domain": [1000 * moments[0].at, 1000 * moments[-1].end], "nice": False}
    return {"field": "at", "type": "temporal", "axis": {**axis, **_APART}, "scale": scale}


def _line_at(value: float | None, ends: Sequence[float], text: str) -> list[Spec]:
    """Draw a vertical line with its label on the side that has room."""
    if value is None:
        return []
    data = {"values": [{"at": value, "text": text.format(value)}]}
    x = {**_QUANTITY, "field": "at"}
    align = "right" if value > sum(ends) / 2 else "left"
    rule = {"type": "rule", "color": INK, "strokeDash": [4, 3], "strokeWidth": 1.5}
    mark = {"type": "text", "align": align, "baseline": "bottom", "y": -5, "fontWeight": "bold"}
    label = {"mark": mark, "encoding": {"x": x, "text": {"field": "text"}}}
    return [{"data": data, "mark": rule, "encoding": {"x": x}}, {"data": data, **label}]
