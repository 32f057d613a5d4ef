"""Charts as SVG inside a page: colours are the page's, labels are text, numbers stand beside them in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from stages.artifacts.overlay import text_html
from stages.pages.lines import Line, Panel, Point

Axis = Literal["round", "device_seconds", "rollouts"]
AXES: Mapping[Axis, str] = {"round": "rounds", "device_seconds": "device-seconds", "rollouts": "rollouts"}
COLORS = 8
"""Series colours of the page; further lines have them again, dashed."""
_WIDTH, _HEIGHT = 420.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 12.0, 10.0, 38.0
_TICKS = 5
_LETTER = 7.5
"""Width of one in a label, about."""
_MARKED, _SOME = 30, 7
"""Points of a line up to which each has a marker; of a longer one about so many have."""
_MARKERS = ("M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0z", "M-3.2-3.2h6.4v6.4h-6.4z", "M0-4.4L4.2 3.2h-8.4z",
            "M0-4.6L4.6 0L0 4.6L-4.6 0z")  # fmt: skip


class _Scale(NamedTuple):
    """From numbers to places in the picture."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def number(value: float) -> str:
    """As charts and tables have it."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.3g}"


def seconds(value: float) -> str:
    """Device-seconds, as charts and tables have them."""
    return f"{value:,.1f}"


def curves(panels: Sequence[Mapping[Axis, Panel]], told: str, *, large: bool = False) -> str:
    """Panels, each by the axes that it is drawn over, and the list that chooses one of these for all of them."""
    options = "".join(f"<option value='{axis}'>{AXES[axis]}</option>" for axis in panels[0])
    drawn = "".join(figure(by_axis) for by_axis in panels)
    return (
        "<div class='curves'><form hidden><label>Horizontal axis "
        f"<select class='axis'>{options}</select></label></form><p>{text_html(told)}</p>"
        f"<div class='panels{' large' * large}'>{drawn}</div></div>"
    )


def figure(by_axis: Mapping[Axis, Panel]) -> str:
    """A panel over each axis, of which the page shows one, and its numbers."""
    panel = next(iter(by_axis.values()))
    charts = "".join(_svg(of, axis, hidden=place > 0) for place, (axis, of) in enumerate(by_axis.items()))
    alike = all(of is panel for of in by_axis.values())
    numbers = (
        _numbers(panel)
        if alike
        else "".join(
            f"<div data-axis='{axis}'{' hidden' * (of is not panel)}>{_numbers(of)}</div>"
            for axis, of in by_axis.items()
        )
    )
    return (
        f"<figure class='panel'><figcaption><b>{text_html(panel.title)}</b> {text_html(panel.note)}</figcaption>"
        f"{charts}{_legend([line.label for line in panel.lines])}"
        f"<details><summary>Numbers: {text_html(panel.title)}</summary>{numbers}</details></figure>"
    )


def _svg(panel: Panel, axis: Axis, *, hidden: bool) -> str:
    points = [point for line in panel.lines for point in line.points]
    ends = [value for p in points for value in (p.value, p.low, p.high) if value is not None]
    y = _Scale(*_spread(min(ends), max(ends)), _HEIGHT - _BOTTOM, _TOP)
    x = _Scale(0, max(getattr(p, axis) for p in points) or 1, _LEFT, _WIDTH - _RIGHT)
    lines = "".join(_line(index, line, axis, x, y) for index, line in enumerate(panel.lines))
    return (
        f"<svg class='chart' data-axis='{axis}'{' hidden' * hidden} viewBox='0 0 {_WIDTH:g} {_HEIGHT:g}' role='img' "
        f"aria-label='{text_html(_spoken(panel, axis))}'>{_grid(x, y, axis)}{lines}</svg>"
    )


def _spoken(panel: Panel, axis: Axis) -> str:
    ways = [
        f"{line.label} from {number(line.points[0].value)} to {number(line.points[-1].value)}" for line in panel.lines
    ]
    return f"{panel.title} over {AXES[axis]}: {'; '.join(ways)}"


def _spread(low: float, high: float) -> tuple[float, float]:
    """A little more than from the least to the most."""
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (0.0 if low >= 0 > low - margin else low - margin), high + margin


def _grid(x: _Scale, y: _Scale, axis: Axis) -> str:
    bottom, right = y.start, x.end
    rows = "".join(
        f"<path class='grid' d='M{x.start:.1f} {y(t):.1f}H{right:.1f}'/>"
        f"<text x='{x.start - 6:.1f}' y='{y(t) + 4:.1f}' text-anchor='end'>{t:g}</text>"
        for t in ticks(y.low, y.high)
    )
    columns = "".join(
        f"<path class='axis' d='M{x(t):.1f} {bottom:.1f}v4'/>"
        f"<text x='{x(t):.1f}' y='{bottom + 17:.1f}' text-anchor='middle'>{t:,g}</text>"
        for t in ticks(x.low, x.high)
        if axis != "round" or t == int(t)
    )
    name = f"<text x='{(x.start + right) / 2:.1f}' y='{_HEIGHT - 5:.1f}' text-anchor='middle'>{AXES[axis]}</text>"
    return f"{rows}{columns}{name}<path class='axis' d='M{x.start:.1f} {bottom:.1f}H{right:.1f}'/>"


def ticks(low: float, high: float) -> list[float]:
    """Round numbers in between, about `_TICKS` of them."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.75 * rough)
    return [float(f"{k * step:.12g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(index: int, line: Line, axis: Axis, x: _Scale, y: _Scale) -> str:
    places = [(x(getattr(point, axis)), y(point.value)) for point in line.points]
    path = "M" + "L".join(f"{across:.1f} {down:.1f}" for across, down in places)
    ends = [
        (across, y(point.low), y(point.high))
        for point, (across, _) in zip(line.points, places, strict=True)
        if point.low is not None and point.high is not None
    ]
    few = len(places) <= _MARKED
    marks = "".join(
        f"<path class='mark' d='{_MARKERS[index % len(_MARKERS)]}' transform='translate({across:.1f} {down:.1f})'>"
        f"<title>{text_html(_title(line.label, point))}</title></path>"
        for point, (across, down) in [*zip(line.points, places, strict=True)][:: 1 if few else len(places) // _SOME]
    )
    return (
        f"<g class='{_classes(index)}'>{_bars_between(ends) if few else _band(ends)}<path class='line' d='{path}'/>"
        f"{marks}</g>"
    )


def _bars_between(ends: Sequence[tuple[float, float, float]]) -> str:
    return "".join(f"<path class='bar' d='M{across:.1f} {low:.1f}V{high:.1f}'/>" for across, low, high in ends)


def _band(ends: Sequence[tuple[float, float, float]]) -> str:
    way = [(across, low) for across, low, _ in ends] + [(across, high) for across, _, high in reversed(ends)]
    return f"<path class='band' d='M{'L'.join(f'{across:.1f} {down:.1f}' for across, down in way)}z'/>" if way else ""


def _classes(index: int) -> str:
    return f"s{index % COLORS}" + (" dashed" if index >= COLORS else "")


def _title(label: str, point: Point) -> str:
    interval = "" if point.low is None or point.high is None else f" [{number(point.low)}, {number(point.high)}]"
    where = f"round {point.round:.3g}, {seconds(point.device_seconds)} device-seconds"
    where += "" if point.rollouts is None else f", {point.rollouts:,.0f} rollouts"
    return f"{label}: {number(point.value)}{interval} ({where})"


def _legend(labels: Sequence[str]) -> str:
    return (
        f"<ul class='legend'>{''.join(f'<li>{_swatch(i)}{text_html(name)}</li>' for i, name in enumerate(labels))}</ul>"
    )


def _swatch(index: int) -> str:
    mark = f"<path class='mark' d='{_MARKERS[index % len(_MARKERS)]}' transform='translate(13 5)'/>"
    return (
        f"<svg viewBox='0 0 26 10' class='swatch {_classes(index)}' aria-hidden='true'>"
        f"<path class='line' d='M0 5H26'/>{mark}</svg>"
    )


def _numbers(panel: Panel) -> str:
    over_rollouts = panel.lines[0].points[0].rollouts is not None
    rows = [
        [
            *(line.label, f"{p.round:.3g}", seconds(p.device_seconds)),
            *([f"{p.rollouts:,.0f}"] if over_rollouts else []),
            *(number(p.value), *_ends(p)),
        ]
        for line in panel.lines
        for p in line.points
    ]
    costs = ("round", "device-seconds", *(["rollouts"] if over_rollouts else []))
    return table(("line", *costs, "value", "low", "high"), rows)


def _ends(point: Point) -> list[str]:
    return ["" if end is None else number(end) for end in (point.low, point.high)]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Texts as a table, the first of a row being its name."""
    head = "".join(f"<th scope='col'>{text_html(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><th scope='row'>{text_html(row[0])}</th>{''.join(f'<td>{text_html(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    title = f"<caption>{text_html(caption)}</caption>" if caption else ""
    name = text_html(caption or heads[0])
    return (
        f"<div class='scroll' tabindex='0' role='group' aria-label='{name}'><table>{title}"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class Bar(NamedTuple):
    """A stage's device-seconds by phase."""

    label: str
    parts: Mapping[str, float]


def bars(bars_: Sequence[Bar], caption: str) -> str:
    """Stacked bars, one below the other, their legend and their numbers."""
    phases = list(dict.fromkeys(phase for bar in bars_ for phase in bar.parts))
    totals = [sum(bar.parts.values()) for bar in bars_]
    start = 16 + _LETTER * max(len(bar.label) for bar in bars_)
    x = _Scale(0, max(totals) or 1, start, start + 550)
    height = 26.0 * len(bars_) + 8
    drawn = "".join(_bar(row, bar, phases, x) for row, bar in enumerate(bars_))
    spoken = "; ".join(f"{bar.label} {seconds(total)}" for bar, total in zip(bars_, totals, strict=True))
    rows = [
        [bar.label, *(seconds(bar.parts[phase]) if phase in bar.parts else "" for phase in phases), seconds(total)]
        for bar, total in zip(bars_, totals, strict=True)
    ]
    legend = "".join(
        f"<li><svg viewBox='0 0 12 12' class='swatch {_classes(index)}' aria-hidden='true'>"
        f"<path class='segment' d='M0 0h12v12h-12z'/></svg>{text_html(phase)}</li>"
        for index, phase in enumerate(phases)
    )
    return (
        f"<figure><figcaption>{text_html(caption)}</figcaption>"
        f"<svg class='bars' viewBox='0 0 {x.end + 80:g} {height:g}' role='img' "
        f"aria-label='{text_html(f'Device-seconds: {spoken}')}'>{drawn}</svg><ul class='legend'>{legend}</ul>"
        f"<details><summary>Numbers: device-seconds</summary>{table(('stage', *phases, 'all'), rows)}</details>"
        "</figure>"
    )


def _bar(row: int, bar: Bar, phases: Sequence[str], x: _Scale) -> str:
    top, start, drawn = 26.0 * row + 4, 0.0, ""
    for index, phase in enumerate(phases):
        spent = bar.parts.get(phase, 0.0)
        if spent:
            width = x(start + spent) - x(start)
            drawn += (
                f"<path class='segment {_classes(index)}' d='M{x(start):.1f} {top:g}h{width:.1f}v20h-{width:.1f}z'>"
                f"<title>{text_html(f'{bar.label}, {phase}: {seconds(spent)}')}</title></path>"
            )
            start += spent
    return (
        f"<text x='{x.start - 8:g}' y='{top + 15:g}' text-anchor='end'>{text_html(bar.label)}</text>{drawn}"
        f"<text x='{x(start) + 6:.1f}' y='{top + 15:g}'>{seconds(start)}</text>"
    )
